# SPDX-License-Identifier: Apache-2.0
"""What a node takes out of the store when it leaves the cluster."""

from __future__ import annotations

from plait.agent.keys import own_prefixes, single_keys
from plait.model.cluster import Block
from plait.model.errors import PlaitError
from plait.store.api import Compare, Delete, Store
from plait.store.codec import decode


async def remove_records(store: Store, name: str) -> str:
    """Remove the records of the node `name`; says what happened. Never raises for a store out of reach."""
    ops = [Delete(prefix, prefix=True) for prefix in own_prefixes(name)]
    try:
        blocks = [b for b in (await store.list("blocks/")).items if decode(Block, b.value, b.key).node == name]
        ops += [Delete(key) for key in (*single_keys(name), *(block.key for block in blocks))]
        if not (await store.txn([Compare(block.key, block.mod_revision) for block in blocks], ops)).ok:
            return f"could not tell the cluster (its blocks changed meanwhile); run `plait node rm {name}` on another node"
    except PlaitError as error:
        return f"could not tell the cluster ({error}); run `plait node rm {name}` on another node"
    return "left the cluster"
