# SPDX-License-Identifier: Apache-2.0
"""Do reservations, endpoints, containers, blocks and the kernel say the same? What differs, named one by one.

The cluster's records are compared for all nodes; what only a node's own journal and kernel know, for the node that is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from plait.ipam.allocate import Reservation
from plait.ipam.dual import held_by
from plait.ipam.pool import block_of, is_block_of, is_excluded, is_kept
from plait.model.cluster import Endpoint, Network, Snapshot


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference. `kind` is a short fixed word; `node` the one that it is about."""

    kind: str
    node: str
    network: str
    address: str
    text: str


@dataclass(frozen=True, slots=True)
class Local:
    """What only this node knows: its reservations, and of endpoints (by id) what its kernel lacks of them."""

    held: tuple[Reservation, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)


def findings(snapshot: Snapshot, local: Local) -> list[Finding]:
    """All differences, in a fixed order."""
    parts = (_twice, _endpoints, _containers, _blocks, _assigned)
    found = [finding for part in parts for finding in part(snapshot)] + list(_journal(snapshot, local))
    return sorted(found, key=lambda f: (f.network, f.address, f.node, f.kind, f.text))


def _of(kind: str, endpoint: Endpoint, text: str, address: IPv4Address | None = None) -> Finding:
    where = endpoint.node, endpoint.network, str(address or endpoint.address)
    return Finding(kind, *where, f"{endpoint.name or endpoint.id}: {text}")


def _by_address(snapshot: Snapshot) -> Mapping[tuple[str, IPv4Address], list[Endpoint]]:
    found: dict[tuple[str, IPv4Address], list[Endpoint]] = {}
    for endpoint in sorted(snapshot.endpoints.values(), key=lambda e: e.id):
        for address in held_by(snapshot.networks.get(endpoint.network), endpoint):
            found.setdefault((endpoint.network, address), []).append(endpoint)
    return found


def _twice(snapshot: Snapshot) -> Iterator[Finding]:
    for (_, address), users in _by_address(snapshot).items():
        for endpoint in users[1:]:
            yield _of("twice", endpoint, f"{users[0].name or users[0].id} on node {users[0].node} has the same address", address)


def _endpoints(snapshot: Snapshot) -> Iterator[Finding]:
    for endpoint in snapshot.endpoints.values():
        network = snapshot.networks.get(endpoint.network)
        if network is None:
            yield _of("no-network", endpoint, f"there is no network {endpoint.network}")
            continue
        if endpoint.node not in snapshot.nodes:
            yield _of("no-node", endpoint, f"there is no node {endpoint.node}")
        for address in sorted(held_by(network, endpoint)):
            yield from _rightful(snapshot, network, endpoint, address)


def _rightful(snapshot: Snapshot, network: Network, endpoint: Endpoint, address: IPv4Address) -> Iterator[Finding]:
    """Why the endpoint should not have `address`, its own or the one with which its IPv6 address goes."""
    assigned, block = snapshot.assigned.get((network.name, address)), snapshot.blocks.get((network.name, block_of(network, address)))
    lent = assigned is not None and assigned.node == endpoint.node
    if network.by_dhcp:  # what its server gives is right
        return
    if not lent and (block is None or block.node != endpoint.node):
        yield _of("outside", endpoint, f"node {endpoint.node} holds no block with this address, and it was not lent", address)
    if is_kept(network, address) or is_excluded(network, address):
        yield _of("kept", endpoint, "the network keeps this address from everybody", address)
    if assigned is not None and assigned.name and endpoint.name and assigned.name != endpoint.name:
        yield _of("reserved", endpoint, f"the address is reserved for {assigned.name}", address)


def _containers(snapshot: Snapshot) -> Iterator[Finding]:
    attached = {(e.node, e.network, e.container): e for e in snapshot.endpoints.values() if e.container}
    bridges = [block.cidr for block in snapshot.blocks.values() if block.purpose == "bridge"]
    for container in snapshot.containers.values():
        for name, address in (*container.addresses.items(), *container.addresses6.items()):
            endpoint = attached.get((container.node, name, container.shares or container.id))
            has = None if endpoint is None else endpoint.address if address.version == 4 else endpoint.address6
            if name not in snapshot.networks or any(address in cidr for cidr in bridges) or container.state != "running":
                continue
            known = "nothing is attached" if endpoint is None else f"its endpoint has {has or 'none'}"
            if has != address:
                text = f"{container.name}: {container.runtime} says {address}, but {known}"
                yield Finding("engine", container.node, name, str(address), text)


def _blocks(snapshot: Snapshot) -> Iterator[Finding]:
    for block in snapshot.blocks.values():
        network, where = snapshot.networks.get(block.network), (block.node, block.network, str(block.cidr))
        if network is None:
            yield Finding("no-network", *where, f"the block's network {block.network} does not exist")
        elif not is_block_of(network, block.cidr):
            yield Finding("no-block", *where, f"network {block.network} has no such block")
        if block.node not in snapshot.nodes:
            yield Finding("no-node", *where, f"node {block.node}, which holds the block, does not exist")


def _assigned(snapshot: Snapshot) -> Iterator[Finding]:
    for record in snapshot.assigned.values():
        where = record.node, record.network, str(record.address)
        if record.network not in snapshot.networks:
            yield Finding("no-network", *where, f"reserved or lent in network {record.network}, which does not exist")
        if record.node and record.node not in snapshot.nodes:
            yield Finding("no-node", *where, f"given to node {record.node}, which does not exist")


def _journal(snapshot: Snapshot, local: Local) -> Iterator[Finding]:
    own = [e for e in snapshot.endpoints.values() if e.node == snapshot.me]
    live = {(r.network, r.address): r for r in local.held if r.live}
    used = {(e.network, address) for e in own for address in held_by(snapshot.networks.get(e.network), e)}
    for (network, address), reservation in live.items():
        if (network, address) not in used:
            who = reservation.name or reservation.owner
            yield Finding("unused", snapshot.me, network, str(address), f"held for {who}, but nothing is attached")
    for endpoint in own:
        for address in sorted(held_by(snapshot.networks.get(endpoint.network), endpoint)):
            if (endpoint.network, address) not in live:
                yield _of("unheld", endpoint, "attached, but the journal does not hold the address for it", address)
        if endpoint.id in local.missing:
            yield _of("kernel", endpoint, local.missing[endpoint.id])


def lasting(first: Iterable[Finding], second: Iterable[Finding]) -> list[Finding]:
    """What both looks saw: a difference that is gone a moment later was an attach or a detach on its way."""
    seen = set(first)
    return [finding for finding in second if finding in seen]
