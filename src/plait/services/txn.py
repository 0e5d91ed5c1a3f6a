# SPDX-License-Identifier: Apache-2.0
"""Consul's transactions over keys as pure rules: reading the request, what it reads, writes and answers.

Data in: the JSON list of operations, the table of entries. Data out: an `Outcome`. Operations see what those before them did; all
that fail are told, and one is enough that nothing is written.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from plait.model.kv import Entry, Session
from plait.services.kv import MAX_FLAGS, MAX_VALUE, KvPut, Table, entry_json, put
from plait.services.requests import BadRequest, TooLarge, fold

MAX_OPS = 128
_PENDING = -1
"""Index of what the transaction itself writes, until it has one."""
_WRITES = ("set", "cas", "lock", "unlock")
_VERBS = (
    *_WRITES, "get", "get-or-empty", "get-tree", "check-index", "check-session", "check-not-exists", "delete", "delete-cas", "delete-tree",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TxnOp:
    verb: str
    key: str
    value: bytes = b""
    flags: int = 0
    index: int = 0
    session: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`results` as the API shows them, with entries still as values; `errors` as (number of the operation, why). `read`: key -> index
    that the outcome rests on (0: absent), `sessions`: ids that it rests on, `writes`: key -> what is left (None: deleted)."""

    results: tuple[tuple[Entry, bool], ...] = ()
    errors: tuple[tuple[int, str], ...] = ()
    read: Mapping[str, int] = field(default_factory=dict)
    sessions: frozenset[str] = frozenset()
    writes: Mapping[str, Entry | None] = field(default_factory=dict)

    def at(self, revision: int) -> Outcome:
        """The same after it was written with that revision."""
        return replace(self, results=tuple((_dated(entry, revision), shown) for entry, shown in self.results))

    def answer(self) -> dict[str, object]:
        """What the API answers."""
        results = [{"KV": entry_json(entry, shown)} for entry, shown in self.results]
        errors = [{"OpIndex": number, "What": why} for number, why in self.errors]
        return {"Results": None if errors else results, "Errors": errors or None}


def _dated(entry: Entry, revision: int) -> Entry:
    dated = replace(entry, modify_index=revision) if entry.modify_index == _PENDING else entry
    return replace(dated, create_index=revision) if dated.create_index == _PENDING else dated


def parse_ops(body: object) -> list[TxnOp]:
    """The operations in their order. BadRequest, TooLarge."""
    if not isinstance(body, list):
        raise BadRequest("Failed to parse body: expected a list of operations")
    if len(body) > MAX_OPS:
        raise TooLarge(f"Transaction contains too many operations ({len(body)} > {MAX_OPS})")
    ops = [_parse_op(item) for item in body]
    if sum(len(op.value) for op in ops) > MAX_VALUE:
        raise TooLarge(f"Values of the transaction are too large ({sum(len(op.value) for op in ops)} > {MAX_VALUE})")
    return ops


def _parse_op(item: object) -> TxnOp:
    kinds = {kind: inner for kind, inner in fold(item).items() if inner is not None}
    if set(kinds) != {"kv"}:
        raise BadRequest(f"Failed to parse body: an operation holds one KV, got {', '.join(sorted(kinds)) or 'nothing'}")
    raw = fold(kinds["kv"])
    verb, key, session = (raw.get(name) or "" for name in ("verb", "key", "session"))
    flags, index = raw.get("flags") or 0, raw.get("index") or 0
    if verb not in _VERBS:
        raise BadRequest(f"Failed to parse body: unknown KV verb {verb!r}; known are {', '.join(_VERBS)}")
    if not isinstance(key, str) or not isinstance(session, str) or (not key and not str(verb).endswith("-tree")):
        raise BadRequest("Failed to parse body: Key and Session must be texts, and Key must not be empty")
    if not all(type(number) is int and 0 <= number <= MAX_FLAGS for number in (flags, index)):
        raise BadRequest("Failed to parse body: Flags and Index must be numbers of 64 bits without sign")
    assert isinstance(flags, int) and isinstance(index, int)
    return TxnOp(str(verb), key, _value(raw.get("value")), flags, index, session)


def _value(raw: object) -> bytes:
    try:
        return base64.b64decode(raw or "", validate=True)  # type: ignore[arg-type]
    except (binascii.Error, TypeError, ValueError) as error:
        raise BadRequest(f"Failed to parse body: Value must be Base64: {error}") from error


def evaluate(ops: Sequence[TxnOp], table: Table, sessions: Mapping[str, Session], delayed: Mapping[str, int]) -> Outcome:
    """What `ops` come to now."""
    work = _Work(table, sessions, delayed)
    for number, op in enumerate(ops):
        why = work.do(op)
        if why:
            work.errors.append((number, why))
    return Outcome(tuple(work.results), tuple(work.errors), work.read, frozenset(work.used), work.writes)


class _Work:
    def __init__(self, table: Table, sessions: Mapping[str, Session], delayed: Mapping[str, int]) -> None:
        self._table, self._sessions, self._delayed = table, sessions, delayed
        self.results: list[tuple[Entry, bool]] = []
        self.errors: list[tuple[int, str]] = []
        self.read: dict[str, int] = {}
        self.used: set[str] = set()
        self.writes: dict[str, Entry | None] = {}

    def do(self, op: TxnOp) -> str:
        """Why the operation fails, "" if it does not."""
        if op.verb in _WRITES:
            return self._write(op)
        if op.verb.startswith("delete"):
            return self._delete(op)
        if op.verb.startswith("check"):
            return self._check(op)
        return self._get(op)

    def _look(self, key: str) -> Entry | None:
        if key in self.writes:
            return self.writes[key]
        found = self._table.get(key)
        self.read[key] = found.modify_index if found is not None else 0
        return found

    def _below(self, prefix: str) -> list[Entry]:
        keys = {entry.key for entry in self._table.below(prefix)} | {key for key in self.writes if key.startswith(prefix)}
        found = (self._look(key) for key in sorted(keys, key=str.encode))
        return [entry for entry in found if entry is not None]

    def _write(self, op: TxnOp) -> str:
        known = self._look(op.key)
        if op.verb in ("lock", "unlock") and (why := self._session_missing(op, known)):
            return why
        request = KvPut(
            op.key,
            op.value,
            op.flags,
            cas=op.index if op.verb == "cas" else None,
            acquire=op.session if op.verb == "lock" else "",
            release=op.session if op.verb == "unlock" else "",
        )
        written = put(known, request)
        if written is False:
            return {
                "cas": f'failed to set key "{op.key}": key "{op.key}" is stale',
                "lock": f'failed to lock key "{op.key}", lock is already held',
                "unlock": f'failed to unlock key "{op.key}", lock isn\'t held, or is held by another session',
            }[op.verb]
        if isinstance(written, Entry):
            known = replace(written, create_index=written.create_index if known is not None else _PENDING, modify_index=_PENDING)
            self.writes[op.key] = known
        assert known is not None
        self.results.append((known, False))
        return ""

    def _session_missing(self, op: TxnOp, known: Entry | None) -> str:
        if not op.session:
            return "missing session"
        if op.session not in self._sessions:
            return f'invalid session "{op.session}"'
        self.used.add(op.session)
        if op.verb == "lock" and op.key in self._delayed and (known is None or known.session != op.session):
            return f'failed to lock key "{op.key}", due to lock delay'
        return ""

    def _delete(self, op: TxnOp) -> str:
        if op.verb == "delete-tree":
            self.writes.update({entry.key: None for entry in self._below(op.key)})
            return ""
        known = self._look(op.key)
        if op.verb == "delete-cas" and known is not None and known.modify_index != op.index:
            return f'failed to delete key "{op.key}": key "{op.key}" is stale'
        if known is not None:
            self.writes[op.key] = None
        return ""

    def _check(self, op: TxnOp) -> str:
        known = self._look(op.key)
        if op.verb == "check-not-exists":
            return f'key "{op.key}" exists' if known is not None else ""
        if known is None:
            return f'key "{op.key}" doesn\'t exist'
        if op.verb == "check-index" and known.modify_index != op.index:
            return f'failed index check for key "{op.key}", current modify index {known.modify_index} != {op.index}'
        if op.verb == "check-session" and known.session != op.session:
            return f'failed session check for key "{op.key}", current session "{known.session}" != "{op.session}"'
        self.results.append((known, False))
        return ""

    def _get(self, op: TxnOp) -> str:
        if op.verb == "get-tree":
            self.results += [(entry, True) for entry in self._below(op.key)]
            return ""
        known = self._look(op.key)
        if known is None and op.verb == "get":
            return f'key "{op.key}" doesn\'t exist'
        self.results.append((known or Entry(op.key), True))
        return ""
