# SPDX-License-Identifier: Apache-2.0
"""EnableTagOverride: others give a service tags through the catalogue, and the agent that owns it keeps them."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from tests.support.cluster import FakeNode, nodes

from plait.agent.catalog import Catalog
from plait.agent.checkwatch import CheckWatch
from plait.agent.outside import OutsideCatalog
from plait.dns.zone import Zone
from plait.model.cluster import Snapshot
from plait.serve.consul import ConsulApi
from plait.store.memory import MemoryStore

WEB = {"Name": "web", "ID": "w", "Address": "10.28.0.2", "Port": 80, "Tags": ["blue"], "EnableTagOverride": True}


class Side:
    """The API of one node."""

    def __init__(self, node: FakeNode, session: ClientSession) -> None:
        self.node, self._session = node, session
        outside = OutsideCatalog(node.view, node.store)
        self.catalog = Catalog(node.view, node.journal, node.publisher.publish, lambda: 0, None, outside.forget)
        self.api = ConsulApi(self.catalog, node.name, "dc1", outside=outside)
        self._touched = node.view.follow()
        self._zone = Zone(self._snapshot())

    def _snapshot(self) -> Snapshot:
        return replace(self.node.view.snapshot, alive=frozenset("AB"))

    async def serve(self) -> Callable[[], Awaitable[None]]:
        """Returns how to end it."""
        server = self.api.server()
        await server.start("127.0.0.1", 0)
        self._url = f"http://127.0.0.1:{server.port}/v1/"
        return server.stop

    async def put(self, path: str, body: object = None) -> None:
        async with self._session.put(self._url + path, data=json.dumps(body)) as answer:
            assert answer.status == 200, await answer.text()

    async def get(self, path: str) -> Any:
        async with self._session.get(self._url + path) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def tag(self, *tags: str, **more: object) -> None:
        """As one does it who changes the tags of A's service."""
        service = {"Service": "web", "ID": "w", "Address": "10.28.0.2", "Port": 80, "Tags": list(tags), **more}
        await self.put("catalog/register", {"Node": "A", "Address": "198.18.0.1", "SkipNodeUpdate": True, "Service": service})

    async def see(self, *tags: str) -> None:
        """Until HTTP and DNS of this node show these tags, and no others."""
        await self.node.until(lambda: [i.tags for i in self.node.view.snapshot.instances.values()] == [tags])
        rows = await self.get("catalog/service/web")
        assert [(row["ServiceTags"], row["ServicePort"]) for row in rows] == [(list(tags), 80)]
        assert (await self.get("catalog/services"))["web"] == sorted(tags)
        self._zone.advance(self._snapshot(), set(self._touched))
        self._touched.clear()
        names = self._zone.table.names
        assert {name for name in names if name.endswith(b".web.service.consul")} == {f"{t}.web.service.consul".encode() for t in tags}


@contextlib.asynccontextmanager
async def served(*made: FakeNode) -> AsyncIterator[list[Side]]:
    async with ClientSession() as session, contextlib.AsyncExitStack() as stack:
        sides = [Side(node, session) for node in made]
        for side in sides:
            stack.push_async_callback(await side.serve())
        yield sides


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[list[Side]]:
    """A, which has the service, and B, from which its tags are changed."""
    store = MemoryStore()
    async with nodes(store, tmp_path, "A", "B") as made:
        for node in made:
            await node.publisher.publish()
        async with served(*made) as sides:
            yield sides
    await store.close()


async def registered(two: list[Side], **fields: object) -> None:
    await two[0].put("agent/service/register", {**WEB, **fields})
    for side in two:
        await side.see("blue")


async def retagged(two: list[Side]) -> None:
    """A's service, tagged from B."""
    await registered(two)
    await two[1].tag("green")
    await two[0].see("green")


async def test_tags_from_elsewhere_are_seen_everywhere_and_survive_what_the_agent_says_again(two: list[Side]) -> None:
    a, b = two
    await registered(two)
    index = (await a.get("catalog/service/web"))[0]["ModifyIndex"]
    await b.tag("green", "canary")
    for side in two:
        await side.see("green", "canary")
    assert (await a.get("agent/service/w"))["Tags"] == ["green", "canary"]
    assert (await a.get("catalog/service/web"))[0]["ModifyIndex"] > index
    await a.put("agent/service/register", WEB)
    await a.node.publisher.publish()
    for side in two:
        await side.see("green", "canary")


async def test_they_survive_a_restart_of_the_agent(two: list[Side]) -> None:
    a, b = two
    await retagged(two)
    await a.node.stop()
    await a.node.start()
    async with served(a.node) as (again,):
        await a.node.publisher.publish()
        await again.see("green")
        await b.see("green")


async def test_other_tags_of_the_agent_win(two: list[Side]) -> None:
    a, _ = two
    await retagged(two)
    await a.put("agent/service/register", {**WEB, "Tags": ["red"]})
    for side in two:
        await side.see("red")


async def test_they_end_when_the_agent_allows_them_no_longer(two: list[Side]) -> None:
    a, _ = two
    await retagged(two)
    await a.put("agent/service/register", {**WEB, "EnableTagOverride": False})
    for side in two:
        await side.see("blue")


async def test_the_agents_own_tags_come_back_when_the_others_are_removed(two: list[Side]) -> None:
    _, b = two
    await retagged(two)
    await b.put("catalog/deregister", {"Node": "A", "ServiceID": "w"})
    for side in two:
        await side.see("blue")


async def test_a_service_that_is_registered_anew_has_its_own_tags(two: list[Side]) -> None:
    a, b = two
    await retagged(two)
    await a.put("agent/service/deregister/w")
    await b.node.until(lambda: not b.node.view.snapshot.instances)
    await b.node.until(lambda: not b.node.view.stored("catalog/"))
    await registered(two)


async def test_void_tags_do_not_come_back(two: list[Side]) -> None:
    """The store was away when the service went, so nobody removed them."""
    a, b = two
    a.catalog._forgotten = None
    await retagged(two)
    await a.put("agent/service/deregister/w")
    await b.node.until(lambda: not b.node.view.snapshot.instances)
    assert b.node.view.stored("catalog/")
    await registered(two)


async def test_nothing_else_changes_and_what_was_meant_to_is_logged(two: list[Side], caplog: pytest.LogCaptureFixture) -> None:
    a, b = two
    await registered(two)
    with caplog.at_level(logging.INFO, "plait.catalog"):
        await b.tag("green", Port=81, Meta={"a": "b"})
    (record,) = (record for record in caplog.records if record.message == "catalog_ignored")
    assert record.__dict__["fields"] == "port,meta"
    for side in two:
        await side.see("green")
    health: dict[str, dict[str, str]] = {}

    class Conditions:
        def replace(self, code: str, found: dict[str, str]) -> None:
            health[code] = found

    class Checks:
        def overdue(self) -> tuple[int, float]:
            return 0, 0.0

    CheckWatch(a.node.view, Checks(), Conditions()).once()  # type: ignore[arg-type]
    assert health["catalog-conflict"] == {}, "what is allowed is no conflict"


async def test_without_the_flag_the_agents_tags_stay(two: list[Side]) -> None:
    a, b = two
    await registered(two, EnableTagOverride=False)
    await b.tag("green")
    await a.node.until(lambda: bool(a.node.view.stored("catalog/instances/A/")))
    for side in two:
        await side.see("blue")
