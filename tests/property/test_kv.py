# SPDX-License-Identifier: Apache-2.0
"""The table of keys beside a naive one: what starts with a prefix, its names, and an index that rises exactly with what concerns it."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.model.kv import Entry
from plait.services import keyorder, kv
from plait.services.keyorder import end_of

TOMBSTONES = 5
texts = st.text(alphabet="ab/\u00e9\U0010ffff", max_size=5)
steps = st.lists(st.tuples(st.booleans(), texts.filter(bool)), max_size=80)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and tombstones so few that a short history passes every bound."""
    monkeypatch.setattr(keyorder, "_BLOCK", 2)
    monkeypatch.setattr(kv, "_TOMBSTONES", TOMBSTONES)


def _cut(key: str, prefix: str, separator: str) -> str:
    at = key.find(separator, len(prefix))
    return key if at < 0 else key[: at + len(separator)]


class Naive:
    """The same by looking at everything."""

    def __init__(self) -> None:
        self.living: dict[str, int] = {}
        self.deleted: dict[str, int] = {}
        self.floor = 1

    def change(self, put: bool, key: str, revision: int) -> None:
        self.deleted.pop(key, None)
        self.living.pop(key, None)
        (self.living if put else self.deleted)[key] = revision
        if len(self.deleted) > TOMBSTONES:
            self.floor = self.deleted.pop(min(self.deleted, key=self.deleted.__getitem__))

    def below(self, prefix: str) -> list[str]:
        return sorted((key for key in self.living if key.startswith(prefix)), key=str.encode)

    def index_of(self, key: str) -> int:
        return self.living.get(key, self.deleted.get(key, self.floor))

    def index_below(self, prefix: str) -> int:
        changes = (*self.living.items(), *self.deleted.items())
        return max([self.floor, *(revision for key, revision in changes if key.startswith(prefix))])


@given(steps)
def test_a_table_is_as_a_naive_one(history: list[tuple[bool, str]]) -> None:
    table, naive = kv.Table(), Naive()
    prefixes = {key[:length] for _, key in history for length in range(len(key) + 1)}
    for revision, (put, key) in enumerate(history, 2):
        naive.change(put, key, revision)
        if put:
            table.set(Entry(key, modify_index=revision))
        else:
            table.drop(key, revision)
        assert {prefix: table.index_below(prefix) for prefix in prefixes} == {prefix: naive.index_below(prefix) for prefix in prefixes}
    for prefix in prefixes:
        assert [entry.key for entry in table.below(prefix)] == table.keys_below(prefix, "") == naive.below(prefix)
        assert table.keys_below(prefix, "/") == list(dict.fromkeys(_cut(key, prefix, "/") for key in naive.below(prefix)))
        assert table.index_of(prefix) == naive.index_of(prefix)


@given(st.randoms(use_true_random=False))
def test_the_newest_of_a_prefix_is_exact_after_any_removal(chance: Random) -> None:
    """Long histories of few keys: a block must not remember a key that has left it."""
    order, known = keyorder.KeyOrder(), dict[str, int]()
    for revision in range(2, 60):
        key = "".join(chance.choice("ab") for _ in range(chance.randint(1, 5)))
        if chance.random() < 0.6:
            order.set(key, revision)
            known[key] = revision
        else:
            order.drop(key)
            known.pop(key, None)
        for prefix in ("", "a", "b", "ab", "aa", "ba", "aab"):
            assert order.newest(prefix) == max((known[name] for name in known if name.startswith(prefix)), default=0)
        assert len(order) == len(known)


@given(texts, texts)
def test_the_end_of_a_prefix_is_behind_all_that_start_with_it(prefix: str, rest: str) -> None:
    end = end_of(prefix)
    assert end is None or prefix + rest < end
    assert end is None or not end.startswith(prefix)
