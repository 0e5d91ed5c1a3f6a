# SPDX-License-Identifier: Apache-2.0
"""Transactions over real HTTP: keys, nodes, services and checks, on nodes that share a store in memory."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.kvapi import Client, pair_of

from plait.model.errors import StoreUnavailable
from plait.services.directory import SERVER_META
from plait.store.memory import MemoryStore

NODE = {"Node": "ext", "Address": "192.0.2.7", "Meta": {"rack": "r1"}}
WEB = {"ID": "web-1", "Service": "web", "Address": "192.0.2.8", "Port": 80, "Tags": ["blue"]}
CHECK = {"Node": "ext", "CheckID": "up", "Name": "is up", "Status": "passing", "ServiceID": "web-1"}


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Client, Client]]:
    store = MemoryStore()
    async with pair_of(store, tmp_path) as made:
        yield made
    await store.close()


@pytest.fixture
def one(pair: tuple[Client, Client]) -> Client:
    return pair[0]


def kv(verb: str, key: str, value: bytes = b"", **more: object) -> dict[str, object]:
    return {"KV": {"Verb": verb, "Key": key, "Value": base64.b64encode(value).decode() if value else None, **more}}


def node(verb: str, **more: object) -> dict[str, object]:
    return {"Node": {"Verb": verb, "Node": {**NODE, **more}}}


def service(verb: str, on: str = "ext", **more: object) -> dict[str, object]:
    return {"Service": {"Verb": verb, "Node": on, "Service": {**WEB, **more}}}


def check(verb: str, **more: object) -> dict[str, object]:
    return {"Check": {"Verb": verb, "Check": {**CHECK, **more}}}


SETS = [node("set"), service("set"), check("set")]


async def done(api: Client, *ops: object) -> list[Any]:
    """What a transaction that succeeds shows: (kind, object) of each result."""
    answer = await api.ok("PUT", "txn", list(ops))
    assert answer["Errors"] is None
    return [item for result in answer["Results"] for item in result.items()]


async def failed(api: Client, *ops: object) -> list[tuple[int, str]]:
    """Why a transaction is rolled back."""
    status, text, _ = await api.call("PUT", "txn", list(ops))
    answer = json.loads(text)
    assert (status, answer["Results"]) == (409, None)
    return [(error["OpIndex"], error["What"]) for error in answer["Errors"]]


# --- keys


async def test_a_transaction_is_one_change(one: Client) -> None:
    await one.put("old", b"o")
    answer = await one.ok(
        "PUT",
        "txn",
        [kv("set", "a", b"1", Flags=7), kv("get", "a"), kv("delete", "old"), kv("get-tree", ""), kv("check-not-exists", "old")],
    )
    assert answer["Errors"] is None
    shown = [result["KV"] for result in answer["Results"]]
    assert [(entry["Key"], entry["Value"]) for entry in shown] == [("a", None), ("a", "MQ=="), ("a", "MQ==")]
    _, index = await one.get("a")
    assert {entry["ModifyIndex"] for entry in shown} == {entry["CreateIndex"] for entry in shown} == {index}
    assert await one.ok("GET", "kv/?keys") == ["a"]


async def test_a_transaction_that_fails_writes_nothing_and_says_all_that_failed(one: Client) -> None:
    await one.put("a", b"1")
    ops = [kv("set", "b", b"2"), kv("lock", "c", b"3"), kv("get", "none"), kv("cas", "a", b"4", Index=1), kv("check-index", "a", Index=1)]
    status, text, _ = await one.call("PUT", "txn", ops)
    answer = json.loads(text)
    assert status == 409 and answer["Results"] is None
    assert [error["OpIndex"] for error in answer["Errors"]] == [1, 2, 3, 4]
    whys = [error["What"] for error in answer["Errors"]]
    for why, words in zip(whys, ["missing session", "doesn't exist", "is stale", "current modify index"], strict=True):
        assert words in why
    assert await one.ok("GET", "kv/?keys") == ["a"]


async def test_locks_in_a_transaction(one: Client) -> None:
    session, other = await one.session(), await one.session()
    await one.ok("PUT", "txn", [kv("lock", "l", b"1", Session=session), kv("check-session", "l", Session=session)])
    for op, words in (
        (kv("lock", "l", b"2", Session=other), "already held"),
        (kv("unlock", "l", b"2", Session=other), "another session"),
        (kv("check-session", "l", Session=other), "failed session check"),
        (kv("lock", "l", b"2", Session="nobody"), "invalid session"),
        (kv("check-not-exists", "l"), "exists"),
        (kv("delete-cas", "l", Index=1), "is stale"),
    ):
        status, text, _ = await one.call("PUT", "txn", [op])
        assert status == 409 and words in text
    await one.ok("PUT", "txn", [kv("unlock", "l", b"3", Session=session)])
    assert "Session" not in ((await one.get("l"))[0] or {})


# --- the catalogue


async def test_results_have_the_shapes_of_the_catalogue_and_one_index(one: Client) -> None:
    found = await done(one, kv("set", "k", b"v"), *SETS)
    assert [kind for kind, _ in found] == ["KV", "Node", "Service", "Check"]
    _, index = await one.get("k")
    assert {(shown["CreateIndex"], shown["ModifyIndex"]) for _, shown in found} == {(index, index)}
    shown = dict(found)
    assert [shown["Node"]] == [row for row in await one.ok("GET", "catalog/nodes") if row["Node"] == "ext"]
    (entry,) = await one.ok("GET", "health/service/web")
    assert (shown["Node"], shown["Service"], [shown["Check"]]) == (entry["Node"], entry["Service"], entry["Checks"])
    assert (shown["Check"]["ServiceName"], shown["Check"]["ServiceTags"]) == ("web", ["blue"])
    assert await done(one, node("get"), service("get"), check("get")) == found[1:]


@pytest.mark.parametrize(
    "body",
    [
        [
            {"Node": {"Verb": "set", "Node": {"Node": "ext", "Address": "192.0.2.7", "TaggedAddresses": {"lan": "192.0.2.7"}}}},
            {"Service": {"Verb": "set", "Node": "ext", "Service": {"ID": "w", "Service": "web", "EnableTagOverride": True}}},
            {"Check": {"Verb": "set", "Check": {"Node": "ext", "CheckID": "c", "Name": "n", "ServiceID": "w", "Status": "warning"}}},
            {"KV": {"Verb": "set", "Key": "k", "Value": "djE="}},
        ],
        [
            {"node": {"verb": "set", "node": {"node": "ext", "address": "192.0.2.7", "taggedaddresses": {"lan": "192.0.2.7"}}}},
            {"service": {"verb": "set", "node": "ext", "service": {"id": "w", "service": "web", "enabletagoverride": True}}},
            {"check": {"verb": "set", "check": {"node": "ext", "checkid": "c", "name": "n", "serviceid": "w", "status": "warning"}}},
            {"kv": {"verb": "set", "key": "k", "value": "djE="}},
        ],
        [
            {"node": {"verb": "set", "node": {"node": "ext", "address": "192.0.2.7", "tagged_addresses": {"lan": "192.0.2.7"}}}},
            {"service": {"verb": "set", "node": "ext", "service": {"id": "w", "service": "web", "enable_tag_override": True}}},
            {"check": {"verb": "set", "check": {"node": "ext", "check_id": "c", "name": "n", "service_id": "w", "status": "warning"}}},
            {"KV": {"verb": "set", "KEY": "k", "value": "djE="}, "Node": None},
        ],
    ],
    ids=["Go", "lower case", "underscores"],
)
async def test_keys_of_a_body_come_in_three_spellings(one: Client, body: list[object]) -> None:
    shown = dict(await done(one, *body))
    assert shown["Node"]["TaggedAddresses"] == {"lan": "192.0.2.7"}
    assert (shown["Service"]["ID"], shown["Service"]["EnableTagOverride"]) == ("w", True)
    assert (shown["Check"]["CheckID"], shown["Check"]["ServiceID"], shown["Check"]["Status"]) == ("c", "w", "warning")
    assert (await one.get("k"))[0]["Value"] == "djE="  # type: ignore[index]


@pytest.mark.parametrize(
    ("make", "change", "there"),
    [(node, {"Address": "192.0.2.9"}, 0), (service, {"Port": 81}, 1), (check, {"Output": "fine"}, 2)],
    ids=["node", "service", "check"],
)
async def test_check_and_set_by_modify_index(one: Client, make: Any, change: dict[str, object], there: int) -> None:
    await done(one, *SETS[:there])
    ((_, made),) = await done(one, make("cas", ModifyIndex=0))
    index = made["ModifyIndex"]
    assert "index is stale" in (await failed(one, make("cas")))[0][1], "0 is: only if there is none"
    assert "index is stale" in (await failed(one, make("cas", ModifyIndex=index + 1)))[0][1]
    ((_, changed),) = await done(one, make("cas", ModifyIndex=index, **change))
    assert changed["CreateIndex"] == made["CreateIndex"] and changed["ModifyIndex"] > index
    assert "index is stale" in (await failed(one, make("delete-cas", ModifyIndex=index)))[0][1]
    assert await done(one, make("delete-cas", ModifyIndex=changed["ModifyIndex"])) == []
    assert "doesn't exist" in (await failed(one, make("get")))[0][1]
    assert await done(one, make("delete-cas", ModifyIndex=3), make("delete")) == [], "what is missing is deleted already"


async def test_the_same_again_changes_no_index(one: Client) -> None:
    found = await done(one, *SETS)
    assert await done(one, *SETS) == found


async def test_operations_see_what_those_before_them_did(one: Client) -> None:
    found = await done(one, *SETS, node("delete"), node("set", Address="192.0.2.9"), kv("set", "k", b"v"), node("get"), kv("get", "k"))
    assert [kind for kind, _ in found] == ["Node", "Service", "Check", "Node", "KV", "Node", "KV"]
    assert found[5][1]["Address"] == "192.0.2.9"
    await done(one, *SETS)
    whys = await failed(one, node("delete"), service("get"), node("set"), service("get"), check("get"))
    assert [number for number, _ in whys] == [1, 3, 4]
    await done(one, node("delete"), node("set"))
    assert await failed(one, service("get"), check("get")) == [
        (0, 'service "web-1" on node "ext" doesn\'t exist'),
        (1, 'check "up" on node "ext" doesn\'t exist'),
    ]


async def test_with_a_node_goes_what_is_on_it_and_with_a_service_its_checks(one: Client) -> None:
    await done(one, *SETS, check("set", CheckID="disk", ServiceID=""))
    await done(one, service("delete"))
    assert [row["CheckID"] for row in await one.ok("GET", "health/node/ext")] == ["disk"]
    await done(one, service("set"), check("set"), node("delete"))
    assert await one.ok("GET", "catalog/node/ext") is None
    await done(one, node("set"))
    assert await one.ok("GET", "health/node/ext") == [] == await one.ok("GET", "catalog/service/web")


async def test_one_failure_is_enough_and_all_are_told(one: Client) -> None:
    await one.put("a", b"1")
    whys = await failed(
        one,
        node("set"),
        kv("set", "b", b"2"),
        service("set", on="nowhere"),
        check("set", ServiceID="none"),
        check("set", Node="nowhere"),
        service("get", ID="none"),
        kv("cas", "a", b"3", Index=1),
        node("cas", ModifyIndex=9),
    )
    assert [number for number, _ in whys] == [2, 3, 4, 5, 6, 7]
    words = ["Missing node registration", "Missing service registration", "Missing node registration", "doesn't exist", "stale", "stale"]
    assert all(word in why for word, (_, why) in zip(words, whys, strict=True)), whys
    assert await one.ok("GET", "kv/?keys") == ["a"]
    assert [row["Node"] for row in await one.ok("GET", "catalog/nodes")] == ["A", "B"]


async def test_of_two_nodes_one_wins_and_both_know(pair: tuple[Client, Client]) -> None:
    """Each decides by its replica, which may be behind; the store is asked whether all that was read still holds."""
    await done(pair[0], node("set"))
    for number in range(20):
        ops = [[service("cas", ID=f"s{number}", Port=port), kv("set", f"k{number}", b"%d" % port)] for port in (1, 2)]
        answers = await asyncio.gather(*(api.call("PUT", "txn", op) for api, op in zip(pair, ops, strict=True)))
        assert sorted(status for status, _, _ in answers) == [200, 409]
        won = 1 if answers[0][0] == 200 else 2
        await pair[0].kv.current()
        rows = await pair[0].ok("GET", "catalog/service/web")
        assert [row["ServicePort"] for row in rows if row["ServiceID"] == f"s{number}"] == [won]
        assert (await pair[0].get(f"k{number}"))[0]["Value"] == base64.b64encode(b"%d" % won).decode()  # type: ignore[index]


async def test_a_node_that_went_meanwhile_takes_no_service(pair: tuple[Client, Client], monkeypatch: pytest.MonkeyPatch) -> None:
    """The replica still shows the node: only the store knows better."""
    one, two = pair
    await done(two, node("set"))
    await one.kv.current()
    transact, late = one.node.store.txn, [True]

    async def overtaken(compares: Any, ops: Any) -> Any:
        if late:
            late.clear()
            await transact([], [])
            await done(two, node("delete"))
        return await transact(compares, ops)

    monkeypatch.setattr(one.node.store, "txn", overtaken)
    assert await failed(one, service("set")) == [(0, "Missing node registration")]


# --- what agents own


async def registered(pair: tuple[Client, Client], **more: object) -> None:
    """A service of A's own agent."""
    await pair[0].call("PUT", "agent/service/register", {"Name": "web", "ID": "web-1", "Port": 8080, "Tags": ["own"], **more})
    await pair[1].node.until(lambda: ("A", "web-1") in pair[1].node.view.snapshot.instances)


async def test_what_an_agent_registered_stays_and_the_other_is_kept_beside_it(pair: tuple[Client, Client]) -> None:
    one, two = pair
    await registered(pair)
    ((_, shown),) = await done(two, service("set", on="A"))
    assert (shown["Port"], shown["Tags"]) == (8080, ["own"]), "the result is what readers see"
    for api in pair:
        assert [row["ServicePort"] for row in await api.ok("GET", "catalog/service/web")] == [8080]
    await one.node.until(lambda: bool(one.node.view.stored("catalog/instances/A/")))
    await one.call("PUT", "agent/service/deregister/web-1")
    await two.node.until(lambda: [i.port for i in two.node.view.snapshot.instances.values()] == [80])
    await done(two, service("delete", on="A"))
    assert await two.ok("GET", "catalog/service/web") == []


async def test_nobody_else_deletes_what_an_agent_registered(pair: tuple[Client, Client]) -> None:
    one, two = pair
    await registered(pair)
    await done(two, service("delete", on="A"), node("delete", Node="A"))
    for api in pair:
        assert [row["ServicePort"] for row in await api.ok("GET", "catalog/service/web")] == [8080]
    ((_, node_a),) = await done(two, node("set", Node="A"))
    assert node_a["Address"] == "198.18.0.1", "an agent says itself where it is"
    ((_, check),) = await done(one, {"Check": {"Verb": "get", "Check": {"Node": "A", "CheckID": "serfHealth"}}})
    assert check["Status"] == "passing"


async def test_whether_a_node_with_an_agent_lives_nobody_else_says(pair: tuple[Client, Client], caplog: pytest.LogCaptureFixture) -> None:
    serf = {"Node": "A", "CheckID": "serfHealth", "Name": "mine", "Status": "critical"}
    with caplog.at_level(logging.WARNING, "plait.catalog"):
        ((_, shown),) = await done(pair[1], {"Check": {"Verb": "set", "Check": serf}})
        await pair[1].call("PUT", "catalog/register", {"Node": "A", "SkipNodeUpdate": True, "Check": serf})
    assert [(r.message, r.__dict__["key"]) for r in caplog.records] == [("catalog_ignored", "checks/A/serfHealth")] * 2
    assert (shown["Name"], shown["Status"]) == ("Serf Health Status", "passing")
    assert [row["Status"] for row in await pair[0].ok("GET", "health/node/A")] == ["passing"]
    assert dict(await done(pair[1], node("set"), check("set", CheckID="serfHealth", ServiceID=""), check("get", CheckID="serfHealth")))


async def test_tags_are_taken_from_others_where_the_agent_allows_it(pair: tuple[Client, Client], caplog: pytest.LogCaptureFixture) -> None:
    one, two = pair
    await registered(pair, EnableTagOverride=True)
    with caplog.at_level(logging.WARNING, "plait.catalog"):
        found = await done(two, service("set", on="A", Tags=["green"], Port=1), service("get", on="A"))
    assert [(shown["Tags"], shown["Port"]) for _, shown in found] == [(["green"], 8080)] * 2
    (record,) = (record for record in caplog.records if record.message == "catalog_ignored")
    assert record.__dict__["fields"] == "address,port"
    await one.node.until(lambda: [i.tags for i in one.node.view.snapshot.instances.values()] == [("green",)])
    assert (await one.ok("GET", "catalog/service/web"))[0]["ModifyIndex"] == found[0][1]["ModifyIndex"]
    found = await done(two, service("delete", on="A"), service("get", on="A"), service("set", on="A", Tags=["red"]))
    assert [shown["Tags"] for _, shown in found] == [["own"], ["red"]]
    found = await done(two, node("delete", Node="A"), service("get", on="A"), service("set", on="A", Tags=["red"]))
    assert [shown["Tags"] for _, shown in found] == [["own"], ["red"]]
    assert [row["ServiceTags"] for row in await two.ok("GET", "catalog/service/web")] == [["red"]]


async def test_the_registry_itself_is_read_and_not_written(one: Client) -> None:
    view = one.node.view
    here = view.snapshot.nodes["A"]
    view.put(type(here)(here.name, here.id, here.address, meta={SERVER_META: "yes"}))
    consul = {"Verb": "get", "Node": "A", "Service": {"ID": "consul"}}
    ((_, shown),) = await done(one, {"Service": consul})
    assert (shown["Service"], shown["Port"]) == ("consul", 8300)
    status, text, _ = await one.call("PUT", "txn", [{"Service": {**consul, "Verb": "set", "Service": {"Service": "consul"}}}])
    assert status == 400 and "the registry itself" in text


# --- reading only


async def test_what_only_reads_says_how_old_it_may_be(one: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    await one.put("k", b"v")
    reads = [kv("get", "k"), kv("check-not-exists", "none"), {"Node": {"Verb": "get", "Node": {"Node": "A"}}}]
    for query in ("", "?stale", "?consistent"):
        status, _, headers = await one.call("PUT", f"txn{query}", reads)
        assert (status, headers["X-Consul-KnownLeader"], headers["X-Consul-LastContact"]) == (200, "true", "0")
        assert "X-Consul-Index" not in headers
    _, _, headers = await one.call("PUT", "txn", [kv("set", "k", b"w")])
    assert "X-Consul-KnownLeader" not in headers
    assert (await one.call("PUT", "txn?stale&consistent", reads))[0] == 400

    async def gone(*_: object) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(one.node.store, "txn", gone)
    monkeypatch.setattr(one.kv, "_contact_ms", lambda: None)
    status, text, headers = await one.call("PUT", "txn?stale", reads)
    assert (status, headers["X-Consul-KnownLeader"]) == (200, "false")
    assert [list(result) for result in json.loads(text)["Results"]] == [["KV"], ["Node"]]
    assert (await one.call("PUT", "txn?stale", [*reads, kv("get", "none")]))[0] == 409
    assert (await one.call("PUT", "txn?consistent", reads))[:2] == (500, "No cluster leader")
    for query, ops in (("", reads), ("?stale", [kv("set", "k", b"x")])):
        assert (await one.call("PUT", f"txn{query}", ops))[:2] == (500, "away")
    assert (await one.get("k"))[0]["Value"] == base64.b64encode(b"w").decode()  # type: ignore[index]


# --- what is wrong


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 200 + b"]" * 200, b"", b"null", b"3"])
async def test_what_is_no_list_at_all_is_refused_in_the_same_words(one: Client, body: bytes) -> None:
    status, text, _ = await one.call("PUT", "txn", body)
    assert status == 400 and text.startswith("Failed to parse body: ")


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"KV": {}}, 400, "Failed to parse body"),
        ([{"KV": {"Verb": "burn", "Key": "k"}}], 400, "operation 0: unknown KV verb"),
        ([{"KV": {"Verb": "set", "Key": ""}}], 400, "Key must not be empty"),
        ([{"KV": {"Verb": "set", "Key": "k", "Value": "%%"}}], 400, "Base64"),
        ([{"KV": {"Verb": "set", "Key": "k", "Flags": -1}}], 400, "64 bits"),
        ([{"Wish": {}}], 400, "holds one of KV, Node, Service, Check, got wish"),
        ([{**kv("get", "k"), **node("get")}], 400, "got kv, node"),
        ([{}], 400, "got nothing"),
        ([{"Node": {"Verb": "get-tree", "Node": NODE}}], 400, "unknown Node verb"),
        ([{"Node": {"Verb": "set", "Node": {"Node": "ext"}}}], 400, "Must provide address"),
        ([{"Node": {"Verb": "get"}}], 400, "Must provide node"),
        ([node("cas", ModifyIndex=-1)], 400, "ModifyIndex"),
        ([node("set", Meta={"a": 1})], 400, "must be a map of texts"),
        ([node("set", ID="x")], 400, "Bad node ID"),
        ([node("set", Datacenter="dc2")], 500, "No path to datacenter"),
        ([{"Service": {"Verb": "get", "Node": "ext", "Service": {}}}], 400, "Must provide service name or ID"),
        ([{"Service": {"Verb": "set", "Node": "ext", "Service": {"ID": "w"}}}], 400, "Must provide service name with ID"),
        ([{"Service": {"Verb": "set", "Service": WEB}}], 400, "Must provide node"),
        ([service("set", Port=70000)], 400, "port must be a number"),
        ([kv("get", "k"), check("set", Status="odd")], 400, "operation 1: Bad check status"),
        ([{"Check": {"Verb": "get", "Check": {"Node": "ext"}}}], 400, "neither CheckID nor Name"),
        ([kv("get", "k")] * 129, 413, "Transaction contains too many operations (129 > 128)"),
        ([node("get")] * 129, 413, "Transaction contains too many operations (129 > 128)"),
        ([kv("set", "k", b"x" * 200_000)] * 2 + [kv("set", "k", b"x" * 150_000)], 413, ""),
    ],
)
async def test_a_wrong_transaction_is_refused(one: Client, body: object, status: int, words: str) -> None:
    before = one.node.view.revision
    got, text, _ = await one.call("PUT", "txn", body)
    assert got == status and words in text
    assert one.node.view.revision == before
