# SPDX-License-Identifier: Apache-2.0
"""HTTP checks (RFC 9110, RFC 9112): plain ones over a socket of their own, which costs a third of a client library; TLS and redirects
through `https.py`. A connection serves one check. Of the answer only as much is read as the output may hold."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Awaitable, Callable, Iterable
from functools import lru_cache
from urllib.parse import SplitResult, unquote, urlsplit

from plait.checks.dial import CheckFailed, connect, reason
from plait.checks.resolve import Resolver
from plait.model.discovery import CheckDefinition, Status
from plait.services.health import Result, clipped_head

USER_AGENT = "Consul Health Check"
"""As Consul's, which people's servers and log filters know."""
ACCEPT = "text/plain, text/*, */*"
_HEAD_MAX = 65536
_CHUNK = 16384
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_UNFIT = re.compile(r"[\x00-\x20\x7f]")
_UNFIT_HEADER = re.compile(r"[\x00\r\n]")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


Found = tuple[int, str, bytes]
"""(status, its text, the first bytes of the body)"""


async def run_http(definition: CheckDefinition, resolver: Resolver, full: Callable[[CheckDefinition, str], Awaitable[Found]]) -> Result:
    """2xx passes, 429 warns, everything else is critical. `full(definition, method)` does what needs TLS or follows a redirect."""
    method = (definition.method or "GET").upper()
    what = f"HTTP {method} {definition.target}"
    try:
        url = _url(definition.target)
        if url.scheme == "http":
            status, text, body = await _plain(definition, method, url, resolver)
            if status not in _REDIRECTS or not definition.follow_redirects:
                return _judged(what, status, text, body, definition)
        return _judged(what, *await full(definition, method), definition)
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise
        raise CheckFailed(f"{what}: {reason(error)}") from error
    except CheckFailed as error:
        raise CheckFailed(f"{what}: {error}") from error


def _judged(what: str, status: int, text: str, body: bytes, definition: CheckDefinition) -> Result:
    verdict: Status = "passing" if 200 <= status < 300 else "warning" if status == 429 else "critical"
    return Result(verdict, f"{what}: {status} {text} Output: {clipped_head(body, definition.output_max)}")


@lru_cache(maxsize=16384)
def _url(target: str) -> SplitResult:
    try:
        url = urlsplit(target)
        fits = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError as error:
        raise CheckFailed(f"not a URL: {error}") from error
    if not fits or _UNFIT.search(target):
        raise CheckFailed("not a URL that begins with http:// or https://")
    return url


# --- plain HTTP


async def _plain(definition: CheckDefinition, method: str, url: SplitResult, resolver: Resolver) -> Found:
    loop = asyncio.get_running_loop()
    host = (url.hostname or "").encode("idna").decode() if not (url.hostname or "").isascii() else url.hostname or ""
    request = _request(definition, method, url, host)
    with await connect(resolver, host, url.port or 80, definition.timeout) as sock:
        await loop.sock_sendall(sock, request)
        answer = _Answer(method, definition.output_max)
        while not answer.feed(await loop.sock_recv(sock, _CHUNK)):
            pass
    return answer.status, answer.text, bytes(answer.body)


def _request(definition: CheckDefinition, method: str, url: SplitResult, host: str) -> bytes:
    if not _TOKEN.fullmatch(method):
        raise CheckFailed(f"{method!r} is not an HTTP method")
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    shown = f"[{host}]" if ":" in host else host
    headers = {"host": shown if url.port in (None, 80) else f"{shown}:{url.port}", "user-agent": USER_AGENT, "accept": ACCEPT}
    if url.username is not None:
        pair = f"{unquote(url.username)}:{unquote(url.password or '')}"
        headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    if definition.body:
        headers["content-length"] = str(len(definition.body.encode()))
    given = {name.lower() for name in definition.headers}
    lines = [f"{name.title()}: {value}" for name, value in headers.items() if name not in given]
    lines += [f"{name}: {value}" for name, value in given_headers(definition)]
    head = "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "Connection: close", "", ""])
    return head.encode("utf-8") + definition.body.encode()


def given_headers(definition: CheckDefinition) -> Iterable[tuple[str, str]]:
    """The check's own headers, refused if they would break the request's form."""
    for name, values in definition.headers.items():
        for value in values:
            if not _TOKEN.fullmatch(name) or _UNFIT_HEADER.search(value):
                raise CheckFailed(f"header {name!r} cannot be sent")
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                yield name, value


class _Answer:
    """Reads a response from what is fed to it. `feed(b"")` is the end of the connection."""

    def __init__(self, method: str, limit: int) -> None:
        self.status, self.text, self.body = 0, "", bytearray()
        self._head_only, self._limit = method == "HEAD", limit
        self._buffer = bytearray()
        self._left: int | None = None
        self._chunked = False

    def feed(self, data: bytes) -> bool:
        """Whether that was enough. CheckFailed if it is not HTTP."""
        self._buffer += data
        while not self.status:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > _HEAD_MAX:
                    raise CheckFailed(f"the head of the answer is longer than {_HEAD_MAX} bytes")
                if not data:
                    raise CheckFailed("connection closed without an answer" if not self._buffer else "the answer is not HTTP")
                return False
            head = bytes(self._buffer[:end])
            del self._buffer[: end + 4]
            self._take_head(head)
        return self._take_body() or not data

    def _take_head(self, head: bytes) -> None:
        first, _, rest = head.partition(b"\r\n")
        words = first.decode("latin-1").split(" ", 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not re.fullmatch("[1-5][0-9][0-9]", words[1]):
            raise CheckFailed("the answer is not HTTP")
        status = int(words[1])
        if status < 200:
            return
        self.status, self.text = status, words[2].strip() if len(words) > 2 else ""
        for line in rest.split(b"\r\n"):
            name, _, value = line.partition(b":")
            match name.strip().lower():
                case b"content-length" if value.strip().isdigit():
                    self._left = int(value)
                case b"transfer-encoding":
                    self._chunked = value.strip().lower().endswith(b"chunked")
        if self._head_only or status in (204, 304):
            self._left, self._chunked = 0, False

    def _take_body(self) -> bool:
        if self._chunked:
            return self._take_chunks()
        if self._left is not None:
            del self._buffer[self._left :]
            self._left -= len(self._buffer)
        self.body += self._buffer
        self._buffer.clear()
        return self._left == 0 or len(self.body) >= self._limit

    def _take_chunks(self) -> bool:
        while len(self.body) < self._limit:
            end = self._buffer.find(b"\r\n")
            if end < 0:
                if len(self._buffer) > _CHUNK:
                    raise CheckFailed("the answer's chunks cannot be read")
                return False
            try:
                size = int(self._buffer[:end].partition(b";")[0], 16)
            except ValueError as error:
                raise CheckFailed("the answer's chunks cannot be read") from error
            if size == 0:
                return True
            if len(self._buffer) < end + 2 + size + 2:
                if len(self._buffer) - end - 2 >= self._limit - len(self.body):
                    self.body += self._buffer[end + 2 :]
                    return True
                return False
            self.body += self._buffer[end + 2 : end + 2 + size]
            del self._buffer[: end + 2 + size + 2]
        return True
