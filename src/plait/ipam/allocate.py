# SPDX-License-Identifier: Apache-2.0
"""Who holds which address of this node's blocks, and which one the next owner gets. Pure: the journal keeps the result.

A released reservation stays as a memory of its name, so that the same name gets its address back; it gives way, oldest
first, only when no address is left that was never used, and while it is cooling only when nothing else is left in the whole pool.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from plait.ipam.pool import block_count, is_kept, usable, usable_count
from plait.model.cluster import Block, Network, Snapshot
from plait.model.errors import Conflict, NotFound, PoolExhausted


@dataclass(frozen=True, slots=True)
class Reservation:
    """`owner` holds `address` while `live`; afterwards `name` is remembered. `serial` grows with every change (no clock: a
    jump of the clock cannot reorder it)."""

    network: str
    address: IPv4Address
    owner: str
    name: str = ""
    live: bool = True
    serial: int = 0


def nothing_refused(_: IPv4Address) -> str:
    return ""


def choose_address(
    network: Network,
    blocks: Sequence[IPv4Network],
    held: Mapping[IPv4Address, Reservation],
    owner: str,
    name: str = "",
    wanted: IPv4Address | None = None,
    tunnel: IPv4Address | None = None,
    elsewhere: Collection[IPv4Address] = (),
    refuse: Callable[[IPv4Address], str] = nothing_refused,
    cooling: Collection[IPv4Address] = (),
) -> IPv4Address | None:
    """The address for `owner`, or None if the blocks have none left (then another block must be leased).

    Order: what this owner holds already; the one asked for; the one `name` had last; one whose name lives at another by now, so that
    containers that took each other's come to a swap and not to new ones; the lowest never used; the one released longest ago. The last
    three not while `cooling`, and all but the first two only what is not in use `elsewhere` (on another node, whose block this was) and
    what `refuse` has no reason against. Raises Conflict when `wanted` is held by another owner or refused, NotFound when it is in none of
    `blocks`.
    """
    for reservation in held.values():
        if reservation.live and reservation.owner == owner and wanted in (None, reservation.address):
            return reservation.address
    if wanted is not None:
        if wanted in elsewhere:
            raise Conflict(f"address {wanted} of network {network.name!r} is in use on another node; ask for another address")
        if reason := refuse(wanted):
            raise Conflict(reason)
        return _check_wanted(network, blocks, held, owner, wanted, tunnel)
    idle = [r for r in held.values() if r.name and not r.live and r.address not in elsewhere]
    known = [r for r in idle if r.name == name] or _left(held, [r for r in idle if r.address not in cooling])
    remembered = [r for r in known if _is_open(network, r.address, blocks) and not refuse(r.address)]
    if remembered:
        return max(remembered, key=lambda r: r.serial).address
    released: list[Reservation] = []
    for block in blocks:
        for address in usable(network, block, tunnel):
            if address in elsewhere or refuse(address):
                continue
            last = held.get(address)
            if last is None and address not in cooling:
                return address
            if last is not None and not last.live and address not in cooling:
                released.append(last)
    return min(released, key=lambda r: r.serial).address if released else None


def _left(held: Mapping[IPv4Address, Reservation], idle: Sequence[Reservation]) -> list[Reservation]:
    """Those of `idle` whose name has another address now."""
    living = {r.name for r in held.values() if r.live} if idle else set()
    return [r for r in idle if r.name in living]


def _is_open(network: Network, address: IPv4Address, blocks: Iterable[IPv4Network]) -> bool:
    return address in network.pool and _inside(address, blocks)


def _inside(address: IPv4Address, blocks: Iterable[IPv4Network]) -> bool:
    return any(address in block for block in blocks)


def _check_wanted(
    network: Network,
    blocks: Sequence[IPv4Network],
    held: Mapping[IPv4Address, Reservation],
    owner: str,
    wanted: IPv4Address,
    tunnel: IPv4Address | None,
) -> IPv4Address:
    if not _inside(wanted, blocks):
        raise NotFound(f"address {wanted} lies in no block of network {network.name!r} that this node holds")
    if is_kept(network, wanted) or wanted == tunnel:
        raise Conflict(
            f"address {wanted} of network {network.name!r} is kept for the network itself (gateway, first or last); ask for another"
        )
    known = held.get(wanted)
    if known is not None and known.live and known.owner != owner:
        who = known.name or known.owner
        raise Conflict(
            f"address {wanted} of network {network.name!r} is in use by {who!r} on this node; remove it or ask for another address"
        )
    return wanted


def expire(held: Mapping[IPv4Address, Reservation], blocks: Sequence[IPv4Network]) -> list[Reservation]:
    """Reservations that are neither live nor inside `blocks` any more: memories that can be forgotten."""
    return [r for r in held.values() if not r.live and not _inside(r.address, blocks)]


def holders_text(network: Network, blocks: Iterable[Block], live: Mapping[str, int]) -> str:
    """One phrase for an exhaustion error: pool, size, who holds how much. `live`: addresses in use by node."""
    per_node: dict[str, int] = {}
    for block in blocks:
        if block.network == network.name:
            per_node[block.node] = per_node.get(block.node, 0) + 1
    who = ", ".join(f"{node}: {count} blocks, {live.get(node, 0)} addresses in use" for node, count in sorted(per_node.items()))
    return (
        f"pool {network.pool} of network {network.name!r} is exhausted: {usable_count(network)} usable addresses"
        f" in {block_count(network)} blocks of /{network.block_prefix}, held by {who or 'nobody'}"
    )


def exhausted(network: Network, blocks: Iterable[Block], live: Mapping[str, int]) -> PoolExhausted:
    """The error for an attach that finds no address and no free block."""
    return PoolExhausted(
        holders_text(network, blocks, live)
        + "; remove containers (`plait ps` lists them), see who has what (`plait ipam`), or create a network with a larger subnet"
    )


def exhausted_in(snapshot: Snapshot, network: Network) -> PoolExhausted:
    """The same by what is known of the cluster."""
    live: dict[str, int] = {}
    for endpoint in snapshot.endpoints.values():
        if endpoint.network == network.name:
            live[endpoint.node] = live.get(endpoint.node, 0) + 1
    return exhausted(network, snapshot.blocks.values(), live)


def of_pool(network: Network, block: Block) -> bool:
    """Whether addresses of the block may be handed out unasked, as the network's range is now."""
    return block.cidr.overlaps(network.pool)
