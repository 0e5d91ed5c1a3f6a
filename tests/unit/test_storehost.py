# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import socket

import pytest

from plait.agent import storehost
from plait.agent.storehost import StoreHost
from plait.agent.view import View
from plait.model.cluster import Instance
from plait.store.api import Change, Item


@pytest.fixture
def view() -> View:
    view = View("B")
    alive = [Change("put", Item(f"alive/{name}", b"1", 1, 1), 1) for name in "AB"]
    view.change(alive, 1)
    return view


async def settle(view: View, port: int, connected: bool, monkeypatch: pytest.MonkeyPatch) -> frozenset[str]:
    monkeypatch.setattr(storehost, "SILENCE_S", 0.05)
    monkeypatch.setattr(storehost, "_LOOK_S", 0.01)
    monkeypatch.setattr(storehost, "_PROBE_S", 0.02)
    task = asyncio.create_task(StoreHost(view, lambda: ("127.0.0.1", port), lambda: "A", lambda: connected).run())
    await asyncio.sleep(0.2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return view.snapshot.alive


async def test_a_host_that_refuses_lives(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert await settle(view, port, False, monkeypatch) == {"A", "B"}


async def test_a_host_that_answers_nothing_is_dead_until_it_is_heard_again(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as full:  # bound, never accepting, queue filled: connections get no answer
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        assert await settle(view, port, False, monkeypatch) == {"B"}
        for filler in fillers:
            filler.close()
    assert await settle(view, port, True, monkeypatch) == {"A", "B"}


async def test_while_the_store_is_connected_nobody_looks(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await settle(view, 1, True, monkeypatch) == {"A", "B"}


def test_a_record_of_a_silent_node_stays_in_the_view(view: View) -> None:
    view.judge_silent(frozenset("A"))
    view.put(Instance("x", "x", "B"))
    assert view.snapshot.alive == {"B"}
