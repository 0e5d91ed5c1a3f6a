# SPDX-License-Identifier: Apache-2.0
"""Keys, sessions, transactions and the catalogue over real HTTP, on nodes that share a store in memory whose clock a test turns."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import ClientSession
from yarl import URL

from plait.agent.catalog import Catalog
from plait.agent.kv import Kv
from plait.agent.outside import OutsideCatalog
from plait.agent.sessions import SessionSteward
from plait.agent.transactions import Transactions
from plait.serve.consul import ConsulApi
from plait.serve.consul_kv import KvApi
from plait.serve.consul_txn import TxnApi
from plait.store.api import Change, Put
from plait.store.memory import MemoryStore
from tests.support.cluster import FakeNode, nodes


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def turn(self, store: MemoryStore, seconds: float) -> None:
        """In small steps: the store takes a great one for a pause of its own process, which is on nobody's account."""
        for _ in range(int(seconds * 4)):
            self.now += 0.25
            store._expire()


class Client:
    """The API of one node: `call` gives status, body and headers."""

    def __init__(self, session: ClientSession, port: int, kv: Kv, node: FakeNode) -> None:
        self._session, self._url, self.kv, self.node = session, f"http://127.0.0.1:{port}/v1/", kv, node

    async def call(self, method: str, path: str, body: object = b"") -> tuple[int, str, dict[str, str]]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self._session.request(method, URL(self._url + path, encoded=True), data=data) as answer:
            return answer.status, await answer.text(), dict(answer.headers)

    async def ok(self, method: str, path: str, body: object = b"") -> Any:
        status, text, _ = await self.call(method, path, body)
        assert status == 200, text
        return json.loads(text)

    async def put(self, key: str, value: bytes = b"v") -> bool:
        return bool(await self.ok("PUT", f"kv/{key}", value))

    async def get(self, key: str) -> tuple[dict[str, Any] | None, int]:
        status, text, headers = await self.call("GET", f"kv/{key}")
        return (json.loads(text)[0] if status == 200 else None), int(headers["X-Consul-Index"])

    async def session(self, **body: object) -> str:
        return str((await self.ok("PUT", "session/create", body))["ID"])


@contextlib.asynccontextmanager
async def client(node: FakeNode) -> AsyncIterator[Client]:
    kv = Kv(node.view, node.store, lambda: 0)
    kv.change((Change("put", item, item.mod_revision) for item in node.replica.items.values()), node.replica.revision)
    node.replica.subscribe(kv.change)
    catalog = Catalog(node.view, node.journal, node.publisher.publish, lambda: 0)
    outside = OutsideCatalog(node.view, node.store)
    parts = (KvApi(kv, node.name), TxnApi(Transactions(node.view, node.store, kv, outside), "dc1"))
    api = ConsulApi(catalog, node.name, "dc1", [route for part in parts for route in part.routes], outside=outside)
    server = api.server()
    await server.start("127.0.0.1", 0)
    try:
        async with ClientSession() as session:
            yield Client(session, server.port, kv, node)
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def pair_of(store: MemoryStore, folder: Path) -> AsyncIterator[tuple[Client, Client]]:
    """Two nodes' APIs; the first one's agent ends sessions."""
    async with nodes(store, folder, "A", "B") as (a, b), client(a) as first, client(b) as second:
        for node in (a, b):
            await node.store.txn([], [Put(f"alive/{node.name}", b"1")])
            await node.publisher.publish()
        for node in (a, b):
            await node.until(lambda node=node: set(node.view.snapshot.nodes) == {"A", "B"} <= node.view.snapshot.alive)  # type: ignore[misc]
        steward = asyncio.create_task(SessionSteward(first.kv, a.view).run())
        yield first, second
        steward.cancel()


async def eventually(look: Any, wanted: object) -> None:
    async with asyncio.timeout(5):
        while await look() != wanted:  # noqa: ASYNC110 (what it asks tells of no changes)
            await asyncio.sleep(0.005)
