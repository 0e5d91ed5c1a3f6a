# SPDX-License-Identifier: Apache-2.0
"""What is written when a cluster joins another one, and what each node starts with afterwards, however often it is interrupted."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from plait.agent import staging
from plait.agent.files import Paths
from plait.agent.identity import Identity, load_identity, save_identity
from plait.agent.journal import Journal
from plait.agent.keys import record_key
from plait.agent.merging import Items, locks, move, snapshot_of, standing
from plait.agent.staging import Ready, Stage
from plait.model.cluster import Assigned, Block, Container, Endpoint, Network, Node, TunnelKey
from plait.model.errors import PoolExhausted
from plait.model.query import PreparedQuery, Selection
from plait.services.directory import SERVER_META
from plait.store.api import Put
from plait.store.codec import decode, encode
from plait.store.memory import MemoryStore
from plait.store.peek import shown

A, N = IPv4Address, IPv4Network
DEFAULT = Network("default", N("10.28.0.0/16"), A("10.28.0.1"), 24)
SEALED = Network("sealed", N("10.30.0.0/16"), A("10.30.0.1"), 24, "wireguard")


def node(name: str, tunnel: str, first: bool = False) -> Node:
    meta = {SERVER_META: "true"} if first else {}
    return Node(name, f"id-{name}", A(f"198.18.0.{ord(name)}"), tunnel=A(tunnel), meta=meta)


def endpoint(id_: str, node: str, address: str, name: str = "") -> Endpoint:
    return Endpoint(id_, "default", node, A(address), "02:00:00:00:00:01", "pl-e", "sandbox", id_, name or id_)


def items(*records: object, **more: bytes) -> Items:
    return {record_key(r): encode(r) for r in records} | {key.replace("__", "/"): value for key, value in more.items()}  # type: ignore[arg-type]


def key(value: bytes, session: str = "", lock_index: int = 0) -> bytes:
    return encode({"key": "k", "value": value, "flags": 0, "session": session, "lock_index": lock_index})


def seen(there: Items) -> Items:
    """As the other cluster shows itself."""
    store = MemoryStore()

    async def through() -> Items:
        await store.txn([], [Put(name, value) for name, value in there.items()])
        return shown((await store.list("")).items)

    return asyncio.run(through())


THERE = items(
    DEFAULT, SEALED, node("A", "10.28.0.0", True), Block("default", N("10.28.0.0/24"), "A"), Block("sealed", N("10.30.0.0/24"), "A"),
    endpoint("web", "A", "10.28.0.2"), kv__both=key(b"1"), kv__theirs=key(b"x"),
)  # fmt: skip
OURS = items(
    DEFAULT, SEALED, replace(node("C", "10.28.0.0", True), wireguard=TunnelKey("k", 7472, A("10.30.0.0"))), node("D", "10.28.3.0"),
    Block("default", N("10.28.0.0/24"), "C"), Block("default", N("10.28.3.0/24"), "D"), Block("sealed", N("10.30.0.0/24"), "C"),
    endpoint("shop", "C", "10.28.0.77"), endpoint("far", "D", "10.28.1.9"), Container("shop", "shop", "C", "sandbox"),
    kv__both=key(b"1", "s", 3), kv__ours=key(b"2", "s", 1), sessions__s=b"{}", tokens__t=b"{}", alive__C=b"1", joining__E=b'"e"',
)  # fmt: skip


def test_what_fits_is_written_and_nothing_twice() -> None:
    found = move(OURS, seen(THERE), "default")
    assert found.nodes == ("C", "D") and found.given_up == {"blocks/default/10.28.0.0_24", "blocks/sealed/10.30.0.0_24"}
    assert sorted(found.ahead) == ["endpoints/C/shop", "endpoints/D/far", "kv/ours"], "an equal key is there already"
    assert sorted(found.last) == ["blocks/default/10.28.2.0_24", "blocks/default/10.28.3.0_24", "nodes/C", "nodes/D"]
    assert sorted(found.after) == ["containers/C/shop"]
    assert b'"session":""' in found.ahead["kv/ours"], "sessions stay behind, and their locks"
    assert locks(OURS) == ["both", "ours"]
    again = move(OURS, seen({**THERE, **found.ahead, **found.last, **found.after}), "default")
    assert (again.ahead, again.after) == ({}, {}), "what is there already is not written again"


def test_policies_come_in_the_moment_in_which_the_nodes_do() -> None:
    """Not before: they are about the others' containers too; not after, or the own ones would be open meanwhile."""
    ours = items(DEFAULT, node("B", "10.28.2.0"), policies__shop__db=b"{}", namespaces__shop=b"{}")
    wanted = move(ours, seen(items(DEFAULT, node("A", "10.28.1.0"), namespaces__shop=b"{}")), "default")
    assert "policies/shop/db" in wanted.last and "nodes/B" in wanted.last
    assert not any(key.startswith(("policies/", "namespaces/")) for part in (wanted.ahead, wanted.after) for key in part)
    assert "namespaces/shop" not in wanted.last, "what is there already is not written"


def test_who_gives_up_its_block_has_a_tunnel_address_of_its_own_from_the_first_moment() -> None:
    last = move(OURS, seen(THERE), "default").last
    made = decode(Node, last["nodes/C"], "")
    assert made.tunnel == A("10.28.2.0"), "10.28.1.0/24 is free too, but somebody has an address of it"
    assert made.wireguard is not None and made.wireguard.address is None, "A has that one"
    assert SERVER_META not in made.meta and decode(Node, last["nodes/D"], "").tunnel == A("10.28.3.0")


def test_a_pool_without_a_block_for_the_tunnel_address_is_told() -> None:
    small = replace(DEFAULT, subnet=N("10.28.0.0/24"))
    here = items(small, node("C", "10.28.0.0"), Block("default", N("10.28.0.0/24"), "C"))
    there = items(small, node("A", "10.28.0.0"), Block("default", N("10.28.0.0/24"), "A"))
    with pytest.raises(PoolExhausted, match="default"):
        move(here, seen(there), "default")


@pytest.mark.parametrize(
    ("ours", "theirs", "kind"),
    [
        ({"kv__k": key(b"1")}, {"kv__k": key(b"2")}, "kv"),
        ({"catalog__nodes__x": b'{"name":"x"}'}, {"catalog__nodes__x": b'{"name":"x","address":"192.0.2.1"}'}, "catalog"),
        (
            {"queries__1": encode(PreparedQuery("1", Selection("web"), "near"))},
            {"queries__2": encode(PreparedQuery("2", Selection("web"), "near"))},
            "query",
        ),
        ({"kv__k": key(b"1", "s", 2)}, {"kv__k": key(b"1")}, ""),
        ({"policies__shop__db": b'{"name":"db"}'}, {"policies__shop__db": b'{"name":"db","priority":1}'}, "policies"),
        ({"policies__shop__db": b'{"name":"db"}'}, {"policies__shop__db": b'{"name":"db"}'}, ""),
        ({"namespaces__shop": b'{"name":"shop"}'}, {"namespaces__shop": b'{"name":"shop","labels":{"a":"b"}}'}, "namespaces"),
    ],
)
def test_what_is_kept_under_one_name_must_be_the_same(ours: dict[str, bytes], theirs: dict[str, bytes], kind: str) -> None:
    found = [clash for clash in standing(items(**ours), seen(items(**theirs))) if clash.stops]
    assert [clash.kind for clash in found] == ([kind] if kind else []) and all(clash.todo for clash in found)


def test_blocks_that_both_hold_do_not_stop_it_but_a_bridge_in_use_does() -> None:
    assert [(c.kind, c.stops) for c in standing(OURS, seen(THERE))] == [("block", False), ("block", False)]
    bridge = {"blocks__default__10.28.0.0_24": encode(Block("default", N("10.28.0.0/24"), "C", "bridge"))}
    assert [c.stops for c in standing({**OURS, **items(**bridge)}, seen(THERE)) if "default" in c.here] == [False], "nobody is in it"
    boxed = items(Container("b", "box", "C", "docker", addresses={"default": A("10.28.0.5")}), **bridge)
    assert [c.todo for c in standing({**OURS, **boxed}, seen(THERE)) if c.stops] == [
        "remove box on node C: Docker hands out what is in its bridge's block by itself"
    ]
    theirs = {**THERE, "blocks/default/10.28.0.0_24": encode(Block("default", N("10.28.0.0/24"), "A", "bridge"))}
    assert [c.stops for c in standing(OURS, seen(theirs)) if "default" in c.here] == [True], "Docker there may give shop's address again"


def test_a_reservation_of_both_is_used_where_it_is_used() -> None:
    kept = Assigned("default", A("10.28.9.9"), "db")
    last = move(items(DEFAULT, replace(kept, node="C")), seen(items(DEFAULT, kept)), "default").last
    assert decode(Assigned, last[record_key(kept)], "").node == "C"
    assert snapshot_of(last).assigned.keys() == {("default", A("10.28.9.9"))}


class Crash(Exception):
    pass


@pytest.mark.parametrize("steps", range(8))
def test_a_switch_that_is_interrupted_anywhere_is_finished_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    paths = Paths(lib=tmp_path)
    (tmp_path / "pki").mkdir()
    for name in ("ca.crt", "ca.key", "node.crt", "node.key"):
        (tmp_path / "pki" / name).write_text(f"old {name}")
    save_identity(paths.identity, Identity("C", "id-C", A("198.18.0.3")))
    (tmp_path / "replica.bin").write_bytes(b"old")
    (tmp_path / "store.db").write_bytes(b"the store of before")
    Journal(tmp_path / "journal.db").close()
    stage = Stage(paths)
    stage.pki.mkdir(parents=True)
    for name in ("ca.crt", "node.crt", "node.key"):
        (stage.pki / name).write_text(f"new {name}")
    stage.set_ready(Ready("pin", "198.18.0.1:7470", N("10.28.0.0/16")))
    assert not stage.switch(), "nothing was decided"
    stage.decide([Block("default", N("10.28.2.0/24"), "C")])

    count = iter(range(100))
    real = staging.write_file

    def write(path: Path, content: bytes) -> None:
        if next(count) == steps:
            raise Crash
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(staging, "write_file", write)
        try:
            assert Stage(paths).switch()
        except Crash:
            assert Stage(paths).switch()
    assert not Stage(paths).switch() and not stage.directory.exists(), "once is enough"
    assert [(tmp_path / "pki" / name).read_text() for name in ("ca.crt", "node.crt", "node.key")] == [
        f"new {name}" for name in ("ca.crt", "node.crt", "node.key")
    ]
    known = load_identity(paths.identity)
    assert (known.name, known.id, known.store) == ("C", "id-C", "198.18.0.1:7470")
    journal = Journal(tmp_path / "journal.db")
    assert list(journal.load("block")) == ["blocks/default/10.28.2.0_24"]
    journal.close()
    kept = tmp_path / "before-joining"
    assert (kept / "store.db").read_bytes() == b"the store of before" and (kept / "ca.key").read_text() == "old ca.key"
    assert (kept / "node.crt").read_text() == "old node.crt" and load_identity(kept / "identity.json").store == ""
    assert not (tmp_path / "replica.bin").exists() and not (tmp_path / "pki" / "ca.key").exists()
