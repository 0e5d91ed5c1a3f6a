# SPDX-License-Identifier: Apache-2.0
"""The agent's part of policies by names: in the kernel before the client has the answer, gone after its time, the same after a restart."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest
from tests.support.cluster import FakeNode, nodes
from tests.support.consulapi import Cuttable
from tests.support.policies import NAMED
from tests.unit.test_policies import Counted, attach, store

from plait.agent.answered import Answered
from plait.agent.keys import policy_key
from plait.agent.policies import Policies
from plait.model.errors import NotFound
from plait.model.objects import NftSet
from plait.serve.dns_parent import DnsUnavailable
from plait.store.api import Delete

__all__ = ["store"]
LEAST_S = 60.0


class Dns:
    """The child, as far as it is told what to heed."""

    def __init__(self) -> None:
        self.heeded: list[frozenset[str]] = []
        self.away = False

    async def set_heeded(self, patterns: frozenset[str]) -> None:
        self.heeded.append(patterns)
        if self.away:
            raise DnsUnavailable("it is away")


class Running:
    """A node that takes answers, by a clock of its own."""

    def __init__(self, node: FakeNode, path: Path) -> None:
        self.node, self.path, self.now, self.passes = node, path, 1000.0, 0
        self.dns = Dns()
        self.answered = Answered(node.view, self.dns, path, LEAST_S, self._pass, lambda: self.now)
        self.policies = Policies(node.view, node.store, self.answered.enforce, Counted())

    async def _pass(self):  # type: ignore[no-untyped-def]
        self.passes += 1
        return await self.node.full_pass()

    async def take(self, name: str, *addresses: str, ttl: int = 5) -> frozenset[str]:
        """What the kernel has of the name's addresses when the client may have them."""
        done: asyncio.Future[frozenset[str]] = asyncio.get_running_loop().create_future()
        self.answered.take(name, [(ip_address(one).packed, ttl) for one in addresses], lambda: done.set_result(opened(self.node)))
        return await asyncio.wait_for(done, 5)


def opened(node: FakeNode) -> frozenset[str]:
    """Addresses outside that have an element of their own in some profile."""
    maps = (obj for obj in node.kernel.objects.values() if isinstance(obj, NftSet) and obj.name.startswith("po_"))
    found = (element.partition(" : ")[0] for obj in maps if "_net" not in obj.name for element in obj.elements)
    return frozenset(one for one in found if one.startswith("203.0.113."))


@contextlib.asynccontextmanager
async def running(node: FakeNode, path: Path) -> AsyncIterator[Running]:
    made = Running(node, path)
    made.answered.recover()
    task = asyncio.create_task(made.answered.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def node(store: Cuttable, tmp_path: Path) -> AsyncIterator[FakeNode]:
    async with nodes(store, tmp_path, "A") as (a,):
        await attach(a, "web", "web")
        yield a


async def test_an_address_is_in_the_kernel_before_the_client_has_the_answer(node: FakeNode, tmp_path: Path) -> None:
    async with running(node, tmp_path / "answered") as agent:
        await agent.policies.apply(NAMED.encode())
        assert agent.dns.heeded[-1] == {"api.example.com", "*.example.org"}, "asked for before the policy is said to be in force"
        assert opened(node) == frozenset()
        assert await agent.take("api.example.com", "203.0.113.1", "203.0.113.2") == {"203.0.113.1", "203.0.113.2"}
        passes = agent.passes
        assert await agent.take("api.example.com", "203.0.113.1") == {"203.0.113.1", "203.0.113.2"}
        assert agent.passes == passes, "what is known costs nothing"
        assert await node.full_pass() is not None and (await node.full_pass()).writes == 0
        assert opened(node) == {"203.0.113.1", "203.0.113.2"}, "and no pass takes it away"


async def test_many_answers_at_once_are_one_pass(node: FakeNode, tmp_path: Path) -> None:
    async with running(node, tmp_path / "answered") as agent:
        await agent.policies.apply(NAMED.encode())
        await asyncio.sleep(0.05)
        before = agent.passes
        found = await asyncio.gather(*(agent.take(f"n{number}.example.org", f"203.0.113.{number}") for number in range(1, 100)))
        assert all(f"203.0.113.{number}" in one for number, one in enumerate(found, 1)) and agent.passes - before <= 2


async def test_an_answer_ends_with_its_ttl_and_not_before_the_least(node: FakeNode, tmp_path: Path) -> None:
    async with running(node, tmp_path / "answered") as agent:
        await agent.policies.apply(NAMED.encode())
        await agent.take("api.example.com", "203.0.113.1", ttl=0)
        await agent.take("www.example.org", "203.0.113.2", ttl=300)
        for seconds, wanted in ((LEAST_S - 1, {"203.0.113.1", "203.0.113.2"}), (2, {"203.0.113.2"}), (238, {"203.0.113.2"}), (2, set())):
            agent.now += seconds
            await agent.take("other.example.org", "198.51.100.1")  # it looks at its clock
            assert opened(node) == wanted
        assert (await node.full_pass()).writes == 0


async def test_it_ends_by_itself(node: FakeNode, tmp_path: Path) -> None:
    async with running(node, tmp_path / "answered") as agent:
        agent.now = asyncio.get_running_loop().time()
        clock = asyncio.get_running_loop().time
        agent.answered = Answered(node.view, agent.dns, tmp_path / "other", 0.2, agent._pass, clock)
        task = asyncio.create_task(agent.answered.run())
        await agent.policies.apply(NAMED.encode())
        assert await agent.take("api.example.com", "203.0.113.1", ttl=0) == {"203.0.113.1"}
        await node.until(lambda: opened(node) == frozenset())
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_next_agent_knows_what_still_counts(node: FakeNode, tmp_path: Path) -> None:
    path = tmp_path / "answered"
    async with running(node, path) as agent:
        await agent.policies.apply(NAMED.encode())
        await agent.take("api.example.com", "203.0.113.1", ttl=0)
        await agent.take("www.example.org", "203.0.113.2", ttl=300)
        await agent.take("www.example.org", "203.0.113.3", ttl=9)
        await agent.take("www.example.org", "203.0.113.3", ttl=600)
    with path.open("a") as stream:
        stream.write("9999999 203.0.113")  # the agent was killed while it wrote
    node.view.answer({})  # the next one begins with nothing, and with the kernel as it is
    kept = dict(node.kernel.objects)
    async with running(node, path) as agent:
        assert {str(address) for address in node.view.snapshot.answered} == {"203.0.113.1", "203.0.113.2", "203.0.113.3"}
        assert (await node.full_pass()).writes == 0 and node.kernel.objects == kept
        await agent.take("api.example.com", "203.0.113.4", ttl=600)
    node.view.answer({})
    late = Running(node, path)
    late.now += 200
    late.answered.recover()
    assert {str(address) for address in node.view.snapshot.answered} == {
        "203.0.113.2",
        "203.0.113.3",
        "203.0.113.4",
    }, "the half line cost nothing else"
    await node.full_pass()
    assert opened(node) == {"203.0.113.2", "203.0.113.3", "203.0.113.4"}, "what ended meanwhile is taken away"


async def test_its_file_does_not_grow_without_end(node: FakeNode, tmp_path: Path) -> None:
    path = tmp_path / "answered"
    async with running(node, path) as agent:
        await agent.policies.apply(NAMED.encode())
        for _ in range(3000):
            await agent.take("api.example.com", "203.0.113.1")
        assert path.read_text().count("\n") < 1100 and path.stat().st_mode & 0o777 == 0o600


def _a_folder(path: Path) -> None:
    path.mkdir()


def _no_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\n")


@pytest.mark.parametrize("spoil", [_a_folder, _no_text])
async def test_a_file_that_cannot_be_read_or_written_costs_nothing_else(
    node: FakeNode, tmp_path: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "answered"
    spoil(path)
    with caplog.at_level(logging.WARNING, "plait.policies"):
        async with running(node, path) as agent:
            await agent.policies.apply(NAMED.encode())
            assert await agent.take("api.example.com", "203.0.113.1") == {"203.0.113.1"}
    assert "answers_unread" in caplog.messages and ("answers_unwritten" in caplog.messages) == path.is_dir()


async def test_a_child_that_is_away_is_told_by_whoever_replaces_it(node: FakeNode, tmp_path: Path) -> None:
    agent = Running(node, tmp_path / "answered")
    agent.dns.away = True
    await agent.policies.apply(NAMED.encode())
    assert agent.dns.heeded == [{"api.example.com", "*.example.org"}] and agent.passes == 1
    async with running(node, tmp_path / "answered") as agent:
        await node.until(lambda: agent.dns.heeded == [{"api.example.com", "*.example.org"}])
        await agent.node.store.txn([], [Delete(policy_key(("_cluster", "out")))])
        await node.until(lambda: agent.dns.heeded[-1] == frozenset())  # another host took it away


async def test_a_test_explains_names_and_what_is_not_known(node: FakeNode, tmp_path: Path) -> None:
    async with running(node, tmp_path / "answered") as agent:
        test = agent.policies.test
        await agent.policies.apply(NAMED.encode())
        with pytest.raises(NotFound, match="of names in policies those count that this host's DNS has answered"):
            test("web", "api.example.com", "tcp", 443)
        assert "has answered no name in a policy with 203.0.113.1" in test("web", "203.0.113.1", "tcp", 443)["note"]
        await agent.take("api.example.com", "203.0.113.2", "203.0.113.1", "2001:db8::1")
        told = test("web", "API.example.com", "tcp", 443)
        assert told["allowed"] and told["destination"] == "203.0.113.1 tcp port 443" and told["note"] == ""
        assert told["sides"][0]["why"] == "Accept by tier Admin, since DNS gave 203.0.113.1 for api.example.com"
        assert not test("web", "203.0.113.1", "tcp", 80)["allowed"]


async def test_another_hosts_names_are_its_own(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await attach(a, "web", "web")
        await b.publisher.publish()
        async with running(a, tmp_path / "answered") as agent:
            await a.publisher.publish()
            await agent.policies.apply(NAMED.encode())
            await agent.take("api.example.com", "203.0.113.1")
            await b.until(lambda: bool(b.view.snapshot.policies and b.view.snapshot.endpoints))
            told = Policies(b.view, b.store, b.full_pass, Counted()).test("web", "203.0.113.1", "tcp", 443)
            assert not told["allowed"] and told["note"] == "of rules by domainNames A goes by what its own DNS has answered; ask there"
            assert IPv4Address("203.0.113.1") not in b.view.snapshot.answered
