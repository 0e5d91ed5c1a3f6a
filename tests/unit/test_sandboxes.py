# SPDX-License-Identifier: Apache-2.0
"""Removal of a sandbox answers when this host's DNS has forgotten the name, and never fails because DNS is slow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.support.cluster import DEFAULT, FakeNode, nodes

from plait.agent.sandboxes import Sandboxes, SandboxRequest
from plait.store.memory import MemoryStore


def _sandboxes(node: FakeNode, folder: Path, names_settled: Callable[[], Awaitable[None]]) -> Sandboxes:
    def nothing(_: Path) -> None: ...

    return Sandboxes(node.name, node.ops, node.journal, folder, nothing, nothing, lambda _: True, names_settled)


async def test_removal_waits_for_dns_after_the_name_has_left_the_view(tmp_path: Path) -> None:
    asked: list[set[str]] = []
    async with nodes(MemoryStore(), tmp_path, "A") as (a,):

        async def settled() -> None:
            snapshot = a.view.snapshot
            asked.append({c.name for c in snapshot.containers.values()} | {e.name for e in snapshot.endpoints.values()})

        sandboxes = _sandboxes(a, tmp_path, settled)
        await sandboxes.create(SandboxRequest("stays", DEFAULT))
        await sandboxes.create(SandboxRequest("web", DEFAULT))
        await sandboxes.remove("web")
    assert asked == [{"stays"}]


async def test_slow_dns_fails_no_removal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with nodes(MemoryStore(), tmp_path, "A") as (a,):

        async def never() -> None:
            raise TimeoutError

        sandboxes = _sandboxes(a, tmp_path, never)
        await sandboxes.create(SandboxRequest("web", DEFAULT))
        await sandboxes.remove("web")
        assert not a.ops.endpoints("sandbox")
    assert "names_late" in caplog.text
