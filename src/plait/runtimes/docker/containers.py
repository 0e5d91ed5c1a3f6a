# SPDX-License-Identifier: Apache-2.0
"""The engine's words about containers -> `model.cluster.Container`. Pure.

The list says almost everything; the pid and the time of start stand only in the inspection, which may be missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from ipaddress import IPv4Address, ip_address

from plait.model.addr import IPAddress
from plait.model.cluster import Container, Endpoint, PortMapping, Protocol
from plait.model.discovery import OUTPUT_MAX
from plait.runtimes.docker.enginetypes import ContainerConfig, ContainerDetails, ContainerRow, ListedPort

RUNTIME = "docker"
BRIDGE = "bridge"
SHARED = "container:"
SERVICE_PREFIX = "SERVICE_"
ALIVE = frozenset({"running", "paused"})
_PROTOCOLS: Mapping[str, Protocol] = {"tcp": "tcp", "udp": "udp", "sctp": "sctp"}


def container_of(
    row: ContainerRow,
    details: ContainerDetails | None,
    node: str,
    bridge: str,
    endpoints: Mapping[str, Endpoint],
    config: ContainerConfig | None = None,
) -> Container:
    """The container as the cluster sees it. Addresses: of the engine's default bridge under the name `bridge`, and of `endpoints` (by
    EndpointID) under their networks; networks that are only this host's are left out. `started` is 0 while nobody knows it; `config` None:
    it has not been inspected yet."""
    alive = row.state in ALIVE
    joined = [endpoints[s.endpoint_id] for s in row.networks.values() if s.endpoint_id in endpoints]
    addresses = {endpoint.network: endpoint.address for endpoint in joined}
    own = row.networks.get(BRIDGE)
    if alive and own is not None and (address := _address(own.ip_address)) is not None:
        addresses[bridge] = address
    ports = {*listed_ports(row.ports or []), *(port for endpoint in joined for port in endpoint.ports)}
    return Container(
        id=row.id,
        name=row.name or row.id[:12],
        node=node,
        runtime=RUNTIME,
        state=row.state,
        image=row.image,
        labels=row.labels or {},
        addresses=dict(sorted(addresses.items())),
        ports=tuple(sorted(ports, key=lambda p: (p.host_port, p.proto, str(p.host_ip), p.container_port))),
        pid=details.state.pid if alive and details is not None else 0,
        started=seconds(details.state.started_at) if details is not None else 0.0,
        health=row.health,
        health_output=health_output(row, details),
        env=service_env(config.env or []) if config is not None else {},
        exposed=exposed_ports(config.exposed_ports or {}) if config is not None else (),
        host_network=row.host_config.network_mode == "host",
        known=config is not None and (details is not None or not alive),
        addresses6={e.network: e.address6 for e in sorted(joined, key=lambda e: e.network) if e.address6 is not None},
        shares=row.host_config.network_mode.removeprefix(SHARED) if row.host_config.network_mode.startswith(SHARED) else "",
        elsewhere=_elsewhere(row, endpoints) if alive else (),
    )


def _elsewhere(row: ContainerRow, endpoints: Mapping[str, Endpoint]) -> tuple[IPAddress, ...]:
    """Its addresses on other networks than those of `endpoints`, but that of IPv4 on the engine's default bridge; ascending."""
    others = [(name, settings) for name, settings in row.networks.items() if settings.endpoint_id not in endpoints]
    texts = [s.ip_address for name, s in others if name != BRIDGE] + [s.ip6_address for _, s in others]
    found = (address for text in texts if (address := _either(text)) is not None)
    return tuple(sorted(found, key=lambda address: (address.version, address)))


def with_shared(containers: Iterable[Container]) -> list[Container]:
    """Those that are in the network namespace of another one (`--network container:X`) with the addresses of that."""
    found = list(containers)
    owners = {container.id: container for container in found if container.state in ALIVE}
    return [_with(c, owners.get(c.shares)) if c.shares and c.state in ALIVE else c for c in found]


def _with(container: Container, owner: Container | None) -> Container:
    return replace(container, addresses=owner.addresses if owner else {}, addresses6=owner.addresses6 if owner else {})


def service_env(lines: Iterable[str]) -> dict[str, str]:
    """Those variables that describe services. The others may be secrets, and nobody else's business."""
    pairs = (line.partition("=") for line in lines if line.startswith(SERVICE_PREFIX))
    return {key: value for key, _, value in sorted(pairs)}


def exposed_ports(keys: Iterable[str]) -> tuple[tuple[int, Protocol], ...]:
    """`80/tcp` -> (80, "tcp"), sorted; ranges of ports and unknown protocols are left out."""
    parts = (key.partition("/") for key in keys)
    found = {(int(port), _PROTOCOLS[proto or "tcp"]) for port, _, proto in parts if port.isdecimal() and (proto or "tcp") in _PROTOCOLS}
    return tuple(sorted(found))


def health_output(row: ContainerRow, details: ContainerDetails | None) -> str:
    """What the container's HEALTHCHECK wrote last, as far as the inspection is of the state that the list tells."""
    health = details.state.health if details is not None else None
    if health is None or health.status != row.health or not health.log:
        return ""
    return health.log[-1].output.strip()[:OUTPUT_MAX]


def listed_ports(rows: Iterable[ListedPort]) -> set[PortMapping]:
    """What the engine publishes itself, on IPv4 addresses."""
    found: set[PortMapping] = set()
    for row in rows:
        address = _address(row.ip or "0.0.0.0")
        if row.public_port and address is not None and row.type in _PROTOCOLS:
            found.add(PortMapping(_PROTOCOLS[row.type], row.public_port, row.private_port, address))
    return found


def seconds(text: str) -> float:
    """Go's time with up to nine decimals -> seconds of the epoch; 0 for the zero time and for what is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return 0.0
    return moment.timestamp() if moment.year > 1 else 0.0


def _address(text: str) -> IPv4Address | None:
    found = _either(text)
    return found if isinstance(found, IPv4Address) else None


def _either(text: str) -> IPAddress | None:
    try:
        return ip_address(text)
    except ValueError:
        return None
