# SPDX-License-Identifier: Apache-2.0
"""Locks, leader election and semaphores over sessions and keys, as Consul's own tools make them, so that they exclude each other.

Data in: a key or prefix and times. Data out: operations: `acquire`, `guard` (runs while held, returns why it was lost), `release`.

Safety: a holder counts its session as ended one TTL after it *sent* the last renewal that was answered, so by its own clock it knows of
the loss before the agent gives the lock to somebody else. Between `guard` noticing and the program stopping there is still a moment:
writes that must not come late carry the `fence`, which only grows from holder to holder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TypedDict

from plait.client import kv, session
from plait.client.errors import ApiError, BadAnswer, ClientError, Unreachable
from plait.client.steps import Answer, Params, Request, Steps, call, clock, sleep
from plait.client.types import Entry
from plait.client.watch import Query, blocking, next_index
from plait.model.errors import ConfigError

LOCK_FLAGS = 0x2DDCCBC058A50C18
SEMAPHORE_FLAGS = 0xE0F69A2BAA414DE0
"""The `flags` by which tools know each other's keys."""
DELAY_POLL_S = 0.5
"""Time between attempts on a lock that nobody holds: a lock delay ends without notice."""
RETRY_S = 0.5
"""Time between attempts while the agent cannot be asked."""
LIST = ".lock"
"""The key below a semaphore's prefix that lists its holders."""


class LockOptions(TypedDict, total=False):
    """The fields of LockSpec that may be left out."""

    value: bytes
    ttl_s: float
    lock_delay_s: float
    checks: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class LockSpec:
    """What is taken and how. `ttl_s`: the session's; `lock_delay_s`: how long nobody gets the lock after it was lost (not released).

    `checks`: ids of this node's checks that the session hangs on besides (None: the node's own one).
    """

    key: str
    value: bytes = b""
    ttl_s: float = 15.0
    lock_delay_s: float = 15.0
    checks: tuple[str, ...] | None = None


class Hold:
    """One session and what it holds. Subclasses say what is watched, how it is taken and when it is still held."""

    _behavior: session.Behavior = "release"

    def __init__(self, spec: LockSpec) -> None:
        if not spec.key.strip("/"):
            raise ConfigError("key", spec.key, "is not a key to lock")
        self.spec = spec
        self.session = ""
        self.fence = 0
        self.trouble: ClientError | None = None
        self._expires = 0.0
        self._renewed = 0.0

    def acquire(self, timeout_s: float | None = None) -> Steps[bool]:
        """Wait until it is held; False after `timeout_s` (0: one attempt). After False or an error, `release` tidies up."""
        began = yield from clock()
        query, index = self._query(), 0
        while True:
            left = yield from _left(began, timeout_s)
            try:
                yield from self._keep()
                wait_s = max(0.01, min(left, self.spec.ttl_s / 3))
                found, index = yield from _look(query, index, wait_s, self.spec.ttl_s / 3)
                self.trouble = None
                free = self._free(found)
                if free and (yield from self._take(found)):
                    return True
                pause = DELAY_POLL_S if free or not index else 0.0
                index = 0 if free else index
            except ClientError as error:
                index, pause = 0, self._bearable(error)
            left = yield from _left(began, timeout_s)
            if left <= 0:
                return False
            yield from sleep(min(pause, left))

    def guard(self) -> Steps[str]:
        """Renew the session and watch the lock; returns once it is lost, with the reason."""
        query, index, third = self._query(), 0, self.spec.ttl_s / 3
        while True:
            now = yield from clock()
            left = self._expires - now
            if left <= 0:
                return f"the session was not renewed for its {self.spec.ttl_s:g} s ({self.trouble or 'the program stood still'})"
            try:
                if now - self._renewed >= third and not (yield from self._renew(min(left, third))):
                    return "the session has ended"
                left = self._expires - (yield from clock())
                found, index = yield from _look(query, index, min(left, third) / 2, min(left / 3, third))
                if not self._held(found):
                    return "it was released, taken or deleted by somebody else"
                self.trouble = None
            except ClientError as error:
                index, self.trouble = 0, error
                yield from sleep(min(DELAY_POLL_S, self._expires - (yield from clock())))

    def release(self) -> Steps[None]:
        """Give back what is held and end the session. The session's end alone suffices, so the first failure of both does not stop it."""
        if not self.session:
            return
        trouble: ClientError | None = None
        try:
            yield from self._leave()
        except ClientError as error:
            trouble = error
        ended, self.session = self.session, ""
        try:
            yield from session.destroy(ended)
        except ClientError as error:
            raise trouble or error from None

    def _keep(self) -> Steps[None]:
        """A session that lives: a new one, or the old one renewed in time."""
        now = yield from clock()
        third = self.spec.ttl_s / 3
        if self.session and now < self._expires and (now - self._renewed < third or (yield from self._renew(third))):
            return
        spec = self.spec
        self.session = ""
        self.session = yield from session.create(
            name=f"Lock {spec.key}", ttl_s=spec.ttl_s, lock_delay_s=spec.lock_delay_s, checks=spec.checks, behavior=self._behavior
        )
        self._renewed, self._expires = now, now + spec.ttl_s
        yield from self._arrive()

    def _renew(self, limit_s: float) -> Steps[bool]:
        sent = yield from clock()
        if (yield from session.renew(self.session, timeout_s=limit_s)) is None:
            return False
        self._renewed, self._expires = sent, sent + self.spec.ttl_s
        return True

    def _bearable(self, error: ClientError) -> float:
        """Seconds after which acquiring goes on, with a session that is looked at first; raises an error that would only come again."""
        if not isinstance(error, Unreachable | ApiError) or (
            isinstance(error, ApiError) and 400 <= error.status < 500 and error.status != 429
        ):
            raise error
        self.trouble, self._renewed = error, float("-inf")
        return RETRY_S

    def _query(self) -> Query[tuple[Entry, ...]]:
        raise NotImplementedError

    def _free(self, found: tuple[Entry, ...]) -> bool:
        raise NotImplementedError

    def _held(self, found: tuple[Entry, ...]) -> bool:
        raise NotImplementedError

    def _take(self, found: tuple[Entry, ...]) -> Steps[bool]:
        raise NotImplementedError

    def _arrive(self) -> Steps[None]:
        """What a new session does first."""
        yield from ()

    def _leave(self) -> Steps[None]:
        raise NotImplementedError


class LockHold(Hold):
    """The lock of one key: the session that the key belongs to."""

    def _query(self) -> Query[tuple[Entry, ...]]:
        return _consistent(self.spec.key)

    def _free(self, found: tuple[Entry, ...]) -> bool:
        if found and not found[0].session and found[0].flags not in (0, LOCK_FLAGS):
            raise ConfigError("key", self.spec.key, "is used for something else than a lock (by its flags)", "choose another key")
        return not found or found[0].session in ("", self.session)

    def _held(self, found: tuple[Entry, ...]) -> bool:
        return bool(found) and found[0].session == self.session

    def _take(self, found: tuple[Entry, ...]) -> Steps[bool]:
        if not (yield from kv.acquire(self.spec.key, self.spec.value, self.session, flags=LOCK_FLAGS)):
            return False
        mine = yield from kv.get(self.spec.key, consistent=True)
        if mine is None or mine.session != self.session:
            return False
        self.fence = mine.modify_index
        return True

    def _leave(self) -> Steps[None]:
        yield from kv.release(self.spec.key, self.spec.value, self.session, flags=LOCK_FLAGS)


class SemaphoreHold(Hold):
    """One of `limit` places below a prefix: every contender has a key of its session there, and a list says which of them hold a place."""

    _behavior: session.Behavior = "delete"

    def __init__(self, spec: LockSpec, limit: int) -> None:
        super().__init__(spec)
        if limit < 1:
            raise ConfigError("limit", limit, "is not a number of places", "give 1 or more")
        self.limit = limit
        self._prefix = spec.key.rstrip("/") + "/"

    def _query(self) -> Query[tuple[Entry, ...]]:
        return _consistent(self._prefix, ("recurse", ""))

    def _free(self, found: tuple[Entry, ...]) -> bool:
        holders = self._holders(found)
        return self.session in holders or len(holders) < self.limit

    def _held(self, found: tuple[Entry, ...]) -> bool:
        return self.session in self._holders(found)

    def _take(self, found: tuple[Entry, ...]) -> Steps[bool]:
        taken = yield from self._write(found, self._holders(found) | {self.session})
        mine = (yield from kv.get(self._prefix + LIST, consistent=True)) if taken else None
        self.fence = mine.modify_index if mine else 0
        return mine is not None

    def _arrive(self) -> Steps[None]:
        key = self._prefix + self.session
        if not (yield from kv.acquire(key, self.spec.value, self.session, flags=SEMAPHORE_FLAGS)):
            raise BadAnswer(f"PUT /v1/kv/{key}: the agent refused a new session its own key")

    def _leave(self) -> Steps[None]:
        left = False
        while not left:
            found, _ = yield from _look(self._query(), 0, 0.0, self.spec.ttl_s)
            holders = self._holders(found)
            left = self.session not in holders or (yield from self._write(found, holders - {self.session}))
        yield from kv.delete(self._prefix + self.session)

    def _holders(self, found: tuple[Entry, ...]) -> frozenset[str]:
        """Sessions that hold a place: those of the list that still have their own key. ConfigError if the list has another limit."""
        listed = self._list(found)
        if listed is None:
            return frozenset()
        if listed.flags != SEMAPHORE_FLAGS:
            raise ConfigError("key", listed.key, "is used for something else than a semaphore (by its flags)", "choose another prefix")
        try:
            raw = json.loads(listed.value)
            limit, names = int(raw["Limit"]), frozenset(raw["Holders"] or ())
        except (ValueError, KeyError, TypeError) as error:
            raise BadAnswer(f"the list of holders {listed.key} is not readable ({error!r}); delete it if no program uses it") from error
        if limit != self.limit:
            raise ConfigError("limit", self.limit, f"is not that of the others, who use {limit} for {self._prefix}")
        alive = {entry.session for entry in found if entry.session and entry.key == self._prefix + entry.session}
        return names & alive

    def _list(self, found: tuple[Entry, ...]) -> Entry | None:
        return next((entry for entry in found if entry.key == self._prefix + LIST), None)

    def _write(self, found: tuple[Entry, ...], holders: frozenset[str]) -> Steps[bool]:
        """Replace the list unless somebody else did meanwhile (False)."""
        listed = self._list(found)
        value = json.dumps({"Limit": self.limit, "Holders": dict.fromkeys(sorted(holders), True)}).encode()
        cas = listed.modify_index if listed else 0
        return (yield from kv.put_value(self._prefix + LIST, value, flags=SEMAPHORE_FLAGS, cas=cas))


def leader(key: str) -> Query[bytes | None]:
    """What the present holder of the lock `key` wrote there (its name), None while nobody holds it."""

    def parse(request: Request, answer: Answer) -> bytes | None:
        found = kv.parse_entries(request, answer)
        return found[0].value if found and found[0].session else None

    return Query(Request("GET", f"kv/{key}"), parse, (404,))


def _consistent(key: str, *params: tuple[str, str]) -> Query[tuple[Entry, ...]]:
    """What decides about a lock is read from the leader, never from a copy that may be late."""
    how: Params = (*params, ("consistent", ""))
    return Query(Request("GET", f"kv/{key}", how), kv.parse_entries, (404,))


def _look(query: Query[tuple[Entry, ...]], index: int, wait_s: float, timeout_s: float) -> Steps[tuple[tuple[Entry, ...], int]]:
    """(entries, index to go on with) once something differs from `index`, after `wait_s` at the latest."""
    request = replace(blocking(query, index, wait_s), timeout_s=max(0.05, timeout_s))
    answer = yield from call(request, *query.fine)
    return query.parse(request, answer), next_index(query, index, answer)


def _left(began: float, timeout_s: float | None) -> Steps[float]:
    """Seconds of `timeout_s` that are left since `began`."""
    return float("inf") if timeout_s is None else began + timeout_s - (yield from clock())
