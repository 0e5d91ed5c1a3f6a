# SPDX-License-Identifier: Apache-2.0
"""Taking a node that is gone out of the cluster, with everything that it had."""

from __future__ import annotations

from plait.agent.assigned import disown
from plait.agent.keys import alive_key, block_key, own_prefixes, single_keys
from plait.agent.view import View
from plait.model.errors import Conflict, NotFound
from plait.store.api import Compare, Delete, Put, Store


async def forget_node(view: View, store: Store, name: str) -> None:
    """Remove the records of node `name`; its blocks and assigned addresses are free afterwards. NotFound; Conflict while it gives signs of
    life or if it comes back meanwhile: then nothing is changed."""
    snapshot = view.snapshot
    if name not in snapshot.nodes:
        raise NotFound(f"there is no node {name!r}; `plait nodes` lists them")
    if name in snapshot.alive:
        raise Conflict(f"node {name!r} gives signs of life; run `plait down --purge` there instead")
    blocks = [block_key(b.network, b.cidr) for b in snapshot.blocks.values() if b.node == name]
    held = [item for item in map(view.item, blocks) if item is not None]
    ops: list[Put | Delete] = [Delete(prefix, prefix=True) for prefix in own_prefixes(name)]
    ops += [Delete(key) for key in (*single_keys(name), *(item.key for item in held))]
    unchanged, given_back = await disown(store, name)
    unchanged += [Compare(item.key, item.mod_revision) for item in held]
    result = await store.txn([Compare(alive_key(name), 0), *unchanged], [*ops, *given_back])
    if not result.ok:
        raise Conflict(f"node {name!r} came back, or its blocks changed, while it was to be removed; look at `plait nodes` and try again")
    await view.caught_up(result.revision)
