# SPDX-License-Identifier: Apache-2.0
"""Kernel objects as plait wants them: what a plan consists of.

Each has a `key` (what it is) and compares by value (how it should be). The spelling is that of `ip`, `bridge` and
`nft`. Ownership is visible in the kernel itself: links by the prefix `pl-`, routes by protocol 112, addresses,
neighbours and FDB rows by lying on such a link, nft objects by their table `inet plait`, hook rules by the comment `plait`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Literal

from plait.model.addr import IPAddress, IPInterface, IPNetwork
from plait.model.hostlinks import ChildGuard, ChildLink, Key, PortGuard, SwitchPort, VlanLink
from plait.model.inside import Inside6
from plait.model.nfttext import element_key
from plait.model.routing import Rule
from plait.model.shortcut import Delivery, Shortcut
from plait.model.tc import Classes, IfbLink, PortQueues, Redirect, Tbf
from plait.model.wireguard import AllowedIp, WireguardLink, WireguardPeer

PREFIX = "pl-"
"""Every interface that plait makes starts with this."""
GATEWAY_LINK = f"{PREFIX}gw"
"""The link that carries the addresses of the host itself."""
ROUTE_PROTOCOL = 112
"""rtm_protocol of every route that plait makes (kernel: rtnetlink(7), values from 5 up are for user space)."""
NFT_FAMILY, NFT_TABLE = "inet", "plait"
NFT_FAST_FAMILY = "netdev"
"""Family of the second table of the same name, whose chains see a frame as soon as a device has received it (see `plan/fastpath.py`)."""
HOOK_COMMENT = "plait"
PORT_FLAGS = ("learning", "flood", "mcast_flood", "bcast_flood", "neigh_suppress", "mcast_router")
"""What a bridge's port towards other hosts has on or off, as bridge(8) spells it; `mcast_router` on is 2 there, off 1."""
NO_MAC = "00:00:00:00:00:00"
"""How a VXLAN device's row for all frames without a row of their own is written."""


@dataclass(frozen=True, slots=True)
class VxlanLink:
    """A VXLAN device: learning off, no default destination. `local` is the outer source address; `tx_checksum`: it leaves the checksums of
    what is inside to the devices below (offload); `inherits_tos`: the outer header has the DSCP of the inner one. `master` is the bridge
    whose port it is, "" of none, and `switching` which of `PORT_FLAGS` that port has on."""

    name: str
    vni: int
    port: int
    local: IPAddress
    mac: str
    mtu: int
    up: bool = True
    tx_checksum: bool = True
    inherits_tos: bool = True
    master: str = ""
    switching: frozenset[str] = frozenset()

    @property
    def key(self) -> Key:
        return ("link", self.name)


@dataclass(frozen=True, slots=True)
class BridgeLink:
    """A bridge: the one without ports that carries gateway addresses (every kernel has bridges, not every one dummies), or one whose ports
    are a network's endpoints. A `querier` asks who wants which multicast (IGMP, MLD), and passes it to those alone; one that is not
    passes it to all."""

    name: str
    mac: str
    mtu: int = 1500
    up: bool = True
    querier: bool = False

    @property
    def key(self) -> Key:
        return ("link", self.name)


@dataclass(frozen=True, slots=True)
class EndpointLink:
    """The host side of an endpoint's veth: up, proxy ARP answering at once (proxy_arp=1, proxy_delay=0), `mtu`.

    `netns` names the sandbox's namespace when plait itself plumbs the inside (then `ifname`, `mac`, `address` say how, `through` which
    networks are reached by way of `gateway`, and `inside6` the same for IPv6, None without) and is "" when the container engine moves the
    peer (named `peer`).
    One that is a port of another switch (`SwitchPort`) does not answer ARP (`answers`): nothing there is this host's.
    `master` is the bridge whose port it is, "" of none; an `isolated` port passes nothing to other isolated ones, one in `hairpin` mode
    gives back what it brought (bridge(8)).
    Compared with the kernel are only the facts of the host side: name, MTU, `ready` (up), `answers` and what it is a port of.
    """

    name: str
    mtu: int
    ready: bool = True
    answers: bool = True
    master: str = ""
    isolated: bool = False
    hairpin: bool = False
    peer: str = field(default="", compare=False)
    mac: str = field(default="", compare=False)
    netns: str = field(default="", compare=False)
    ifname: str = field(default="eth0", compare=False)
    address: IPv4Interface | None = field(default=None, compare=False)
    gateway: IPv4Address | None = field(default=None, compare=False)
    through: tuple[IPv4Network, ...] = field(default=(), compare=False)
    inside6: Inside6 | None = field(default=None, compare=False)

    @property
    def key(self) -> Key:
        return ("link", self.name)


@dataclass(frozen=True, slots=True)
class Addr:
    """An address of a link; one of IPv6 is there at once (no duplicate address detection) and brings no route of its prefix."""

    dev: str
    address: IPInterface

    @property
    def key(self) -> Key:
        return ("addr", self.dev, str(self.address))


@dataclass(frozen=True, slots=True)
class Route:
    """`via` with `onlink` set for tunnel next hops. `kind` "blackhole"/"unreachable" has no dev. `src` is the preferred source.
    IPv6 has no scopes, and `metric` 0 is what the kernel takes by itself (1024 there). `table` 0 is `main`."""

    dst: IPNetwork
    dev: str = ""
    via: IPAddress | None = None
    onlink: bool = False
    src: IPAddress | None = None
    mtu: int = 0
    kind: str = "unicast"
    scope: str = "global"
    metric: int = 0
    table: int = 0

    @property
    def key(self) -> Key:
        return ("route", str(self.dst), str(self.metric), *([str(self.table)] if self.table else []))


@dataclass(frozen=True, slots=True)
class InsideRoutes:
    """All routes of ours in the namespace `netns` that are there besides those of the endpoint itself: on its link `ifname`, the other end
    of the host's link `dev`, whatever it is called there by now. Routes that the container made for the same destinations stay."""

    dev: str
    netns: str
    ifname: str
    routes: tuple[Route, ...]

    @property
    def key(self) -> Key:
        return ("inside", self.dev)


@dataclass(frozen=True, slots=True)
class Neigh:
    """A permanent neighbour entry on an owned link."""

    dev: str
    address: IPAddress
    mac: str

    @property
    def key(self) -> Key:
        return ("neigh", self.dev, str(self.address))


@dataclass(frozen=True, slots=True)
class Fdb:
    """A permanent forwarding row of a VXLAN device: frames for `mac` go to the outer address `dst`."""

    dev: str
    mac: str
    dst: IPAddress

    @property
    def key(self) -> Key:
        return ("fdb", self.dev, self.mac)


@dataclass(frozen=True, slots=True)
class BridgeFdb:
    """A static forwarding row of a bridge: frames for `mac` leave by `port` and by no other."""

    bridge: str
    mac: str
    port: str

    @property
    def key(self) -> Key:
        return ("fdb", self.bridge, self.mac)


@dataclass(frozen=True, slots=True)
class Flood:
    """One of the outer addresses that a VXLAN device sends a copy of each frame to which has no row of its own: broadcast and multicast,
    where the bridge passes it nothing else."""

    dev: str
    dst: IPAddress

    @property
    def key(self) -> Key:
        return ("flood", self.dev, str(self.dst))


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A value below /proc/sys/net, path parts joined by "/" (for example "ipv4/ip_forward"). Set, never removed."""

    path: str
    value: str

    @property
    def key(self) -> Key:
        return ("sysctl", self.path)


@dataclass(frozen=True, slots=True)
class NftChain:
    """A chain of an owned table. `hook` is the declaration as nft prints it, or "" for a regular chain
    ("type filter hook forward priority filter; policy accept;"). Rules are written exactly as `nft -s list` prints them."""

    name: str
    rules: tuple[str, ...]
    hook: str = ""
    family: str = NFT_FAMILY

    @property
    def key(self) -> Key:
        return _nft_key("chain", self.name, self.family)


@dataclass(frozen=True, slots=True)
class NftSet:
    """A set ("set") or map ("map") of an owned table. `type` and `flags` as nft prints them; elements in nft's own spelling, for maps
    "key : value". A change of elements alone is applied element by element. `bounds` is what nft prints else of its declaration ("size
    8192"; "limit rate over 1/second counter": each element has a limit and a counter behind its key). With the flag "dynamic" its elements
    are what packets put there, and none of ours: it has none here."""

    name: str
    type: str
    elements: frozenset[str]
    flags: tuple[str, ...] = ()
    kind: str = "set"
    family: str = NFT_FAMILY
    bounds: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return _nft_key(self.kind, self.name, self.family)

    def with_element(self, element: str) -> NftSet:
        """The same with `element`, in a map instead of the one that has its key."""
        key = element_key(element)
        return replace(self, elements=frozenset(e for e in self.elements if element_key(e) != key) | {element})


@dataclass(frozen=True, slots=True)
class NftElement:
    """One element of an owned set or map that exists already: what an attach puts, while the pass after it puts the set. In a map it
    takes the place of the element with its key. Never part of a plan, never listed."""

    of: NftSet
    element: str

    @property
    def key(self) -> Key:
        return ("nft", "element", self.of.name, self.of.family, self.element)


@dataclass(frozen=True, slots=True)
class HookRule:
    """One accept rule in somebody else's documented hook (DOCKER-USER). Wanted only while that chain exists; the kernel
    implementation adds the comment `plait` by which it is found again."""

    family: str
    table: str
    chain: str
    rule: str

    @property
    def key(self) -> Key:
        return ("hook", self.family, self.table, self.chain, self.rule)


def _nft_key(kind: str, name: str, family: str) -> Key:
    return ("nft", kind, name) if family == NFT_FAMILY else ("nft", kind, name, family)


KernelObject = (
    VxlanLink
    | BridgeLink
    | WireguardLink
    | EndpointLink
    | VlanLink
    | ChildLink
    | SwitchPort
    | PortGuard
    | ChildGuard
    | Addr
    | Route
    | Rule
    | InsideRoutes
    | Neigh
    | Fdb
    | BridgeFdb
    | Flood
    | WireguardPeer
    | AllowedIp
    | Sysctl
    | NftChain
    | NftSet
    | NftElement
    | HookRule
    | Shortcut
    | Delivery
    | IfbLink
    | Tbf
    | PortQueues
    | Classes
    | Redirect
)


@dataclass(frozen=True, slots=True)
class Op:
    """Make `new` true ("put": create or replace, idempotent) or remove `old` ("del": absent is success).

    `old` is what the kernel holds now (None: nothing), so that a set can be updated by its elements alone.
    """

    verb: Literal["put", "del"]
    new: KernelObject | None
    old: KernelObject | None = None

    @property
    def subject(self) -> KernelObject:
        """The object that the operation is about: the new one, else the old one."""
        found = self.new if self.new is not None else self.old
        assert found is not None
        return found

    @property
    def key(self) -> Key:
        return self.subject.key


Plan = dict[Key, KernelObject]
"""Insertion order carries no meaning; `reconcile.order` decides what comes first."""
