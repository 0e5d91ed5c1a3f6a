# SPDX-License-Identifier: Apache-2.0
"""This node's way to the shared store, and what a node that leaves the cluster takes out of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from plait.agent.assigned import disown
from plait.agent.files import Paths
from plait.agent.identity import Identity, new_id
from plait.agent.keys import own_prefixes, single_keys
from plait.model.cluster import Block
from plait.model.errors import Conflict, PlaitError
from plait.store.api import Compare, Delete, Put, Store
from plait.store.codec import decode
from plait.store.join import split_address
from plait.store.remote import RemoteStore
from plait.store.server import PORT as STORE_PORT
from plait.store.sqlite import SqliteStore
from plait.store.tls import ssl_context_client


async def leave(identity: Identity, paths: Paths) -> str:
    """Remove this node's records from the store; says what happened. Never raises for a store out of reach."""
    async with open_store(identity, paths, new_id()) as store:
        ops: list[Put | Delete] = [Delete(prefix, prefix=True) for prefix in own_prefixes(identity.name)]
        try:
            blocks = [b for b in (await store.list("blocks/")).items if decode(Block, b.value, b.key).node == identity.name]
            ops += [Delete(key) for key in (*single_keys(identity.name), *(block.key for block in blocks))]
            unchanged, given_back = await disown(store, identity.name)
            same = [*unchanged, *(Compare(block.key, block.mod_revision) for block in blocks)]
            if not (await store.txn(same, [*ops, *given_back])).ok:
                return f"could not tell the cluster (its blocks changed meanwhile); run `plait node rm {identity.name}` on another node"
        except Conflict as error:
            return f"took nothing out of the cluster: {error}"
        except PlaitError as error:
            return f"could not tell the cluster ({error}); run `plait node rm {identity.name}` on another node"
    return "left the cluster"


@contextlib.asynccontextmanager
async def open_store(identity: Identity, paths: Paths, run: str) -> AsyncIterator[Store]:
    """The embedded store on the node that carries it, else the one over the wire, for this run of the agent (`protocol.Hello`)."""
    store: Store
    if identity.store:
        host, port = split_address(identity.store, STORE_PORT)
        store = RemoteStore(host, port, ssl_context_client(paths.lib / "pki"), run=run)
    else:
        store = await SqliteStore.open(paths.lib / "store.db")
    try:
        yield store
    finally:
        await store.close()
