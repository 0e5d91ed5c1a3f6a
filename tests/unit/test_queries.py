# SPDX-License-Identifier: Apache-2.0
"""Prepared queries: the rules, and the API over real HTTP on nodes that share a store in memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import ClientSession
from hypothesis import given
from hypothesis import strategies as st
from tests.support.cluster import FakeNode, nodes

from plait.agent.catalog import Catalog
from plait.agent.kv import Kv
from plait.agent.queries import Queries
from plait.agent.sessions import SessionSteward
from plait.serve.consul import ConsulApi
from plait.serve.consul_kv import KvApi
from plait.serve.consul_query import QueryApi
from plait.services.patterns import BadPattern, compile_pattern
from plait.services.queries import Far, Json, carried_out, choose, find_query, parse_query
from plait.services.requests import BadRequest
from plait.store.api import Change, Put
from plait.store.memory import MemoryStore


def entry(node: str, id: str, *statuses: str, tags: tuple[str, ...] = (), meta: dict[str, str] | None = None) -> Json:
    checks = [{"CheckID": f"c{number}", "Status": status} for number, status in enumerate(statuses)]
    return {"Node": {"Node": node, "Meta": {"os": node}}, "Service": {"ID": id, "Tags": list(tags), "Meta": meta or {}}, "Checks": checks}


def far_from(me: str) -> Callable[[str], Far | None]:
    """Only a node itself is near."""
    return lambda name: (lambda other: float(other != (me if name == "_agent" else name))) if name else None


def chosen(service: dict[str, Any], entries: list[Json], far: Far | None = None) -> list[str]:
    query = parse_query({"Service": {"Service": "web", **service}}, "q")
    found: list[Any] = choose(query.selection, entries, far, lambda rows: rows.reverse())
    return [str(row["Service"]["ID"]) for row in found]


ENTRIES = [
    entry("A", "1", "passing", tags=("v1", "Blue")),
    entry("B", "2", "passing", "warning", tags=("v2",), meta={"zone": "x"}),
    entry("C", "3", "critical", tags=("v1",)),
]


@pytest.mark.parametrize(
    ("service", "ids"),
    [
        ({}, ["2", "1"]),
        ({"OnlyPassing": True}, ["1"]),
        ({"IgnoreCheckIDs": ["c0"]}, ["3", "2", "1"]),
        ({"OnlyPassing": True, "IgnoreCheckIDs": ["c1"]}, ["2", "1"]),
        ({"Tags": ["v1", "blue"]}, ["1"]),
        ({"Tags": ["!V1"]}, ["2"]),
        ({"Tags": ["v1", "!blue"]}, []),
        ({"NodeMeta": {"os": "B"}}, ["2"]),
        ({"ServiceMeta": {"zone": "x"}}, ["2"]),
        ({"ServiceMeta": {"zone": "y"}}, []),
        ({"Connect": True}, []),
    ],
)
def test_a_query_gives_what_it_asks_for(service: dict[str, Any], ids: list[str]) -> None:
    assert chosen(service, ENTRIES) == ids


def test_instances_on_the_near_node_come_first() -> None:
    assert chosen({}, ENTRIES, far_from("A")("A")) == ["1", "2"]
    assert chosen({}, ENTRIES, far_from("A")("nobody")) == ["2", "1"]


ELSEWHERE = {"web": [entry("A", "1", "critical")], "spare": [entry("B", "2", "critical"), entry("C", "3", "passing")]}


@pytest.mark.parametrize(
    ("failover", "ids", "failovers"),
    [
        ({}, [], 0),
        ({"NearestN": 3}, [], 0),
        ({"Datacenters": ["dc1", "dc2", "dc3"]}, [], 2),
        ({"Targets": [{"Service": "spare"}]}, ["3"], 1),
        ({"targets": [{"datacenter": "dc2", "service": "spare"}, {"peer": "p", "service": "spare"}, {"service": "spare"}]}, ["3"], 3),
        ({"Targets": [{"Datacenter": "DC1"}, {"Service": "web"}, {"Service": "gone"}]}, [], 1),
        ({"Targets": [{"Service": "spare", "Partition": "default"}, {"Service": "web", "Datacenter": "dc9"}]}, ["3"], 1),
        ({"Targets": [{"Service": "spare", "Namespace": "other", "Datacenter": None, "Port": 7}]}, [], 1),
    ],
)
def test_a_service_without_instances_fails_over_to_what_is_here(failover: dict[str, Any], ids: list[str], failovers: int) -> None:
    def given(name: str) -> tuple[list[str], int]:
        selection = parse_query({"Service": {"Service": name, "Failover": failover}}, "q").selection
        found, asked = carried_out(selection, "dc1", lambda service: ELSEWHERE.get(service, []), None, list.reverse)
        return [str(cast(Json, row["Service"])["ID"]) for row in found], asked

    assert given("web") == (ids, failovers)
    assert given("spare") == (["3"], 0), "there are some: nothing else is asked"


def test_a_name_means_the_query_of_that_id_then_name_then_the_longest_template() -> None:
    def query(id: str, name: str, template: bool = False) -> Any:
        return parse_query({"Name": name, "Service": {"Service": "s"}, "Template": {"Type": "name_prefix_match"} if template else None}, id)

    known = [query("i1", "geo-db"), query("i2", "", True), query("i3", "geo-", True), query("i4", "i1")]

    def meant(name: str) -> str:
        found = find_query(known, name)
        return found.id if found else ""

    assert [meant(name) for name in ("i1", "GEO-DB", "geo-db-x", "geo", "")] == ["i1", "i1", "i3", "i2", "i2"]
    assert find_query(known[:1], "geo") is None


def test_a_template_is_filled_in_everywhere() -> None:
    template = parse_query(
        {
            "Name": "geo-",
            "Template": {"Type": "name_prefix_match", "Regexp": "^geo-(.+)-([^-]+)$", "RemoveEmptyTags": True},
            "Service": {
                "Service": "${match(1)}",
                "Tags": ["${match(2)}", "${match(7)}", "!${agent.segment}", "!${name.suffix}"],
                "NodeMeta": {"k": "${name.full}|${name.prefix}"},
                "Failover": {"Targets": [{"Datacenter": "dc-${match(2)}", "Peer": "${match(0)}"}]},
            },
        },
        "q",
    )
    found = find_query([template], "geo-a-db-v1")
    assert found is not None
    selection = found.selection
    assert (selection.service, selection.tags) == ("a-db", ("v1", "!a-db-v1"))
    assert selection.node_meta == {"k": "geo-a-db-v1|geo-"}
    assert selection.targets == ({"Datacenter": "dc-v1", "Peer": "geo-a-db-v1"},)
    unmatched = find_query([template], "geo-x")
    assert unmatched is not None and unmatched.selection.service == ""


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (None, "JSON object"),
        ({}, "Must provide a Service"),
        ({"Service": {"Service": "x", "Tags": "v1"}}, "tags"),
        ({"Service": {"Service": "x", "NodeMeta": {"a": 1}}}, "NodeMeta"),
        ({"Service": {"Service": "x", "OnlyPassing": "yes"}}, "onlypassing"),
        ({"Service": {"Service": "x", "Failover": {"NearestN": -1}}}, "NearestN"),
        ({"Service": {"Service": "x", "Failover": {"Targets": {}}}}, "Targets"),
        ({"Service": {"Service": "x", "Failover": {"Targets": ["dc2"]}}}, "JSON object"),
        ({"Service": {"Service": "x", "Failover": {"Targets": [{"Service": 1}]}}}, "service"),
        ({"Service": {"Service": "x", "Failover": {"Targets": [{"Peer": "p"}], "NearestN": 1}}}, "cannot be used"),
        ({"Service": {"Service": "x", "Failover": {"Targets": [{"Peer": "p"}], "Datacenters": ["dc2"]}}}, "cannot be used"),
        ({"Service": {"Service": 3}}, "service"),
        ({"Service": {"Service": "x"}, "DNS": {"TTL": "soon"}}, "DNS TTL"),
        ({"Service": {"Service": "x"}, "Template": {"Type": "magic"}}, "Template.Type"),
        ({"Service": {"Service": "x"}, "Template": {"Regexp": "a"}}, "Template.Regexp"),
        ({"Service": {"Service": "x"}, "Template": {"Type": "name_prefix_match", "Regexp": "("}}, "Template.Regexp"),
    ],
)
def test_a_wrong_query_is_refused_with_its_field(body: object, word: str) -> None:
    with pytest.raises(BadRequest, match=word):
        parse_query(body, "q")


@pytest.mark.parametrize("pattern", [r"(a)\1", "(?=a)b", "(x{200}){200}", "a" * 2000, "(", "[", "((((a{9}){9}){9}){9}){9}"])
def test_an_expression_that_is_none_or_too_large_is_refused(pattern: str) -> None:
    with pytest.raises(BadPattern, match=r"."):
        compile_pattern(pattern)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "((a?){20}){20}$b", "a*a*a*a*a*a*a*b", "(.*)(.*)(.*)(.*)(.*)b"])
def test_an_expression_that_makes_others_think_for_ever_is_answered(pattern: str) -> None:
    assert not compile_pattern(pattern).matches("a" * 20_000 + "c")


def test_an_expression_gives_its_groups() -> None:
    assert compile_pattern("^geo-db-(.*?)-([^\\-]+?)(x)?$").groups("geo-db-eu-west") == ("geo-db-eu-west", "eu", "west", "")
    assert compile_pattern("é|x").groups("ä\udc00é") == ("é",)
    assert compile_pattern("b").groups("a") is None


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_text_is_an_expression_or_refused(pattern: str, text: str) -> None:
    with contextlib.suppress(BadPattern):
        assert compile_pattern(pattern).matches(text) in (True, False)


# --- over HTTP


class Client:
    def __init__(self, session: ClientSession, port: int, kv: Kv, queries: Queries) -> None:
        self._session, self._url, self.kv, self.queries = session, f"http://127.0.0.1:{port}/v1/", kv, queries

    async def call(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        data = b"" if body is None else json.dumps(body).encode()
        async with self._session.request(method, self._url + path, data=data) as answer:
            return answer.status, await answer.text()

    async def ok(self, method: str, path: str, body: object = None) -> Any:
        status, text = await self.call(method, path, body)
        assert status == 200, text
        return json.loads(text) if text else None

    async def make(self, **body: object) -> str:
        return str((await self.ok("POST", "query", {"Service": {"Service": "web"}, **body}))["ID"])


@contextlib.asynccontextmanager
async def client(node: FakeNode) -> AsyncIterator[Client]:
    kv = Kv(node.view, node.store, lambda: 0)
    queries = Queries(node.view, node.store, kv)

    def told(changes: Any, revision: int) -> None:
        rows = list(changes)
        kv.change(rows, revision)
        queries.change(rows)

    told([Change("put", item, item.mod_revision) for item in node.replica.items.values()], node.replica.revision)
    node.replica.subscribe(told)
    catalog = Catalog(node.view, node.journal, node.publisher.publish, lambda: 0)
    api = QueryApi(queries, "dc1", lambda name: list(ENTRIES) if name == "web" else [], lambda: 0, far_from(node.name))
    server = ConsulApi(catalog, node.name, "dc1", [*KvApi(kv, node.name).routes, *api.routes]).server()
    await server.start("127.0.0.1", 0)
    try:
        async with ClientSession() as session:
            yield Client(session, server.port, kv, queries)
    finally:
        await server.stop()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Client, Client, FakeNode]]:
    store = MemoryStore()
    async with nodes(store, tmp_path, "A", "B") as (a, b), client(a) as first, client(b) as second:
        await store.txn([], [Put("alive/A", b"1")])
        yield first, second, a
    await store.close()


Pair = tuple[Client, Client, FakeNode]


async def test_a_query_is_made_shown_carried_out_changed_and_removed(pair: Pair) -> None:
    one = pair[0]
    assert await one.ok("GET", "query") == []
    made = await one.make(name="fooquery", dns={"ttl": "10s"}, token="secret")
    [shown] = await one.ok("GET", f"query/{made}")
    assert shown["ID"] == made and shown["Name"] == "fooquery" and shown["DNS"] == {"TTL": "10s"}
    assert shown["Token"] == "<hidden>" and shown["CreateIndex"] == shown["ModifyIndex"] > 0
    assert await one.ok("GET", "query") == [shown]
    assert (await one.ok("GET", "query/fooquery/explain"))["Query"] == shown
    result = await one.ok("GET", f"query/{made}/execute?near=_agent")
    assert [row["Service"]["ID"] for row in result["Nodes"]] == ["1", "2"]
    assert {key: result[key] for key in ("Service", "DNS", "Datacenter", "Failovers")} == {
        "Service": "web",
        "DNS": {"TTL": "10s"},
        "Datacenter": "dc1",
        "Failovers": 0,
    }
    assert len((await one.ok("GET", "query/FooQuery/execute?limit=1"))["Nodes"]) == 1
    assert await one.call("PUT", f"query/{made}", {"Name": "fooquery", "Service": {"Service": "db"}}) == (200, "")
    [changed] = await one.ok("GET", f"query/{made}")
    assert changed["Service"]["Service"] == "db" and changed["CreateIndex"] == shown["CreateIndex"] < changed["ModifyIndex"]
    assert (await one.ok("GET", f"query/{made}/execute"))["Nodes"] == []
    spare = {"Name": "fooquery", "Service": {"Service": "db", "Failover": {"Targets": [{"Service": "web"}]}}}
    assert await one.call("PUT", f"query/{made}", spare) == (200, "")
    result = await one.ok("GET", f"query/{made}/execute?near=_agent&limit=1")
    assert ([row["Service"]["ID"] for row in result["Nodes"]], result["Failovers"], result["Service"]) == (["1"], 1, "db")
    assert await one.call("DELETE", f"query/{made}") == (200, "")
    assert await one.ok("GET", "query") == []


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "query/x"), ("PUT", "query/x"), ("DELETE", "query/x"), ("GET", "query/x/execute"), ("GET", "query/x/explain")],
)
async def test_a_query_that_is_none_is_not_found(pair: Pair, method: str, path: str) -> None:
    body = {"Service": {"Service": "web"}} if method == "PUT" else None
    assert await pair[0].call(method, path, body) == (404, "Query not found")


@pytest.mark.parametrize("word", ["execute", "explain"])
async def test_carrying_out_and_explaining_is_only_asked_by_get(pair: Pair, word: str) -> None:
    for method in ("PUT", "DELETE"):
        assert await pair[0].call(method, f"query/x/{word}", {}) == (405, f"method {method} not allowed")
    assert await pair[0].call("GET", f"query/{word}") == (404, "Query not found")
    assert await pair[0].call("GET", f"query//{word}") == (400, "Missing query ID")


async def test_a_name_is_given_once_whichever_node_is_asked(pair: Pair) -> None:
    one, two, _ = pair
    body = {"Name": "web", "Service": {"Service": "web"}}
    answers = await asyncio.gather(*(agent.call("POST", "query", body) for agent in (one, two) * 4))
    assert sorted(status for status, _ in answers) == [200] + [500] * 7
    assert all("another query" in text for status, text in answers if status == 500)
    assert await one.make() != await one.make()  # without a name there may be many


async def test_a_query_ends_with_its_session(pair: Pair) -> None:
    one, two, node = pair
    steward = asyncio.create_task(SessionSteward(one.kv, node.view, one.queries.drop_unbound).run())
    session = (await one.ok("PUT", "session/create"))["ID"]
    bound, free = await two.make(session=session), await two.make()
    assert (await two.call("POST", "query", {"Service": {"Service": "x"}, "Session": "none"}))[0] == 500
    await one.ok("PUT", f"session/destroy/{session}")
    async with asyncio.timeout(10):
        while two.queries.get(bound) is not None:  # noqa: ASYNC110 (what it asks tells of no changes)
            await asyncio.sleep(0.005)
    assert two.queries.get(free) is not None
    steward.cancel()
