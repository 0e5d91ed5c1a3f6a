# SPDX-License-Identifier: Apache-2.0
"""Operations of a transaction on keys, as pure rules. Data in: operations, the table of entries. Data out: what they add to a `Draft`."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass

from plait.model.kv import Entry, Session
from plait.services.kv import MAX_FLAGS, KvPut, Table, put
from plait.services.requests import BadRequest
from plait.services.txndraft import Draft, Shown, pending

_WRITES = ("set", "cas", "lock", "unlock")
_READS = ("get", "get-or-empty", "get-tree", "check-index", "check-session", "check-not-exists")
_VERBS = (*_WRITES, *_READS, "delete", "delete-cas", "delete-tree")


@dataclass(frozen=True, slots=True)
class KeyOp:
    verb: str
    key: str
    value: bytes = b""
    flags: int = 0
    index: int = 0
    session: str = ""

    @property
    def reads(self) -> bool:
        """Whether it leaves everything as it is."""
        return self.verb in _READS


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys at one moment: entries, sessions by id, and the keys that refuse locks for a while."""

    table: Table
    sessions: Mapping[str, Session]
    delayed: Mapping[str, int]


def parse_key_op(raw: Mapping[str, object]) -> KeyOp:
    """What stands under `KV`, with folded keys. BadRequest."""
    verb, key, session = (raw.get(name) or "" for name in ("verb", "key", "session"))
    flags, index = raw.get("flags") or 0, raw.get("index") or 0
    if verb not in _VERBS:
        raise BadRequest(f"unknown KV verb {verb!r}; known are {', '.join(_VERBS)}")
    if not isinstance(key, str) or not isinstance(session, str) or (not key and not str(verb).endswith("-tree")):
        raise BadRequest("Key and Session must be texts, and Key must not be empty")
    if not all(type(number) is int and 0 <= number <= MAX_FLAGS for number in (flags, index)):
        raise BadRequest("Flags and Index must be numbers of 64 bits without sign")
    assert isinstance(flags, int) and isinstance(index, int)
    return KeyOp(str(verb), key, _value(raw.get("value")), flags, index, session)


def _value(raw: object) -> bytes:
    try:
        return base64.b64decode(raw or "", validate=True)  # type: ignore[arg-type]
    except (binascii.Error, TypeError, ValueError) as error:
        raise BadRequest(f"Value must be Base64: {error}") from error


class KeyRules:
    """`do` one operation after another; each sees what those before it did."""

    def __init__(self, keys: Keys, draft: Draft) -> None:
        self._keys, self._draft = keys, draft
        self._written: dict[str, Entry | None] = {}

    def do(self, op: KeyOp) -> str:
        """Why the operation fails, "" if it does not."""
        if op.verb in _WRITES:
            return self._write(op)
        if op.verb.startswith("delete"):
            return self._delete(op)
        if op.verb.startswith("check"):
            return self._check(op)
        return self._get(op)

    def _look(self, key: str) -> Entry | None:
        if key in self._written:
            return self._written[key]
        self._draft.reads.add(("kv", key))
        return self._keys.table.get(key)

    def _below(self, prefix: str) -> list[Entry]:
        keys = {entry.key for entry in self._keys.table.below(prefix)} | {key for key in self._written if key.startswith(prefix)}
        found = (self._look(key) for key in sorted(keys, key=str.encode))
        return [entry for entry in found if entry is not None]

    def _change(self, key: str, entry: Entry | None) -> None:
        self._written[key] = entry
        self._draft.changes.append((("kv", key), entry))

    def _write(self, op: KeyOp) -> str:
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
            known = pending(written, known)
            self._change(op.key, known)
        assert known is not None
        self._draft.results.append(Shown(known, whole=False))
        return ""

    def _session_missing(self, op: KeyOp, known: Entry | None) -> str:
        if not op.session:
            return "missing session"
        if op.session not in self._keys.sessions:
            return f'invalid session "{op.session}"'
        self._draft.reads.add(("session", op.session))
        if op.verb == "lock" and op.key in self._keys.delayed and (known is None or known.session != op.session):
            return f'failed to lock key "{op.key}", due to lock delay'
        return ""

    def _delete(self, op: KeyOp) -> str:
        if op.verb == "delete-tree":
            for entry in self._below(op.key):
                self._change(entry.key, None)
            return ""
        known = self._look(op.key)
        if op.verb == "delete-cas" and known is not None and known.modify_index != op.index:
            return f'failed to delete key "{op.key}": key "{op.key}" is stale'
        if known is not None:
            self._change(op.key, None)
        return ""

    def _check(self, op: KeyOp) -> str:
        known = self._look(op.key)
        if op.verb == "check-not-exists":
            return f'key "{op.key}" exists' if known is not None else ""
        if known is None:
            return f'key "{op.key}" doesn\'t exist'
        if op.verb == "check-index" and known.modify_index != op.index:
            return f'failed index check for key "{op.key}", current modify index {known.modify_index} != {op.index}'
        if op.verb == "check-session" and known.session != op.session:
            return f'failed session check for key "{op.key}", current session "{known.session}" != "{op.session}"'
        self._draft.results.append(Shown(known, whole=False))
        return ""

    def _get(self, op: KeyOp) -> str:
        if op.verb == "get-tree":
            self._draft.results += [Shown(entry) for entry in self._below(op.key)]
            return ""
        known = self._look(op.key)
        if known is None and op.verb == "get":
            return f'key "{op.key}" doesn\'t exist'
        self._draft.results.append(Shown(known or Entry(op.key)))
        return ""
