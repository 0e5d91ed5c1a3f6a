# SPDX-License-Identifier: Apache-2.0
"""The key-value store: read, write, compare and set, lists, transactions.

Data in: keys (text, no leading slash) and values (bytes). Data out: operations and queries. A value has 512 KiB at most; keys are listed in
byte order.
"""

from __future__ import annotations

from plait.client import types
from plait.client.steps import Answer, Params, Request, Steps, call, decoded, put
from plait.client.txn import Op, transact
from plait.client.types import Entry
from plait.client.watch import Query, fetch
from plait.model.errors import ConfigError


def entry(key: str, *, consistent: bool = False) -> Query[Entry | None]:
    """The entry of one key, None where there is none."""
    return Query(Request("GET", _path(key), _consistent(consistent)), _entry, (404,))


def entries(prefix: str = "", *, consistent: bool = False) -> Query[tuple[Entry, ...]]:
    """The entries of every key that begins with `prefix`, in byte order of the keys."""
    return Query(Request("GET", _path(prefix, True), (("recurse", ""), *_consistent(consistent))), parse_entries, (404,))


def get(key: str, *, consistent: bool = False) -> Steps[Entry | None]:
    """The entry of one key, None where there is none. `consistent`: checked with the leader, or an error."""
    return (yield from fetch(entry(key, consistent=consistent)))


def list_entries(prefix: str = "", *, consistent: bool = False) -> Steps[tuple[Entry, ...]]:
    """The entries of every key that begins with `prefix`, in byte order of the keys."""
    return (yield from fetch(entries(prefix, consistent=consistent)))


def keys(prefix: str = "", *, separator: str = "") -> Steps[tuple[str, ...]]:
    """The keys that begin with `prefix`; with a separator only up to the next one after the prefix (a listing of one folder)."""
    params: Params = (("keys", ""), *((("separator", separator),) if separator else ()))
    request = Request("GET", _path(prefix, True), params)
    answer = yield from call(request, 404)
    return types.records(decoded(request, answer), str, request.what) if answer.status == 200 else ()


def put_value(key: str, value: bytes, *, flags: int = 0, cas: int | None = None) -> Steps[bool]:
    """Write a value. `cas`: only if the entry's `modify_index` is this (0: only if there is none); False if it was not."""
    return (yield from write(key, value, flags, *((("cas", str(cas)),) if cas is not None else ())))


def acquire(key: str, value: bytes, session: str, *, flags: int = 0) -> Steps[bool]:
    """Write a value and take the key's lock for a session; False if another session has it, or a lock delay runs."""
    return (yield from write(key, value, flags, ("acquire", session)))


def release(key: str, value: bytes, session: str, *, flags: int = 0) -> Steps[bool]:
    """Write a value and give the key's lock back; False if the session does not have it."""
    return (yield from write(key, value, flags, ("release", session)))


def delete(key: str, *, cas: int | None = None) -> Steps[bool]:
    """Delete one key; a missing one is a success. `cas`: only if the entry's `modify_index` is this; False if it was not."""
    request = Request("DELETE", _path(key), (("cas", str(cas)),) if cas is not None else ())
    return bool(decoded(request, (yield from call(request))))


def delete_tree(prefix: str) -> Steps[bool]:
    """Delete every key that begins with `prefix` ("" is every key)."""
    request = Request("DELETE", _path(prefix, True), (("recurse", ""),))
    return bool(decoded(request, (yield from call(request))))


def txn(*ops: Op) -> Steps[tuple[Entry, ...]]:
    """Do all operations or none, at one index. Returns the entries of those that have one, in order; TxnFailed if it was rolled back."""
    done = yield from transact(*ops)
    return tuple(one for one in done if isinstance(one, Entry))


def write(key: str, value: bytes, flags: int, *how: tuple[str, str]) -> Steps[bool]:
    if not isinstance(value, bytes):
        raise ConfigError(f"value of {key}", type(value).__name__, "is not bytes", "encode texts first")
    request = put(_path(key), *((("flags", str(flags)),) if flags else ()), *how, body=value)
    return bool(decoded(request, (yield from call(request))))


def _path(key: str, prefix: bool = False) -> str:
    if key.startswith("/") or (not key and not prefix):
        raise ConfigError("key", key, "is not a key", "it may not be empty or begin with a slash")
    return f"kv/{key}"


def _consistent(wanted: bool) -> Params:
    return (("consistent", ""),) if wanted else ()


def parse_entries(request: Request, answer: Answer) -> tuple[Entry, ...]:
    """The entries of an answer; 404 means none."""
    return () if answer.status == 404 else types.records(decoded(request, answer), types.entry, request.what)


def _entry(request: Request, answer: Answer) -> Entry | None:
    found = parse_entries(request, answer)
    return found[0] if found else None
