# SPDX-License-Identifier: Apache-2.0
"""Requests read from bytes: the same however they are cut, and nothing else from bytes that are none."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from plait.http.message import Answer, Request, plain
from plait.http.reader import Allowed, RequestReader

HEAD, BODY = 2_000, 500


class Reading:
    """A reader, what it found, and how many bytes it holds."""

    def __init__(self) -> None:
        self.found: list[Request | Answer] = []
        self.held = 0
        self.reader = RequestReader(Allowed(HEAD, lambda _: BODY, self._hold, plain), self.found)

    def _hold(self, has: int, more: int) -> bool:
        assert 0 <= has <= self.held and has + more >= 0
        self.held += more
        return True

    def feed(self, data: bytes) -> None:
        while data and not self.reader.ended:
            data = self.reader.feed(data)
            assert self.held <= BODY

    def shown(self) -> list[object]:
        return [one if isinstance(one, Request) else one.status for one in self.found]


TOKENS = st.text("abcXYZ-09", min_size=1, max_size=8)
FIELDS = st.lists(
    st.tuples(TOKENS | st.sampled_from(["Accept", "ACCEPT-encoding", "Last-Event-ID"]), st.text("abc ,;=", max_size=12)), max_size=4
)


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, Request]:
    """Bytes of a request and what must be read from them."""
    method = draw(st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS"]))
    target = "/" + draw(st.text("abc/%20?=&", max_size=20))
    body = draw(st.binary(max_size=60))
    close = draw(st.booleans())
    fields = [(f"x-{name}" if name.islower() or name.lower().startswith(("host", "te")) else name, value) for name, value in draw(FIELDS)]
    fields = [(name, value) for name, value in fields if name.lower() in ("accept", "accept-encoding", "last-event-id") or name[:2] == "x-"]
    lines = [f"{method} {target} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in fields)]
    wanted: dict[bytes, bytes] = {}
    for name, value in fields:
        low, text = name.lower().encode(), value.strip().encode()
        if not low.startswith(b"x-"):
            wanted[low] = wanted[low] + b", " + text if low in wanted else text
    if draw(st.booleans()):
        lines.append(f"Content-Length: {len(body)}")
        wanted[b"content-length"] = str(len(body)).encode()
        tail = body
    else:
        at = draw(st.integers(0, len(body)))
        lines.append("Transfer-Encoding: chunked")
        tail = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:at], body[at:]) if part) + b"0\r\n\r\n"
    if close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode() + tail, Request(method, target.encode(), wanted, body, not close)


@given(st.lists(requests(), min_size=1, max_size=4), st.lists(st.integers(0, 2000), max_size=12))
def test_requests_are_the_same_however_they_are_cut(made: list[tuple[bytes, Request]], cuts: list[int]) -> None:
    kept = next((number for number, (_, request) in enumerate(made) if not request.keep), len(made)) + 1
    data, wanted = b"".join(raw for raw, _ in made[:kept]), [request for _, request in made[:kept]]
    places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    reading = Reading()
    for start, end in pairwise(places):
        reading.feed(data[start:end])
    assert reading.shown() == wanted and reading.held == 0 and reading.reader.phase == "between"
    single = Reading()
    for byte in data:
        single.feed(bytes([byte]))
    assert single.shown() == wanted


WORDS = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"PUT /a HTTP/1.1\r\n", b"GET ", b"/", b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\n",
        b"Content-Length: 5\r\n", b"Content-Length: 501\r\n", b"Content-Length: 99999999999999999999\r\n", b"Content-Length: 1_0\r\n",
        b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n", b"5\r\nabcde\r\n", b"0\r\n", b"ffffffffffffffff\r\n", b"hello",
        b"Upgrade: h2c\r\nConnection: Upgrade\r\n", b"Connection: close\r\n", b"CONNECT x:1 HTTP/1.1\r\n\r\n", b"Expect: 100-continue\r\n",
        b"Expect: x\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"A: " + b"a" * 1500 + b"\r\n", b"\x00", b"\xff", b" ", b":", b"x" * 300,
    ]
)  # fmt: skip


@given(st.lists(WORDS | st.binary(max_size=30), max_size=20).map(b"".join), st.lists(st.integers(1, 400), max_size=8))
@example(b"\r\n" * 3000, [1])
@example(b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"80\r\n" + b"x" * 128 + b"\r\n" + b"1;" + b"y" * 5000, [100])
def test_no_bytes_break_a_reader(data: bytes, steps: list[int]) -> None:
    reading, at = Reading(), 0
    for step in [*steps, len(data)]:
        reading.feed(data[at : at + step])
        at += step
    refusals = [one for one in reading.found if isinstance(one, Answer)]
    assert reading.reader.ended == bool(refusals) and len(refusals) <= 1
    if refusals:
        assert reading.found[-1] is refusals[0] and refusals[0].status in (400, 405, 413, 417, 431) and refusals[0].body
    for one in reading.found:
        assert isinstance(one, Answer) or len(one.body) <= BODY
    reading.reader.close()
    assert reading.held == 0
