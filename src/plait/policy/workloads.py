# SPDX-License-Identifier: Apache-2.0
"""Who policies are about, from a Snapshot: each attachment of a container to a network is one *workload*.

Endpoints are, under the labels that they were attached with, and containers on Docker's own bridge, which plait does not attach. Left out
are hosts' own addresses in networks (`plait expose`), containers on the host's network, and those that share another one's namespace,
whose labels decide nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from plait.model.addr import IPAddress
from plait.model.cluster import Container, Endpoint, Instance, Protocol, Snapshot
from plait.model.policy import (
    CONTAINER_LABEL,
    DEFAULT_NAMESPACE,
    LAST_PORT,
    NAME_OF_NAMESPACE,
    NAMESPACE_LABEL,
    NETWORK_LABEL,
    POD_NAMESPACE_LABEL,
    PORT_LABEL,
    PROTOCOLS,
    SERVICE_LABEL,
    SERVING,
    Group,
)
from plait.policy.selectors import selects

HOST_RUNTIME = "host"
"""Endpoints of this runtime are addresses of hosts (`plan/exposed.py`)."""
Services = Mapping[IPAddress, Collection[str]]
"""The services of which an address has instances."""
NamedPorts = Mapping[str, tuple[tuple[Protocol, int], ...]]


@dataclass(frozen=True, slots=True)
class Workload:
    """`ident`: the endpoint's id, or ("" on Docker's bridge) nothing; `ports` what its labels call by names."""

    name: str
    node: str
    network: str
    namespace: str
    labels: Mapping[str, str]
    addresses: tuple[IPAddress, ...]
    ident: str = ""
    ports: NamedPorts = field(default_factory=dict)


def workloads(snapshot: Snapshot) -> list[Workload]:
    """All of the cluster, in a fixed order. An address that two claim for a moment is the first one's."""
    services: dict[IPAddress, set[str]] = {}
    for address, name in filter(None, map(served, snapshot.instances.values())):
        services.setdefault(address, set()).add(name)
    found = [one for _, endpoint in sorted(snapshot.endpoints.items()) if (one := workload_of_endpoint(endpoint, services)) is not None]
    taken = {address for one in snapshot.endpoints.values() for address in one.present}
    for _, container in sorted(snapshot.containers.items()):
        found += [one for one in workloads_of_container(container, services) if taken.isdisjoint(one.addresses)]
    return found


def served(instance: Instance) -> tuple[IPAddress, str] | None:
    """The address of an instance, and its service; None if it has none that is written as one."""
    try:
        return ip_address(instance.address), instance.name
    except ValueError:
        return None


def workload_of_endpoint(endpoint: Endpoint, services: Services) -> Workload | None:
    """None for a host's own address."""
    if endpoint.runtime == HOST_RUNTIME:
        return None
    labels = endpoint.labels
    return Workload(
        endpoint.name,
        endpoint.node,
        endpoint.network,
        namespace_of(labels),
        _labels(labels, endpoint.network, endpoint.name, endpoint.present, services),
        endpoint.present,
        endpoint.id,
        named_ports(labels),
    )


def workloads_of_container(container: Container, services: Services) -> Iterator[Workload]:
    """What it is where no endpoint has its addresses: one by address."""
    if container.host_network or container.shares:
        return
    for network, address in sorted(container.addresses.items()):
        yield Workload(
            container.name,
            container.node,
            network,
            namespace_of(container.labels),
            _labels(container.labels, network, container.name, (address,), services),
            (address,),
            ports=named_ports(container.labels),
        )


def _labels(given: Mapping[str, str], network: str, name: str, addresses: Iterable[IPAddress], services: Services) -> dict[str, str]:
    """Those that were given, and those that each workload has by itself."""
    found = {key: value for key, value in given.items() if not key.startswith(SERVICE_LABEL)}
    found |= {f"{SERVICE_LABEL}{service}": SERVING for address in addresses for service in services.get(address, ())}
    return found | {NETWORK_LABEL: network, CONTAINER_LABEL: name}


def namespace_of(labels: Mapping[str, str]) -> str:
    return labels.get(NAMESPACE_LABEL) or labels.get(POD_NAMESPACE_LABEL) or DEFAULT_NAMESPACE


def named_ports(labels: Mapping[str, str]) -> NamedPorts:
    """The ports that labels name, `plait.port.NAME=NUMBER[/PROTOCOL]`, of TCP unless said. What is no port names nothing."""
    found: dict[str, tuple[tuple[Protocol, int], ...]] = {}
    for label, text in labels.items():
        number, _, word = text.partition("/")
        protocol = next((p for p in PROTOCOLS if p == (word or "tcp")), None)
        if label.startswith(PORT_LABEL) and protocol and number.isascii() and number.isdigit() and 0 < int(number[:6]) <= LAST_PORT:
            found[label.removeprefix(PORT_LABEL)] = ((protocol, int(number)),)
    return found


class Namespaces:
    """Labels by namespace; one that nobody gave labels has its name alone."""

    def __init__(self, given: Mapping[str, Mapping[str, str]]) -> None:
        self._given = given

    def labels(self, name: str) -> Mapping[str, str]:
        return {**self._given.get(name, {}), NAME_OF_NAMESPACE: name}

    def has(self, group: Group, workload: Workload) -> bool:
        """Whether `workload` is of the group."""
        if group.namespace:
            return workload.namespace == group.namespace and selects(group.pods, workload.labels)
        return selects(group.namespaces, self.labels(workload.namespace)) and selects(group.pods, workload.labels)


def by_address(found: Iterable[Workload]) -> dict[IPAddress, Workload]:
    known: dict[IPAddress, Workload] = {}
    for workload in found:
        for address in workload.addresses:
            known.setdefault(address, workload)
    return known
