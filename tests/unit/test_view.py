# SPDX-License-Identifier: Apache-2.0
"""Waiting for the replica, and what newer agents wrote."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.support.cluster import nodes

from plait.agent import view
from plait.agent.view import View
from plait.model.errors import NotFound, StoreUnavailable
from plait.store.api import Delete, Put
from plait.store.memory import MemoryStore


async def test_who_waits_for_a_revision_goes_on_when_it_is_there_and_not_before() -> None:
    here = View("a")
    waits = {revision: asyncio.ensure_future(here.caught_up(revision)) for revision in (1, 2, 3, 4)}
    await asyncio.sleep(0)
    here.change([], 2)
    await asyncio.sleep(0.01)
    assert [revision for revision, wait in waits.items() if wait.done()] == [1, 2]
    here.change([], 5)
    await asyncio.wait_for(asyncio.gather(*waits.values(), here.caught_up(5)), 1)


async def test_who_waits_in_vain_is_told_so_and_one_that_goes_away_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "_CATCH_UP_S", 0.05)
    here = View("a")
    gone = asyncio.ensure_future(here.caught_up(7))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(StoreUnavailable, match="is at revision 0 and did not reach 9"):
        await here.caught_up(9)
    assert not here._waiters


NEWER = b"""{"name": "later", "subnet": "10.77.0.0/16", "gateway": "10.77.0.1", "block_prefix": 24, "backend": "geneve", "speed": 9}"""
THEIRS = b"""{"id": "b.x", "network": "later", "node": "B", "address": "10.77.0.9", "mac": "02:00:00:00:00:09", "dev": "x", "hue": 1}"""


async def test_what_a_newer_agent_wrote_stops_nothing_here(tmp_path: Path) -> None:
    """A network of a backend that is not known here, with blocks and endpoints; unknown kinds of keys; records with unknown fields."""
    store = MemoryStore()
    async with nodes(store, tmp_path, "A") as (here,):
        await here.attach("before")
        block = b'{"network": "later", "cidr": "10.77.0.0/24", "node": "B", "purpose": "pool"}'
        puts = [
            Put("networks/later", NEWER),
            Put("endpoints/B/b.x", THEIRS),
            Put("blocks/later/10.77.0.0_24", block),
            Put("x/B", b"{}"),
        ]
        await store.txn([], puts)
        await here.until(lambda: "later" in here.view.beyond)
        await here.converge()
        await here.attach("after")
        assert "later" not in here.view.snapshot.networks
        assert "network later goes by geneve, which plait" in here.view.beyond["later"]
        with pytest.raises(NotFound):
            await here.attach("there", "later")
        await store.txn([], [Delete("networks/later")])
        await here.until(lambda: not here.view.beyond)
        assert await here.converge() == 0
