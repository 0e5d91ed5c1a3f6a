# SPDX-License-Identifier: Apache-2.0
"""A registration lives exactly as long as its container: the agent's own parts, reports as a runtime makes them, a node that looks."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tests.support.cluster import FakeNode, nodes

from plait.agent.autoregister import AutoRegister
from plait.agent.catalog import Catalog
from plait.agent.checkup import CheckPolicy, Checkup
from plait.agent.health import Health
from plait.model.cluster import Container, Instance, PortMapping
from plait.model.discovery import Check, CheckDefinition
from plait.services.health import Result
from plait.services.registrator import Where
from plait.store.memory import MemoryStore

WEB = Container(
    "c1",
    "web",
    "A",
    "docker",
    addresses={"default": IPv4Address("10.28.0.2")},
    started=1.0,
    exposed=((80, "tcp"),),
    env={"SERVICE_NAME": "web", "SERVICE_CHECK_TCP": "true"},
)
ID, CHECK = "A:web:80", "service:A:web:80"


class Green:
    """Every check passes."""

    async def run(self, definition: CheckDefinition) -> Result:
        return Result("passing", "ok")


class Agent:
    """What of a node's agent registers services, on a `FakeNode`."""

    def __init__(self, node: FakeNode, scripts: bool = False, where: Where = "container") -> None:
        self.node, self.health = node, Health(time.time)
        self.automatic = AutoRegister(node.view, node.journal, self.health, "198.18.0.1", "named", where)
        self.catalog = Catalog(node.view, node.journal, node.publisher.publish, lambda: 0, self.automatic.dismiss)
        policy = CheckPolicy(local_scripts=scripts)
        self.checkup = Checkup(node.view, node.journal, Green(), policy, self.gone, time.monotonic, lambda: 0.0)

    async def gone(self, service: str) -> None:
        await self.catalog.deregister(service)

    async def report(self, *containers: Container) -> None:
        self.node.view.report("docker", containers)
        for _ in range(10):
            await asyncio.sleep(0.005)

    @property
    def shown(self) -> dict[str, bool]:
        """Instances of this node by id, and whether each is up."""
        return {i.id: not i.down for i in self.node.view.snapshot.instances.values() if i.node == self.node.name}

    @property
    def checks(self) -> list[str]:
        return sorted(check for _, check in self.node.view.snapshot.checks)


@contextlib.asynccontextmanager
async def agent(node: FakeNode, scripts: bool = False, where: Where = "container") -> AsyncIterator[Agent]:
    made = Agent(node, scripts, where)
    tasks = [asyncio.create_task(made.automatic.run(made.checkup)), asyncio.create_task(made.checkup.run())]
    try:
        yield made
    finally:
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    store = MemoryStore()
    yield store
    await store.close()


async def test_it_comes_and_goes_with_its_container(store: MemoryStore, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,), agent(a) as its:
        for state, wanted in (
            ("created", {}),
            ("running", {ID: True}),
            ("paused", {ID: False}),
            ("running", {ID: True}),
            ("restarting", {}),
            ("running", {ID: True}),
            ("exited", {}),
        ):
            await its.report(replace(WEB, state=state))
            assert its.shown == wanted, state
            assert its.checks == ([CHECK] if wanted else [])
        await its.report(WEB)
        a.view.report("docker", [])
        assert its.shown == {}, "gone in the very call that says so"


async def test_a_service_that_has_its_hosts_address_follows_that_to_another(store: MemoryStore, tmp_path: Path) -> None:
    published = replace(WEB, ports=(PortMapping("tcp", 8080, 80),))
    async with nodes(store, tmp_path, "A") as (a,), agent(a, where="host") as its:
        await its.report(published)
        assert [i.address for i in a.view.snapshot.instances.values()] == ["198.18.0.1"]
        a.view.put(replace(a.view.snapshot.nodes["A"], address=IPv4Address("198.18.0.77")))
        assert [(i.address, i.port) for i in a.view.snapshot.instances.values()] == [("198.18.0.77", 8080)]


async def test_checks_that_clients_added_go_with_the_container(store: MemoryStore, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,), agent(a) as its:
        await its.report(WEB)
        await its.checkup.add([Check("more", "A", "more", service_id=ID, service_name="web", definition=CheckDefinition("ttl", ttl=60.0))])
        assert its.checks == ["more", CHECK]
        await its.report(replace(WEB, state="exited"))
        assert its.checks == []


async def test_it_never_appears_before_its_checks(store: MemoryStore, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,), agent(a) as its:
        seen: list[tuple[list[str], list[str]]] = []
        a.view.subscribe(lambda _: seen.append((sorted(its.shown), its.checks)))
        await its.report(WEB)
        assert ([], [CHECK]) in seen and ([ID], [CHECK]) in seen and ([ID], []) not in seen


async def test_a_container_that_is_not_known_yet_registers_nothing_and_loses_nothing(store: MemoryStore, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,), agent(a) as its:
        await its.report(replace(WEB, known=False, env={}, exposed=(), labels={"plait.service": "web"}))
        assert its.shown == {}, "its ports are not known"
        await its.report(WEB)
        await its.report(replace(WEB, known=False, env={}, exposed=()))
        assert its.shown == {ID: True} and its.checks == [CHECK]


async def test_a_restart_of_the_agent_is_not_seen_by_others(store: MemoryStore, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        async with agent(a) as its:
            await its.report(WEB)
            await a.publisher.publish()
        await b.until(lambda: ("A", ID) in b.view.snapshot.instances)
        lost: list[bool] = []
        b.view.subscribe(lambda _: lost.append(("A", ID) not in b.view.snapshot.instances))
        await a.stop()
        await a.start()
        async with agent(a) as its:
            assert its.shown == {ID: True}, "what the store says stands until the runtime has reported"
            await a.publisher.publish()
            for container in (replace(WEB, known=False, env={}, exposed=()), WEB):
                await its.report(container)
                await a.publisher.publish()
                assert its.shown == {ID: True}
            assert not any(lost)


async def test_what_died_while_the_agent_was_away_is_gone_with_the_first_report(store: MemoryStore, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        async with agent(a) as its:
            await its.report(WEB)
            await a.publisher.publish()
        await a.stop()
        await a.start()
        async with agent(a) as its:
            await its.report()
            assert its.shown == {} and its.checks == []
            await a.publisher.publish()
            await b.until(lambda: not b.view.snapshot.instances and not b.view.snapshot.checks)


async def test_what_a_client_deregistered_stays_away_until_the_container_starts_again(store: MemoryStore, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        async with agent(a) as its:
            await its.report(WEB)
            assert await its.catalog.deregister(ID)
            await its.report(replace(WEB, health="healthy"))
            assert its.shown == {} and its.checks == []
            assert not await its.catalog.deregister(ID)
        await a.stop()
        await a.start()
        async with agent(a) as its:
            a.view.report("sandbox", [])
            await its.report(replace(WEB, known=False, env={}, exposed=()))
            await its.report(WEB)
            assert its.shown == {}, "also over a restart of the agent"
            await its.report(replace(WEB, started=2.0))
            assert its.shown == {ID: True}


async def test_a_clients_service_of_the_same_id_counts_more(store: MemoryStore, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,), agent(a) as its:
        await its.report(WEB)
        await its.catalog.register(Instance(ID, "mine", "A", "192.0.2.1"))
        for containers in ((replace(WEB, image="other"),), ()):
            await its.report(*containers)
            assert a.view.snapshot.instances["A", ID].name == "mine"
        assert await its.catalog.deregister(ID)
        await its.report(WEB)
        assert a.view.snapshot.instances["A", ID].name == "web"


async def test_two_containers_of_one_id_and_a_check_that_is_not_allowed_are_conditions(store: MemoryStore, tmp_path: Path) -> None:
    same = replace(WEB, id="c2", name="xtra", env={"SERVICE_NAME": "web", "SERVICE_ID": ID})
    script = replace(WEB, id="c3", name="script", env={"SERVICE_NAME": "s", "SERVICE_CHECK_SCRIPT": "true"})
    async with nodes(store, tmp_path, "A") as (a,):
        async with agent(a) as its:
            await its.report(WEB, same, script)
            said = {condition.subject: condition.text for condition in its.health.active()}
            assert its.shown == {ID: True} and set(said) == {"xtra", "script"}
            assert "is that of a service of web" in said["xtra"] and "enable_script_checks" in said["script"]
            await its.report(WEB)
            assert its.health.well
        await a.stop()
        await a.start()
        async with agent(a, scripts=True) as its:
            await its.report(script)
            assert its.shown == {"A:script:80": True} and its.health.well
            await its.checkup.flush()
        await a.stop()
        await a.start()
        async with agent(a, scripts=True) as its:
            await its.report(script)
            assert [check.output for check in a.view.snapshot.checks.values()] == ["ok"], "still allowed after a restart"
