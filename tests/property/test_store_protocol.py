# SPDX-License-Identifier: Apache-2.0
"""The wire codec under any cut and any junk; the state against a model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.store.api import Change, Compare, Delete, Item, Put
from plait.store.protocol import (
    Frames,
    Get,
    Hello,
    List,
    ProtocolError,
    Txn,
    change_parts,
    client_decoder,
    frame,
    items_parts,
    pack_txn,
    server_decoder,
    unpack_change,
    unpack_txn,
)
from plait.store.state import History, State

KEYS = st.sampled_from(["a", "a/1", "a/2", "ab", "b", "b/ä"])
OPS = st.one_of(st.builds(Put, KEYS, st.binary(max_size=3)), st.builds(Delete, KEYS, st.booleans()))
COMPARES = st.builds(Compare, KEYS, st.integers(0, 6))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
MESSAGES = st.one_of(
    st.builds(Get, st.integers(0, 2**62), TEXT),
    st.builds(List, st.integers(0, 2**62), TEXT),
    st.builds(Hello, st.integers(0, 9)),
    st.builds(pack_txn, st.integers(0, 99), st.lists(COMPARES, max_size=4), st.lists(OPS, max_size=4)),
)


@given(st.lists(MESSAGES, max_size=5), st.integers(1, 50))
def test_messages_survive_any_cut_of_the_stream(messages: list[object], step: int) -> None:
    stream = b"".join(frame(message) for message in messages)  # type: ignore[arg-type]
    frames = Frames(server_decoder)
    assert [got for at in range(0, len(stream), step) for got in frames.feed(stream[at : at + step])] == messages


@given(st.binary(max_size=300), st.booleans())
@settings(max_examples=300)
def test_junk_is_refused_or_waits_and_nothing_else(junk: bytes, framed: bool) -> None:
    for decoder in (server_decoder, client_decoder):
        data = len(junk).to_bytes(4, "big") + junk if framed else junk
        try:
            for _ in Frames(decoder).feed(data):  # type: ignore[arg-type]
                pass
        except ProtocolError:
            pass


def test_deep_nesting_is_refused() -> None:
    body = b"\x91" * 100_000
    with pytest.raises(ProtocolError):
        list(Frames(server_decoder).feed(len(body).to_bytes(4, "big") + body))


@given(st.lists(COMPARES, max_size=5), st.lists(OPS, max_size=5))
def test_a_transaction_survives(compares: list[Compare], ops: list[Put | Delete]) -> None:
    (txn,) = Frames(server_decoder).feed(frame(pack_txn(1, compares, ops)))
    assert isinstance(txn, Txn) and unpack_txn(txn) == (compares, ops)


@given(st.lists(st.integers(0, 400_000), max_size=6))
@settings(max_examples=30, deadline=None)
def test_parts_are_joined_to_the_whole(sizes: list[int]) -> None:
    items = [Item(f"k{n}", bytes(size), 1, 2, n) for n, size in enumerate(sizes)]
    parts = list(items_parts(1, items, 9))
    assert [Item(*item) for part in parts for item in part.items] == items
    assert [part.more for part in parts] == [True] * (len(parts) - 1) + [False] and parts[-1].revision == 9
    changes = [Change("delete", item, 9) for item in items]
    assert [unpack_change(change) for part in change_parts(1, changes) for change in part.changes] == changes


@given(st.lists(st.tuples(st.lists(COMPARES, max_size=2), st.lists(OPS, max_size=4)), max_size=12))
def test_the_state_is_a_plain_map_with_revisions(transactions: list[tuple[list[Compare], list[Put | Delete]]]) -> None:
    state, history = State(), History(1, 1000, 10**9)
    model: dict[str, bytes] = {}
    for compares, ops in transactions:
        holds = all((state.items[c.key].mod_revision if c.key in state.items else 0) == c.mod_revision for c in compares)
        commit = state.evaluate(compares, ops)
        assert (commit is not None) == holds
        if commit is None:
            continue
        before = dict(model)
        for op in ops:
            if isinstance(op, Put):
                model[op.key] = op.value
            else:
                model = {key: value for key, value in model.items() if not (key.startswith(op.key) if op.prefix else key == op.key)}
        assert (commit.revision == state.revision) == (not commit.changes) and (bool(commit.changes) or model == before)
        state.apply(commit)
        if commit.changes:
            history.append(commit)
        assert {item.key: item.value for item in state.below("")} == model
        assert [item.key for item in state.below("")] == sorted(model, key=str.encode)
    replayed: dict[str, bytes] = {}
    for change in history.since(1, "")[0]:
        if change.kind == "put":
            replayed[change.item.key] = change.item.value
        else:
            assert replayed.pop(change.item.key) == change.item.value
    assert replayed == model


@given(st.lists(st.integers(0, 100), min_size=1, max_size=60), st.integers(1, 20), st.integers(50, 500))
def test_history_is_bounded_without_gap(sizes: list[int], limit: int, limit_bytes: int) -> None:
    state, history = State(), History(1, limit, limit_bytes)
    for at, size in enumerate(sizes):
        commit = state.evaluate([], [Put("k", bytes(size))])
        assert commit is not None
        state.apply(commit)
        before = history.floor
        history.append(commit)
        held, reached = history.since(history.floor, "")
        if history.floor > before:  # a tenth of the commits, or no more than the bytes ask for
            tenth = at + 2 - before > limit and history.floor == before + max(1, limit // 10)
            assert tenth or sum(1 + kept for kept in sizes[history.floor - 2 : at + 1]) > limit_bytes
        assert reached == history.head == state.revision
        assert [change.revision for change in held] == list(range(history.floor + 1, history.head + 1))
        assert len(held) <= limit and (len(held) == 1 or sum(1 + len(change.item.value) for change in held) <= limit_bytes)
