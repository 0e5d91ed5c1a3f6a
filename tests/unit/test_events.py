# SPDX-License-Identifier: Apache-2.0
"""The event stream: what differs between two directories, what a client that chooses sees of it, and the stream over real HTTP."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.test_consul import Backend

from plait.http.server import Limits
from plait.model.cluster import Container, Instance, Node, Snapshot
from plait.model.discovery import CatalogNode, Check
from plait.serve.consul import ConsulApi
from plait.serve.event_hub import EventHub
from plait.serve.plait_events import PlaitEventsApi
from plait.services.changes import Wanted, differences
from plait.services.directory import Directory
from plait.services.selector import parse_selector

ALL = Wanted()
NODES = {name: Node(name, f"id-{name}", IPv4Address("192.0.2.1")) for name in "AB"}
WEB, DB = Instance("web", "Web", "A", "10.28.0.2", 80, meta={"app": "web"}), Instance("db", "db", "B", "10.28.0.3", 5432)
START = Snapshot("A", 5, NODES, frozenset("AB"), instances={("A", "web"): WEB, ("B", "db"): DB})


def told(before: Snapshot, after: Snapshot, wanted: Wanted = ALL) -> list[tuple[str, str, str]]:
    """(kind, change, what of) in the order of the events."""
    rows = []
    for difference in differences(Directory.of(before), Directory.of(after), "dc1"):
        if seen := wanted.seen(difference):
            body = seen[1].body
            match difference.kind:
                case "node":
                    name = body["Node"]["Node"]
                case "service":
                    name = body["Service"]
                case "instance":
                    name = body["Service"]["ID"]
                case _:
                    name = body["Check"]["CheckID"]
            rows.append((difference.kind, seen[0], name))
    return rows


def changed(**fields: Any) -> Snapshot:
    return replace(START, **fields)


def check(node: str, service: str = "", status: Any = "critical", output: str = "") -> dict[tuple[str, str], Check]:
    return {(node, "c"): Check("c", node, "c", status, output, service_id=service)}


def test_an_instance_that_comes_and_goes_brings_and_takes_its_service() -> None:
    api = Instance("api", "api", "B")
    more = changed(instances={**START.instances, ("B", "api"): api})
    assert told(START, more) == [("service", "added", "api"), ("instance", "added", "api")]
    assert told(more, START) == [("service", "removed", "api"), ("instance", "removed", "api")]
    twin = {**START.instances, ("B", "web"): replace(WEB, node="B", tags=("x",))}
    assert told(START, changed(instances=twin)) == [("service", "changed", "Web"), ("instance", "added", "web")]


def test_a_check_tells_of_its_instance_if_its_status_changes_only() -> None:
    bad, worse = changed(checks=check("A", "web")), changed(checks=check("A", "web", output="x"))
    assert told(START, bad) == [("instance", "changed", "web"), ("check", "added", "c")]
    assert told(bad, worse) == [("check", "changed", "c")]
    assert told(bad, START) == [("instance", "changed", "web"), ("check", "removed", "c")]


def test_a_node_that_dies_tells_of_its_instances() -> None:
    dead = changed(alive=frozenset("A"))
    assert told(START, dead) == [("instance", "changed", "db"), ("check", "changed", "serfHealth")]
    (found,) = (d for d in differences(Directory.of(START), Directory.of(dead), "dc1") if d.kind == "instance")
    assert found.before is not None and found.after is not None
    assert (found.before.body["Status"], found.after.body["Status"]) == ("passing", "critical")


def test_nodes_come_and_go_with_all_they_have() -> None:
    alone = changed(nodes={"A": NODES["A"]})
    assert told(START, alone) == [
        *(("node", "removed", "B"), ("service", "removed", "db"), ("instance", "removed", "db"), ("check", "removed", "serfHealth")),
    ]
    outside = changed(catalog_nodes={"x": CatalogNode("x", "192.0.2.9")})
    assert told(START, outside) == [("node", "added", "x")]


def test_the_check_of_a_container_and_its_labels_are_told() -> None:
    box = Container("3f0", "box", "A", "docker", labels={"tier": "prod"})
    bound = replace(START, instances={("A", "web"): replace(WEB, container="box"), ("B", "db"): DB}, containers={("A", "3f0"): box})
    down = replace(bound, instances={("A", "web"): replace(WEB, container="box", down=True), ("B", "db"): DB})
    assert told(bound, down) == [("instance", "changed", "web"), ("check", "changed", "running:web")]
    other = replace(bound, containers={("A", "3f0"): replace(box, labels={"tier": "test"})})
    assert told(bound, other) == [("instance", "changed", "web")]
    prod, test = (Wanted(selector=parse_selector(f"tier={tier}")) for tier in ("prod", "test"))
    assert (told(bound, other, prod), told(bound, other, test)) == ([("instance", "removed", "web")], [("instance", "added", "web")])


def test_what_is_chosen() -> None:
    other = changed(instances={}, nodes={"A": NODES["A"]}, checks=check("A", "web"))
    assert told(START, other, Wanted("web")) == [("service", "removed", "Web"), ("instance", "removed", "web"), ("check", "added", "c")]
    assert told(START, other, Wanted("db")) == [("service", "removed", "db"), ("instance", "removed", "db")]
    assert told(START, other, Wanted(selector=parse_selector("app"))) == [("instance", "removed", "web")]
    assert told(START, other, Wanted("db", parse_selector("app"))) == []
    assert ("node", "removed", "B") in told(START, other)


SNAPSHOTS = st.builds(
    lambda nodes, alive, outside, keys, down, marked, status: Snapshot(
        "A",
        5,
        {name: NODES[name] for name in nodes},
        frozenset(alive),
        instances={key: Instance(key[1], key[1], key[0], tags=("t",) if down else (), down=down, container="c") for key in keys},
        checks={key: Check(key[1], key[0], "n", status, service_id=key[1] if marked else "") for key in keys},
        containers={("A", "1"): Container("1", "c", "A", "docker", labels={"l": str(down)})},
        catalog_nodes={name: CatalogNode(name, "192.0.2.9") for name in outside},
    ),
    st.sets(st.sampled_from("AB")),
    st.sets(st.sampled_from("AB")),
    st.sets(st.sampled_from("BC")),
    st.sets(st.tuples(st.sampled_from("ABC"), st.sampled_from("xy"))),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["passing", "warning", "critical"]),
)


@given(SNAPSHOTS, SNAPSHOTS)
def test_whoever_applies_the_events_has_what_a_new_reader_sees(before: Snapshot, after: Snapshot) -> None:
    def everything(snapshot: Snapshot) -> dict[tuple[str, ...], Any]:
        empty = Snapshot("A")
        return applied({}, empty, snapshot)

    def applied(state: dict[tuple[str, ...], Any], old: Snapshot, new: Snapshot) -> dict[tuple[str, ...], Any]:
        for difference in differences(Directory.of(old), Directory.of(new), "dc1"):
            seen = ALL.seen(difference)
            assert seen is not None
            change, body = seen[0], seen[1].body
            key = _key(difference.kind, body)
            assert (key in state) == (change != "added")
            state[key] = body
            if change == "removed":
                del state[key]
        return state

    # What an output alone changes of the checks inside an instance is told by the event of the check.
    assert applied(everything(before), before, after) == everything(after)


def _key(kind: str, body: Any) -> tuple[str, ...]:
    match kind:
        case "node":
            return kind, body["Node"]["Node"]
        case "service":
            return kind, body["Service"].lower()
        case "instance":
            return kind, body["Node"]["Node"], body["Service"]["ID"]
    return kind, body["Check"]["Node"], body["Check"]["ServiceID"], body["Check"]["CheckID"]


# --- over HTTP


@dataclass
class Served:
    """An agent's API with an event stream, and what it counts."""

    backend: Backend
    hub: EventHub
    port: int
    session: ClientSession

    def open(self, query: str = "", **headers: str) -> Any:
        return self.session.get(f"http://127.0.0.1:{self.port}/v1/plait/events{query}", headers=headers)

    async def become(self, what: Callable[[], bool]) -> None:
        for _ in range(2000):
            if what():
                return
            await asyncio.sleep(0.01)
        raise TimeoutError

    def register(self, name: str, **fields: Any) -> None:
        self.backend.add(Instance(name, name, "A", "10.28.0.2", 80, **fields))


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    backend = Backend()
    api = ConsulApi(backend, "A", "dc1")
    hub = EventHub(backend, lambda: api.directory(), "dc1")
    api.add(PlaitEventsApi(hub).routes)
    server = api.server(Limits(stall_s=0.3))
    await server.start("127.0.0.1", 0)
    async with ClientSession() as session:
        yield Served(backend, hub, server.port, session)
    await server.stop()


async def block(answer: ClientResponse) -> dict[str, Any]:
    """The next block of the stream; comments under ":"."""
    found: dict[str, Any] = {}
    async with asyncio.timeout(20):
        while (line := (await answer.content.readline()).decode()) not in ("\n", ""):
            name, _, value = line.rstrip("\n").partition(":")
            found[name or ":"] = json.loads(value) if name == "data" else value.strip()
    return found


async def events(answer: ClientResponse, last: str) -> list[tuple[str, str, str]]:
    """(kind, change, name) until the event of that name and kind `instance`."""
    found = []
    while not found or found[-1][::2] != ("instance", last):
        one = await block(answer)
        if "event" in one:
            data = one["data"]
            what = data.get("Check", {}).get("CheckID") or data["Service"]
            found.append((one["event"], data["Change"], what if isinstance(what, str) else what["ID"]))
    return found


async def test_the_stream_begins_with_the_index_and_tells_each_change(served: Served) -> None:
    async with served.open() as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream") and answer.headers["Cache-Control"] == "no-cache"
        first = await block(answer)
        assert (first["event"], first["data"]) == ("reset", {"Index": 10, "Reason": "begin"})
        assert first["id"].partition("-")[0] == "10"
        served.register("web")
        service, instance = await block(answer), await block(answer)
        assert service == {"event": "service", "data": {"Index": 11, "Change": "added", "Service": "web", "Tags": []}}
        assert instance["event"] == "instance" and instance["id"].partition("-")[0] == "11"
        data = instance["data"]
        assert (data["Change"], data["Service"]["ID"], data["Status"], data["Node"]["Node"]) == ("added", "web", "passing", "A")


async def test_a_client_that_comes_back_gets_what_it_missed_and_nothing_twice(served: Served) -> None:
    async with served.open("?service=web") as answer:
        await block(answer)
        served.register("web")
        assert "id" not in await block(answer), "the service is told before the instance: the batch is not complete"
        last = (await block(answer))["id"]
    await served.become(lambda: not served.hub.watchers)
    served.register("other")
    served.register("web", tags=("new",))
    async with served.open("?service=web", **{"Last-Event-ID": last}) as answer:
        assert await events(answer, "web") == [("service", "changed", "web"), ("instance", "changed", "web")]
        served.register("web", tags=("newer",))
        assert await events(answer, "web") == [("service", "changed", "web"), ("instance", "changed", "web")]


async def test_an_id_that_is_too_old_or_of_another_history_is_told_so(served: Served) -> None:
    async with served.open() as answer:
        begun = (await block(answer))["id"]
        served.register("web")
        await events(answer, "web")
        for last_id in ("7-" + begun.partition("-")[2], begun.partition("-")[0] + "-0", "999999999-" + begun.partition("-")[2], "?"):
            async with served.open(**{"Last-Event-ID": last_id}) as other:
                assert (await block(other))["data"] == {"Index": 11, "Reason": "history is gone"}
        async with served.open(**{"Last-Event-ID": begun}) as other:
            assert await events(other, "web") == [("service", "added", "web"), ("instance", "added", "web")]
        served.hub.history_bytes = 0
        served.register("more")
        async with served.open(**{"Last-Event-ID": begun}) as other:
            assert (await block(other))["event"] == "reset"


async def test_the_history_ends_some_time_after_the_last_client(served: Served) -> None:
    served.hub.linger_s = 0.05
    async with served.open() as answer:
        begun = (await block(answer))["id"]
    await served.become(lambda: not served.hub.watchers)
    await asyncio.sleep(0.2)
    async with served.open(**{"Last-Event-ID": begun}) as answer:
        assert (await block(answer))["event"] == "reset"


async def test_selectors_and_what_is_none(served: Served) -> None:
    async with served.open("?selector=app%3Dweb") as answer:
        await block(answer)
        served.register("db", meta={"app": "db"})
        served.register("web", meta={"app": "web"})
        assert await events(answer, "web") == [("instance", "added", "web")]
    async with served.open("?selector=%3D") as answer:
        assert answer.status == 400 and (await answer.text()).startswith("Invalid selector")


async def test_heartbeats_carry_the_index(served: Served) -> None:
    served.hub.heartbeat_s = 0.05
    async with served.open("?service=nobody") as answer:
        begun = (await block(answer))["id"]
        served.register("web")
        async with asyncio.timeout(20):
            while (beat := await block(answer))["id"] == begun:
                assert beat[":"] == "heartbeat"
        assert beat["id"].partition("-")[0] == "11"


async def test_a_client_that_goes_away_frees_its_watcher(served: Served) -> None:
    async with served.open() as first:
        await block(first)
        async with served.open() as second:
            await block(second)
            assert len(served.hub.watchers) == 2
        await served.become(lambda: len(served.hub.watchers) == 1)
        served.register("web")
        await events(first, "web")
    await served.become(lambda: not served.hub.watchers and not served.backend.waiting)


async def test_a_client_that_does_not_read_is_cut_off_and_others_are_not(served: Served) -> None:
    served.hub.queue_bytes = 1 << 16
    loop = asyncio.get_running_loop()
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.setblocking(False)
        await loop.sock_connect(slow, ("127.0.0.1", served.port))
        await loop.sock_sendall(slow, b"GET /v1/plait/events HTTP/1.1\r\nHost: x\r\n\r\n")
        async with served.open() as quick:
            await block(quick)
            await served.become(lambda: len(served.hub.watchers) == 2)
            number = 0
            while len(served.hub.watchers) == 2 and number < 20_000:
                number += 1
                served.register("web", meta={"n": str(number), "filler": "x" * 500})
                assert (await events(quick, "web"))[-1] == ("instance", "changed" if number > 1 else "added", "web")
            assert len(served.hub.watchers) == 1
            served.register("last")
            await events(quick, "last")


async def test_what_waits_for_a_client_is_bounded(served: Served) -> None:
    served.hub.queue_bytes = 10_000
    async with aclosing(served.hub.stream(ALL, "")) as stream:
        assert b"event: reset" in await anext(stream)
        (watcher,) = served.hub.watchers
        served.register("web")
        await served.become(lambda: watcher.waits)
        assert b"event: instance" in await anext(stream)
        for number in range(10):
            served.register("web", meta={"n": str(number), "filler": "x" * 500})
            await asyncio.sleep(0.01)
        assert watcher.cut and not watcher.waits
        assert [chunk async for chunk in stream] == [b": cut off\n\n"]
    assert not served.hub.watchers


async def test_a_fault_ends_the_streams_and_the_history(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    async with served.open() as answer:
        begun = (await block(answer))["id"]
        good, served.hub._directory = served.hub._directory, lambda: 1 // 0  # type: ignore[assignment,return-value]
        served.register("web")
        assert (await block(answer))[":"] == "cut off"
        assert "events_failed" in caplog.text
    served.hub._directory = good
    async with served.open(**{"Last-Event-ID": begun}) as answer:
        assert (await block(answer))["event"] == "reset"


async def test_a_stream_that_was_never_started_leaves_nothing_behind(served: Served) -> None:
    async with aclosing(served.hub.stream(ALL, "")):
        pass
    assert not served.hub.watchers
