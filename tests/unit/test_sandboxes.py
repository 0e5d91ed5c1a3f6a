# SPDX-License-Identifier: Apache-2.0
"""Removal of a sandbox answers when this host's DNS has forgotten the name, and never fails because DNS is slow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tests.support.cluster import DEFAULT, FakeNode, nodes

from plait.agent.ipamview import ipam_view
from plait.agent.journal import Write
from plait.agent.sandboxes import Sandboxes, SandboxRequest
from plait.model.cluster import Container
from plait.model.errors import ConfigError, Conflict, NotFound
from plait.runtimes.docker.containers import with_shared
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


async def _nothing() -> None: ...


def _running(node: FakeNode) -> dict[str, str]:
    return {c.name: ",".join(map(str, c.addresses.values())) for c in node.view.snapshot.containers.values()}


async def test_an_address_that_is_shared_is_freed_with_the_last(tmp_path: Path) -> None:
    async with nodes(MemoryStore(), tmp_path, "A") as (a,):
        sandboxes = _sandboxes(a, tmp_path, _nothing)
        web = await sandboxes.create(SandboxRequest("web", DEFAULT))
        for name, share in (("log", "web"), ("more", "log")):
            assert (await sandboxes.create(SandboxRequest(name, DEFAULT, share=share))).id == web.id
        assert _running(a) == dict.fromkeys(("web", "log", "more"), str(web.address))
        (row,) = ipam_view(a.view.snapshot, a.addresses.reservations())["addresses"]
        assert (row["name"], row["shared_by"]) == ("web", ["log", "more"])
        assert sandboxes.path("more") == sandboxes.path("web") and sandboxes.get("more")[1].id == web.id
        await sandboxes.remove("web")
        assert _running(a) == dict.fromkeys(("log", "more"), str(web.address)) and a.addresses.is_live(DEFAULT, web.address)
        with pytest.raises(NotFound):
            sandboxes.get("web")
        with pytest.raises(Conflict, match="has ended, but log, more still has its address"):
            await sandboxes.create(SandboxRequest("web", DEFAULT))
        await sandboxes.remove("log")
        again = _sandboxes(a, tmp_path, _nothing)  # the agent is started again
        await again.recover()
        assert _running(a) == {"more": str(web.address)}
        await again.remove("more")
        assert not a.addresses.is_live(DEFAULT, web.address) and not a.journal.load("sandbox") and not a.ops.endpoints("sandbox")


async def test_one_that_nobody_shares_any_more_goes_at_the_next_start(tmp_path: Path) -> None:
    async with nodes(MemoryStore(), tmp_path, "A") as (a,):
        sandboxes = _sandboxes(a, tmp_path, _nothing)
        web = await sandboxes.create(SandboxRequest("web", DEFAULT))
        await sandboxes.create(SandboxRequest("log", DEFAULT, share="web"))
        await sandboxes.remove("web")
        await a.journal.write([Write("sandbox", "log", None)])  # killed in the middle of its removal
        again = _sandboxes(a, tmp_path, _nothing)
        await again.recover()
        assert not a.addresses.is_live(DEFAULT, web.address) and not a.journal.load("sandbox")


async def test_who_shares_asks_for_no_address_of_its_own(tmp_path: Path) -> None:
    async with nodes(MemoryStore(), tmp_path, "A") as (a,):
        sandboxes = _sandboxes(a, tmp_path, _nothing)
        with pytest.raises(NotFound, match="no sandbox 'web'"):
            await sandboxes.create(SandboxRequest("log", DEFAULT, share="web"))
        await sandboxes.create(SandboxRequest("web", DEFAULT))
        with pytest.raises(ConfigError, match="comes with its address"):
            await sandboxes.create(SandboxRequest("log", DEFAULT, IPv4Address("10.28.0.9"), share="web"))
        assert set(_running(a)) == {"web"}


def test_containers_of_docker_that_share_a_namespace_have_one_address() -> None:
    owner = Container("c1", "web", "A", "docker", addresses={"mesh": IPv4Address("10.29.0.2")})
    side, dead, alone = (
        Container(n, n, "A", "docker", s, shares=x)
        for n, s, x in (("side", "running", "c1"), ("dead", "exited", "c1"), ("alone", "running", "gone"))
    )
    assert [dict(c.addresses) for c in with_shared([side, owner, dead, alone])] == [dict(owner.addresses), dict(owner.addresses), {}, {}]
