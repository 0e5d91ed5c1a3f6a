# SPDX-License-Identifier: Apache-2.0
"""What the cluster consists of: nodes, networks, blocks, endpoints, containers, service instances.

All values are immutable. They are what the store holds (as JSON, see `store/codec.py`) and what the pure
rooms compute with. A field added later must have a default, so that an older record still decodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

from plait.model.addr import AddressRange, EitherAddress, EitherNetwork, IPAddress, at_port, unique_local
from plait.model.addr import Protocol as Protocol
from plait.model.discovery import CatalogNode, Check
from plait.model.egress import Egress
from plait.model.leases import Leased
from plait.model.limits import Limits
from plait.model.policy import Namespace, Policy
from plait.model.service import Service

_ANY, _ANY6 = IPv4Address("0.0.0.0"), IPv6Address("::")


@dataclass(frozen=True, slots=True)
class TunnelKey:
    """How a node is reached in encrypted networks: its WireGuard public key (base64), the UDP port that it listens on, and `address`, that
    of the host itself inside them (the first of its first block of such a network, None while it holds none). `nat`: nobody can begin to
    talk to it, it is behind address translation; `elsewhere` are the nodes that it hears from another address than they say, ascending.

    The rest is of rotations (`plan/rotation.py`): the key of its spare device ("": there is none), the number of the rotation of its main
    key that is under way (0: none), and the nodes that it sends to by the spare device, each with the number of that node's rotation for
    which it did so."""

    public: str
    port: int
    address: IPv4Address | None = None
    spare: str = ""
    rotating: int = 0
    moved: Mapping[str, int] = field(default_factory=dict)
    nat: bool = False
    elsewhere: tuple[str, ...] = ()


GATEWAY_META = "gateway"
"""Key in the metadata of a node that forwards for hosts without an agent."""


@dataclass(frozen=True, slots=True)
class Node:
    """A host with an agent. Identity is `id` (made once by init/join), never the address.

    `address` is the underlay address that peers send tunnel packets to, of the same family on all nodes; `tunnel` the overlay address of
    the host itself (first address of its first default-network block); `mtu` that of the underlay link, bytes. `wireguard` is None where
    the host cannot encrypt. `ranges`: digest of what it keeps for some containers, "" = nothing. `link6` is the link-local address of the
    link that carries `address`, by which others on that link send it plain packets that are not of IPv4 on an underlay of IPv4; None where
    IPv6 is switched off there. `further`: its other addresses, of both families, that mean it and nobody else wherever they are asked for,
    ascending, IPv4 first."""

    name: str
    id: str
    address: EitherAddress
    mtu: int = 1500
    vtep_mac: str = ""
    tunnel: IPv4Address | None = None
    version: str = ""
    meta: Mapping[str, str] = field(default_factory=dict)
    wireguard: TunnelKey | None = None
    ranges: str = ""
    link6: IPv6Address | None = None
    further: tuple[EitherAddress, ...] = ()

    @property
    def tunnel6(self) -> IPv6Address:
        """The overlay address of the host itself in IPv6. It lies in no network's subnet, so it is there whichever of them have IPv6."""
        return unique_local(self.id.encode())

    @property
    def encrypted6(self) -> IPv6Address:
        """The same in encrypted networks: what is sent there or comes from there is in no other tunnel."""
        return unique_local(b"encrypted:" + self.id.encode())

    @property
    def probe6(self) -> IPv6Address:
        """What it is asked at, and asks from, for whether plain IPv6 passes on the link: no way but that leads there."""
        return unique_local(b"probe:" + self.id.encode())


VXLAN_PORT = 4789
"""UDP port of tunnels unless another is asked for (RFC 7348, section 5)."""


@dataclass(frozen=True, slots=True)
class Network:
    """A network of the cluster. `gateway` is held by every node (anycast, answered locally). `ip_range` is the part of the subnet that
    addresses are handed out from on every node, None for all of it; one that is asked for by itself may lie outside. `excluded`: never
    given to anybody, asked for or not. `vni` and `port` (UDP) are those of its tunnel; networks of one VNI share it.

    `subnet6` and `gateway6` are there both or neither, but that where a DHCP server of the link gives IPv6 addresses (`by_dhcp6`) `subnet6`
    is the link's prefix, if somebody named it, and nothing else is known. Elsewhere IPv6 follows IPv4 address by address (`ipam.dual`):
    what is true of an IPv4 address or block (leased, in use, kept) is true of its image."""

    name: str
    subnet: IPv4Network
    gateway: IPv4Address
    block_prefix: int
    backend: str = "vxlan"
    vni: int = 1
    internal: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    ip_range: IPv4Network | None = None
    port: int = VXLAN_PORT
    subnet6: IPv6Network | None = None
    gateway6: IPv6Address | None = None
    excluded: tuple[AddressRange, ...] = ()

    @property
    def encrypted(self) -> bool:
        """Whether its packets may leave their host in no other form than encrypted."""
        return self.backend == "wireguard"

    @property
    def layer2(self) -> bool:
        """Whether all its containers, on whatever hosts, are on one link."""
        return self.options.get("layer2") == "true"

    @property
    def multicast(self) -> bool:
        """Whether broadcast and multicast go to other hosts."""
        return self.options.get("multicast") == "true"

    @property
    def isolated(self) -> bool:
        """Whether its containers do not reach each other: unless a policy lets them, or (`switched`) at all."""
        return self.options.get("isolated") == "true"

    @property
    def switched(self) -> bool:
        """Whether its containers on one host are ports of one bridge there."""
        return self.layer2 or self.backend == "bridge"

    @property
    def by_dhcp(self) -> bool:
        """Whether a DHCP server on its link gives the addresses; then there are no blocks, and `subnet` is what was found there."""
        return self.options.get("ipam") == "dhcp"

    @property
    def by_dhcp6(self) -> bool:
        """Whether one gives IPv6 addresses too."""
        return self.options.get("ipam6") == "dhcp"

    @property
    def router(self) -> bool:
        """Whether its gateways are a router's on a link of the hosts, not addresses that every host holds."""
        return "parent" in self.options

    @property
    def pool(self) -> IPv4Network:
        """What addresses are handed out from."""
        return self.ip_range or self.subnet


@dataclass(frozen=True, slots=True)
class Reach:
    """Which of the other nodes `node` reaches, as it has probed: `linked` are those on its own link, routers aside, that plain IPv4 comes
    to, `linked6` the same for IPv6; `broken`, by tunnel device, those that it does not reach through that. Who is in none was not found to
    be so yet."""

    node: str
    linked: tuple[str, ...] = ()
    broken: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    linked6: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a network's pool leased to one node. `purpose` "bridge": given whole to the engine's own default
    bridge (its first host address is the bridge); "pool": addresses handed out by the agent."""

    network: str
    cidr: IPv4Network
    node: str
    purpose: Literal["bridge", "pool"] = "pool"


@dataclass(frozen=True, slots=True)
class Assigned:
    """An address that is taken out of what its block's holder hands out: reserved for containers called `name`, or ("") lent to a node that
    holds not the block. `node` has it in use or is about to, "" = nobody. `cleared`: the holder of its block that has promised to give it
    to nobody; until the present holder has, another node may not use it."""

    network: str
    address: IPv4Address
    name: str = ""
    node: str = ""
    cleared: str = ""


@dataclass(frozen=True, slots=True)
class HostRange:
    """Addresses that a host uses outside plait; `what` says how ("route via 192.0.2.1 dev eth0", "Docker network 'x'")."""

    cidr: IPv4Network
    what: str


@dataclass(frozen=True, slots=True)
class HostRanges:
    """Those of one node, the widest first; bounded by who publishes them."""

    node: str
    ranges: tuple[HostRange, ...] = ()


@dataclass(frozen=True, slots=True)
class Ghosts:
    """What the containers of a removed node had, (network, address). They may live on there, so that others get these addresses only when
    nothing else is left. It goes when the node comes back."""

    node: str
    addresses: tuple[tuple[str, IPv4Address], ...] = ()


@dataclass(frozen=True, slots=True)
class PortMapping:
    """One published port: host side to container side. `host_ip` 0.0.0.0 means every address of the host, of both families where the
    container has both; :: every one of IPv6. `told`: by command while the container ran, so that no engine knows of it. `sources`: who but
    the host itself may come by it, () for everybody. `hidden` (NAT): it is the host's only way to the container's port."""

    proto: Protocol
    host_port: int
    container_port: int
    host_ip: EitherAddress = IPv4Address("0.0.0.0")
    told: bool = False
    sources: tuple[EitherNetwork, ...] = ()
    hidden: bool = False


def published_text(port: PortMapping) -> str:
    """How people write it: `127.0.0.1:8080->80/tcp`."""
    return f"{at_port(port.host_ip, port.host_port)}->{port.container_port}/{port.proto}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One attachment of a sandbox to a network. `dev` is the host side of its veth; `netns` the path of the
    sandbox's namespace where the agent itself plumbs it ("" while the engine moves the link). `address6`: on a network with IPv6, the image
    of `address` unless another was asked for. `leased`: what came with the address from a DHCP server. `limits`: what its
    engine asked for beside its labels when it began, if anything."""

    id: str
    network: str
    node: str
    address: IPv4Address
    mac: str
    dev: str
    runtime: str
    container: str = ""
    name: str = ""
    aliases: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[PortMapping, ...] = ()
    netns: str = ""
    ifname: str = "eth0"
    default_route: bool = True
    address6: IPv6Address | None = None
    leased: Leased | None = None
    limits: Limits | None = None

    @property
    def present(self) -> tuple[EitherAddress, ...]:
        """The addresses that it may use now."""
        lost = self.leased is not None and self.leased.lost
        return tuple(one for one in (None if lost else self.address, self.address6) if one is not None)


def clash(one: PortMapping, its: Endpoint, other: PortMapping, others: Endpoint) -> bool:
    """Whether some packet to the host is for both ports, of two endpoints. 0.0.0.0 is every address, of both families for an endpoint that
    has both."""
    return (one.proto, one.host_port) == (other.proto, other.host_port) and any(
        one_of in (other_of, whole) or other_of == whole
        for one_of in _host_addresses(one, its)
        for other_of in _host_addresses(other, others)
        for whole in (_ANY, _ANY6)
        if one_of.version == other_of.version == whole.version
    )


def _host_addresses(port: PortMapping, endpoint: Endpoint) -> tuple[IPAddress, ...]:
    """What host addresses it takes, one of each family."""
    return (_ANY, _ANY6) if port.host_ip == _ANY and endpoint.address6 is not None else (port.host_ip,)


@dataclass(frozen=True, slots=True)
class Container:
    """A container as its engine tells it; `addresses` and `addresses6` keyed by network name ("bridge" becomes "default"). `health` is what
    the engine's own health check of it finds (starting, healthy, unhealthy; "" if it has none), `health_output` what that wrote last.

    `env` holds only those of its variables that describe services (SERVICE_…), `exposed` the ports (number, protocol) that it says to
    listen on. `host_network`: it has no network of its own. `shares`: id of the container in whose network namespace it is ("" = its own):
    it has the addresses of that. `elsewhere`: those that it has on networks of its engine that are none of plait's. `known` False: only its
    labels are known yet, not its env and ports."""

    id: str
    name: str
    node: str
    runtime: str
    state: str = "running"
    image: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    addresses: Mapping[str, IPv4Address] = field(default_factory=dict)
    ports: tuple[PortMapping, ...] = ()
    pid: int = 0
    started: float = 0.0
    health: str = ""
    health_output: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    exposed: tuple[tuple[int, Protocol], ...] = ()
    host_network: bool = False
    known: bool = True
    addresses6: Mapping[str, IPv6Address] = field(default_factory=dict)
    shares: str = ""
    elsewhere: tuple[EitherAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class NamedPort:
    """One of several ports of an instance. `name` is one label of DNS, in whatever case. `default`: it is the instance's `port`."""

    name: str
    port: int
    default: bool = False
    protocol: Protocol = "tcp"


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance of a service as registered at its node's agent (Consul: a service with an id).

    `extra` holds what plait itself makes nothing of but shows as it was given: Kind, Proxy, Locality, SocketPath.
    `tagged_ports` holds the ports of those tagged addresses that have another than the service.
    `container` names the container of the same node that it was registered for without an address: its address follows that
    container, and it is `down` while that container does not run. `runtime`: that of the container which names this service itself, and
    which it comes and goes with; "" if a client registered it. `origin` "catalog": put into the catalogue by whoever, owned by no agent.
    """

    id: str
    name: str
    node: str
    address: str = ""
    port: int = 0
    tags: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict)
    tagged_addresses: Mapping[str, str] = field(default_factory=dict)
    tagged_ports: Mapping[str, int] = field(default_factory=dict)
    enable_tag_override: bool = False
    extra: Mapping[str, object] = field(default_factory=dict)
    weight_passing: int = 1
    weight_warning: int = 1
    container: str = ""
    runtime: str = ""
    down: bool = False
    origin: Literal["agent", "catalog"] = "agent"
    create_index: int = 0
    modify_index: int = 0
    ports: tuple[NamedPort, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The replicated cluster merged with this node's own, newer truth. Immutable; mappings keyed as noted.

    `instances` and `checks` are keyed by (node, id) and hold those of the nodes' agents and what was put into the catalogue (whose node
    may be one of `catalog_nodes`, by name); where both exist under one key, the agent's counts. `answered`: what this node's DNS gave, for
    as long as that counts, for names that rules are for.
    """

    me: str
    revision: int = 0
    nodes: Mapping[str, Node] = field(default_factory=dict)
    alive: frozenset[str] = frozenset()
    networks: Mapping[str, Network] = field(default_factory=dict)
    blocks: Mapping[tuple[str, IPv4Network], Block] = field(default_factory=dict)
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)
    containers: Mapping[tuple[str, str], Container] = field(default_factory=dict)
    instances: Mapping[tuple[str, str], Instance] = field(default_factory=dict)
    checks: Mapping[tuple[str, str], Check] = field(default_factory=dict)
    catalog_nodes: Mapping[str, CatalogNode] = field(default_factory=dict)
    reach: Mapping[str, Reach] = field(default_factory=dict)
    assigned: Mapping[tuple[str, IPv4Address], Assigned] = field(default_factory=dict)
    host_ranges: Mapping[str, HostRanges] = field(default_factory=dict)
    ghosts: Mapping[str, Ghosts] = field(default_factory=dict)
    policies: Mapping[tuple[str, str], Policy] = field(default_factory=dict)
    namespaces: Mapping[str, Namespace] = field(default_factory=dict)
    services: Mapping[tuple[str, str], Service] = field(default_factory=dict)
    egress: Mapping[str, Egress] = field(default_factory=dict)
    answered: Mapping[IPAddress, frozenset[str]] = field(default_factory=dict)
