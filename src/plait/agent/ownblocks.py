# SPDX-License-Identifier: Apache-2.0
"""Which blocks this node holds: what its journal has, as far as the store can still say the same."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network

from plait.agent.keys import network_key, record_key
from plait.agent.view import View
from plait.ipam import block_of, block_to_lease, exhausted_in
from plait.model.cluster import Block, Network, Snapshot
from plait.model.errors import Conflict


class OwnBlocks:
    """Read from the view, into which the journal's blocks have been put."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._made: dict[str, int] = {}
        """Revision at which each network of ours was made."""
        self._doubtful: set[str] = set()
        """Keys of blocks whose network was removed, maybe made again, since: ours only where the store says so."""
        view.subscribe(self._on_view)

    def of(self, network: str) -> list[Block]:
        """What this node holds, by journal and store, ascending."""
        mine = (b for b in self._view.snapshot.blocks.values() if b.network == network and b.node == self._view.me)
        return sorted((b for b in mine if self._is_held(record_key(b))), key=lambda b: b.cidr)

    def unconfirmed(self, network: str = "") -> list[Block]:
        """What the store gives this node and its journal does not hold; "": of all networks."""
        mine = (b for b in self._view.snapshot.blocks.values() if b.node == self._view.me and network in ("", b.network))
        return [b for b in mine if self._view.own(record_key(b)) is None]

    def confirmed(self, block: Block) -> None:
        """The store has just said that `block` is this node's."""
        self._doubtful.discard(record_key(block))

    def network_made(self, network: str) -> int:
        """Revision at which the network was made, 0 if it is not known."""
        return self._made.get(network, 0)

    def _is_held(self, key: str) -> bool:
        return self._view.own(key) is not None and (key not in self._doubtful or self._view.item(key) is not None)

    def _on_view(self, kinds: frozenset[str]) -> None:
        """Notice that a network was removed, in the moment in which this node hears of it: others may lease its blocks from now on."""
        if "networks" not in kinds:
            return
        for key, block in self._view.own_records().items():
            if isinstance(block, Block):
                item = self._view.item(network_key(block.network))
                if block.network in self._made and (item is None or item.create_revision != self._made[block.network]):
                    self._doubtful.add(key)
        items = {name: self._view.item(network_key(name)) for name in self._view.snapshot.networks}
        self._made = {name: item.create_revision for name, item in items.items() if item is not None}


def pick(
    snapshot: Snapshot, network: Network, refused: Collection[IPv4Network], wanted: IPv4Address | None, avoid: Collection[IPv4Address]
) -> IPv4Network:
    """The block to lease next: the one that holds `wanted`, if given, else one with addresses that are not to be avoided. `refused` went to
    others meanwhile: who has met somebody at the lowest free one goes on at a place of its own, or all nodes would meet at each block
    when a network is made. Conflict or PoolExhausted."""
    taken = {b.cidr for b in snapshot.blocks.values() if b.network == network.name} | set(refused)
    if wanted is not None:
        cidr = block_of(network, wanted)
        if cidr in taken:
            who = next((b.node for b in snapshot.blocks.values() if b.cidr == cidr), "another node")
            raise Conflict(
                f"address {wanted} of network {network.name!r} lies in block {cidr}, which node {who} holds:"
                f" start the container there, or ask for an address outside that block"
            )
        return cidr
    nodes = sorted(snapshot.nodes) if refused else []
    found = block_to_lease(network, taken, avoid, (bisect_left(nodes, snapshot.me), len(nodes) + 1))
    if found is None:
        raise exhausted_in(snapshot, network)
    return found
