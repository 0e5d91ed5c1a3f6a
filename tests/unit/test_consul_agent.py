# SPDX-License-Identifier: Apache-2.0
"""Registrations through the Consul API into the agent's own parts: journal, view, publication, containers that are followed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.cluster import FakeNode, nodes
from tests.support.consulapi import Cuttable, consul


@pytest.fixture
async def store() -> AsyncIterator[Cuttable]:
    store = Cuttable()
    yield store
    await store.close()


def ids(node: FakeNode) -> list[str]:
    return sorted(service for _, service in node.view.snapshot.instances)


async def test_a_registration_is_seen_on_another_node_with_the_index_it_was_answered_with(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b), consul(a) as here, consul(b) as there:
        answer = json.loads(await here.put("agent/services", {"Name": "web", "Address": "192.0.2.7", "Port": 80}))
        await b.until(lambda: ids(b) == ["web"])
        ((seen,), index) = await there.get("catalog/service/web")
        assert (seen["Node"], seen["ServiceAddress"], seen["ModifyIndex"]) == ("A", "192.0.2.7", answer["ModifyIndex"])
        assert index >= seen["ModifyIndex"] == seen["CreateIndex"] > 0
        await here.put("agent/services", {"Name": "web", "Address": "192.0.2.7", "Port": 80})
        assert await there.get("catalog/service/web") == ([seen], index)
        await here.put("agent/service/deregister/web")
        await b.until(lambda: ids(b) == [])
        assert (await there.get("catalog/service/web"))[0] == []


async def test_strange_ids_go_all_the_way(store: Cuttable, tmp_path: Path) -> None:
    strange = ["a/b", "../x", "ü" * 256, "%2F", "a b", "."]
    async with nodes(store, tmp_path, "A", "B") as (a, b), consul(a) as here:
        for service in strange:
            await here.put("agent/service/register", {"Name": "web", "ID": service})
        await b.until(lambda: ids(b) == sorted(strange))
        assert sorted((await here.get("agent/services"))[0]) == sorted(strange)


async def test_without_the_store_it_is_answered_kept_and_published_later(store: Cuttable, tmp_path: Path) -> None:
    large = ["x" * 1000] * 400
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        async with consul(a) as here:
            store.away = True
            for number in range(8):
                await here.put("agent/service/register", {"Name": "web", "ID": str(number), "Tags": large})
            assert len((await here.get("health/service/web?passing"))[0]) == 8
        await a.stop()
        await a.start()
        async with consul(a) as here:
            assert len((await here.get("agent/services"))[0]) == 8
            store.away = False
            await a.publisher.publish()
            await b.until(lambda: len(ids(b)) == 8)


async def test_a_service_is_bound_to_a_container_that_comes_after_it(store: Cuttable, tmp_path: Path) -> None:
    """`docker run` returns before anybody has told the agent of the container."""
    async with nodes(store, tmp_path, "A") as (a,):
        async with consul(a) as here:
            await here.put("agent/service/register", {"Name": "web", "Port": 80})
            await here.put("agent/service/register", {"Name": "web", "ID": "fixed", "Address": "192.0.2.7"})
            await here.put("agent/service/register", {"Name": "host", "Port": 22})
            address = str(await a.attach("web"))
            bound = {i.id: (i.address, i.container) for i in a.view.snapshot.instances.values()}
            assert bound == {"web": (address, "web"), "fixed": ("192.0.2.7", ""), "host": ("", "")}
            await here.put("agent/service/register", {"Name": "late", "ID": "gone"})
            leaving = asyncio.create_task(here.put("agent/service/deregister/gone"))
            await a.attach("late")
            await leaving
        await a.stop()
        await a.start()
        async with consul(a):
            assert ids(a) == ["fixed", "host", "web"]
            assert a.view.snapshot.instances["A", "web"].container == "web", "it is known after a restart too"


async def test_the_seeds_form_waits_a_moment_for_the_container(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,), consul(a) as here:
        asking = asyncio.create_task(here.put("agent/services", {"Name": "web", "Port": 80}))
        await asyncio.sleep(0.05)
        address = str(await a.attach("web"))
        assert json.loads(await asking)["Address"] == address


async def test_a_service_follows_its_container(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,), consul(a) as here:
        address = str(await a.attach("web"))
        answer = json.loads(await here.put("agent/services", {"ID": "web", "Name": "web", "Tags": ["http"], "Address": "", "Port": 80}))
        assert answer["Address"] == address
        before, index = await here.get("health/service/web?passing")
        assert len(before) == 1
        gone = asyncio.create_task(here.get(f"health/service/web?passing&index={index}&wait=60s"))
        await a.detach("web")
        nothing, index = await asyncio.wait_for(gone, 5)
        assert nothing == []
        await a.attach("other", address=address)
        moved = str(await a.attach("web"))
        after, _ = await asyncio.wait_for(here.get(f"health/service/web?passing&index={index}&wait=60s"), 5)
        assert [entry["Service"]["Address"] for entry in after] == [moved] != [address]


async def test_one_registration_wakes_once(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,), consul(a) as here:
        _, index = await here.get("catalog/service/web")
        woken = asyncio.create_task(here.get(f"catalog/service/web?index={index}&wait=60s"))
        await asyncio.sleep(0.05)
        await here.put("agent/service/register", {"Name": "web"})
        found, index = await asyncio.wait_for(woken, 5)
        assert len(found) == 1 and index >= found[0]["ModifyIndex"]
        assert await here.get(f"catalog/service/web?index={index}&wait=300ms") == (found, index)
