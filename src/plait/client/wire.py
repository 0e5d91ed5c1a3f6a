# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 of a client without I/O (RFC 9112): bytes of one request out, bytes of its answer in.

Data in: a Request and the settings; whatever arrived, in pieces of any size, b"" for the end of the stream. Data out: the bytes to send;
the Answer, and whether the connection may carry another request. Bodies by length, chunked, or up to the end of the stream.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import replace
from ssl import SSLError

from plait.client.errors import Unreachable
from plait.client.settings import Settings
from plait.client.steps import Answer, Request

HEAD_MAX = 64 * 1024
"""Bytes of one line, or of all header lines together."""
BODY_MAX = 256 * 1024 * 1024
"""Largest body that is read; the largest answers are catalogues of some ten MB."""


class WireError(ValueError):
    """What arrived is not an HTTP/1.1 answer, or more than the limits allow."""


def request_bytes(request: Request, settings: Settings) -> bytes:
    """The whole request. The token goes into a header, never into the path, because paths are logged."""
    if settings.datacenter and not any(name == "dc" for name, _ in request.params):
        request = replace(request, params=(*request.params, ("dc", settings.datacenter)))
    if settings.stale and request.method == "GET" and not any(name in ("stale", "consistent") for name, _ in request.params):
        request = replace(request, params=(*request.params, ("stale", "")))
    lines = [f"{request.method} {request.target} HTTP/1.1", f"Host: {settings.host_header}", "Accept: application/json, */*"]
    if settings.token:
        lines.append(f"X-Consul-Token: {settings.token}")
    if request.method != "GET":
        lines.append(f"Content-Length: {len(request.body or b'')}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (request.body or b"")


def failure(request: Request, settings: Settings, error: Exception, sent: bool) -> Unreachable:
    """The error of a request that had no answer, for a person."""
    if isinstance(error, TimeoutError):
        why = f"no answer within {request.limit(settings.timeout_s):g} s"
    else:
        number = error.errno if isinstance(error, OSError) and not isinstance(error, SSLError) else None
        why = os.strerror(number) if number and number > 0 else str(error) or type(error).__name__
    doubt = "; whether it was carried out is not known" if sent and not request.again else ""
    return Unreachable(f"{request.what} at {settings.where} failed: {why}{doubt}", sent)


class Reader:
    """The answer to one request. `feed` until `answer` is there; `keep` then says whether the connection may be used again.

    `started`: at least one byte arrived, so the agent has taken the request.
    """

    def __init__(self, body_max: int = BODY_MAX) -> None:
        self.answer: Answer | None = None
        self.keep = False
        self.started = False
        self._body_max = body_max
        self._buffer = bytearray()
        self._ended = False
        self._parser = self._parse()
        next(self._parser)

    def feed(self, data: bytes) -> None:
        """Take what arrived; b"" once the stream has ended. WireError if it cannot be an answer, or ended too early."""
        self.started = self.started or bool(data)
        self._ended = self._ended or not data
        self._buffer += data
        try:
            next(self._parser)
        except StopIteration:
            self.keep = self.keep and not self._buffer and not self._ended
        except (ValueError, OverflowError) as error:
            raise error if isinstance(error, WireError) else WireError(str(error)) from error

    def _parse(self) -> Generator[None, None, None]:
        status = 100
        while 100 <= status < 200:
            version, status, headers = yield from self._head()
        connection = headers.get("connection", "").lower()
        self.keep = "close" not in connection and (version == "HTTP/1.1" or "keep-alive" in connection)
        self.answer = Answer(status, headers, (yield from self._body(status, headers)))

    def _head(self) -> Generator[None, None, tuple[str, int, dict[str, str]]]:
        words = (yield from self._line()).split(" ", 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or len(words[1]) != 3 or not words[1].isdigit():
            raise WireError(f"no HTTP status line: {' '.join(words)[:60]!r}")
        headers: dict[str, str] = {}
        size = 0
        while line := (yield from self._line()):
            size += len(line)
            name, colon, value = line.partition(":")
            if not colon or size > HEAD_MAX:
                raise WireError(f"bad header line: {line[:60]!r}" if not colon else f"more than {HEAD_MAX} bytes of headers")
            headers[name.strip().lower()] = value.strip()
        return words[0], int(words[1]), headers

    def _body(self, status: int, headers: dict[str, str]) -> Generator[None, None, bytes]:
        if status in (204, 304):
            return b""
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return (yield from self._chunks())
        if "transfer-encoding" in headers:
            raise WireError(f"transfer encoding {headers['transfer-encoding']!r} was not asked for")
        if "content-length" in headers:
            return (yield from self._take(_length(headers["content-length"], 10)))
        self.keep = False
        while not self._ended:
            self._check_size(len(self._buffer))
            yield
        return self._cut(len(self._buffer))

    def _chunks(self) -> Generator[None, None, bytes]:
        body = bytearray()
        while size := _length((yield from self._line()).partition(";")[0].strip(), 16):
            self._check_size(len(body) + size)
            body += yield from self._take(size)
            if (yield from self._line()):
                raise WireError("a chunk is longer than it says")
        while (yield from self._line()):
            pass
        return bytes(body)

    def _take(self, size: int) -> Generator[None, None, bytes]:
        self._check_size(size)
        while len(self._buffer) < size:
            self._more()
            yield
        return self._cut(size)

    def _line(self) -> Generator[None, None, str]:
        seen = 0
        while (end := self._buffer.find(b"\n", seen)) < 0:
            seen = len(self._buffer)
            if seen > HEAD_MAX:
                raise WireError(f"a line of more than {HEAD_MAX} bytes")
            self._more()
            yield
        return self._cut(end + 1).decode("latin-1").rstrip("\r\n")

    def _more(self) -> None:
        if self._ended:
            raise WireError("the connection ended within the answer")

    def _check_size(self, size: int) -> None:
        if size > self._body_max:
            raise WireError(f"a body of more than {self._body_max} bytes")

    def _cut(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


def _length(text: str, base: int) -> int:
    """A size in decimal or hexadecimal digits; int() alone would also take signs, blanks and underscores."""
    if not text.isalnum() or not text.isascii():
        raise WireError(f"{text[:40]!r} is no length")
    return int(text, base)
