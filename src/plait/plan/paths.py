# SPDX-License-Identifier: Apache-2.0
"""By which path each other node is reached: chosen for every pair from what all nodes found out by probing. Pure.

Data in: the snapshot, with each node's `Reach`; a network. Data out: a `Path` per node. A node is on the same link if both ends say so,
for the packets of both must pass; through a tunnel it is reached until this end has found that it is not. A tunnel carries IPv4 and IPv6
alike, a link perhaps one of them: a network with both takes the way that both can take, and parts them only where there is none.

Where nothing leads there, a third node that both of these are reached by relays: exactly one, so that no packet can go in circles
(`firewall.relay_objects` holds even while nodes disagree). Both ends choose the same one, and different pairs different ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv6Interface, IPv6Network

from plait.backends import BACKENDS, BOTH, DIRECT, Path, Peer, backend_of, outer_growth
from plait.model.addr import IPAddress
from plait.model.cluster import Endpoint, Network, Node, Reach, Snapshot
from plait.model.objects import GATEWAY_LINK, Addr, KernelObject, Route
from plait.plan.dual import opened

ON_LINK = "both are on one link"
AS_WANTED = "the tunnel is what the backend wants"
NOT_LINKED = "they share no link"
NOTHING = "nothing reaches it"
SWITCHED = "frames go through the tunnel alone"


def choose(snapshot: Snapshot, network: Network) -> dict[str, Path | None]:
    """The path to each other node for the packets of `network`; None where there is no way at all for this backend."""
    chooser = _Chooser(snapshot, network)
    return {name: chooser.path(node) for name, node in snapshot.nodes.items() if name != snapshot.me}


def inhabited(snapshot: Snapshot, strays: Iterable[Endpoint] = ()) -> frozenset[str]:
    """The networks that somebody has addresses of: a block, or one of `strays` (`ipam.stray_endpoints`). In others nobody is to be reached,
    so that one more costs a host the same whatever the number of hosts. Encrypted ones share a tunnel, which stands before it is used."""
    named = {block.network for block in snapshot.blocks.values()} | {stray.network for stray in strays}
    return frozenset(name for name, network in snapshot.networks.items() if name in named or network.encrypted)


def tunnel_devices(networks: Iterable[Network]) -> frozenset[str]:
    """The tunnel devices of all of `networks` that only an echo between tunnel addresses can judge: an encrypted one knows by itself."""
    return frozenset(backend_of(network).device(network) for network in networks if not network.encrypted) - {""}


def path_mtu(me: Node, node: Node, measured: Mapping[str, int]) -> int:
    """How large a packet the underlay carries from this node to `node`, bytes: the least of both ends' links and what was measured."""
    return min(me.mtu, node.mtu, measured.get(node.name, me.mtu))


def member(snapshot: Snapshot, network: Network) -> Node:
    """This node as `network` has it. Containers on one link over all hosts have one MTU, what the narrowest host has room for: on a link
    nobody tells who sends too long a frame."""
    me = snapshot.nodes[snapshot.me]
    return replace(me, mtu=min(node.mtu for node in snapshot.nodes.values())) if network.layer2 else me


def network_mtu(me: Node, network: Network) -> int:
    """MTU inside the containers of `network` on this node: the underlay's minus what the backend adds, bytes."""
    return me.mtu - outer_growth(me, backend_of(network).overhead())


def inner_mtu(me: Node, node: Node, network: Network, path: Path | None, measured: Mapping[str, int]) -> int:
    """How large a packet of `network` may be inside on its way to `node`, bytes. Beyond a relay, the far end's link is what is known."""
    if path is None:
        return network_mtu(me, network)
    carried, backend, whole = path_mtu(me, path.relay or node, measured), BACKENDS[path.kind], network_mtu(me, network)
    found = min(carried, node.mtu) - outer_growth(me, backend.overhead())
    return whole if found >= whole else found - found % backend.unit


def next_hop(me: Node, node: Node) -> IPAddress | None:
    """Where plain packets of IPv4 for containers of `node` are sent to on the link: its address; on an underlay of IPv6 that of the link
    (RTA_VIA, since Linux 5.2). None if there is no such way."""
    if me.address.version != node.address.version:
        return None
    return node.address if node.address.version == 4 else next_hop6(me, node)


def next_hop6(me: Node, node: Node) -> IPAddress | None:
    """The same for IPv6: always the address of the link, so that the underlay's own family does not matter."""
    return node.link6 if me.link6 not in (None, node.link6) else None


def plain6(me: Node, networks: Iterable[Network]) -> bool:
    """Whether it matters if plain IPv6 passes on the link: for containers' packets, or to find the next hop of those of IPv4."""
    return any(DIRECT in backend_of(n).ways and (n.subnet6 is not None or me.address.version == 6) for n in networks)


def direct_routes(me: Node, network: Network, dev: str, peers: Iterable[Peer]) -> list[Route]:
    """To the blocks of those whose first step is on the link `dev`; none while no link carries this host's address ("")."""
    routes: list[Route] = []
    for peer in peers:
        if not dev or peer.path is None or peer.path.kind != DIRECT:
            continue
        hop, hop6 = next_hop(me, peer.hop), next_hop6(me, peer.hop)
        if hop is not None and 4 in peer.path.families:
            routes += [Route(block, dev, via=hop, onlink=True, src=me.tunnel, mtu=peer.mtu) for block in peer.blocks]
        if network.subnet6 is not None and hop6 is not None and 6 in peer.path.families:
            blocks6 = (IPv6Network(peer.node.tunnel6), *peer.blocks6)
            routes += [Route(block, dev, via=hop6, src=me.tunnel6, mtu=peer.mtu6) for block in blocks6]
    return routes


def probe_objects(me: Node, dev: str, networks: Iterable[Network], nodes: Iterable[Node]) -> list[KernelObject]:
    """What it takes to ask the other `nodes` whether plain IPv6 passes on the link `dev`: an address that is as foreign to it as those of
    containers, and a route to theirs that leads nowhere else."""
    if not dev or me.link6 is None or not plain6(me, networks):
        return []
    hops = [(node, next_hop6(me, node)) for node in nodes if node.name != me.name]
    routes = [Route(IPv6Network(node.probe6), dev, via=hop, src=me.probe6) for node, hop in hops if hop is not None]
    return [*opened(GATEWAY_LINK), Addr(GATEWAY_LINK, IPv6Interface(me.probe6)), *routes]


class _Chooser:
    """For one backend's ways, one tunnel device and the network's families. What is `switched` is never relayed: that takes a router."""

    def __init__(self, snapshot: Snapshot, network: Network) -> None:
        backend = backend_of(network)
        self._snapshot, self._ways, self._device = snapshot, backend.ways, backend.device(network)
        self._switched = bool(backend.bridge(network))
        self._families = BOTH if network.subnet6 is not None else BOTH[:1]

    def path(self, node: Node) -> Path | None:
        me = self._snapshot.me
        kind = self._first(me, node.name)
        if kind:
            return Path(kind, self._why(kind, node.name))
        relay = None if self._switched else self._relay(node.name)
        if relay is not None:
            first = self._first(me, relay.name)
            return Path(first, f"{self._trouble()}; {relay.name} reaches it", relay)
        plain = self._plain(me, node.name) if DIRECT in self._ways else ()
        if plain:
            return Path(DIRECT, f"{ON_LINK}, where {self._missing(plain)} does not pass", families=plain)
        tunnels = [way for way in self._ways if way != DIRECT]
        return Path(tunnels[0], NOTHING, works=False) if tunnels else None

    def _first(self, here: str, there: str) -> str:
        """The kind of path by which `here` reaches `there` without anybody's help, "" if there is none."""
        return next((way for way in self._ways if self._works(way, here, there)), "")

    def _works(self, way: str, here: str, there: str) -> bool:
        if way == DIRECT:
            return self._plain(here, there) == self._families
        return there not in self._of(here).broken.get(self._device, ())

    def _plain(self, here: str, there: str) -> tuple[int, ...]:
        """Those of the network's families that pass between two nodes on their own link. Over an underlay of IPv6 that takes IPv6."""
        heard, needed = self._heard(here, there), BOTH[1:] if self._snapshot.nodes[here].address.version == 6 else ()
        return tuple(family for family in self._families if {family, *needed} <= set(heard))

    def _heard(self, here: str, there: str) -> tuple[int, ...]:
        """The IP versions whose probes pass there, both ways."""
        ends = self._snapshot.nodes[here], self._snapshot.nodes[there]
        one, other = self._of(here), self._of(there)
        four = next_hop(*ends) is not None and there in one.linked and here in other.linked
        six = next_hop6(*ends) is not None and there in one.linked6 and here in other.linked6
        return BOTH[:1] * four + BOTH[1:] * six

    def _missing(self, plain: Iterable[int]) -> str:
        return " and ".join(f"IPv{family}" for family in self._families if family not in plain)

    def _of(self, name: str) -> Reach:
        return self._snapshot.reach.get(name) or Reach(name)

    def _relay(self, name: str) -> Node | None:
        me = self._snapshot.me
        others = (self._snapshot.nodes[n] for n in self._snapshot.alive & self._snapshot.nodes.keys() - {me, name})
        fit = [node for node in others if self._first(me, node.name) and self._first(node.name, name)]
        pair = " ".join(sorted((me, name)))
        return min(fit, key=lambda node: hashlib.sha256(f"{pair} {node.name}".encode()).digest(), default=None)

    def _why(self, kind: str, node: str) -> str:
        if kind == self._ways[0]:
            return ON_LINK if kind == DIRECT else SWITCHED if self._switched else AS_WANTED
        if kind == DIRECT:
            return f"{self._trouble()}; {ON_LINK}"
        heard = self._heard(self._snapshot.me, node)
        return f"{self._missing(heard) or 'IPv6'} does not pass on their link" if heard else NOT_LINKED

    def _trouble(self) -> str:
        return f"nothing comes through the tunnel {self._device}" if self._device else NOT_LINKED
