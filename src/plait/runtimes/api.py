# SPDX-License-Identifier: Apache-2.0
"""What a runtime (Docker, CNI, netavark, sandbox) may ask of the agent. Every adapter translates its protocol to these.

All calls are idempotent, none waits for a peer or a quorum (except making or removing a network, which is a write to the
shared store), each returns within seconds or raises a PlaitError whose text is fit for the user of the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address
from typing import Protocol

from plait.model.addr import AddressRange
from plait.model.cluster import Container, Endpoint, Network, PortMapping
from plait.model.errors import NotFound
from plait.model.limits import UNSAID, Limits
from plait.model.requests import NetworkRequest

__all__ = ["AttachRequest", "Health", "NetworkRequest", "Operations", "paired"]


def paired(owner: str) -> str:
    """Who holds the IPv4 address with which the IPv6 address goes that `owner` asked for, if that is not its own."""
    return f"{owner}#6"


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """`endpoint` is the runtime's own id of the attachment and the key of idempotence. `address` None: allocate
    (sticky by (network, name)). `address6` None: on a network with IPv6, what goes with the address. `within`: where an address that is
    allocated is to be from, `within6` the one that the IPv6 address goes with; () = anywhere. `netns` "" = the engine moves the
    peer link itself. `ipv6` False: none for this endpoint, whatever the network has. `limits`: how fast it may be, where the engine says so
    otherwise than by labels."""

    endpoint: str
    network: str
    runtime: str
    container: str
    name: str
    address: IPv4Address | None = None
    mac: str = ""
    aliases: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[PortMapping, ...] = ()
    netns: str = ""
    ifname: str = "eth0"
    default_route: bool = True
    address6: IPv6Address | None = None
    within: tuple[AddressRange, ...] = ()
    within6: tuple[AddressRange, ...] = ()
    ipv6: bool = True
    limits: Limits = UNSAID


class Health(Protocol):
    """The agent's health conditions, as far as runtimes have any."""

    def set(self, code: str, subject: str, text: str) -> None: ...

    def clear(self, code: str, subject: str = "") -> None: ...

    def replace(self, code: str, texts: dict[str, str]) -> None: ...


class Operations(Protocol):
    def networks(self) -> Mapping[str, Network]: ...

    def taken(self) -> Sequence[IPv4Network]:
        """What a pool that is chosen by itself must keep clear of: other pools, and what hosts use for something else."""
        ...

    def check_overlaps(self, subnet: IPv4Network) -> None:
        """ConfigError that names what a host uses addresses of `subnet` for."""
        ...

    async def ensure_network(self, request: NetworkRequest) -> Network:
        """Create, or return the equal existing one. Conflict if it exists with another subnet, ConfigError if it overlaps."""
        ...

    async def remove_network(self, name: str, force: bool = False) -> None:
        """Conflict naming the holders while endpoints exist (any node), unless `force`."""
        ...

    async def reserve(
        self,
        network: str,
        owner: str,
        address: IPv4Address | None = None,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        mac: str = "",
    ) -> IPv4Interface:
        """An address from this node's blocks, held for `owner` (an opaque id: endpoint, MAC …), durable before the answer.
        Same owner asks again: same address. `name` makes it sticky across restarts of the container; it and `labels`
        say what is kept for it; "" and None: not known yet. `mac` is what a DHCP server will know it by, where one gives the addresses
        (LeaseFailed if it does not). A given `address` must be free. The prefix length is that of the
        network's subnet. PoolExhausted names pool, size, holders."""
        ...

    async def reserve6(
        self,
        network: str,
        owner: str,
        address: IPv6Address | None = None,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        mac: str = "",
    ) -> IPv6Address:
        """The IPv6 address of `owner`, which has an IPv4 address (`reserve`): what goes with that, or the one that is asked for, then held
        as well, under `paired(owner)`, if `name` and `labels` may have it; or what a DHCP server gives who has the MAC `mac` (LeaseFailed).
        Idempotent. NotSupported on a network or host without IPv6."""
        ...

    async def release(self, network: str, address: IPv4Address) -> None: ...

    def held(self, owner_prefix: str) -> Mapping[tuple[str, IPv4Address], str]:
        """Owners, by (network, address), of this node's live reservations whose owner starts with `owner_prefix`."""
        ...

    async def attach(self, request: AttachRequest) -> Endpoint:
        """Plumb the endpoint. On return its address is routed on this host and its name resolves on this host."""
        ...

    async def publish(self, endpoint: str, ports: Sequence[PortMapping]) -> tuple[PortMapping, ...]:
        """Publish; host_port 0 picks a free one. PortInUse names the holder. Returns the ports as published."""
        ...

    async def unpublish(self, endpoint: str) -> None: ...

    async def detach(self, endpoint: str) -> None:
        """Remove link, routes, ports, name and (unless reserved apart) the address. Unknown: success."""
        ...

    def endpoints(self, runtime: str) -> Mapping[str, Endpoint]:
        """This node's endpoints of one runtime, keyed by id."""
        ...

    async def report(self, runtime: str, containers: Sequence[Container]) -> None:
        """The full present list of a runtime's containers on this node; the differences are published."""
        ...


def shown_gateway6(network: Network) -> str:
    """The IPv6 gateway as engines show one, which must be of the subnet; "" if it is not, or nobody knows it."""
    gateway, subnet = network.gateway6, network.subnet6
    return str(gateway) if gateway is not None and subnet is not None and gateway in subnet else ""


def network_named(networks: Mapping[str, Network], name: str) -> Network:
    """NotFound if there is none."""
    found = networks.get(name)
    if found is None:
        known = ", ".join(sorted(networks)) or "none yet"
        raise NotFound(f"there is no network {name!r} (known: {known}); create it with `plait network create {name}`")
    return found
