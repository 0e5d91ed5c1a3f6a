# SPDX-License-Identifier: Apache-2.0
"""Keys, sessions and transactions over real HTTP, on nodes that share a store in memory."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.support.cluster import nodes
from tests.support.kvapi import Client, Clock, client, eventually, pair_of
from yarl import URL

from plait.agent.kv import Kv, put_entry
from plait.model.errors import PlaitError
from plait.model.kv import Entry
from plait.store.api import Compare, Delete, Put, TxnResult
from plait.store.memory import MemoryStore

QUICK_S, SLOW = 0.3, "wait=20s"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(clock: Clock) -> AsyncIterator[MemoryStore]:
    made = MemoryStore(clock)
    yield made
    await made.close()


@pytest.fixture
async def pair(store: MemoryStore, tmp_path: Path) -> AsyncIterator[tuple[Client, Client]]:
    """Two nodes' APIs; the first one's agent ends sessions."""
    async with pair_of(store, tmp_path) as made:
        yield made


@pytest.fixture
def one(pair: tuple[Client, Client]) -> Client:
    return pair[0]


# --- keys


async def test_a_key_is_shown_with_its_fields(one: Client) -> None:
    assert await one.ok("PUT", "kv/a/b?flags=42", b"hello") is True
    entry, index = await one.get("a/b")
    assert entry is not None and index == entry["ModifyIndex"] == entry["CreateIndex"]
    assert entry | {"CreateIndex": 0, "ModifyIndex": 0} == {
        "LockIndex": 0,
        "Key": "a/b",
        "Flags": 42,
        "Value": base64.b64encode(b"hello").decode(),
        "CreateIndex": 0,
        "ModifyIndex": 0,
    }


def test_the_store_holds_a_key_as_the_json_of_its_entry_without_indexes() -> None:
    """Agents of earlier versions read it, and write it with indexes of 0."""
    entry = Entry("a/b", b"hello", 42, "s", 2)
    written = put_entry("a/b", entry._replace(create_index=5, modify_index=6))
    assert written == Put("kv/a/b", b'{"key":"a/b","value":"aGVsbG8=","flags":42,"session":"s","lock_index":2}')


async def test_what_an_earlier_version_wrote_is_read(one: Client, store: MemoryStore) -> None:
    await store.txn(
        [], [Put("kv/old", b'{"key":"old","value":"aGVsbG8=","flags":42,"session":"","lock_index":0,"create_index":0,"modify_index":0}')]
    )

    async def flags() -> object:
        entry, _ = await one.get("old")
        return entry and entry["Flags"]

    await eventually(flags, 42)


async def test_a_key_is_written_to_a_store_that_is_elsewhere(one: Client, store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere:
        """Has a timeout for each call."""

        async def txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
            async with asyncio.timeout(5):
                return await store.txn(compares, ops)

    monkeypatch.setattr(one.kv, "_store", Elsewhere())
    monkeypatch.setattr(one.kv, "_is_local", False)
    assert await one.put("a", b"1") and await one.ok("DELETE", "kv/a")


async def test_what_was_written_is_remembered_until_the_store_says_it_and_no_more_than_so_much(pair: tuple[Client, Client]) -> None:
    one, two = pair
    for number in range(5):
        assert await one.put("a", b"%d" % number)
        assert await two.put("b", b"%d" % number)
    assert not one.kv._written and not two.kv._written
    assert one.kv.table.get("b") == two.kv.table.get("b"), "read from the store as it was written"
    for number in range(3000):  # the store refuses them
        one.kv._put(Entry("c", b"%d" % number, 0, "", 0, 0, 0))
    assert len(one.kv._written) <= 1024


@pytest.mark.parametrize("path", ["a%2Fb", "a/b", "%61/b"])
async def test_a_key_is_the_same_in_every_spelling(one: Client, path: str) -> None:
    await one.put(path, b"x")
    assert [entry["Key"] for entry in await one.ok("GET", "kv/?recurse")] == ["a/b"]
    assert (await one.get("a/b"))[0] is not None


@pytest.mark.parametrize("key", ["traefik/ç", "a//b", "a b", "a:b,c=d&e", "é" * 300, "../up", "x?y#z"])
async def test_keys_are_opaque(one: Client, key: str) -> None:
    path = URL.build(path="/" + key).raw_path[1:].replace("//", "/%2F").replace("../", "..%2F")
    await one.put(path)
    assert await one.ok("GET", "kv/?keys") == [key]


async def test_a_raw_value_has_the_headers_of_every_answer(one: Client) -> None:
    await one.ok("PUT", "kv/page", b"x")
    _, _, headers = await one.call("GET", "kv/page?raw")
    assert headers["Vary"] == "Accept-Encoding" and headers["X-Consul-Default-Acl-Policy"] == "allow"
    assert int(headers["X-Consul-Index"]) > 0


@pytest.mark.parametrize("path", ["kv/page?wait=soon", "session/list?wait=soon", "kv/?recurse&wait=soon"])
async def test_a_wrong_time_to_wait_is_refused_though_nothing_waits(one: Client, path: str) -> None:
    assert (await one.call("GET", path))[:2] == (400, "Invalid wait time")


async def test_an_empty_value_is_null_and_raw_gives_the_bytes(one: Client) -> None:
    await one.put("empty", b"")
    assert (await one.get("empty"))[0]["Value"] is None  # type: ignore[index]
    await one.put("page", b"<script>")
    status, text, headers = await one.call("GET", "kv/page?raw")
    assert (status, text, headers["Content-Type"].partition(";")[0]) == (200, "<script>", "text/plain")
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Content-Security-Policy"] == "sandbox"


async def test_an_absent_key_is_an_empty_404_with_an_index(one: Client) -> None:
    status, text, headers = await one.call("GET", "kv/none")
    assert (status, text) == (404, "") and int(headers["X-Consul-Index"]) >= 1
    assert await one.ok("GET", "kv/?keys") == []
    assert (await one.call("GET", "kv/none?keys"))[0] == 404


async def test_keys_are_listed_in_byte_order_and_cut_at_the_separator(one: Client) -> None:
    for key in ("b", "a/y/2", "a/x", "a/y/1", "B", "a/z/"):
        await one.put(key)
    assert await one.ok("GET", "kv/?keys") == ["B", "a/x", "a/y/1", "a/y/2", "a/z/", "b"]
    assert await one.ok("GET", "kv/a/?keys&separator=/") == ["a/x", "a/y/", "a/z/"]
    assert await one.ok("GET", "kv/?keys&seperator=/") == ["B", "a/", "b"]
    assert [entry["Key"] for entry in await one.ok("GET", "kv/a/y?recurse")] == ["a/y/1", "a/y/2"]


async def test_check_and_set(one: Client) -> None:
    assert await one.ok("PUT", "kv/k?cas=0", b"1") is True
    assert await one.ok("PUT", "kv/k?cas=0", b"2") is False
    _, index = await one.get("k")
    assert await one.ok("PUT", f"kv/k?cas={index + 1}", b"2") is False
    assert await one.ok("PUT", f"kv/k?cas={index}", b"2") is True
    assert await one.ok("PUT", "kv/other?cas=7", b"2") is False
    assert await one.ok("DELETE", f"kv/k?cas={index}") is False
    assert await one.ok("DELETE", f"kv/k?cas={(await one.get('k'))[1]}") is True
    assert await one.ok("DELETE", "kv/k?cas=99") is True, "what is missing is deleted already"


async def test_the_same_write_again_changes_nothing(one: Client) -> None:
    await one.put("k", b"1")
    _, before = await one.get("k")
    assert await one.put("k", b"1") is True
    assert (await one.get("k"))[1] == before
    await one.put("k", b"2")
    assert (await one.get("k"))[1] > before


async def test_of_two_nodes_one_wins_and_both_know(pair: tuple[Client, Client]) -> None:
    """Each decides by its replica, which may be behind; the store is asked whether what was read still holds."""
    for round_ in range(20):
        answers = await asyncio.gather(*(each.ok("PUT", f"kv/race{round_}?cas=0", name) for each, name in zip(pair, "AB", strict=True)))
        assert sorted(answers) == [False, True]
    await pair[0].put("seen", b"1")
    assert await pair[1].put("seen", b"2") is True
    assert await pair[0].put("seen", b"1") is True
    await pair[1].kv.current()
    assert (await pair[1].get("seen"))[0]["Value"] == base64.b64encode(b"1").decode()  # type: ignore[index]


async def test_a_tree_is_deleted_at_once(one: Client) -> None:
    for key in ("a/1", "a/2", "ab", "b"):
        await one.put(key)
    assert await one.ok("DELETE", "kv/a/?recurse") is True
    assert await one.ok("GET", "kv/?keys") == ["ab", "b"]
    assert await one.ok("DELETE", "kv/?recurse") is True
    assert await one.ok("GET", "kv/?keys") == []


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "kv/", 400, "Missing key name"),
        ("PUT", "kv/", 400, "Missing key name"),
        ("DELETE", "kv/", 400, "Missing key name"),
        ("PUT", "kv/k?cas=0&acquire=x", 400, "Conflicting flags"),
        ("PUT", "kv/k?acquire=x&release=x", 400, "Conflicting flags"),
        ("DELETE", "kv/k?recurse&cas=1", 400, "Conflicting flags"),
        ("PUT", "kv/k?flags=-1", 400, "Invalid flags"),
        ("PUT", "kv/k?flags=18446744073709551616", 400, "Invalid flags"),
        ("PUT", "kv/k?cas=x", 400, "Invalid cas"),
        ("PUT", "kv/k?acquire=", 400, "Missing session"),
        ("PUT", "kv/k?acquire=nobody", 500, 'invalid session "nobody"'),
        ("PUT", "kv/k?ttl=soon", 400, "Invalid ttl"),
        ("PUT", "kv/k?ttl=25h", 400, "Invalid ttl"),
        ("GET", "kv/k?index=x", 400, "Invalid index"),
        ("GET", "kv/k?stale&consistent", 400, "Cannot specify"),
        ("PUT", "session/destroy/", 400, "Missing session"),
        ("PUT", "session/renew/nobody", 404, "Session id 'nobody' not found"),
    ],
)
async def test_what_is_wrong_is_said(one: Client, method: str, path: str, status: int, words: str) -> None:
    got, text, _ = await one.call(method, path, b"v")
    assert got == status and words in text
    assert await one.ok("GET", "kv/?keys") == []


async def test_a_value_has_a_largest_size(one: Client) -> None:
    assert await one.put("k", b"x" * 512 * 1024) is True
    assert (await one.call("PUT", "kv/k", b"x" * (512 * 1024 + 1)))[0] == 413


async def test_a_key_with_a_time_to_live_goes_by_itself(one: Client, store: MemoryStore, clock: Clock) -> None:
    await one.ok("PUT", "kv/k?ttl=10s", b"1")
    clock.turn(store, 9)
    assert (await one.get("k"))[0] is not None
    clock.turn(store, 2)

    async def status() -> int:
        return (await one.call("GET", "kv/k"))[0]

    await eventually(status, 404)


# --- waiting


async def answers(call: Any) -> asyncio.Task[tuple[int, str, dict[str, str]]]:
    """A blocking query that is under way."""
    task = asyncio.create_task(call)
    await asyncio.sleep(0.05)
    return task


@pytest.mark.parametrize(("query", "other"), [("a", "ab"), ("none", "a"), ("a/?recurse", "b/1"), ("a/?keys", "a")])
async def test_a_reader_sleeps_through_what_is_not_its_own(one: Client, query: str, other: str) -> None:
    await one.put("a")
    await one.put("a/1")
    index = (await one.call("GET", f"kv/{query}"))[2]["X-Consul-Index"]
    joint = "&" if "?" in query else "?"
    task = await answers(one.call("GET", f"kv/{query}{joint}index={index}&{SLOW}"))
    await one.put(other, b"news")
    done, _ = await asyncio.wait([task], timeout=QUICK_S)
    assert not done
    task.cancel()


@pytest.mark.parametrize(
    ("query", "method", "path"),
    [
        ("a", "PUT", "kv/a"),
        ("a", "DELETE", "kv/a"),
        ("none", "PUT", "kv/none"),
        ("a/?recurse", "PUT", "kv/a/2"),
        ("a/?recurse", "DELETE", "kv/a/1"),
        ("a?keys", "DELETE", "kv/?recurse"),
        ("?recurse", "PUT", "kv/z"),
    ],
)
async def test_a_reader_is_woken_by_its_own(pair: tuple[Client, Client], query: str, method: str, path: str) -> None:
    one, writer = pair
    await one.put("a")
    await one.put("a/1")
    index = (await one.call("GET", f"kv/{query}"))[2]["X-Consul-Index"]
    joint = "&" if "?" in query else "?"
    task = await answers(one.call("GET", f"kv/{query}{joint}index={index}&{SLOW}"))
    await writer.ok(method, path, b"news")
    _, _, headers = await asyncio.wait_for(task, 5)
    assert int(headers["X-Consul-Index"]) > int(index)


async def test_a_reader_that_goes_away_waits_no_more(one: Client) -> None:
    await one.put("a")
    _, index = await one.get("a")
    task = await answers(one.call("GET", f"kv/a?index={index}&{SLOW}"))
    assert len(one.kv.key_waiters) == 1
    task.cancel()

    async def waiting() -> int:
        return len(one.kv.key_waiters)

    await eventually(waiting, 0)


# --- sessions and locks


async def test_a_session_is_shown_with_its_fields(one: Client) -> None:
    session = await one.session(Name="n", TTL="30s", LockDelay="5s", Behavior="delete")
    (shown,) = await one.ok("GET", f"session/info/{session}")
    assert shown.pop("CreateIndex") == shown.pop("ModifyIndex") > 1
    assert shown == {
        "ID": session,
        "Name": "n",
        "Node": "A",
        "LockDelay": 5_000_000_000,
        "Behavior": "delete",
        "TTL": "30s",
        "NodeChecks": ["serfHealth"],
        "ServiceChecks": None,
    }
    assert await one.ok("GET", "session/node/A") == await one.ok("GET", "session/list") == await one.ok("PUT", f"session/renew/{session}")
    assert await one.ok("GET", "session/node/B") == [] == await one.ok("GET", "session/info/none")
    assert await one.ok("PUT", f"session/destroy/{session}") is True
    assert await one.ok("PUT", f"session/destroy/{session}") is True
    assert await one.ok("GET", "session/list") == []


async def test_a_session_needs_no_body(one: Client) -> None:
    assert (await one.call("PUT", "session/create"))[0] == 200
    (shown,) = await one.ok("GET", "session/list")
    assert (shown["LockDelay"], shown["Behavior"], shown["TTL"]) == (15_000_000_000, "release", "")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"TTL": "5s"}, "Invalid Session TTL '5000000000', must be between [10s=24h0m0s]"),
        ({"TTL": "soon"}, "Invalid Session TTL 'soon'"),
        ({"Behavior": "keep"}, "Invalid Behavior setting 'keep'"),
        ({"Node": "Z"}, "Missing node registration"),
        ({"Checks": ["none"]}, "Missing check 'none' registration"),
        ({"ServiceChecks": [{"ID": "none"}]}, "Missing check 'none' registration"),
    ],
)
async def test_a_session_that_cannot_be_is_refused(one: Client, body: object, words: str) -> None:
    status, text, _ = await one.call("PUT", "session/create", body)
    assert status == 500 and words in text


async def test_a_lock_is_held_by_one_and_counted(pair: tuple[Client, Client]) -> None:
    one, two = pair
    mine, theirs = await one.session(LockDelay=0), await two.session(LockDelay=0)
    assert await one.ok("PUT", f"kv/lock?acquire={mine}", b"1") is True
    assert await two.ok("PUT", f"kv/lock?acquire={theirs}", b"2") is False
    assert await two.ok("PUT", f"kv/lock?release={theirs}", b"2") is False
    entry, _ = await one.get("lock")
    assert entry is not None and (entry["Session"], entry["LockIndex"]) == (mine, 1)
    assert await one.ok("PUT", f"kv/lock?acquire={mine}", b"3") is True, "again: the value changes, the count does not"
    assert await one.ok("PUT", "kv/lock", b"4") is True, "a plain write leaves the lock alone"
    entry, _ = await one.get("lock")
    assert entry is not None and (entry["Session"], entry["LockIndex"], entry["Value"]) == (mine, 1, base64.b64encode(b"4").decode())
    assert await one.ok("PUT", f"kv/lock?release={mine}", b"5") is True
    entry, _ = await one.get("lock")
    assert entry is not None and "Session" not in entry and entry["LockIndex"] == 1
    assert await two.ok("PUT", f"kv/lock?acquire={theirs}", b"6") is True
    assert (await two.get("lock"))[0]["LockIndex"] == 2  # type: ignore[index]


@pytest.mark.parametrize("behavior", ["release", "delete"])
async def test_the_end_of_a_session_ends_its_locks(pair: tuple[Client, Client], behavior: str) -> None:
    one, two = pair
    session = await one.session(Behavior=behavior, LockDelay="0s")
    for number in range(3):
        await one.ok("PUT", f"kv/l/{number}?acquire={session}", b"x")
    await two.kv.current()
    assert await two.ok("PUT", f"session/destroy/{session}") is True
    left = [entry.session for entry in two.kv.table.below("l/")]
    assert left == ([""] * 3 if behavior == "release" else [])


async def test_after_the_end_of_a_session_its_keys_refuse_locks_for_a_while(one: Client, store: MemoryStore, clock: Clock) -> None:
    first, second = await one.session(LockDelay="10s"), await one.session()
    await one.ok("PUT", f"kv/k?acquire={first}", b"1")
    await one.ok("PUT", f"session/destroy/{first}")
    assert await one.ok("PUT", f"kv/k?acquire={second}", b"2") is False
    assert await one.put("k", b"3") is True, "only locks are refused"
    clock.turn(store, 11)
    await one.kv.current()
    assert await one.ok("PUT", f"kv/k?acquire={second}", b"4") is True


async def test_a_lock_delay_that_is_over_at_once_delays_nobody(
    one: Client, store: MemoryStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patroni asks for one of a millisecond. The lease of the delay had ended then, and with it ended the agent."""
    grant = one.kv._store.grant

    async def late(ttl_s: float) -> int:
        lease = await grant(ttl_s)
        clock.now += 0.01
        store._expire()
        return lease

    monkeypatch.setattr(one.kv._store, "grant", late)
    first, second = await one.session(LockDelay="1ms"), await one.session(LockDelay="1ms")
    assert await one.ok("PUT", f"kv/lead?acquire={first}", b"1") is True
    assert await one.ok("PUT", f"session/destroy/{first}") is True
    assert await one.ok("PUT", f"kv/lead?acquire={second}", b"2") is True


async def test_a_round_that_fails_does_not_end_the_steward(one: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    end, failures = one.kv.end_session, [PlaitError("on purpose")]

    async def failing(session_id: str, why: str) -> None:
        if failures:
            raise failures.pop()
        await end(session_id, why)

    monkeypatch.setattr(one.kv, "end_session", failing)
    gone = await one.session(Node="A", TTL="10s", LockDelay=0)
    await one.kv._store.txn([], [Delete(f"sessionlife/{gone}")])
    await eventually(lambda: asyncio.sleep(0, len(failures)), 0)
    await one.session()  # begins the next round
    await eventually(lambda: one.ok("GET", f"session/info/{gone}"), [])


async def test_a_session_that_nobody_renews_ends(one: Client, store: MemoryStore, clock: Clock) -> None:
    kept, left = await one.session(TTL="10s"), await one.session(TTL="10s", LockDelay=0)
    await one.ok("PUT", f"kv/k?acquire={left}", b"1")
    for _ in range(2):
        clock.turn(store, 9)
        assert await one.ok("PUT", f"session/renew/{kept}")
    assert len(await one.ok("GET", "session/list")) == 2, "not before twice its time"
    clock.turn(store, 3)

    async def living() -> list[str]:
        return [session["ID"] for session in await one.ok("GET", "session/list")]

    await eventually(living, [kept])
    entry, _ = await one.get("k")
    assert entry is not None and "Session" not in entry
    assert (await one.call("PUT", f"session/renew/{left}"))[0] == 404


async def test_a_session_ends_with_its_node(pair: tuple[Client, Client], store: MemoryStore) -> None:
    one, two = pair
    session = await two.session(LockDelay=0)
    free = await two.session(Checks=[])
    await two.ok("PUT", f"kv/k?acquire={session}", b"1")
    await store.txn([], [Delete("alive/B")])

    async def living() -> list[str]:
        return [session["ID"] for session in await one.ok("GET", "session/list")]

    await eventually(living, [free])
    assert "Session" not in ((await one.get("k"))[0] or {})


async def test_keys_of_a_session_that_was_cut_off_in_the_middle_are_released(one: Client, store: MemoryStore) -> None:
    """As after a crash between the removal of a session and that of its last lock."""
    session = await one.session(LockDelay=0)
    await one.ok("PUT", f"kv/k?acquire={session}", b"1")
    await store.txn([], [Delete(f"sessions/{session}")])

    async def locked() -> bool:
        return "Session" in ((await one.get("k"))[0] or {})

    await eventually(locked, False)


# --- restart


async def test_no_index_goes_back_when_an_agent_starts_again(store: MemoryStore, tmp_path: Path) -> None:
    seen: dict[str, list[int]] = {}
    for _ in range(2):
        async with nodes(store, tmp_path, "A") as (a,), client(a) as api:
            await api.put("a", b"1")
            await api.put("gone", b"1")
            await api.ok("DELETE", "kv/gone")
            for query in ("a", "gone", "none", "?recurse", "?keys"):
                seen.setdefault(query, []).append(int((await api.call("GET", f"kv/{query}"))[2]["X-Consul-Index"]))
    assert all(first <= second for first, second in seen.values()), seen


async def test_after_a_start_keys_are_read_when_they_are_as_new_as_what_was_answered(one: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk has of the store may be older. Who asks for what is stale gets it; the others wait a moment for the store."""
    monkeypatch.setattr("plait.agent.kv._HEAR_S", 0.05)
    await one.put("k", b"1")
    one.kv.start()
    for path in ("kv/k", "kv/k?consistent", "kv/?keys", "session/list"):
        assert (await one.call("GET", path))[:2] == (500, "No cluster leader")
    assert (await one.call("GET", "kv/k?stale"))[0] == 200
    monkeypatch.setattr("plait.agent.kv._HEAR_S", 20.0)
    reading = await answers(one.call("GET", "kv/k"))
    assert not reading.done()
    one.kv.heard(one.node.view.revision)
    assert (await reading)[0] == 200


async def test_what_came_and_went_before_a_crash_leaves_its_mark(one: Client) -> None:
    """The copy on disk is of before it came: only the revision of the first whole copy tells that there was something."""
    await one.put("gone", b"1")
    await one.ok("DELETE", "kv/gone")
    before = [int((await one.call("GET", f"kv/{query}"))[2]["X-Consul-Index"]) for query in ("gone", "gone?recurse", "gone?keys")]
    copy = Kv(one.node.view, one.node.store, lambda: 0)
    copy.start()
    copy.change([], 3)
    assert copy.table.index_of("gone") < before[0]
    copy.heard(one.node.view.revision)
    assert min(copy.table.index_of("gone"), copy.table.index_below("gone"), copy.sessions_index) >= max(before)
