# SPDX-License-Identifier: Apache-2.0
"""What goes through the HTTP server: requests, and the answers that they get now, later, or part by part.

Data in: what a handler says. Data out: the bytes of a response (RFC 9112). No sockets.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

import msgspec

COMPRESS_FROM = 1024
"""Bytes of a body from which compressing it pays."""
COMPRESS_APART = 256 * 1024
"""Bytes of a body from which it is compressed in a thread of its own."""
_LEVEL = 5
_KEPT_BYTES = 64 * 1024
"""Of a body, up to which its compressed form is kept."""
_TEXTS = ("application/json", "text/")
_REASONS = {status.value: status.phrase for status in HTTPStatus}
_OF_CONSUL = {b"cache-control", b"x-consul-namespace", b"x-consul-partition"}
WANTED = frozenset({b"accept", b"accept-encoding", b"content-length", b"expect", b"last-event-id", *_OF_CONSUL})
"""The header fields that are kept; all others are read and let go."""


def http_date(seconds: float) -> str:
    """A time of POSIX as fields of HTTP have it (IMF-fixdate; RFC 9110, section 5.6.7), whatever the locale."""
    at = time.gmtime(seconds)
    day, month = "MonTueWedThuFriSatSun"[3 * at.tm_wday :][:3], "JanFebMarAprMayJunJulAugSepOctNovDec"[3 * at.tm_mon - 3 :][:3]
    return f"{day}, {at.tm_mday:02} {month} {at.tm_year:04} {at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02} GMT"


class Request(msgspec.Struct, frozen=True):
    """One request. `target` is the request target without a fragment as it was sent (origin form), `headers` holds `WANTED` only, by
    lower-case name, repeated ones joined by commas. `keep`: whether its connection may go on. `old`: HTTP/1.0."""

    method: str
    target: bytes
    headers: Mapping[bytes, bytes]
    body: bytes = b""
    keep: bool = False
    old: bool = False

    def with_body(self, body: bytes) -> Request:
        return Request(self.method, self.target, self.headers, body, self.keep, self.old)

    def header(self, name: bytes) -> str:
        """By lower-case name, "" if it was not sent."""
        found = self.headers.get(name)
        return found.decode("latin-1") if found else ""

    def takes_gzip(self) -> bool:
        """RFC 9110, section 12.5.3; a weight of 0 is a no."""
        if b"accept-encoding" not in self.headers:
            return False
        for coding in self.header(b"accept-encoding").split(","):
            name, _, weight = coding.partition(";")
            if name.strip().lower() in ("gzip", "x-gzip"):
                return weight.replace(" ", "").rstrip("0.") != "q="
        return False


class Stamp(NamedTuple):
    """What every answer of a server has. `date`: for the Date field (RFC 9110, section 6.6.1); `fields`: more header fields, which give way
    to those of the answer itself."""

    date: str
    fields: tuple[tuple[str, str], ...] = ()


class Answer:
    """A whole answer. `headers` may be changed until it is sent for the first time; the same one may be sent again and again."""

    __slots__ = ("_wire", "body", "headers", "status")

    def __init__(self, status: int, body: bytes, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        self.status, self.body = status, body
        self.headers = {"Content-Type": content_type, **(headers or {})}
        self._wire: tuple[object, bytes] = None, b""

    def wire(self, request: Request, keep: bool, stamp: Stamp, small: bytes | None = None) -> bytes:
        """The whole response. `keep`: the connection goes on; `small`: the compressed body, if that was made already."""
        seen = (request.method, request.old, request.headers.get(b"accept-encoding"), keep, stamp)
        if self._wire[0] != seen:
            if small is None and compressible(self, request):
                small = compressed(self.body)
            body = self.body if small is None else small
            head = head_bytes(self, request, len(body), keep, stamp, "" if small is None else "gzip")
            self._wire = seen, head if request.method == "HEAD" else head + body
        return self._wire[1]


def plain(status: int, text: str) -> Answer:
    return Answer(status, text.encode(), "text/plain; charset=utf-8")


class StreamAnswer(Answer):
    """An answer that goes on until the client goes or `chunks` end. A client that takes nothing for a while is cut off."""

    __slots__ = ("chunks",)

    def __init__(self, chunks: AsyncGenerator[bytes], content_type: str = "text/plain", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(200, b"", content_type, headers)
        self.chunks = chunks


class Parked:
    """An answer that waits for a change, without a task; one of these may serve many connections. `wait_s()` seconds at most;
    `look(over)` says what is answered now, None = go on waiting, which it must not say if the time is `over`; `join(wake)` has `wake`
    called when another look is worth it, `leave(wake)` ends that. `wake` may be called too often; it does not look by itself."""

    __slots__ = ("join", "leave", "look", "wait_s")

    def __init__(
        self,
        wait_s: Callable[[], float],
        look: Callable[[bool], Answer | None],
        join: Callable[[Callable[[], None]], object],
        leave: Callable[[Callable[[], None]], object],
    ) -> None:
        self.wait_s, self.look, self.join, self.leave = wait_s, look, join, leave


class Taskless(msgspec.Struct, frozen=True):
    """An answer that a coroutine gives which runs without a task: to make one costs more than all else about a short write. What it awaits
    are futures in the end, without timeouts or task groups, which belong to a task. It is never cancelled."""

    steps: Coroutine[Any, None, Answer]


Response = Answer | Parked | Taskless | Awaitable[Answer | Parked]
"""What a request is answered with: now, after a change, or when it is done."""


class App(Protocol):
    """Who answers. Everything is called in the loop."""

    def respond(self, request: Request) -> Response:
        """May raise, as may what it returns."""
        ...

    def refused(self, error: Exception, request: Request) -> Answer:
        """The answer for an error of `respond`; logs those that are faults."""
        ...

    def rejected(self, status: int, text: str) -> Answer:
        """The answer for what never became a request: it is malformed, too large, or too late."""
        ...

    def max_body(self, target: bytes) -> int:
        """Bytes that a request for `target` may hold."""
        ...


def head_bytes(answer: Answer, request: Request, length: int | None, keep: bool, stamp: Stamp, coding: str = "") -> bytes:
    """Status line and header section. `coding`: how the body is encoded; `length` of it in bytes, None = it is sent in chunks (HTTP/1.0:
    until the connection ends). ValueError if a field would break out of its line."""
    lines = [f"HTTP/1.1 {answer.status} {_REASONS.get(answer.status, '')}", f"Date: {stamp.date}"]
    own = {name.lower() for name in answer.headers} if stamp.fields else ()
    lines += [f"{name}: {value}" for name, value in stamp.fields if name.lower() not in own]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    if coding:
        lines.append(f"Content-Encoding: {coding}")
    if length is not None:
        lines.append(f"Content-Length: {length}")
    elif not request.old:
        lines.append("Transfer-Encoding: chunked")
    if not keep:
        lines.append("Connection: close")
    elif request.old:
        lines.append("Connection: keep-alive")
    head = "\r\n".join(lines)
    if not head.count("\r") == head.count("\n") == len(lines) - 1:
        raise ValueError(f"a header field of the answer holds a line break: {answer.headers}")
    return head.encode("latin-1", "replace") + b"\r\n\r\n"


def compressible(answer: Answer, request: Request) -> bool:
    """Whether it is large enough, text, and the client takes gzip."""
    return len(answer.body) >= COMPRESS_FROM and answer.headers["Content-Type"].startswith(_TEXTS) and request.takes_gzip()


def compressed(body: bytes) -> bytes:
    """gzip (RFC 1952). Small ones that are asked for again and again cost nothing."""
    return _kept(body) if len(body) <= _KEPT_BYTES else gzip.compress(body, _LEVEL, mtime=0)


@lru_cache(maxsize=32)
def _kept(body: bytes) -> bytes:
    return gzip.compress(body, _LEVEL, mtime=0)
