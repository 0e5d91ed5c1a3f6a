# SPDX-License-Identifier: Apache-2.0
"""What every call of the Consul API has in common: parameters, errors, answers.

Data in: one HTTP request. Data out: a `Call` with decoded parts, or an answer with Consul's headers. Errors are plain texts in Consul's
words, because clients compare them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import msgspec

from plait.http.message import Answer, Parked, Response
from plait.http.message import StreamAnswer as HttpStream
from plait.model.errors import PlaitError
from plait.services.requests import BadRequest, Refusal, TooLarge, duration_s, fold

DEFAULT_WAIT_S, MAX_WAIT_S = 300.0, 600.0
_MAX_INDEX = (1 << 64) - 1
_NO_NAMESPACES = "Namespaces are a Consul Enterprise feature"
_SCOPES = ((b"x-consul-namespace", "X-Consul-Namespace"), (b"x-consul-partition", "X-Consul-Partition"))
_DIRECTIVE = re.compile(
    rb"((max-age|stale-if-error)=\d{1,18}|(?!(max-age|stale-if-error)\b)[!#$%&'*+.^_`|~\w-]+(=.*)?)?", re.ASCII | re.IGNORECASE
)
"""Of Cache-Control (RFC 9111, section 5.2): the two that Consul reads are numbers of seconds, others are whatever they like."""
_MAX_DEPTH = 100
"""Levels of lists and objects in a body. Python's JSON goes to a thousand, less those of its own caller."""
NO_ENDPOINT = "Invalid URL path: not a recognized HTTP API endpoint"
COMMON = {"Vary": "Accept-Encoding", "X-Consul-Default-Acl-Policy": "allow"}
"""Header fields of every answer."""

Consistency = Literal["leader", "stale", "consistent"]
T = TypeVar("T")


class Missing(PlaitError):
    """Answered with status 404 and this text."""


class Unable(PlaitError):
    """Answered with status 500 and this text: Consul's way to say that the cluster cannot do it now."""


class Call(msgspec.Struct, frozen=True):
    """One request after routing: the variable parts of its path (decoded), the parameters of its query in their order, its body."""

    path: str
    parts: tuple[str, ...]
    params: Mapping[str, tuple[str, ...]]
    body: bytes
    accept: str = ""
    """The Accept header."""
    last_event_id: str = ""
    """The Last-Event-ID header."""

    def flag(self, name: str) -> bool:
        """Whether the parameter is there, with or without a value."""
        return name in self.params

    def one(self, name: str) -> str:
        """The parameter's last value, "" if it is not there."""
        return self.params.get(name, ("",))[-1]

    def every(self, name: str) -> tuple[str, ...]:
        return self.params.get(name, ())

    def number(self, name: str) -> int | None:
        """A parameter of 64 bits without sign; None if it is not there. BadRequest for anything else."""
        if not self.flag(name):
            return None
        text = self.one(name)
        if not (text.isascii() and text.isdecimal() and len(text) <= 20) or int(text) > _MAX_INDEX:
            raise BadRequest(f"Invalid {name} value {text!r}: it must be a number from 0 to {_MAX_INDEX}")
        return int(text)

    def part(self, what: str) -> str:
        """The first variable part of the path. BadRequest with "Missing <what>" if it is empty."""
        if not self.parts[0]:
            raise BadRequest(f"Missing {what}")
        return self.parts[0]

    def switch(self, name: str) -> bool:
        """`?passing`, `?passing=1`, `?passing=true` are true; absent, 0, false are not (Go: strconv.ParseBool)."""
        if not self.flag(name):
            return False
        value = self.one(name).lower()
        if value in ("", "1", "t", "true"):
            return True
        if value in ("0", "f", "false"):
            return False
        raise BadRequest(f"Invalid value for ?{name}")

    def json(self, failed: str = "Request decode failed") -> object:
        """The body as JSON whatever its Content-Type says, None if it is empty. All of it can be written as JSON in UTF-8 again, below a
        few levels of an answer. BadRequest, which begins with `failed`."""
        try:
            value: object = json.loads(self.body or b"null")
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"{failed}: {error}") from error
        if self.body.count(b"[") + self.body.count(b"{") > _MAX_DEPTH < _depth(value):
            raise BadRequest(f"{failed}: it is nested deeper than {_MAX_DEPTH} levels")
        return value

    def index(self) -> int:
        """The index that a blocking query waits to pass; 0 = answer at once."""
        if self.flag("wait"):
            self.wait_s()  # which refuses a wrong one, whether anything waits or not
        text = self.one("index") or "0"
        if not (text.isascii() and text.isdecimal() and len(text) <= 20) or int(text) > _MAX_INDEX:
            raise BadRequest("Invalid index")
        return int(text)

    def wait_s(self) -> float:
        """How long a blocking query may wait. Up to a sixteenth is added at random, which clients expect and which spreads them."""
        wait = 0.0
        if self.one("wait"):
            try:
                wait = duration_s(self.one("wait"))
            except ValueError as error:
                raise BadRequest("Invalid wait time") from error
        wait = min(wait or DEFAULT_WAIT_S, MAX_WAIT_S)
        return wait + random.uniform(0, wait / 16)

    def consistency(self) -> Consistency:
        """Which consistency the client asked for. BadRequest if it asked for two that exclude each other."""
        consistent = self.flag("consistent")
        for other in ("stale", "cached"):
            if consistent and self.flag(other):
                raise BadRequest(f"Cannot specify ?{other} with ?consistent, conflicting semantics.")
        if self.flag("max_stale"):
            try:
                duration_s(self.one("max_stale"))
            except ValueError as error:
                raise BadRequest(f'Invalid max_stale value "{self.one("max_stale")}"') from error
        return "consistent" if consistent else "stale" if self.flag("stale") or self.flag("max_stale") else "leader"

    def check_body_scope(self, datacenter: str) -> None:
        """A body that names another datacentre is refused as a parameter would be."""
        if str(fold(self.json()).get("datacenter") or "").lower() not in ("", datacenter.lower()):
            raise Unable("No path to datacenter")

    def check_scope(self, datacenter: str) -> None:
        """The only datacentre and the only namespace are this cluster's: anything else is refused as Consul does it."""
        if self.one("dc").lower() not in ("", datacenter.lower()):
            raise Unable("No path to datacenter")
        for name in ("ns", "partition", "sg"):
            if self.one(name) not in ("", "default"):
                raise BadRequest(f'Invalid query parameter: "{name}" - {_NO_NAMESPACES}')


def _depth(value: object) -> int:
    """How many lists and objects lie in one another."""
    depth, level = 0, [value]
    while level := [inner for inner in level if isinstance(inner, list | dict)]:
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
        depth += 1
    return depth


def check_fields(headers: Mapping[bytes, bytes]) -> None:
    """Header fields that say what parameters do, or how old an answer may be: those of another namespace and those that are malformed are
    refused. What an agent answers from is always as new as it knows, so that no age needs to be compared."""
    for field, name in _SCOPES:
        if headers.get(field, b"").lower() not in (b"", b"default"):
            raise BadRequest(f'Invalid header: "{name}" - {_NO_NAMESPACES}')
    for directive in headers.get(b"cache-control", b"").split(b","):
        if not _DIRECTIVE.fullmatch(directive.strip()):
            raise BadRequest("Invalid Cache-Control header.")


Handler = Callable[[Call], Response]


class Repeated:
    """A handler of calls without a body that come again and again: `prepare(call)` gives what answers each that is equal to it."""

    def __init__(self, prepare: Callable[[Call], Callable[[], Answer | Parked]]) -> None:
        self.prepare = prepare

    def __call__(self, call: Call) -> Answer | Parked:
        return self.prepare(call)()


@dataclass(frozen=True, slots=True)
class Route:
    """The path below /v1/ with a `<name>` for its variable part, what it is for, and who answers which method. `max_body`: bytes that a
    request may hold if that is another number than for all."""

    path: str
    about: str
    methods: Mapping[str, Handler]
    max_body: int = 0

    def match(self, path: str) -> tuple[str, ...] | None:
        """The variable parts of `path`, which may hold "/" and may be empty; None if it is another path."""
        fixed, name, rest = self.path.partition("<")
        if not name:
            return () if path == fixed else None
        tail = rest.partition(">")[2]
        if not path.startswith(fixed) or not path.endswith(tail) or len(path) < len(fixed) + len(tail):
            return None
        return (path[len(fixed) : len(path) - len(tail)],)


class StreamAnswer(HttpStream):
    """An answer that goes on until the client goes or `chunks` end."""

    __slots__ = ()

    def __init__(self, chunks: AsyncGenerator[bytes], content_type: str = "text/plain") -> None:
        super().__init__(chunks, content_type, COMMON)


async def until(wait_s: float, look: Callable[[], T], enough: Callable[[T], bool], changed: Callable[[float], Awaitable[None]]) -> T:
    """What `look` returns as soon as that is `enough`, or after `wait_s` seconds whatever it is then. `changed(timeout)` returns when it is
    worth another look."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + wait_s
    found = look()
    while not enough(found) and (left := deadline - clock()) > 0:
        await changed(left)
        found = look()
    return found


async def set_within(event: asyncio.Event, timeout_s: float) -> None:
    """Until the event is set or the time is over; it is clear again afterwards."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    event.clear()


def read_headers(index: int, contact_ms: int | None, consistency: Consistency) -> dict[str, str]:
    """What an answer from replicated state says of itself. `contact_ms`: since the store was last heard of, None = out of reach."""
    return {
        "X-Consul-Index": str(index),
        "X-Consul-KnownLeader": "true" if contact_ms is not None else "false",
        "X-Consul-LastContact": str(contact_ms or 0),
        "X-Consul-Effective-Consistency": consistency,
        "X-Consul-Query-Backend": "blocking-query",
    }


def status_of(error: Exception) -> int:
    """The HTTP status that an error of a request is answered with; its text is the body."""
    match error:
        case TooLarge():
            return 413
        case Missing():
            return 404
        case Refusal():
            return 500
        case BadRequest() | UnicodeError():
            return 400
    return 500


def text_answer(status: int, text: str, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, text.encode(errors="replace"), "text/plain; charset=utf-8", {**COMMON, **(headers or {})})


def json_answer(body: bytes, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer whose body is JSON already."""
    return Answer(200, body, "application/json", {**COMMON, **headers} if headers else COMMON)


def encoded(value: object, pretty: bool) -> bytes:
    """JSON in the order of the value's keys; `pretty`: indented by four blanks, with a line feed at its end."""
    return (json.dumps(value, indent=4) + "\n" if pretty else json.dumps(value, separators=(",", ":"))).encode()
