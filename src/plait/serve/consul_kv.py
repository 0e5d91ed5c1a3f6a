# SPDX-License-Identifier: Apache-2.0
"""Keys and sessions of the Consul-compatible API.

Data in: calls. Data out: answers with Consul's fields, statuses and texts. A read blocks with `?index=` until something that it shows
has changed; who waits for one key is not woken by others. Beyond Consul: `?ttl=` on a PUT, after which the key goes by itself.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from plait.http.message import Answer, Parked, Response, Taskless
from plait.model.cluster import Snapshot
from plait.model.errors import NotFound
from plait.model.kv import Session
from plait.serve.consul_http import COMMON, Call, Consistency, Missing, Route, Unable, encoded, json_answer, read_headers, text_answer
from plait.services.kv import MAX_VALUE, KvPut, Table, entry_json
from plait.services.requests import BadRequest, Refusal, TooLarge, duration_s
from plait.services.sessions import missing, parse_session, session_json

_RAW_HEADERS = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox"}
"""A value is somebody's bytes, not a page of this server."""


class Waiting(Protocol):
    """Who waits for a change of a key, or of anything `below` it; see `agent.kv.Waiters`."""

    def join(self, key: str, below: bool, wake: Callable[[], object]) -> None: ...

    def leave(self, key: str, below: bool, wake: Callable[[], object]) -> None: ...


class KvBackend(Protocol):
    """What this room needs of the agent; see `agent.kv.Kv`."""

    @property
    def table(self) -> Table: ...

    @property
    def sessions(self) -> Mapping[str, Session]: ...

    @property
    def sessions_index(self) -> int: ...

    @property
    def key_waiters(self) -> Waiting: ...

    @property
    def session_waiters(self) -> Waiting: ...

    def last_contact_ms(self) -> int | None: ...

    def snapshot(self) -> Snapshot: ...

    @property
    def fresh(self) -> bool: ...

    async def freshened(self) -> bool: ...

    async def current(self) -> None: ...

    def needs_task(self, request: KvPut) -> bool: ...

    async def put(self, request: KvPut) -> bool: ...

    async def delete(self, key: str, recurse: bool = False, cas: int | None = None) -> bool: ...

    async def create_session(self, session: Session) -> None: ...

    async def renew_session(self, session_id: str) -> Session | None: ...

    async def end_session(self, session_id: str, why: str) -> None: ...


Look = Callable[[], tuple[Callable[[], object], int]]
"""(what makes the result, index) now: the result of a query that goes on waiting is never made."""
Say = Callable[[object, dict[str, str]], Answer]
"""The answer that holds a result, with these header fields."""


class KvApi:
    """`routes` are hung into the API. `node`: this agent's name, where sessions belong unless they say otherwise."""

    def __init__(self, backend: KvBackend, node: str) -> None:
        self._backend, self._node = backend, node
        keys = {"GET": self._get, "PUT": self._put, "DELETE": self._delete}
        self.routes = (
            Route("kv/<key>", "a key; `recurse`, `keys`, `separator`, `raw`; `cas`, `acquire`, `release`, `flags`, `ttl`", keys),
            Route("session/create", "make a session, which can hold locks", {"PUT": self._create}),
            Route("session/destroy/<id>", "end it and its locks", {"PUT": self._destroy}),
            Route("session/renew/<id>", "start its time to live anew", {"PUT": self._renew}),
            Route("session/info/<id>", "one session", {"GET": self._info}),
            Route("session/node/<node>", "the sessions of a node", {"GET": self._of_node}),
            Route("session/list", "all sessions", {"GET": self._list}),
        )

    # --- keys

    def _get(self, call: Call) -> Response:
        key = call.parts[0]
        below = call.flag("recurse") or call.flag("keys")
        if not key and not below:
            raise BadRequest("Missing key name")

        def say(found: object, headers: dict[str, str]) -> Answer:
            if found is None:
                return text_answer(404, "", headers)
            if isinstance(found, bytes):
                return Answer(200, found, "text/plain", COMMON | headers | _RAW_HEADERS)
            return json_answer(encoded(found, call.flag("pretty")), headers)

        return self._read(call, self._looker(call, key), say, self._backend.key_waiters, key, below)

    def _looker(self, call: Call, key: str) -> Look:
        table = self._backend.table

        def keys() -> object:
            found = table.keys_below(key, call.one("separator") or call.one("seperator"))
            return found if found or not key else None

        def tree() -> object:
            return [entry_json(entry) for entry in table.below(key)] or None

        def one() -> object:
            entry = table.get(key)
            if entry is None:
                return None
            return entry.value if call.flag("raw") else [entry_json(entry)]

        if call.flag("keys") or call.flag("recurse"):
            make = keys if call.flag("keys") else tree
            return lambda: (make, table.index_below(key))
        return lambda: (one, table.index_of(key))

    def _read(self, call: Call, look: Look, say: Say, waiters: Waiting, key: str, below: bool) -> Response:
        """What `look` says under the call's consistency and index."""
        consistency, after = call.consistency(), call.index()

        def answer(over: bool) -> Answer | None:
            make, index = look()
            if not over and index <= after:
                return None
            return say(make(), read_headers(index, self._backend.last_contact_ms(), consistency))

        def begin() -> Answer | Parked:
            return answer(not after) or Parked(call.wait_s, answer, partial(waiters.join, key, below), partial(waiters.leave, key, below))

        if consistency == "consistent" or not (self._backend.fresh or consistency == "stale"):
            return self._checked(consistency, begin)
        return begin()

    async def _checked(self, consistency: Consistency, begin: Callable[[], Answer | Parked]) -> Answer | Parked:
        """`begin` as soon as what is here is as new as it must be."""
        if not await self._backend.freshened():
            raise Unable("No cluster leader")
        if consistency == "consistent":
            if self._backend.last_contact_ms() is None:
                raise Unable("No cluster leader")
            await self._backend.current()
        return begin()

    def _put(self, call: Call) -> Response:
        request = _write(call)
        if len(request.value) > MAX_VALUE:
            raise TooLarge(f"Value for key {request.key!r} is too large ({len(request.value)} > {MAX_VALUE} bytes)")
        written = self._written(request)
        return written if self._backend.needs_task(request) else Taskless(written)

    async def _written(self, request: KvPut) -> Answer:
        try:
            return _truth(await self._backend.put(request))
        except NotFound as error:
            raise Refusal(str(error)) from error

    async def _delete(self, call: Call) -> Answer:
        _refuse_two(call, "cas", "recurse")
        recurse = call.flag("recurse")
        key = call.parts[0] if recurse else call.part("key name")
        return _truth(await self._backend.delete(key, recurse, call.number("cas")))

    # --- sessions

    async def _create(self, call: Call) -> Answer:
        session = parse_session(call.json(), self._node, str(uuid.uuid4()))
        if why := missing(session, self._backend.snapshot()):
            raise Refusal(why)
        await self._backend.create_session(session)
        return json_answer(encoded({"ID": session.id}, call.flag("pretty")))

    async def _destroy(self, call: Call) -> Answer:
        await self._backend.end_session(call.part("session"), "destroyed")
        return _truth(True)

    async def _renew(self, call: Call) -> Answer:
        wanted = call.part("session")
        session = await self._backend.renew_session(wanted)
        if session is None:
            raise Missing(f"Session id '{wanted}' not found")
        return json_answer(encoded([session_json(session)], call.flag("pretty")))

    def _info(self, call: Call) -> Response:
        wanted = call.part("session")
        return self._sessions(call, lambda session: session.id == wanted)

    def _of_node(self, call: Call) -> Response:
        wanted = call.part("node name").lower()
        return self._sessions(call, lambda session: session.node.lower() == wanted)

    def _list(self, call: Call) -> Response:
        return self._sessions(call, lambda _: True)

    def _sessions(self, call: Call, fits: Callable[[Session], bool]) -> Response:
        def make() -> object:
            found = sorted((s for s in self._backend.sessions.values() if fits(s)), key=lambda s: s.id)
            return [session_json(session) for session in found]

        def say(found: object, headers: dict[str, str]) -> Answer:
            return json_answer(encoded(found, call.flag("pretty")), headers)

        return self._read(call, lambda: (make, self._backend.sessions_index), say, self._backend.session_waiters, "", True)


_TRUTHS = {value: json_answer(b"true" if value else b"false") for value in (False, True)}


def _truth(value: bool) -> Answer:
    """The same one each time: its head is made once a second."""
    return _TRUTHS[value]


def _write(call: Call) -> KvPut:
    """What a PUT asks for; most have no parameters."""
    key = call.part("key name")
    if not call.params:
        return KvPut(key, call.body)
    flags, cas = call.number("flags") or 0, call.number("cas")
    request = KvPut(key, call.body, flags, cas, _session_id(call, "acquire"), _session_id(call, "release"), _ttl(call))
    _refuse_two(call, "cas", "acquire", "release")
    return request


def _session_id(call: Call, name: str) -> str:
    if call.flag(name) and not call.one(name):
        raise BadRequest(f"Missing session for ?{name}")
    return call.one(name)


def _ttl(call: Call) -> float:
    if not call.flag("ttl"):
        return 0.0
    try:
        seconds = duration_s(call.one("ttl"))
    except ValueError as error:
        raise BadRequest(f"Invalid ttl: {error}") from error
    if not 0 < seconds <= 86_400:
        raise BadRequest("Invalid ttl: it must be above 0 and at most 24h")
    return seconds


def _refuse_two(call: Call, *names: str) -> None:
    given = [name for name in names if call.flag(name)]
    if len(given) > 1:
        raise BadRequest(f"Conflicting flags: {' and '.join(given)} exclude each other")
