# SPDX-License-Identifier: Apache-2.0
"""Kept answers against a model that makes each one anew: none is out of date, no wait misses a change or ends for another's."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.http.message import Answer, Parked, Request
from plait.model.cluster import Instance, Node, Snapshot
from plait.model.discovery import CatalogNode, Check
from plait.serve.consul import ConsulApi
from plait.serve.consul_http import Call, Missing, encoded
from plait.serve.consul_reads import reads, selected, topics_of
from plait.serve.http_answers import Answers
from plait.services.directory import Directory, Topic
from plait.services.views import Views

NODES = {name: Node(name, f"id-{name}", IPv4Address("192.0.2.1"), meta={"rack": name}) for name in "AB"}
READS = {path: read for path, _, blocks, read in reads("dc1") if blocks}
NAMES = {"service": ["web", "WEB", "db", "a/b"], "checks": ["web", "db"], "node": ["A", "b", "X"], "state": ["any", "critical"]}

PARAMS: tuple[dict[str, tuple[str, ...]], ...] = ({}, {"node-meta": ("rack:A",)}, {"passing": ("",)})
FILTERS: dict[str, list[dict[str, tuple[str, ...]]]] = {
    path: [{"filter": (f'{field} == "A"',)}]
    for path, field in {
        "catalog/nodes": "Meta.rack",
        "catalog/services": "NodeMeta.rack",
        "catalog/service/<name>": "NodeMeta.rack",
        "catalog/node/<name>": "Meta.rack",
        "health/service/<name>": "Node.Meta.rack",
        "health/node/<name>": "Node",
        "health/checks/<name>": "Node",
    }.items()
}


def _queries() -> list[tuple[Call, str]]:
    found = []
    for path in READS:
        fixed, variable, _ = path.partition("<")
        kind = fixed.rstrip("/").rpartition("/")[2].removesuffix("-services")
        for name in NAMES[kind] if variable else [""]:
            parts = (name,) if variable else ()
            found += [(Call(fixed + name, parts, params, b""), path) for params in (*PARAMS, *FILTERS.get(path, ()))]
    return found


QUERIES = _queries()
CHECKS = st.builds(
    lambda id, node, status, service: Check(id, node, id, status, service_id=service),
    st.sampled_from("xy"), st.sampled_from("ABX"), st.sampled_from(["passing", "critical"]), st.sampled_from(["", "1"]),
)  # fmt: skip
INSTANCES = st.builds(
    lambda id, name, node, port: Instance(id, name, node, port=port),
    st.sampled_from("12"), st.sampled_from(["web", "WEB", "db", "a/b"]), st.sampled_from("ABX"), st.integers(1, 2),
)  # fmt: skip
FIELDS = st.one_of(
    st.lists(INSTANCES, max_size=3).map(lambda found: {"instances": {(i.node, i.id): i for i in found}}),
    st.lists(CHECKS, max_size=3).map(lambda found: {"checks": {(c.node, c.id): c for c in found}}),
    st.sets(st.sampled_from("AB")).map(lambda alive: {"alive": frozenset(alive)}),
    st.sampled_from(["A", "AB", "B"]).map(lambda names: {"nodes": {name: NODES[name] for name in names}}),
    st.sampled_from("AB").map(lambda rack: {"nodes": {**NODES, "B": replace(NODES["B"], meta={"rack": rack})}}),
    st.sampled_from(["192.0.2.8", "192.0.2.9"]).map(lambda address: {"catalog_nodes": {"X": CatalogNode("X", address)}}),
)


class Cluster:
    def __init__(self) -> None:
        self.now = Snapshot("A", 5, NODES, frozenset("AB"))
        self.event = asyncio.Event()

    def snapshot(self) -> Snapshot:
        return self.now

    async def changed(self, timeout_s: float) -> None:
        self.event.clear()
        await asyncio.wait_for(self.event.wait(), timeout_s)

    async def register(self, instance: Instance) -> Instance:
        return instance

    async def deregister(self, service_id: str) -> bool:
        return False

    def last_contact_ms(self) -> int | None:
        return 0


def said(call: Call, path: str, directory: Directory) -> bytes:
    return encoded(selected(READS[path], call, Views(directory, "dc1", call.every("node-meta"))), False)


ASKED = st.sets(st.integers(0, len(QUERIES) - 1), max_size=12)


@given(st.lists(st.tuples(FIELDS, ASKED), max_size=8), st.sampled_from([1, 3_000, 1 << 20]))
def test_a_kept_answer_is_what_would_be_made_anew(steps: list[tuple[dict[str, object], set[int]]], max_bytes: int) -> None:
    cluster = Cluster()
    answers = Answers(cluster, "A", max_bytes)
    last: dict[int, tuple[bytes, int]] = {}
    for fields, asked in steps:
        cluster.now = replace(cluster.now, revision=cluster.now.revision + 1, **fields)  # type: ignore[arg-type]
        fresh = Directory.of(cluster.now)
        for number in asked:
            call, path = QUERIES[number]
            query = (call.path, tuple(call.params.items()))
            body, index = answers.get(query, topics_of(call), lambda call=call, path=path: said(call, path, answers.directory()))
            assert body == said(call, path, fresh)
            before, at = last.get(number, (body, index))
            assert index >= max(at, 1) and (index > at) == (body != before)
            last[number] = body, index


@given(st.lists(FIELDS, min_size=1, max_size=5))
def test_a_wait_ends_with_each_change_of_its_answer(steps: list[dict[str, object]]) -> None:
    async def run() -> None:
        cluster = Cluster()
        answers = Answers(cluster, "A")
        directory = answers.directory()
        for fields in steps:
            before = {number: said(call, path, directory) for number, (call, path) in enumerate(QUERIES)}
            events = [asyncio.Event() for _ in QUERIES]
            wakes = [event.set for event in events]
            for (call, _), wake in zip(QUERIES, wakes, strict=True):
                answers.join(topics_of(call), wake)
            await asyncio.sleep(0)
            cluster.now = replace(cluster.now, revision=cluster.now.revision + 1, **fields)  # type: ignore[arg-type]
            cluster.event.set()
            for _ in range(5):
                await asyncio.sleep(0)
            directory = Directory.of(cluster.now)
            for number, (call, path) in enumerate(QUERIES):
                assert events[number].is_set() or said(call, path, directory) == before[number], call
            for (call, _), wake in zip(QUERIES, wakes, strict=True):
                answers.leave(topics_of(call), wake)
            assert answers.waiters() == 0

    asyncio.run(run())


def _source(call: Call, directory: Directory) -> object:
    """All that the answer of a read of one service or one node selects from, whatever it selects; None for other reads."""
    views = Views(directory, "dc1")
    (name,) = call.parts or ("",)
    match call.path.removesuffix(name):
        case "catalog/service/" | "health/service/" | "health/checks/":
            return [views.health_entry(instance) for instance in views.instances(name)]
        case "catalog/node/" | "catalog/node-services/" | "health/node/":
            same = [node for node in views.all_nodes() if node.name.lower() == name.lower()]
            checks = [checks for (node, _), checks in directory.checks.items() if node.lower() == name.lower()]
            signs = {node for node in directory.snapshot.alive if node.lower() == name.lower()}
            return (
                signs,
                checks,
                [(node, directory.has_agent(node.name), views.node_checks(node.name), views.instances_on(node.name)) for node in same],
            )
        case "catalog/services" if call.params.keys() & {"filter", "node-meta"}:
            homes = [node for node in views.all_nodes() if views.instances_on(node.name)]
            agents = [(directory.has_agent(node.name), node.name in directory.snapshot.alive) for node in homes]
            return list(views.all_instances()), homes, agents
    return None


@given(st.lists(FIELDS, min_size=1, max_size=5))
def test_a_wait_is_not_woken_by_what_its_answer_does_not_select_from(steps: list[dict[str, object]]) -> None:
    """Whatever `node-meta` or `filter` it has: other nodes, and services on them, are no matter."""

    async def run() -> None:
        cluster = Cluster()
        answers = Answers(cluster, "A")
        for fields in steps:
            directory = answers.directory()
            events = [asyncio.Event() for _ in QUERIES]
            for (call, _), event in zip(QUERIES, events, strict=True):
                answers.join(topics_of(call), event.set)
            cluster.now = replace(cluster.now, revision=cluster.now.revision + 1, **fields)  # type: ignore[arg-type]
            answers.directory()
            for (call, _), event in zip(QUERIES, events, strict=True):
                before, after = _source(call, directory), _source(call, Directory.of(cluster.now))
                assert not event.is_set() or before is None or before != after, call
                answers.leave(topics_of(call), event.set)

    asyncio.run(run())


@given(st.lists(FIELDS, min_size=1, max_size=8))
def test_the_agents_own_service_is_answered_when_it_changes_and_looked_at_only_then(steps: list[dict[str, object]]) -> None:
    """`/v1/agent/service/1?hash=`: whoever waits is woken by that record alone, and answered exactly when what it shows is different."""

    def shown() -> Answer:
        try:
            answer = api.router.respond(Request("GET", b"/v1/agent/service/1", {}))
        except Missing as error:
            return api.router.refused(error, Request("GET", b"", {}))
        assert isinstance(answer, Answer)
        return answer

    async def run() -> None:
        for fields in steps:
            before, record = shown(), cluster.now.instances.get(("A", "1"))
            woken = asyncio.Event()
            digest = before.headers.get("X-Consul-ContentHash")
            if digest is not None:
                parked = api.router.respond(Request("GET", b"/v1/agent/service/1?wait=9s&hash=" + digest.encode(), {}))
                assert isinstance(parked, Parked), "it has the hash that was asked for"
                parked.join(woken.set)
            cluster.now = replace(cluster.now, revision=cluster.now.revision + 1, **fields)  # type: ignore[arg-type]
            after = shown()
            if digest is None:
                continue
            assert woken.is_set() == (cluster.now.instances.get(("A", "1")) != record or "A" not in cluster.now.nodes)
            if after.status == 200:
                answer = parked.look(False)
                assert (answer is not None) == (after.body != before.body)
                assert answer is None or answer.body == after.body
            else:
                with pytest.raises(Missing):
                    parked.look(False)
            parked.leave(woken.set)

    cluster = Cluster()
    api = ConsulApi(cluster, "A", "dc1")
    asyncio.run(run())


def test_a_change_wakes_and_recomputes_nothing_else() -> None:
    async def run() -> None:
        cluster = Cluster()
        answers = Answers(cluster, "A")
        made: list[str] = []

        def ask(name: str) -> None:
            answers.get(name, frozenset({Topic("service", name)}), lambda: (made.append(name), name.encode())[1])

        ask("web"), ask("db")
        web, db = asyncio.Event(), asyncio.Event()
        joined = [(frozenset({Topic("service", name)}), event.set) for name, event in (("web", web), ("db", db))]
        for topics, wake in joined:
            answers.join(topics, wake)
        await asyncio.sleep(0)
        cluster.now = replace(cluster.now, instances={("A", "1"): Instance("1", "web", "A")})
        cluster.event.set()
        for _ in range(5):
            await asyncio.sleep(0)
        assert web.is_set() and not db.is_set()
        for topics, wake in joined:
            answers.leave(topics, wake)
        ask("web"), ask("db")
        assert made == ["web", "db", "web"]

    asyncio.run(run())
