# SPDX-License-Identifier: Apache-2.0
"""Who has which address and why, in the shapes of `model.report`. Pure reading of a snapshot and of this node's reservations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address

from plait.agent.reports import block_rows
from plait.ipam import Reservation, block_of, held_by, image, usable_count
from plait.model.cluster import Endpoint, Network, Snapshot
from plait.model.report import AddressRow, IpamView, PoolRow


def ipam_view(snapshot: Snapshot, held: Sequence[Reservation]) -> IpamView:
    """`held`: this node's reservations; what other nodes remember only they know."""
    rows = [*_attached(snapshot), *_on_bridges(snapshot)]
    taken = {(row["network"], row["address"]) for row in rows}
    for more in (_assigned(snapshot), _held(snapshot, held)):
        fresh = [row for row in more if (row["network"], row["address"]) not in taken]
        taken |= {(row["network"], row["address"]) for row in fresh}
        rows += fresh
    rows.sort(key=lambda row: (row["network"], IPv4Address(row["address"]), row["node"], row["name"]))
    networks = sorted(snapshot.networks.values(), key=lambda n: n.name)
    return {"pools": [_pool(snapshot, network, rows) for network in networks], "blocks": block_rows(snapshot), "addresses": rows}


def _row(network: str, address: IPv4Address, node: str, state: str, name: str) -> AddressRow:
    return {
        "network": network,
        "address": str(address),
        "address6": "",
        "node": node,
        "state": state,
        "name": name,
        "shared_by": [],
        "runtime": "",
        "endpoint": "",
        "container": "",
        "reserved_for": "",
        "lent_by": "",
        "started": 0.0,
    }


def _attached(snapshot: Snapshot) -> Iterable[AddressRow]:
    for endpoint in snapshot.endpoints.values():
        for address in held_by(snapshot.networks.get(endpoint.network), endpoint):
            yield _used(snapshot, endpoint, address)


def _used(snapshot: Snapshot, endpoint: Endpoint, address: IPv4Address) -> AddressRow:
    """`address`: the endpoint's, or the one with which its IPv6 address goes."""
    network, assigned = snapshot.networks.get(endpoint.network), snapshot.assigned.get((endpoint.network, address))
    container = snapshot.containers.get((endpoint.node, endpoint.container))
    row = _row(endpoint.network, address, endpoint.node, "used", endpoint.name)
    if network is not None and endpoint.address6 == image(network, address):
        row["address6"] = str(endpoint.address6 or "")
    row["runtime"], row["endpoint"], row["container"] = endpoint.runtime, endpoint.id, endpoint.container
    row["reserved_for"] = assigned.name if assigned is not None else ""
    row["lent_by"] = _lender(snapshot, endpoint, address)
    row["started"] = container.started if container is not None else 0.0
    row["shared_by"] = sharers(snapshot, endpoint)
    return row


def sharers(snapshot: Snapshot, endpoint: Endpoint) -> list[str]:
    """Names of the other containers that are in the network namespace of the endpoint's container."""
    mine = (c for c in snapshot.containers.values() if c.node == endpoint.node and c.shares and c.shares == endpoint.container)
    return sorted(c.name for c in mine if c.name != endpoint.name)


def _lender(snapshot: Snapshot, endpoint: Endpoint, address: IPv4Address) -> str:
    network = snapshot.networks.get(endpoint.network)
    block = snapshot.blocks.get((network.name, block_of(network, address))) if network is not None else None
    return block.node if block is not None and block.node != endpoint.node else ""


def _on_bridges(snapshot: Snapshot) -> Iterable[AddressRow]:
    """Containers of Docker's default bridge: Docker hands out these addresses, no endpoint of ours stands behind them."""
    bridges = [block for block in snapshot.blocks.values() if block.purpose == "bridge"]
    for container in snapshot.containers.values():
        for block in bridges:
            address = container.addresses.get(block.network)
            if block.node == container.node and address is not None and address in block.cidr:
                row = _row(block.network, address, container.node, "used", container.name)
                row["runtime"], row["container"], row["started"] = container.runtime, container.id, container.started
                yield row


def _assigned(snapshot: Snapshot) -> Iterable[AddressRow]:
    for record in snapshot.assigned.values():
        row = _row(record.network, record.address, record.node, "reserved" if record.name else "lent", "")
        row["reserved_for"] = record.name
        yield row


def _held(snapshot: Snapshot, held: Sequence[Reservation]) -> Iterable[AddressRow]:
    for reservation in held:
        state = "held" if reservation.live else "remembered"
        row = _row(reservation.network, reservation.address, snapshot.me, state, reservation.name)
        row["endpoint"] = reservation.owner
        yield row


def _pool(snapshot: Snapshot, network: Network, rows: Iterable[AddressRow]) -> PoolRow:
    mine = [row for row in rows if row["network"] == network.name]
    counts = {state: len({row["address"] for row in mine if row["state"] == state}) for state in ("used", "reserved", "remembered")}
    size = usable_count(network)
    inside = {row["address"] for row in mine if row["state"] != "remembered" and IPv4Address(row["address"]) in network.pool}
    per_node: dict[str, int] = {}
    for row in mine:
        if row["state"] == "used":
            per_node[row["node"]] = per_node.get(row["node"], 0) + 1
    return {
        "network": network.name,
        "pool": str(network.pool),
        "size": size,
        "used": counts["used"],
        "reserved": counts["reserved"],
        "remembered": counts["remembered"],
        "free": max(0, size - len(inside)),
        "excluded": list(map(str, network.excluded)),
        "used_by": dict(sorted(per_node.items())),
    }
