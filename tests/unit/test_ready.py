# SPDX-License-Identifier: Apache-2.0
"""When a node says that it is ready: dockerd, which waits for that, must find the options for its default bridge."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plait.agent.config import parse_config
from plait.agent.node import NodeLoops
from plait.agent.view import View
from plait.model.cluster import Block, Network
from plait.model.errors import StoreUnavailable

PASSED: Any = SimpleNamespace(passed=True)
BRIDGE = Block("default", IPv4Network("10.28.4.0/24"), "b", "bridge")
DOCKER: dict[str, Any] = {"docker": {"enabled": True}}
READY_BUT_FOR_DOCKER = "a block of addresses for Docker's default bridge"


class Blocks:
    """Leases of a node: `maintain` takes as long as the test wants. The tunnel address is there first, as link events may see it."""

    def __init__(self, bridge: Block | None = None) -> None:
        self.bridge, self.leased, self.failing = bridge, asyncio.Event(), False
        self.assigned = SimpleNamespace(ranges=list)

    def bridge_block(self) -> Block | None:
        return self.bridge

    def tunnel_address(self) -> IPv4Address:
        return IPv4Address("10.28.4.0")

    async def maintain(self) -> None:
        if self.failing:
            raise StoreUnavailable("the store is away")
        await self.leased.wait()


@asynccontextmanager
async def keeping(blocks: Blocks, folder: Path, config: dict[str, Any]) -> AsyncIterator[NodeLoops]:
    """The loops of a node whose names are shown, while they keep its blocks."""
    view = View("b")
    view.put(Network("default", IPv4Network("10.28.0.0/16"), IPv4Address("10.28.0.1"), 24))
    parts: Any = SimpleNamespace(
        capabilities=frozenset(),
        config=parse_config(config, "f"),
        identity=SimpleNamespace(name="b", id="0" * 32, address=IPv4Address("192.0.2.2"), store="192.0.2.1:7470"),
        paths=SimpleNamespace(run=folder),
        view=view,
        journal=SimpleNamespace(load=lambda kind: {}),
        kernel=SimpleNamespace(underlay=lambda address: ("eth0", 1500)),
        health=SimpleNamespace(set=lambda *what: None, clear=lambda *what: None),
        publisher=SimpleNamespace(wake=lambda: None),
        addresses=blocks,
        underlay=SimpleNamespace(
            look=lambda last: 1500,
            link6=lambda: None,
            home=SimpleNamespace(now=IPv4Address("192.0.2.2"), lost=False, further=lambda: ()),
        ),
    )
    loops = NodeLoops(parts, "default")
    loops._names_shown = 0
    loops.refresh_node()
    task = asyncio.create_task(loops.keep_blocks())
    await asyncio.sleep(0)
    yield loops
    task.cancel()


async def until_ready(loops: NodeLoops) -> None:
    async with asyncio.timeout(2):
        while loops.waiting(PASSED):  # noqa: ASYNC110 (the predicate is what is tested)
            await asyncio.sleep(0.005)


async def test_a_node_is_ready_only_when_dockerd_can_be_told_of_its_bridge(tmp_path: Path) -> None:
    blocks = Blocks()
    async with keeping(blocks, tmp_path, DOCKER) as loops:
        assert loops.waiting(PASSED) == READY_BUT_FOR_DOCKER
        blocks.bridge = BRIDGE
        blocks.leased.set()
        await until_ready(loops)
        assert "--bip=10.28.4.1/24" in (tmp_path / "docker.env").read_text()


async def test_a_bridge_known_from_before_needs_no_store(tmp_path: Path) -> None:
    async with keeping(Blocks(BRIDGE), tmp_path, DOCKER) as loops:
        assert loops.waiting(PASSED) == "", "the store has not answered yet, and need not"
        assert (tmp_path / "docker.env").exists()


@pytest.mark.parametrize("config", [{"docker": {"enabled": True, "default_bridge": False}}, {"docker": {"enabled": False}}])
async def test_nobody_waits_for_a_bridge_that_is_not_wanted(tmp_path: Path, config: dict[str, Any]) -> None:
    async with keeping(Blocks(), tmp_path, config) as loops:
        assert loops.waiting(PASSED) == ""


async def test_a_pool_that_has_no_block_left_for_the_bridge_keeps_no_node_waiting(tmp_path: Path) -> None:
    blocks = Blocks()
    async with keeping(blocks, tmp_path, DOCKER) as loops:
        blocks.leased.set()
        await until_ready(loops)
        assert not (tmp_path / "docker.env").exists()


async def test_a_store_that_is_away_is_waited_for(tmp_path: Path) -> None:
    blocks = Blocks()
    blocks.failing = True
    async with keeping(blocks, tmp_path, DOCKER) as loops:
        await asyncio.sleep(0.05)
        assert loops.waiting(PASSED) == READY_BUT_FOR_DOCKER
