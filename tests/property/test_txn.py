# SPDX-License-Identifier: Apache-2.0
"""Transactions against a simple model: the agent's real parts over a store that answers at once, beside plain dictionaries.

Node A has an agent with the services `own` (whose tags others may choose or not) and the check `c`; X and Y come and go by transactions.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from plait.agent.keys import record_key
from plait.agent.kv import Kv
from plait.agent.outside import OutsideCatalog
from plait.agent.transactions import Transactions
from plait.agent.view import View
from plait.model.cluster import Instance, Node
from plait.model.discovery import Check
from plait.services.requests import BadRequest
from plait.services.txn import parse_ops
from plait.store.api import Compare, Delete, Listing, Put, TxnResult
from plait.store.codec import encode
from plait.store.state import State

Row = dict[str, Any]
Place = tuple[str, ...]


class Store:
    """Tells the replica of each commit before it answers."""

    def __init__(self) -> None:
        self.state = State()
        self.view = View("B")
        self.kv = Kv(self.view, self, lambda: 0)  # type: ignore[arg-type]

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        commit = self.state.evaluate(compares, ops)
        if commit is None:
            return TxnResult(False, self.state.revision)
        self.state.apply(commit)
        self.view.change(self.kv.change(commit.changes, commit.revision), commit.revision)
        return TxnResult(True, commit.revision)

    async def list(self, prefix: str) -> Listing:
        return self.state.listing(prefix)


class Model:
    """Everything by place: ("kv", key), ("node", name), ("service", node, id), ("check", node, id). `own`: what A's agent says, `put`: what
    others put there; a row holds what is compared, and its two indexes. A check that others put there holds its service's tags as well,
    which it has from when it was put: put again when they are others it is another."""

    def __init__(self, override: bool, created: int) -> None:
        self.override, self.revision = override, created
        stamp = {"create": created, "modify": created}
        self.own: dict[Place, Row] = {
            ("node", "A"): {"says": "198.18.0.1", "create": 1, "modify": 1},
            ("service", "A", "own"): {"says": (80, ("blue",)), **stamp},
            ("check", "A", "c"): {"says": ("passing", ""), **stamp},
        }
        self.put: dict[Place, Row] = {}
        self.tags: Row | None = None

    def seen(self, place: Place) -> Row | None:
        if place[0] not in ("kv", "node") and self.seen(("node", place[1])) is None:
            return None
        if place == ("service", "A", "own") and self.tags is not None:
            row = self.own[place]
            return {**row, "says": (row["says"][0], self.tags["says"]), "modify": self.tags["modify"]}
        row = self.own.get(place) or self.put.get(place)
        return {key: row[key] for key in ("says", "create", "modify")} if row else None

    def write(self, place: Place, says: object) -> None:
        if place in self.own and place[0] == "node":
            return
        if place == ("service", "A", "own") and self.override:
            if self.seen(place)["says"][1] != says[1]:  # type: ignore[index]
                self.tags = {"says": says[1], "modify": self.revision}  # type: ignore[index]
            return
        row = self.put.get(place)
        service = self.seen(("service", place[1], says[1])) if place[0] == "check" else None  # type: ignore[index]
        holds = says, service["says"][1] if service else ()
        if row is None or (row["says"], row["tags"]) != holds:
            self.put[place] = {"says": says, "tags": holds[1], "create": row["create"] if row else self.revision, "modify": self.revision}

    def remove(self, place: Place) -> None:
        for other, row in list(self.put.items()):
            below_node = place[0] == "node" and other[0] in ("service", "check") and other[1] == place[1]
            below_service = place[0] == "service" and other[:2] == ("check", place[1]) and row["says"][1] == place[2]
            if other == place or below_node or below_service:
                del self.put[other]
        if place in (("service", "A", "own"), ("node", "A")):
            self.tags = None

    def do(self, verb: str, place: Place, says: Any, index: int) -> tuple[bool, Row | None]:
        """Whether it succeeds, and what it shows."""
        known = self.seen(place)
        if verb == "get":
            return known is not None, known
        if verb.endswith("cas"):
            stale = index != (known["modify"] if known else 0)
            if stale and not (verb == "delete-cas" and known is None):
                return False, None
        if verb.startswith("delete"):
            self.remove(place)
            return True, None
        if place[0] in ("service", "check") and self.seen(("node", place[1])) is None:
            return False, None
        if place[0] == "check" and says[1] and self.seen(("service", place[1], says[1])) is None:
            return False, None
        self.write(place, says)
        return True, self.seen(place)

    def transact(self, ops: list[tuple[str, Place, Any, int]]) -> tuple[list[int], list[Row]]:
        """(numbers of those that failed, what the others show); nothing is changed if one failed."""
        after = copy.deepcopy(self)
        after.revision += 1
        found = [after.do(*op) for op in ops]
        failed = [number for number, (good, _) in enumerate(found) if not good]
        rows = [] if failed else [row for _, row in found if row is not None]
        if not failed and (after.put, after.tags) != (self.put, self.tags):
            vars(self).update(vars(after))
        else:  # what was made and unmade at once was nothing
            rows = [{key: self.revision if value == after.revision else value for key, value in row.items()} for row in rows]
        return failed, rows


def body(verb: str, place: Place, says: Any, index: int) -> object:
    """The operation as a client writes it."""
    match place:
        case ("kv", key):
            return {"KV": {"Verb": verb, "Key": key, "Flags": says, "Index": index}}
        case ("node", name):
            return {"Node": {"Verb": verb, "Node": {"Node": name, "Address": says, "ModifyIndex": index}}}
        case ("service", node, ident):
            inner = {"ID": ident, "Service": ident, "Port": says[0], "Tags": list(says[1]), "ModifyIndex": index}
            return {"Service": {"Verb": verb, "Node": node, "Service": inner}}
        case ("check", node, ident):
            inner = {"Node": node, "CheckID": ident, "Status": says[0], "ServiceID": says[1], "ModifyIndex": index}
            return {"Check": {"Verb": verb, "Check": inner}}
    raise AssertionError(place)


def row_of(result: Row) -> Row:
    """A result as the model has it."""
    ((kind, shown),) = result.items()
    says: Any = {
        "KV": lambda: shown["Flags"],
        "Node": lambda: shown["Address"],
        "Service": lambda: (shown["Port"], tuple(shown["Tags"])),
        "Check": lambda: (shown["Status"], shown["ServiceID"]),
    }[kind]()
    return {"says": says, "create": shown["CreateIndex"], "modify": shown["ModifyIndex"]}


NODES = st.sampled_from("AXY")
TARGETS = st.one_of(
    st.tuples(st.tuples(st.just("kv"), st.sampled_from("kl")), st.integers(0, 1)),
    st.tuples(st.tuples(st.just("node"), NODES), st.sampled_from(["192.0.2.1", "192.0.2.2"])),
    st.tuples(
        st.tuples(st.just("service"), NODES, st.sampled_from(["own", "s"])),
        st.tuples(st.integers(80, 81), st.sampled_from([("blue",), ("green",), ()])),
    ),
    st.tuples(
        st.tuples(st.just("check"), NODES, st.sampled_from("cd")),
        st.tuples(st.sampled_from(["passing", "critical"]), st.sampled_from(["", "own", "s"])),
    ),
)
VERBS = st.sampled_from(["set", "set", "set", "cas", "get", "delete", "delete-cas"])
OPS = st.tuples(VERBS, TARGETS, st.sampled_from(["right", "right", "zero", "wrong"]))
PLACES = [("kv", key) for key in "kl"] + [("node", name) for name in "AXY"]
PLACES += [(kind, node, name) for kind, names in (("service", ["own", "s"]), ("check", ["c", "d"])) for node in "AXY" for name in names]
BLANK = {"kv": 0, "node": "", "service": (0, ()), "check": ("passing", "")}


async def prepared(override: bool) -> tuple[Store, Transactions, Model]:
    store = Store()
    records = [
        Node("A", "id", IPv4Address("198.18.0.1")),
        Instance("own", "own", "A", port=80, tags=("blue",), enable_tag_override=override),
        Check("c", "A", "c", "passing"),
    ]
    await store.txn([], [Put(record_key(record), encode(record)) for record in records])
    outside = OutsideCatalog(store.view, store)  # type: ignore[arg-type]
    transactions = Transactions(store.view, store, store.kv, outside)  # type: ignore[arg-type]
    return store, transactions, Model(override, store.state.revision)


@settings(max_examples=300)
@given(st.booleans(), st.lists(st.lists(OPS, min_size=1, max_size=5), max_size=8))
def test_transactions_are_as_a_simple_model_says(override: bool, history: list[list[tuple[str, tuple[Place, Any], str]]]) -> None:
    async def run() -> None:
        store, transactions, model = await prepared(override)
        for drawn in history:
            indexes = {"right": lambda row: row["modify"] if row else 0, "zero": lambda _: 0, "wrong": lambda _: 99}
            ops = [(verb, place, says, indexes[which](model.seen(place))) for verb, (place, says), which in drawn]
            before = model.revision
            failed, rows = model.transact(ops)
            answer = json.loads(json.dumps((await transactions.transact(parse_ops([body(*op) for op in ops], "dc1"))).answer("dc1")))
            assert [error["OpIndex"] for error in answer["Errors"] or []] == failed, (ops, answer)
            assert [row_of(result) for result in answer["Results"] or []] == rows, ops
            assert (store.state.revision > before) or model.revision == before, "a failure writes nothing"
            model.revision = store.state.revision
            reads = parse_ops([body("get", place, BLANK[place[0]], 0) for place in PLACES if model.seen(place)], "dc1")
            shown = [row_of(result) for result in transactions.seen(reads).answer("dc1")["Results"]]  # type: ignore[attr-defined]
            assert shown == [model.seen(place) for place in PLACES if model.seen(place)]

    asyncio.run(run())


WORDS = st.sampled_from(
    ["KV", "node", "Service", "check", "Verb", "key", "Value", "ModifyIndex", "Node", "CheckID", "service_id", "Address"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["set", "cas", "get", "X", "192.0.2.1", "djE="])
ANYTHING = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=5), max_leaves=12)
INNER = st.fixed_dictionaries(
    {"Verb": st.sampled_from(["set", "cas", "get", "delete-cas"])}, optional={"Node": ANYTHING, "Service": ANYTHING}
)
ITEMS = st.dictionaries(st.sampled_from(["KV", "Node", "service", "CHECK"]), INNER | ANYTHING, min_size=1, max_size=1)


@given(ANYTHING | st.lists(ITEMS, max_size=3))
def test_any_body_is_a_list_of_operations_or_refused(raw: object) -> None:
    try:
        ops = parse_ops(raw, "dc1")
    except BadRequest as error:
        assert str(error)
        return
    assert isinstance(raw, list) and len(ops) == len(raw)

    async def run() -> None:
        _, transactions, _ = await prepared(override=True)
        assert json.dumps((await transactions.transact(ops)).answer("dc1"))

    asyncio.run(run())
