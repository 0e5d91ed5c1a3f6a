# SPDX-License-Identifier: Apache-2.0
"""The catalogue's API of one node over real HTTP, and a store that can be out of reach."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from aiohttp import ClientSession

from plait.agent.catalog import Catalog
from plait.agent.indexes import Indexes
from plait.model.errors import StoreUnavailable
from plait.serve.consul import ConsulApi
from plait.store.api import Compare, Delete, Put, TxnResult
from plait.store.memory import MemoryStore
from tests.support.cluster import FakeNode


class Cuttable(MemoryStore):
    """A store that can be out of reach."""

    away = False

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        if self.away:
            raise StoreUnavailable("out of reach")
        return await super().txn(compares, ops)


class Consul:
    """The API of one node's agent."""

    def __init__(self, session: ClientSession, port: int) -> None:
        self._session, self._url = session, f"http://127.0.0.1:{port}/v1/"

    async def get(self, path: str) -> tuple[Any, int]:
        """(answer, index)"""
        async with self._session.get(self._url + path) as answer:
            return await answer.json(), int(answer.headers.get("X-Consul-Index", "0"))

    async def put(self, path: str, body: object = None) -> str:
        async with self._session.put(self._url + path, data=json.dumps(body)) as answer:
            assert answer.status == 200
            return await answer.text()


@contextlib.asynccontextmanager
async def consul(node: FakeNode, indexes: Indexes | None = None) -> AsyncIterator[Consul]:
    catalog = Catalog(node.view, node.journal, node.publisher.publish, lambda: 0)
    server = ConsulApi(catalog, node.name, "dc1", indexes=indexes).server()
    await server.start("127.0.0.1", 0)
    try:
        async with ClientSession() as session:
            yield Consul(session, server.port)
    finally:
        await server.stop()
