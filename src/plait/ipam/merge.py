# SPDX-License-Identifier: Apache-2.0
"""Two clusters that grew apart: everything that both use and that cannot stay so if they become one.

Pure and exact: what is not listed fits together. Hosts that are in both (by id) conflict with nothing of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

from plait.ipam.dual import held_by
from plait.model.cluster import Assigned, Block, Container, Endpoint, HostRanges, Network, Node, Snapshot

VERSION = 1


@dataclass(frozen=True, slots=True)
class ClusterExport:
    """What of a cluster may conflict with another one."""

    version: int
    nodes: tuple[Node, ...] = ()
    networks: tuple[Network, ...] = ()
    blocks: tuple[Block, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    assigned: tuple[Assigned, ...] = ()
    host_ranges: tuple[HostRanges, ...] = ()
    containers: tuple[Container, ...] = ()
    """Names and addresses only, and only of those that have any."""


@dataclass(frozen=True, slots=True)
class Clash:
    """One conflict: `here` and `there` are the two sides, `todo` is what would end it. One that does not stop the two from becoming one is
    settled by that: `todo` says how."""

    kind: str
    here: str
    there: str
    todo: str
    stops: bool = True


def export(snapshot: Snapshot) -> ClusterExport:
    """In a fixed order, so that equal clusters give equal exports."""
    return ClusterExport(
        VERSION,
        tuple(sorted(snapshot.nodes.values(), key=lambda n: n.name)),
        tuple(sorted(snapshot.networks.values(), key=lambda n: n.name)),
        tuple(sorted(snapshot.blocks.values(), key=lambda b: (b.network, b.cidr))),
        tuple(sorted(snapshot.endpoints.values(), key=lambda e: e.id)),
        tuple(sorted(snapshot.assigned.values(), key=lambda a: (a.network, a.address))),
        tuple(sorted(snapshot.host_ranges.values(), key=lambda h: h.node)),
        tuple(sorted((_bare(c) for c in snapshot.containers.values() if c.addresses), key=lambda c: (c.node, c.id))),
    )


def _bare(container: Container) -> Container:
    return Container(container.id, container.name, container.node, container.runtime, addresses=container.addresses)


def conflicts(here: ClusterExport, there: ClusterExport) -> list[Clash]:
    """All of them, by kind: nodes, networks, blocks, addresses, reservations, names. `here` is the side that would join the other one."""
    parts = (_nodes, _networks, _ranges, _blocks, _addresses, _reservations, _names)
    return [clash for part in parts for clash in part(here, there)]


def _pairs(here: Iterable[Node], there: Iterable[Node]) -> Iterator[tuple[Node, Node]]:
    return ((one, other) for one in here for other in there if one.id != other.id)


def _nodes(here: ClusterExport, there: ClusterExport) -> Iterator[Clash]:
    for one, other in _pairs(here.nodes, there.nodes):
        if one.name == other.name:
            yield Clash(
                "node", f"node {one.name} ({one.address})", f"node {other.name} ({other.address})", "rename one: leave and join with --name"
            )
        elif one.address == other.address:
            yield Clash(
                "node", f"node {one.name} ({one.address})", f"node {other.name} ({other.address})", "give one another underlay address"
            )


def _spelled(network: Network) -> str:
    six = f", {network.subnet6}, gateway {network.gateway6}" if network.subnet6 is not None else ""
    return f"network {network.name} {network.subnet}, gateway {network.gateway}{six}, blocks of /{network.block_prefix}, {network.backend}"


def _tunnel(network: Network) -> str:
    return f"network {network.name}, VNI {network.vni}, port {network.port}{', layer 2' if network.layer2 else ''}"


def _overlap(one: Network, other: Network) -> bool:
    six = one.subnet6 is not None and other.subnet6 is not None and one.subnet6.overlaps(other.subnet6)
    return six or one.subnet.overlaps(other.subnet)


def _is_same(one: Network, other: Network) -> bool:
    keys = ("subnet", "gateway", "subnet6", "gateway6", "block_prefix", "backend", "vni", "port", "internal", "ip_range", "excluded")
    return one.layer2 == other.layer2 and all(getattr(one, key) == getattr(other, key) for key in keys)


def _networks(here: ClusterExport, there: ClusterExport) -> Iterator[Clash]:
    for one in here.networks:
        for other in there.networks:
            if one.name == other.name and not _is_same(one, other):
                yield Clash("network", _spelled(one), _spelled(other), "remove one, or make it again under another name")
            elif one.name != other.name and _overlap(one, other):
                yield Clash("overlap", _spelled(one), _spelled(other), "make one again with another --subnet")
            elif one.name != other.name and one.vni == other.vni and (one.layer2 or other.layer2 or one.port != other.port):
                yield Clash("vni", _tunnel(one), _tunnel(other), "give one of them another, with `plait network set NAME --vni`")
        for node in there.nodes:
            if node.address in one.subnet:
                yield Clash("overlap", _spelled(one), f"node {node.name} ({node.address})", "make the network again with another --subnet")
    for other in there.networks:
        for node in here.nodes:
            if node.address in other.subnet:
                yield Clash(
                    "overlap", f"node {node.name} ({node.address})", _spelled(other), "make the network again with another --subnet"
                )


def _ranges(here: ClusterExport, there: ClusterExport) -> Iterator[Clash]:
    """Routes and engines' networks of hosts of the one side in a network of the other."""
    known = {network.name for network in here.networks} & {network.name for network in there.networks}
    for networks, hosts, mine in ((here.networks, there.host_ranges, True), (there.networks, here.host_ranges, False)):
        for network in networks:
            found = (f"{one.cidr} ({one.what} on node {h.node})" for h in hosts for one in h.ranges if one.cidr.overlaps(network.subnet))
            for text in found if network.name not in known else ():
                sides = (_spelled(network), text) if mine else (text, _spelled(network))
                yield Clash("overlap", *sides, "remove the route or Docker network, or make the network again with another --subnet")


def _blocks(here: ClusterExport, there: ClusterExport) -> Iterator[Clash]:
    held = {(block.network, block.cidr): block for block in there.blocks}
    ids = {n.name: n.id for n in here.nodes}, {n.name: n.id for n in there.nodes}
    for block in here.blocks:
        other = held.get((block.network, block.cidr))
        if other is None or other == block or ids[0].get(block.node, block.node) == ids[1].get(other.node, other.node):
            continue
        one, two = (f"block {b.cidr} of network {b.network}, node {b.node}" for b in (block, other))
        if users := _bound(here, block, other):
            yield Clash("block", one, two, f"remove {', '.join(users)}: Docker hands out what is in its bridge's block by itself")
        else:
            todo = "the joining side gives it up: its containers keep their addresses, new ones get others"
            yield Clash("block", one, two, todo, stops=False)


def _bound(here: ClusterExport, block: Block, other: Block) -> list[str]:
    """What of this side cannot stay in the block once it is the other's: containers of Docker's own bridge, of which none is routed by
    itself; and anything, where that bridge is the other's and may give the same address once more."""
    found = [f"{c.name or c.id} on node {c.node}" for c in here.containers if _is_bridged(c, block)]
    if other.purpose == "bridge":
        found += [_of(e) for e, held in _held(here) if e.network == block.network and any(a in block.cidr for a in held)]
    return sorted(found)


def _is_bridged(container: Container, block: Block) -> bool:
    address = container.addresses.get(block.network)
    return block.purpose == "bridge" and container.node == block.node and address is not None and address in block.cidr


def _of(endpoint: Endpoint) -> str:
    return f"{endpoint.name or endpoint.id} on node {endpoint.node} ({endpoint.address} of network {endpoint.network})"


def _addresses(here: ClusterExport, there: ClusterExport) -> Iterator[Clash]:
    used: dict[tuple[str, object], list[Endpoint]] = {}
    for endpoint, addresses in _held(there):
        for address in addresses:
            used.setdefault((endpoint.network, address), []).append(endpoint)
    for endpoint, addresses in _held(here):
        others = {other.id: other for address in addresses for other in used.get((endpoint.network, address), [])}
        for other in others.values():
            if other.id != endpoint.id:
                yield Clash("address", _of(endpoint), _of(other), "make one of the two containers again")


def _held(side: ClusterExport) -> Iterator[tuple[Endpoint, list[IPv4Address]]]:
    """Endpoints and what each has, its IPv6 address by the one with which that goes."""
    networks = {network.name: network for network in side.networks}
    return ((endpoint, sorted(held_by(networks.get(endpoint.network), endpoint))) for endpoint in side.endpoints)


def _kept(record: Assigned) -> str:
    return f"{record.address} of network {record.network} for {record.name}"


def _reservations(here: ClusterExport, there: ClusterExport) -> Iterator[Clash]:
    for one in here.assigned:
        for other in there.assigned:
            both = one.network == other.network and one.name and other.name
            if both and (one.name == other.name) != (one.address == other.address):
                yield Clash("reservation", _kept(one), _kept(other), "end one of them with `plait ipam unreserve`")
    todo = "end the reservation, or make the container again"
    yield from (Clash("reservation", _kept(record), _of(user), todo) for record, user in _users(here.assigned, there))
    yield from (Clash("reservation", _of(user), _kept(record), todo) for record, user in _users(there.assigned, here))


def _users(assigned: Iterable[Assigned], side: ClusterExport) -> Iterator[tuple[Assigned, Endpoint]]:
    """Reservations and who else has the address."""
    kept = {(record.network, record.address): record for record in assigned if record.name}
    for endpoint, addresses in _held(side):
        for address in addresses:
            record = kept.get((endpoint.network, address))
            if record is not None and record.name != endpoint.name:
                yield record, endpoint


def _names(here: ClusterExport, there: ClusterExport) -> Iterator[Clash]:
    """DNS would answer with both."""
    named: dict[tuple[str, str], list[Endpoint]] = {}
    for endpoint in there.endpoints:
        named.setdefault((endpoint.network, endpoint.name.lower()), []).append(endpoint)
    for endpoint in here.endpoints:
        for other in named.get((endpoint.network, endpoint.name.lower()), []) if endpoint.name else ():
            if other.id != endpoint.id:
                yield Clash("name", _of(endpoint), _of(other), "rename one, unless the name is to answer with both")
