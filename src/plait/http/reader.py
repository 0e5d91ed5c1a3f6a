# SPDX-License-Identifier: Apache-2.0
"""Bytes of a connection -> requests, by httptools' parser (RFC 9112). No sockets, no clock.

Data in: bytes, cut anywhere. Data out: requests in their order; what is malformed or too large is an answer instead, the last thing found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import httptools

from plait.http.message import WANTED, Answer, Request

Phase = Literal["between", "head", "body"]


class Allowed(NamedTuple):
    """What a reader may take: `head` bytes of request line and fields, `max_body(target)` bytes of a body. `hold(has, more)` says whether
    `more` bytes may be held in addition to the `has` bytes of this request, and counts them (negative: lets them go).
    `rejected(status, text)` is the answer for anything else."""

    head: int
    max_body: Callable[[bytes], int]
    hold: Callable[[int, int], bool]
    rejected: Callable[[int, str], Answer]


class RequestReader:
    """Of one connection. `phase`: where in a request the last `feed` ended; `count`: requests that have begun; `length`: bytes of its body
    that the present one announces; `expects`: it waits for 100 (Continue); `ended`: something was refused, nothing more is read."""

    __slots__ = (
        "_allowed", "_chunks", "_fed", "_fields", "_headers", "_limit", "_parser", "_queue", "_size", "_url",
        "count", "ended", "expects", "length", "phase",
    )  # fmt: skip

    def __init__(self, allowed: Allowed, queue: list[Request | Answer]) -> None:
        """`queue` gets what is found."""
        self._allowed, self._queue = allowed, queue
        self._parser: httptools.HttpRequestParser | None = None
        self.count, self.ended = 0, False
        self._size = 0
        self._clear()

    def _clear(self) -> None:
        """Ready for the next request's parts."""
        self._url, self._headers, self._chunks = b"", {}, []  # type: bytes, dict[bytes, bytes], list[bytes]
        if self._size:
            self._allowed.hold(self._size, -self._size)
        self._size = self._fed = self._fields = self._limit = self.length = 0
        self.phase: Phase = "between"
        self.expects = False

    def feed(self, data: bytes) -> bytes:
        """What comes back is to be fed again."""
        rest = b""
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:  # which is no duty (RFC 9110, section 7.8): what follows is HTTP as before
            self._parser = None
            last = self._queue[-1] if self._queue else None
            if isinstance(last, Request) and last.method == "CONNECT":
                self._queue.pop()
                self._refuse(405, "method CONNECT not allowed")
            rest = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            self._refuse(400, f"malformed HTTP request: {error}")
        if self.ended:
            return b""
        if self.phase == "between" and not self._queue:
            self.phase = "head"  # blank lines, before the parser thinks that anything begins
        if self.phase == "head":
            self._fed += len(data)
            if self._fed > self._allowed.head:
                self._refuse_head()
        return rest

    def close(self) -> None:
        """Let go of everything."""
        self.ended = True
        self._parser = None
        self._clear()

    # --- called by the parser

    def on_message_begin(self) -> None:
        self._clear()
        self.phase = "head"
        self.count += 1

    def on_url(self, part: bytes) -> None:
        self._url += part
        self._fields += len(part)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += len(name) + len(value) + 4
        if self._fields > self._allowed.head:
            self._refuse_head()
        elif self.phase == "head" and (low := name.lower()) in WANTED:
            known, value = self._headers.get(low), value.strip(b" \t")
            self._headers[low] = value if known is None else known + b", " + value

    def on_headers_complete(self) -> None:
        self.phase = "body"
        if self._fields > self._allowed.head:
            self._refuse_head()
        if b"content-length" in self._headers:
            self.length = int(self._headers[b"content-length"])
            self._limit = self._allowed.max_body(self._url)
            if self.length > self._limit:
                self._refuse_body()
        if b"expect" in self._headers and self._parser is not None:
            if self._headers[b"expect"].lower() != b"100-continue":
                self._refuse(417, "the only expectation that is met is 100-continue")
            self.expects = self._parser.get_http_version() != "1.0"

    def on_body(self, part: bytes) -> None:
        if self.ended:
            return
        if not self._limit:  # it comes in chunks
            self._limit = self._allowed.max_body(self._url)
        if self._size + len(part) > self._limit:
            self._refuse_body()
        elif not self._allowed.hold(self._size, len(part)):
            self._refuse(503, "the agent holds as many unfinished requests as it takes; try again later")
        else:
            self._chunks.append(part)
            self._size += len(part)

    def on_message_complete(self) -> None:
        parser = self._parser
        if self.ended or parser is None:
            return
        target, body = self._url.partition(b"#")[0], b"".join(self._chunks)
        old = parser.get_http_version() == "1.0"
        self._queue.append(Request(parser.get_method().decode(), target, self._headers, body, parser.should_keep_alive(), old))
        self._clear()

    # --- refusing

    def _refuse(self, status: int, text: str) -> None:
        if not self.ended:
            self.ended = True
            self._queue.append(self._allowed.rejected(status, text))
            self._clear()

    def _refuse_head(self) -> None:
        self._refuse(431, f"request line and header fields hold more than {self._allowed.head} bytes")

    def _refuse_body(self) -> None:
        self._refuse(413, f"the request body holds more than {self._limit} bytes")
