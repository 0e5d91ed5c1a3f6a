# SPDX-License-Identifier: Apache-2.0
"""The backend seam: what a way of carrying packets between nodes must tell. No I/O, no state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Protocol

from plait.model.cluster import Endpoint, Network, Node
from plait.model.errors import ConfigError
from plait.model.objects import PREFIX, KernelObject
from plait.model.spoofing import OPTION as SPOOFING

MODELS = {
    "sandbox": "isolated containers on one host",
    "overlay": "one network over all hosts, whatever lies between them",
    "hybrid": "plain routes between hosts that share a link",
}
"""What a network can promise; a backend says how it is kept."""


DIRECT = "direct"
"""The kind of path that needs no tunnel: the other node is the next hop on this node's own link. The other kinds are called like the
backend whose tunnel they go through."""
BOTH = (4, 6)
"""The IP versions that a tunnel carries."""
LEAST_MTU6 = 1280
"""Bytes that a link must carry to have IPv6 (RFC 8200, section 5); on one with less the kernel refuses every address, and no sender ever
makes its packets smaller."""
LAST_METRIC = 4278198272
"""Metric of routes that are taken when there is no other: of unreachable ones, which keep traffic from leaving by the default route, and
of those that lead nowhere as far as is known. The value is the one routing daemons use for "worst"."""


@dataclass(frozen=True, slots=True)
class Path:
    """How packets leave this node for another one. `kind` is that of the first step, `relay` the node which that leads to if it is not the
    other one itself. `works` False: nothing that was probed does, and this is what was wanted. `why` is for people. `families` are the IP
    versions that take it; the network may have one that no way leads there for."""

    kind: str
    why: str = field(compare=False)
    relay: Node | None = None
    works: bool = True
    families: tuple[int, ...] = BOTH


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node, the blocks of the network at hand that are routed to it (a single address where it has one of another node's block in
    use), ascending, by which path (None: by none), and how large a packet from inside may be on that, bytes (0: as large as the network's
    own MTU). `blocks6` are the images of the blocks, where the network has IPv6. `alive`: it gives
    signs of life. `endpoints` are those of the network there, by id, where the network is one link over all hosts."""

    node: Node
    blocks: tuple[IPv4Network, ...]
    path: Path | None
    mtu: int = 0
    blocks6: tuple[IPv6Network, ...] = ()
    alive: bool = True
    endpoints: tuple[Endpoint, ...] = ()

    @property
    def mtu6(self) -> int:
        """`mtu` for IPv6, which never goes below `LEAST_MTU6`."""
        return max(self.mtu, LEAST_MTU6) if self.mtu else 0

    @property
    def hop(self) -> Node:
        """The node which the first step leads to."""
        return self.path.relay if self.path is not None and self.path.relay is not None else self.node


def outer_growth(me: Node, overhead: int) -> int:
    """Bytes that each packet grows by on this node's underlay, `overhead` being those on one of IPv4 (0: nothing is wrapped)."""
    return overhead + 20 if overhead and me.address.version == 6 else overhead


class Backend(Protocol):
    @property
    def model(self) -> str:
        """What a network of this backend promises, one of `MODELS`."""
        ...

    @property
    def name(self) -> str:
        """The value of `--backend`, and the name of the file."""
        ...

    @property
    def ways(self) -> tuple[str, ...]:
        """Kinds of path between two nodes that a network of this backend may use, the preferred one first: `DIRECT`, and the name of the
        backend whose tunnel `plan` makes. None: its containers reach their own host's only."""
        ...

    @property
    def options(self) -> frozenset[str]:
        """What a network of this backend can be given besides model and backend, of `settings.OPTIONS`."""
        ...

    def needs(self) -> frozenset[str]:
        """Kernel capabilities without which the backend cannot work."""
        ...

    def overhead(self) -> int:
        """Bytes by which containers' packets must be smaller than those of an underlay of IPv4; `outer_growth` adds what one of IPv6 takes
        more. The only source of MTU arithmetic."""
        ...

    @property
    def unit(self) -> int:
        """What it wraps is padded to a multiple of so many bytes, but never beyond the device's own MTU; 1: not at all."""
        ...

    def device(self, network: Network) -> str:
        """What leads into this node's tunnel for the network, its device or the bridge whose port that is; "" if it has none."""
        ...

    def bridge(self, network: Network) -> str:
        """The bridge of this node whose ports the network's endpoints are, "" if each of them is routed by itself."""
        ...

    def plan(self, me: Node, network: Network, peers: Sequence[Peer]) -> list[KernelObject]:
        """All kernel objects of the tunnel for this network between this node and `peers`, whatever their paths (what is not used is probed
        through it), and routes for those whose path goes through it; several networks may share some. Direct routes are the plan's."""
        ...


class NoTunnel:
    """What the backends without a tunnel have in common."""

    options: frozenset[str] = frozenset()
    unit = 1

    def needs(self) -> frozenset[str]:
        return frozenset({"veth", "nft"})

    def overhead(self) -> int:
        return 0

    def device(self, network: Network) -> str:
        return ""

    def bridge(self, network: Network) -> str:
        return ""

    def plan(self, me: Node, network: Network, peers: Sequence[Peer]) -> list[KernelObject]:
        return []


@dataclass(frozen=True, slots=True)
class Child:
    """What each endpoint of a network is that lies on a link of the host: a link of `kind` ("macvlan", "ipvlan") and `mode` on the link
    `parent`, or ("veth") a port in VLAN `tag` of the Open vSwitch bridge `parent`. `gateway`: whether it asks the router for its way by
    ARP; else whatever leaves it goes straight to the parent."""

    parent: str
    kind: str
    mode: str
    gateway: bool = True
    tag: int = 0


class OnHostLink(NoTunnel):
    """What the backends have in common whose endpoints lie on a link of the host, by the option `parent`: they are neighbours of whatever
    else is on it, the network's gateway is that link's router, and this host neither routes, filters nor translates what they send. With
    `dns=false` they are not told plait's resolver, with `ipam=dhcp` a server on the link gives their addresses.

    The first of `modes` is the one that is taken where none is asked for; `own_mac`: an endpoint has a MAC of its own.
    """

    model = "sandbox"
    ways: tuple[str, ...] = ()
    options = frozenset({"parent", "mode", "dns", SPOOFING})
    kind = "macvlan"
    modes: tuple[str, ...] = ()
    own_mac = True

    def needs(self) -> frozenset[str]:
        return frozenset({self.kind})

    def needs_of(self, network: Network) -> frozenset[str]:
        """Of `needs`, what this network cannot do without."""
        return self.needs()

    def child(self, network: Network) -> Child:
        return Child(network.options["parent"], self.kind, network.options.get("mode", self.modes[0]))

    def check(self, options: Mapping[str, str]) -> None:
        """ConfigError for what cannot be meant."""
        parent, mode = options.get("parent", ""), options.get("mode", self.modes[0])
        check_link("parent", parent, "name the link that the containers shall be on: -o parent=eth1")
        if options.get("dns", "true") not in ("true", "false"):
            raise ConfigError("dns", options["dns"], "is not possible", "true, or false for containers that listen on port 53 themselves")
        if options.get("ipam", "pool") not in ("pool", "dhcp"):
            raise ConfigError(
                "ipam", options["ipam"], "is not possible", "pool (plait gives the addresses), or dhcp (a server on the link)"
            )
        if options.get("ipam6", "dhcp") != "dhcp" or ("ipam6" in options and options.get("ipam") != "dhcp"):
            raise ConfigError("ipam6", options["ipam6"], "is not possible", "dhcp, with ipam=dhcp; or leave it out")
        if mode not in self.modes:
            raise ConfigError("mode", mode, f"is no mode of {self.kind} here", f"use one of {', '.join(self.modes)}")


_LONGEST_NAME = 15
"""Characters of a link's name (IFNAMSIZ, include/uapi/linux/if.h, less its final zero)."""


def check_link(option: str, name: str, hint: str) -> None:
    """ConfigError if no link of a host can be called so, or only one of plait's."""
    if not 0 < len(name) <= _LONGEST_NAME or name.startswith(PREFIX) or any(c in "/:%" or c.isspace() for c in name):
        raise ConfigError(option, name, "is no link of a host", hint)
