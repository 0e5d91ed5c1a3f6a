# SPDX-License-Identifier: Apache-2.0
"""By which hosts containers leave for the outside, and under which address: egress rules of the snapshot. Pure.

A container's host marks what it sends to the outside, each rule with a mark of its own, and the mark leads to a table whose only route goes
through the tunnel to the gateway; without a gateway, nowhere. (The tunnel's own packets keep the mark, and are told by their source.) The
gateway gives the packets the rule's address. Only what containers begin is marked: the answers of published ports go back where their
clients are. A host that is a gateway of the rule itself marks nothing, so no packet can go from one gateway to another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network

from plait.backends import Peer, backend_of, has_tunnel
from plait.model.cluster import Network, Node, Reach, Snapshot
from plait.model.egress import Egress
from plait.model.objects import KernelObject, NftChain, NftSet, Route
from plait.model.routing import RULE_PRIORITY, Rule
from plait.model.service import VIP_POOL
from plait.plan.beyond import Beyond
from plait.policy.workloads import workloads

EVERYWHERE = IPv4Network("0.0.0.0/0")
_FORWARD = 'meta mark @egress_away oifname != "pl-*" drop'
"""Whatever becomes of the rules of routing, nothing that is marked leaves here."""
_UNKNOWN = 'iifname "pl-x*" oifname != "pl-*" ip saddr @pools ip daddr != @pools drop'
"""What another host sends out here, though this one does not know (yet) under which address, has to wait: the next try finds it known. (A
kernel before 5.7 does not tell there where a packet came from, and it leaves under the host's own address.)"""
_WHOLE, _SINGLE = "nets", "hosts"
"""Rules for whole networks, and for single containers, which go before."""
_MARKING = f"ip daddr != @pools ip daddr != {VIP_POOL} ct direction original meta mark set ip saddr map @egress_{{}}"


def ungated(network: Network | None) -> str:
    """Why a network cannot have a gateway, "" if it can."""
    if network is None:
        return "there is no such network"
    if network.internal:
        return "it is internal, and nothing of it goes out"
    if network.encrypted:
        return "it is encrypted, and nothing of it may leave its tunnel"
    backend = backend_of(network)
    return "" if has_tunnel(backend) and not network.layer2 else f"backend {backend.name} has no routed tunnel; vxlan and hybrid have one"


def chosen(snapshot: Snapshot, egress: Egress, network: Network) -> str:
    """The gateway by which this node sends, "" if there is none: the first one that lives and, as far as was probed, is reached through the
    tunnel. A gateway sends by itself."""
    named = [gateway.node for gateway in egress.gateways if gateway.node in snapshot.nodes]
    if snapshot.me in named:
        return snapshot.me
    broken = snapshot.reach.get(snapshot.me, Reach(snapshot.me)).broken.get(backend_of(network).device(network), ())
    return next((node for node in named if node in snapshot.alive and node not in broken), "")


def seen_as(node: Node, egress: Egress) -> str:
    """The address that the outside sees of what leaves by `node`, one of its gateways."""
    told = next(gateway.address for gateway in egress.gateways if gateway.node == node.name)
    return str(told if told is not None else node.address)


def sources(snapshot: Snapshot, egress: Egress) -> tuple[IPv4Address, ...]:
    """Addresses of the containers that its selector finds, on all hosts."""
    wanted = egress.selector.items()
    found = (one for one in workloads(snapshot) if one.network == egress.network and wanted <= one.labels.items())
    return tuple(sorted(a for one in found for a in one.addresses if isinstance(a, IPv4Address)))


def egress_objects(snapshot: Snapshot, networks: Mapping[str, Network], peers: Mapping[str, Sequence[Peer]]) -> Beyond:
    """Nothing without rules. `peers` by network."""
    rules = [egress for _, egress in sorted(snapshot.egress.items()) if not ungated(networks.get(egress.network))]
    if not rules:
        return Beyond()
    marks: dict[str, dict[str, str]] = {_WHOLE: {}, _SINGLE: {}}
    seen: dict[str, dict[str, str]] = {_WHOLE: {}, _SINGLE: {}}
    away: set[str] = set()
    objects: list[KernelObject] = []
    for egress in rules:
        network = networks[egress.network]
        kind, found = (_SINGLE, map(str, sources(snapshot, egress))) if egress.selector else (_WHOLE, iter([str(network.subnet)]))
        by = chosen(snapshot, egress, network)
        if by == snapshot.me:
            _first(seen[kind], found, seen_as(snapshot.nodes[by], egress))
            continue
        away.add(_mark(egress))
        _first(marks[kind], found, _mark(egress))
        objects += [Rule(RULE_PRIORITY - 1, network.subnet, egress.number, mark=egress.number), _way(snapshot, network, egress, by, peers)]
    return _beyond(objects, marks, seen, away)


def _first(held: dict[str, str], keys: Iterable[str], value: str) -> None:
    """Of several rules the first by name counts."""
    for key in keys:
        held.setdefault(key, value)


def _mark(egress: Egress) -> str:
    return f"0x{egress.number:08x}"


def _way(snapshot: Snapshot, network: Network, egress: Egress, by: str, peers: Mapping[str, Sequence[Peer]]) -> Route:
    gateway, me = snapshot.nodes.get(by), snapshot.nodes[snapshot.me]
    if gateway is None or gateway.tunnel is None or me.tunnel is None:
        return Route(EVERYWHERE, kind="unreachable", table=egress.number)
    mtu = next((peer.mtu for peer in peers[network.name] if peer.node.name == by), 0)
    dev = backend_of(network).device(network)
    return Route(EVERYWHERE, dev, via=gateway.tunnel, onlink=True, src=me.tunnel, mtu=mtu, table=egress.number)


def _beyond(
    objects: list[KernelObject], marks: Mapping[str, Mapping[str, str]], seen: Mapping[str, Mapping[str, str]], away: set[str]
) -> Beyond:
    """Sets and maps are there whatever is in them, so that a change of gateways is one of elements."""
    for kind, flags in ((_WHOLE, ("interval",)), (_SINGLE, ())):
        for name, held, value in ((f"egress_{kind}", marks[kind], "mark"), (f"egress_{kind}_seen", seen[kind], "ipv4_addr")):
            elements = frozenset(f"{key} : {what}" for key, what in held.items())
            objects.append(NftSet(name, f"ipv4_addr : {value}", elements, flags, "map"))
    objects.append(NftSet("egress_away", "mark", frozenset(away)))
    marking = tuple(_MARKING.format(kind) for kind in (_WHOLE, _SINGLE))
    objects.append(NftChain("egress", marking, "type filter hook prerouting priority dstnat + 1; policy accept;"))
    leaving = (f'oifname != "pl-*" ip daddr != @pools snat ip to ip saddr map @egress_{kind}_seen' for kind in (_SINGLE, _WHOLE))
    return Beyond(tuple(objects), (_FORWARD,), (*leaving, _UNKNOWN))
