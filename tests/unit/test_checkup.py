# SPDX-License-Identifier: Apache-2.0
"""The agent's side of health checks over its real journal, view, publisher and store, with a runner that says what it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.checks import serve_bytes
from tests.support.cluster import FakeNode, nodes

from plait.agent import checkup as module
from plait.agent.checkup import CheckPolicy, Checkup, Runner
from plait.agent.checkwatch import CheckWatch
from plait.agent.followed import Followed
from plait.agent.health import Health
from plait.agent.journal import Write
from plait.checks.runners import Runners
from plait.model.cluster import Container, Instance
from plait.model.discovery import Check, CheckDefinition, Status
from plait.model.errors import Conflict, NotFound, NotSaved, NotSupported, StoreUnavailable
from plait.services.health import SCRIPTS_LOCAL, SCRIPTS_OFF, Result
from plait.store.memory import MemoryStore

HTTP = CheckDefinition(kind="http", target="http://web/", interval=0.05, timeout=1)
TTL = CheckDefinition(kind="ttl", ttl=0.3)
SCRIPT = CheckDefinition(kind="script", args=("true",), interval=0.05, timeout=1)


class Script:
    """A runner whose results are set beforehand, by target; passing until then."""

    def __init__(self) -> None:
        self.results: dict[str, Result] = {}
        self.runs: Counter[str] = Counter()

    async def run(self, definition: CheckDefinition) -> Result:
        self.runs[definition.target] += 1
        return self.results.get(definition.target, Result("passing", "fine"))


def noting(gone: list[str]) -> Callable[[str], Awaitable[object]]:
    """Deregisters nothing and notes what was to be."""

    async def deregister(service: str) -> object:
        gone.append(service)
        return True

    return deregister


async def nobody(service: str) -> object:
    raise AssertionError(f"{service} must stay")


@contextlib.asynccontextmanager
async def checking(
    node: FakeNode,
    runner: Runner,
    policy: CheckPolicy | None = None,
    deregister: Callable[[str], Awaitable[object]] = nobody,
) -> AsyncIterator[Checkup]:
    made = Checkup(node.view, node.journal, runner, policy or CheckPolicy(), deregister, time.monotonic, lambda: 0.5)
    task = asyncio.ensure_future(made.run())
    try:
        yield made
    finally:
        await made.flush()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    store = MemoryStore()
    yield store
    await store.close()


@pytest.fixture
async def node(store: MemoryStore, tmp_path: Path) -> AsyncIterator[FakeNode]:
    async with nodes(store, tmp_path, "A") as (made,):
        yield made


def check(key: str = "c", definition: CheckDefinition = HTTP, status: Status = "critical", service: str = "") -> Check:
    return Check(key, "A", key, status, definition=definition, service_id=service)


def seen(node: FakeNode, key: str = "c") -> tuple[str, str]:
    found = node.view.snapshot.checks.get(("A", key))
    return (found.status, found.output) if found is not None else ("", "")


async def restart(node: FakeNode) -> None:
    await node.stop()
    await node.start()


# --- runs


async def test_a_check_is_run_and_its_changes_are_seen_on_another_node(store: MemoryStore, tmp_path: Path) -> None:
    runner = Script()
    async with nodes(store, tmp_path, "A", "B") as (a, b), checking(a, runner) as checkup:
        await checkup.add([check()])
        assert seen(a) == ("critical", ""), "critical until the first run says better"
        await a.until(lambda: seen(a) == ("passing", "fine"))
        await a.publisher.publish()
        await b.until(lambda: seen(b) == ("passing", "fine"))
        runner.results["http://web/"] = Result("warning", "slow")
        await a.until(lambda: seen(a) == ("warning", "slow"))
        await a.publisher.publish()
        await b.until(lambda: seen(b) == ("warning", "slow"))
        assert checkup.own("c") == a.view.own_records()["checks/A/c"]


async def test_thresholds_hold_a_status(node: FakeNode) -> None:
    runner = Script()
    async with checking(node, runner) as checkup:
        await checkup.add([check(definition=replace(HTTP, failures_before_critical=4, failures_before_warning=2), status="passing")])
        runner.results["http://web/"] = Result("critical", "down")
        states: list[str] = []
        await node.until(lambda: states.append(seen(node)[0]) or states[-1] == "critical")
        assert list(dict.fromkeys(states)) == ["passing", "warning", "critical"] and runner.runs["http://web/"] >= 4


async def test_a_removed_check_is_run_no_more_and_gone_for_good(node: FakeNode) -> None:
    runner = Script()
    async with checking(node, runner) as checkup:
        await checkup.add([check("a", service="web"), check("b", service="web"), check("n")])
        await node.until(lambda: seen(node, "b")[0] == "passing")
        assert [c.id for c in checkup.of_service("web")] == ["a", "b"] and [c.id for c in checkup.of_service("")] == ["n"]
        await checkup.remove(["a", "b", "nobody"])
        assert (seen(node, "a"), checkup.own("a"), checkup.of_service("web")) == (("", ""), None, [])
        count = runner.runs["http://web/"]
        await checkup.remove(["n"])
        await asyncio.sleep(0.2)
        assert runner.runs["http://web/"] <= count + 1
    await restart(node)
    async with checking(node, runner):
        assert node.view.snapshot.checks == {}


async def test_after_a_restart_nothing_turns_critical_before_it_was_run(node: FakeNode) -> None:
    runner = Script()
    slow = replace(HTTP, interval=60)
    async with checking(node, runner) as checkup:
        await checkup.add([check(), check("never", slow), check("quiet", replace(slow, target="q"), status="passing")])
        await node.until(lambda: seen(node)[0] == "passing")
        await asyncio.sleep(0.6)
        runner.results["http://web/"] = Result("warning", "slow")
        await node.until(lambda: seen(node)[0] == "warning")
    await restart(node)
    async with checking(node, runner):
        assert seen(node) == ("warning", "slow") and seen(node, "quiet")[0] == "passing"
        assert seen(node, "never") == ("critical", "")


async def test_registering_again_keeps_the_standing_of_the_same_check_only(node: FakeNode) -> None:
    runner = Script()
    async with checking(node, runner) as checkup:
        await checkup.add([check()])
        await node.until(lambda: seen(node)[0] == "passing")
        await checkup.add([replace(check(), name="renamed", notes="x")])
        assert seen(node) == ("passing", "fine") and node.view.snapshot.checks["A", "c"].notes == "x"
        await checkup.add([check(definition=replace(HTTP, interval=60, target="other"))])
        assert seen(node) == ("critical", "")
        await checkup.add([check(definition=replace(HTTP, interval=60, target="other"), status="passing")])
        assert seen(node)[0] == "passing", "a status that is given counts"


# --- TTL


async def test_a_ttl_check_lives_by_its_clients_word(node: FakeNode) -> None:
    async with checking(node, Script()) as checkup:
        await checkup.add([check(definition=TTL)])
        checkup.update("c", "passing", "well")
        assert seen(node) == ("passing", "well")
        for _ in range(3):
            await asyncio.sleep(0.2)
            checkup.update("c", "passing", "well")
        assert seen(node)[0] == "passing", "each word starts the time anew"
        await node.until(lambda: seen(node)[0] == "critical")
        assert seen(node)[1] == "TTL expired (last output before timeout follows): well"
        checkup.update("c", "warning", "")
        await node.until(lambda: seen(node)[0] == "critical")
        assert seen(node)[1] == "TTL expired"
        checkup.update("c", "passing", "ö" * 3000)
        assert seen(node)[1].endswith(" ... (captured 4096 of 6000 bytes)")


async def test_a_word_about_a_check_that_does_not_take_it_is_refused(node: FakeNode) -> None:
    async with checking(node, Script()) as checkup:
        await checkup.add([check()])
        with pytest.raises(NotFound, match='Unknown check ID "x"'):
            checkup.update("x", "passing", "")
        with pytest.raises(Conflict, match='CheckID "c" does not have associated TTL'):
            checkup.update("c", "passing", "")


async def test_a_ttl_check_survives_a_restart_with_its_whole_time(node: FakeNode) -> None:
    async with checking(node, Script()) as checkup:
        await checkup.add([check(definition=replace(TTL, ttl=0.6))])
        checkup.update("c", "passing", "well")
        await asyncio.sleep(0.4)
    await restart(node)
    async with checking(node, Script()):
        await asyncio.sleep(0.35)
        assert seen(node) == ("passing", "well")
        await node.until(lambda: seen(node)[0] == "critical")


# --- what the operator allows


@pytest.mark.parametrize(
    ("policy", "remote", "why"),
    [
        (CheckPolicy(), True, SCRIPTS_OFF),
        (CheckPolicy(), False, SCRIPTS_OFF),
        (CheckPolicy(local_scripts=True), True, SCRIPTS_LOCAL),
        (CheckPolicy(local_scripts=True), False, ""),
        (CheckPolicy(scripts=True), True, ""),
    ],
)
@pytest.mark.parametrize("definition", [SCRIPT, CheckDefinition(kind="docker", target="web", args=("x",), interval=0.05, timeout=1)])
async def test_commands_are_refused_unless_allowed(
    node: FakeNode, policy: CheckPolicy, remote: bool, why: str, definition: CheckDefinition
) -> None:
    runner = Script()
    async with checking(node, runner, policy) as checkup:
        if not why:
            await checkup.add([check(definition=definition)], remote)
            await node.until(lambda: seen(node)[0] == "passing")
            return
        with pytest.raises(NotSupported) as caught:
            await checkup.add([check("fine"), check(definition=definition)], remote)
        assert str(caught.value) == why
        assert checkup.own("c") is None and checkup.own("fine") is None, "all or none"


@pytest.mark.parametrize("later", [CheckPolicy(), CheckPolicy(local_scripts=True)])
async def test_a_command_that_is_no_longer_allowed_is_critical_and_not_run(node: FakeNode, later: CheckPolicy) -> None:
    async with checking(node, Script(), CheckPolicy(scripts=True)) as checkup:
        await checkup.add([check(definition=SCRIPT)])
        await node.until(lambda: seen(node)[0] == "passing")
    await restart(node)
    runner = Script()
    async with checking(node, runner, later) as checkup:
        assert seen(node)[0] == "critical" and seen(node)[1].startswith("Scripts are disabled")
        await asyncio.sleep(0.2)
        assert not runner.runs
        if later.local_scripts:
            await checkup.add([check(definition=SCRIPT)], remote=False)
            await node.until(lambda: seen(node)[0] == "passing")


# --- deregistration


async def test_a_service_that_stays_critical_is_deregistered(node: FakeNode) -> None:
    gone: list[str] = []

    async def deregister(service: str) -> object:
        gone.append(service)
        if len(gone) == 1:
            raise StoreUnavailable("later")
        return True

    runner = Script()
    runner.results["down"] = Result("critical", "x")
    definition = replace(HTTP, target="down", deregister_after=0.3)
    async with checking(node, runner, deregister=deregister) as checkup:
        await checkup.add([check("a", definition, service="web"), check("b", replace(definition, target="up"), service="other")])
        await checkup.add([check("n", definition)])
        await asyncio.sleep(0.2)
        assert gone == []
        await node.until(lambda: len(gone) == 2)
        assert gone == ["web", "web"], "tried again; neither the service that passes nor the node"


async def test_a_check_that_recovers_in_time_saves_its_service(node: FakeNode) -> None:
    runner = Script()
    runner.results["t"] = Result("critical")
    async with checking(node, runner) as checkup:
        await checkup.add([check("a", replace(HTTP, target="t", deregister_after=0.5), service="web")])
        await asyncio.sleep(0.25)
        runner.results["t"] = Result("passing")
        await asyncio.sleep(0.5)


async def test_the_time_until_deregistration_begins_anew_after_a_recovery(node: FakeNode) -> None:
    runner, gone = Script(), list[str]()
    runner.results["t"] = Result("critical")
    async with checking(node, runner, deregister=noting(gone)) as checkup:
        await checkup.add([check("a", replace(HTTP, target="t", deregister_after=1.0), service="web")])
        await asyncio.sleep(0.5)
        runner.results["t"] = Result("passing")
        await node.until(lambda: seen(node, "a")[0] == "passing")
        runner.results["t"] = Result("critical")
        await node.until(lambda: seen(node, "a")[0] == "critical")
        await asyncio.sleep(0.75)
        assert gone == [], "critical for less than a second at a time"
        await node.until(lambda: gone == ["web"])


async def test_registering_again_and_again_does_not_put_a_deregistration_off(node: FakeNode) -> None:
    runner, gone = Script(), list[str]()
    runner.results["t"] = Result("critical")
    async with checking(node, runner, deregister=noting(gone)) as checkup:
        for _ in range(20):
            await checkup.add([check("a", replace(HTTP, target="t", deregister_after=0.5), service="web")])
            await asyncio.sleep(0.05)
        assert gone


# --- outputs


async def test_changing_outputs_become_visible_without_flooding_the_store(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OUTPUT_GAP_S", 0.3)
    puts: Counter[str] = Counter()
    original = node.view.put
    monkeypatch.setattr(node.view, "put", lambda record: (puts.update([getattr(record, "id", "")]), original(record)))
    numbers = iter(range(10**9))

    class Clock(Script):
        async def run(self, definition: CheckDefinition) -> Result:
            return Result("passing", f"{definition.target} at {next(numbers)}")

    async with checking(node, Clock()) as checkup:
        await checkup.add([check(f"c{n}", replace(HTTP, target=str(n)), "passing") for n in range(100)])
        await asyncio.sleep(0.5)
        before = puts.total()
        await asyncio.sleep(2)
        shown = puts.total() - before
        assert 20 <= shown <= module.OUTPUT_RATE * 2 + module.OUTPUT_BURST + 5, "about 2000 runs had a new output"
        assert max(puts.values()) - 1 <= 2.5 / 0.3 + 1
    assert max(puts.values()) <= min(puts.values()) + 3, "each has its turn"


async def test_an_output_that_changes_once_is_visible_soon(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OUTPUT_GAP_S", 0.5)
    runner = Script()
    async with checking(node, runner) as checkup:
        await checkup.add([check()])
        await node.until(lambda: seen(node) == ("passing", "fine"))
        runner.results["http://web/"] = Result("passing", "better")
        await asyncio.sleep(0.15)
        own = checkup.own("c")
        assert own is not None and own.output == "better" and seen(node)[1] == "fine"
        await node.until(lambda: seen(node) == ("passing", "better"), 3)


async def test_why_a_check_is_still_critical_is_visible_at_once(node: FakeNode) -> None:
    runner = Script()
    runner.results["http://web/"] = Result("critical", "connection refused")
    async with checking(node, runner) as checkup:
        await checkup.add([check()])
        await node.until(lambda: seen(node) == ("critical", "connection refused"), 2)


async def test_a_journal_that_fails_loses_nothing(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY_S", 0.05)
    runner, original, refused = Script(), node.journal.write, 0

    async def broken(writes: Sequence[Write]) -> None:
        nonlocal refused
        refused += 1
        raise NotSaved("the disk is full")

    async with checking(node, runner) as checkup:
        await checkup.add([check(definition=replace(HTTP, interval=0.4))])
        monkeypatch.setattr(node.journal, "write", broken)
        await node.until(lambda: seen(node)[0] == "passing" and refused >= 2)
        with pytest.raises(NotSaved):
            await checkup.add([check("other")])
        assert checkup.own("other") is None, "what is not durable is not taken over"
        monkeypatch.setattr(node.journal, "write", original)
    await restart(node)
    async with checking(node, runner):
        assert seen(node) == ("passing", "fine")


async def test_targets_that_hang_do_not_keep_the_others_from_running(node: FakeNode) -> None:
    """Over real sockets: 60 targets accept and never answer, 8 places."""
    runners, answer = Runners(None), b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    async with (
        serve_bytes(b"", wait_for=b"never") as silent,
        serve_bytes(answer, wait_for=b"\r\n\r\n") as good,
        checking(node, runners, CheckPolicy(parallel=8)) as checkup,
    ):
        hang = replace(HTTP, target=f"http://127.0.0.1:{silent}/", interval=1, timeout=1.5)
        await checkup.add([check(f"hang{n}", hang, "passing") for n in range(60)])
        await node.until(lambda: sum(seen(node, f"hang{n}")[0] == "critical" for n in range(60)) >= 55, 15)
        await checkup.add([check("good", replace(HTTP, target=f"http://127.0.0.1:{good}/", interval=0.2))])
        await node.until(lambda: seen(node, "good")[0] == "passing", 2)
        await node.until(lambda: checkup.overdue()[0] > 0, 3)  # 40 places for 60 that hang 1.5 s of every 2: at some moments nobody waits
        assert checkup.overdue()[1] < 5
    await runners.close()


# --- checks that follow


async def test_an_alias_follows_its_target_and_a_container_its_engine(node: FakeNode) -> None:
    runner = Script()
    async with checking(node, runner) as checkup:
        followed = Followed(node.view, checkup)
        task = asyncio.ensure_future(followed.run())
        alias = CheckDefinition(kind="alias", target="/web")
        await checkup.add([check("alias", alias, service="proxy"), check("web", replace(HTTP, target="t"), service="web")])
        await node.until(lambda: seen(node, "alias") == ("critical", "No service 'web' on node 'A'"))
        node.view.put(Instance("web", "web", "A", container="web-1"))
        await node.until(lambda: seen(node, "alias") == ("passing", "All checks passing."))
        runner.results["t"] = Result("warning", "slow")
        await node.until(lambda: seen(node, "alias") == ("warning", "Aliased check 'web' is warning"))
        runner.results["t"] = Result("passing", "")

        def report(health: str, output: str = "", state: str = "running") -> None:
            node.view.report("docker", [Container("x", "web-1", "A", "docker", state, health=health, health_output=output)])

        report("")
        assert seen(node, "container:web") == ("", "")
        report("starting")
        await node.until(lambda: seen(node, "container:web") == ("critical", "Container web-1 is starting"))
        report("healthy", "pong")
        await node.until(lambda: seen(node, "container:web") == ("passing", "Container web-1 is healthy: pong"))
        await node.until(lambda: seen(node, "alias")[0] == "passing")
        report("unhealthy", "no route")
        await node.until(lambda: seen(node, "alias") == ("critical", "Aliased check 'container:web' is critical"))
        report("unhealthy", state="exited")
        await node.until(lambda: seen(node, "container:web") == ("", ""))
        task.cancel()


# --- what the operator is told


async def test_checks_that_wait_are_a_condition_and_records_of_others_are_too(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    health, late = Health(time.time), (0, 0.0)
    monkeypatch.setattr(Checkup, "overdue", lambda _: late)
    monkeypatch.setattr(node.view, "stored", lambda prefix: {key: None for key in catalogued if key.startswith(prefix)})
    catalogued: list[str] = []
    async with checking(node, Script()) as checkup:
        watch = CheckWatch(node.view, checkup, health)
        watch.once()
        assert health.well
        late = (120, 7.4)
        watch.once()
        assert [(a.condition.code, a.text) for a in health.active()] == [
            ("checks-late", "120 health checks are due and wait, the longest for 7 s")
        ]
        late = (120, 1.0)
        catalogued[:] = [
            "catalog/nodes/A",
            "catalog/instances/A/web",
            "catalog/instances/B/web",
            "catalog/checks/A/c",
            "catalog/checks/A/x",
        ]
        await checkup.add([check(service="web")])
        node.view._changed(frozenset({"catalog/instances"}))
        watch.once()
        told = {active.subject: active.text for active in health.active()}
        assert told == {
            "node A": "the catalogue has a node 'A' too; what this agent says of itself counts",
            "service web": "the catalogue has a service 'web' on this node; this agent has none of that id; clients see the catalogue's",
            "check x": "the catalogue has a check 'x' on this node; this agent has none of that id; clients see the catalogue's",
            "check c": "the catalogue has a check 'c' on this node; this agent has one of the same id, of service 'web', which counts",
        }
        catalogued.clear()
        node.view._changed(frozenset({"catalog/instances"}))
        watch.once()
        assert health.well
