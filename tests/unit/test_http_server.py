# SPDX-License-Identifier: Apache-2.0
"""The HTTP server over real connections on loopback: keep-alive, pipelines, bodies, waits, streams, limits, slow and rude clients."""

from __future__ import annotations

import asyncio
import gzip
import logging
import socket
from email.utils import formatdate

import pytest
from tests.support.http import BIG, MAX_BODY, Peer, become, served

from plait.http.message import http_date
from plait.http.server import Limits

GET = b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n"
QUICK = Limits(head_s=0.2, body_s=0.2, idle_s=0.3, stall_s=0.2, linger_s=0.2, sweep_s=0.05)


def put(path: bytes, body: bytes, *fields: bytes) -> bytes:
    return b"\r\n".join([b"PUT %b HTTP/1.1" % path, b"Host: x", b"Content-Length: %d" % len(body), *fields, b"", body])


async def test_one_connection_serves_many_requests() -> None:
    async with served() as found:
        peer = await found.peer()
        for _ in range(3):
            status, headers, _ = await peer.get("/echo")
            assert status == 200 and "connection" not in headers and headers["date"].endswith("GMT")
        await peer.send(put(b"/echo?a=b#part", b"hello"))
        assert (await peer.answer())[2] == b"hello"
        assert [request.target for request in found.app.seen] == [b"/echo"] * 3 + [b"/echo?a=b"]
        assert len(found.server.connections) == 1


@pytest.mark.parametrize("later", [b"/later", b"/taskless"])
async def test_a_pipeline_is_answered_in_order_even_if_one_takes_time(later: bytes) -> None:
    async with served() as found:
        peer = await found.peer()
        await peer.send(put(b"/echo", b"1") + GET % later + put(b"/echo", b"2") + GET % b"/soon" + put(b"/echo", b"3") * 2000)
        assert (await peer.answer())[2] == b"1"
        await become(lambda: len(found.app.seen) == 2)
        await asyncio.sleep(0.02)
        assert len(found.app.seen) == 2
        found.app.gate.set()
        bodies = [(await peer.answer())[2] for _ in range(2003)]
        assert bodies == [b"later", b"2", b"over"] + [b"3"] * 2000


async def test_a_pipeline_is_not_read_without_end_while_something_waits() -> None:
    async with served() as found:
        peer = await found.peer()
        await peer.send(GET % b"/later")
        await become(lambda: found.app.seen)
        (connection,) = found.server.connections
        peer.writer.write(put(b"/echo", b"x" * 90_000) * 100)
        await become(lambda: len(connection._rest) > 64 * 1024)
        await asyncio.sleep(0.1)
        assert len(connection._rest) <= 2 * 64 * 1024
        found.app.gate.set()
        assert [(await peer.answer())[2] for _ in range(101)] == [b"later"] + [b"x" * 90_000] * 100


async def test_chunks_are_put_together_and_trailers_are_let_go() -> None:
    async with served() as found:
        peer = await found.peer()
        head = b"PUT /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        await peer.send(head + b"3\r\nabc\r\n4;ext=1\r\ndefg\r\n0\r\nExpect: nothing\r\n\r\n" + GET % b"/echo")
        assert (await peer.answer())[2] == b"abcdefg" and (await peer.answer())[0] == 200


async def test_a_client_that_asks_first_is_told_to_go_on() -> None:
    async with served() as found:
        peer = await found.peer()
        head = b"PUT /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
        await peer.send(head)
        assert await peer.reader.readexactly(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        await peer.send(b"body")
        assert (await peer.answer())[2] == b"body"
        await peer.send(GET % b"/later" + head)  # it is told so after the answer that comes first
        await become(lambda: len(found.app.seen) == 2)
        found.app.gate.set()
        assert (await peer.answer())[2] == b"later"
        assert await peer.reader.readexactly(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        await peer.send(b"more")
        assert (await peer.answer())[2] == b"more"
        too_large = b"PUT /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\nExpect: 100-continue\r\n\r\n"
        await peer.send(too_large)
        assert (await peer.answer())[0] == 413


@pytest.mark.parametrize(
    ("request_bytes", "fields"),
    [
        (b"GET /echo HTTP/1.0\r\n\r\n", {"connection": "close"}),
        (b"GET /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {"connection": "close"}),
        (b"GET /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", {"connection": "keep-alive"}),
    ],
)
async def test_what_the_client_says_of_its_connection_is_done(request_bytes: bytes, fields: dict[str, str]) -> None:
    async with served() as found:
        peer = await found.peer()
        await peer.send(request_bytes)
        status, headers, _ = await peer.answer()
        assert status == 200 and {name: headers[name] for name in fields} == fields
        if fields["connection"] == "close":
            assert await peer.rest() == b""
        else:
            assert (await peer.get("/echo"))[0] == 200


async def test_after_a_close_nothing_is_answered() -> None:
    async with served() as found:
        peer = await found.peer()
        await peer.send(b"GET /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + GET % b"/echo")
        assert (await peer.rest()).count(b"HTTP/1.1") == 1 and len(found.app.seen) == 1


async def test_an_upgrade_is_passed_over_and_a_tunnel_refused() -> None:
    async with served() as found:
        peer = await found.peer()
        fields = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
        assert (await peer.get("/echo", *fields))[0] == 200
        assert (await peer.get("/echo"))[0] == 200
        await peer.send(b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n\x16\x03\x01")
        assert (await peer.answer())[0] == 405 and await peer.rest() == b""


async def test_head_has_the_fields_and_no_body() -> None:
    async with served() as found:
        peer = await found.peer()
        await peer.send(b"HEAD /text HTTP/1.1\r\nHost: x\r\n\r\n" + put(b"/echo", b"next"))
        head = await peer.reader.readuntil(b"\r\n\r\n")
        assert b"Content-Length: 5000" in head and (await peer.answer())[2] == b"next"


@pytest.mark.parametrize("path", ["/text", "/long"])
async def test_large_text_is_compressed_for_whoever_takes_it(path: str) -> None:
    async with served() as found:
        peer = await found.peer()
        plain = (await peer.get(path))[2]
        status, headers, body = await peer.get(path, "Accept-Encoding: br, gzip;q=0.5")
        assert (status, headers["content-encoding"]) == (200, "gzip") and gzip.decompress(body) == plain
        for refusal in ("gzip;q=0", "gzip; q=0.0", "br"):
            assert (await peer.get(path, f"Accept-Encoding: {refusal}"))[2] == plain


# --- waiting, streams


@pytest.mark.parametrize("path", ["/parked", "/later-parked"])
async def test_a_parked_request_is_answered_when_it_is_woken_for_something(path: str) -> None:
    async with served() as found:
        peer = await found.peer()
        await peer.send(GET % path.encode())
        await become(lambda: found.app.wakes)
        found.app.wake()
        await asyncio.sleep(0.02)
        assert found.app.wakes
        found.app.value = b"news"
        found.app.wake()
        assert (await peer.answer())[2] == b"news"
        assert not found.app.wakes and (await peer.get("/echo"))[0] == 200


async def test_a_long_wait_ends_on_time() -> None:
    async with served(Limits(sweep_s=0.05)) as found:
        peer, clock = await found.peer(), asyncio.get_running_loop().time
        began = clock()
        assert (await peer.get("/swept"))[2] == b"over"
        assert 0.4 <= clock() - began < 5 and not found.app.wakes


async def test_the_same_bytes_mean_the_same_only_between_two_requests() -> None:
    async with served() as found:
        peer, request = await found.peer(), GET % b"/echo"
        for _ in range(3):
            await peer.send(request)
            assert (await peer.answer())[2] == b""
        assert len(found.server.known) == 1
        await peer.send(b"PUT /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(request))
        await become(lambda: any(connection._begun for connection in found.server.connections))
        await peer.send(request)
        assert (await peer.answer())[2] == request


async def test_a_known_head_goes_with_every_body_and_with_nothing_else() -> None:
    async with served() as found:
        peer = await found.peer()
        for body in (b"one", b"two", b"2\r\n"):
            await peer.send(put(b"/echo", body))
            assert (await peer.answer())[2] == body
        (known,) = found.server.known
        assert known + b"one" == put(b"/echo", b"one")
        await peer.send(known + b"s")
        await become(lambda: any(connection._begun for connection in found.server.connections))
        await peer.send(b"ix" + put(b"/echo", b"ten") * 2)
        assert [(await peer.answer())[2] for _ in range(3)] == [b"six", b"ten", b"ten"]
        chunked = b"PUT /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        for body in (b"one", b"two", b"", b"three"):
            await peer.send(chunked + (b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"))
            assert (await peer.answer())[2] == body
        assert list(found.server.known) == [known]


async def test_many_that_are_parked_are_answered_and_others_meanwhile() -> None:
    async with served() as found:
        peers = [await found.peer() for _ in range(450)]
        for peer in peers:
            await peer.send(GET % b"/parked")
        await become(lambda: len(found.app.wakes) == 450)
        found.app.value = b"news"
        for _ in range(3):
            found.app.wake()
        assert [(await peer.answer())[2] for peer in peers] == [b"news"] * 450


@pytest.mark.parametrize("path", [b"/parked", b"/stream"])
@pytest.mark.parametrize("how", ["close", "half", "reset"])
async def test_whoever_goes_away_waits_no_longer(path: bytes, how: str) -> None:
    async with served() as found:
        peer = await found.peer()
        await peer.send(GET % path)
        await become(lambda: found.app.wakes or found.app.streams)
        if how == "half":
            peer.writer.write_eof()
        elif how == "reset":
            peer.reset()
        else:
            peer.writer.close()
        await become(lambda: not found.app.wakes and not found.app.streams and not found.server.connections)


@pytest.mark.parametrize("later", [b"/later", b"/taskless"])
async def test_a_write_goes_on_when_its_client_goes_and_is_answered_to_half_a_connection(later: bytes) -> None:
    async with served() as found:
        gone, half = await found.peer(), await found.peer()
        await gone.send(put(later, b""))
        await half.send(put(later, b""))
        await become(lambda: len(found.app.seen) == 2)
        gone.reset()
        half.writer.write_eof()
        await become(lambda: any(connection._lost for connection in found.server.connections))
        await asyncio.sleep(0.02)
        assert len(found.server.connections) == 2
        found.app.gate.set()
        status, headers, _ = await half.answer()
        assert (status, headers["connection"]) == (200, "close")
        await become(lambda: found.app.done == 2 and not found.server.connections)


async def test_a_stream_comes_in_chunks_and_the_connection_goes_on() -> None:
    async with served() as found:
        peer = await found.peer()
        status, headers, _ = await peer.get("/stream")
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        assert await peer.reader.readexactly(27) == b"4\r\npart\r\n" * 3
        found.app.gate.set()
        assert await peer.reader.readexactly(5) == b"0\r\n\r\n"
        assert (await peer.get("/echo"))[0] == 200
        await peer.send(b"GET /stream HTTP/1.0\r\n\r\n")
        assert (await peer.rest()).endswith(b"\r\n\r\npartpartpart")


async def test_a_stream_that_breaks_ends_its_connection_without_an_end() -> None:
    async with served() as found:
        peer = await found.peer()
        found.app.value = b"broken"
        await peer.get("/stream")
        found.app.gate.set()
        assert not (await peer.rest()).endswith(b"0\r\n\r\n")
        assert [str(fault) for fault in found.app.faults] == ["broken"]


# --- faults and refusals


@pytest.mark.parametrize("path", ["/fault", "/split", "/taskless-fault"])
async def test_a_fault_is_told_and_the_connection_goes_on(path: str) -> None:
    async with served() as found:
        peer = await found.peer()
        status, headers, _ = await peer.get(path)
        assert status == 500 and "set-cookie" not in headers and len(found.app.faults) == 1
        assert (await peer.get("/echo"))[0] == 200


LONG = b"x" * 40_000


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00garbage", 400),
        (b"GET /echo HTTP/9.9\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nHost x\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"PUT /echo HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"PUT /echo HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"PUT /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /" + LONG, 431),
        (b"GET /echo HTTP/1.1\r\nA: " + LONG, 431),
        (b"GET /echo HTTP/1.1\r\n" + LONG, 431),
        (b"GET /echo HTTP/1.1\r\n" + b"A: b\r\n" * 9_000, 431),
        (b"\r\n" * 30_000, 431),
        (b"PUT /echo HTTP/1.1\r\nContent-Length: 100001\r\n\r\n", 413),
        (b"PUT /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + (b"8000\r\n" + b"x" * 0x8000 + b"\r\n") * 4, 413),
        (b"PUT /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * 9_000, 431),
        (b"PUT /echo HTTP/1.1\r\nContent-Length: 1\r\nExpect: miracles\r\n\r\n", 417),
    ],
)
async def test_what_no_client_may_send_is_refused_with_the_reason(data: bytes, status: int) -> None:
    async with served() as found:
        peer = await found.peer()
        await peer.send(put(b"/echo", b"before") + data)
        assert (await peer.answer())[2] == b"before"
        refused, headers, text = await peer.answer()
        assert (refused, headers["connection"]) == (status, "close") and text
        assert await peer.rest() == b"" and len(found.app.seen) == 1 and found.server.held == 0


async def test_a_client_that_is_still_sending_sees_why_it_is_refused() -> None:
    async with served() as found:
        peer = await found.peer()
        await peer.send(b"PUT /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n\r\n")
        await peer.send(b"x" * 8_000_000)
        assert (await peer.answer())[0] == 413


async def test_a_body_as_large_as_it_may_be_is_taken() -> None:
    async with served() as found:
        peer = await found.peer()
        await peer.send(put(b"/echo", b"x" * MAX_BODY))
        assert (await peer.answer())[2] == b"x" * MAX_BODY
        await peer.send(b"PUT /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (MAX_BODY, b"y" * MAX_BODY))
        assert (await peer.answer())[2] == b"y" * MAX_BODY


async def test_all_unfinished_bodies_together_are_bounded() -> None:
    async with served(Limits(bodies=150_000)) as found:
        first, second = await found.peer(), await found.peer()
        await first.send(put(b"/echo", b"x" * 90_000)[:-1])
        await become(lambda: found.server.held > 80_000)
        await second.send(put(b"/echo", b"x" * 90_000))
        assert (await second.answer())[0] == 503
        await first.send(b"x")
        assert (await first.answer())[0] == 200 and found.server.held == 0


# --- slow clients, too many


@pytest.mark.parametrize(
    ("start", "status"),
    [
        (b"GET /ec", 408),
        (b"\r\n", 408),
        (put(b"/echo", b"12345")[:-1], 408),
        (GET % b"/echo" + b"GET", 200),
        (b"", 0),
        (GET % b"/echo", 200),
    ],
)
async def test_a_client_that_takes_its_time_is_cut_off(start: bytes, status: int) -> None:
    async with served(QUICK) as found:
        peer = await found.peer()
        await peer.send(start)
        rest = await peer.rest()
        assert rest.startswith(b"HTTP/1.1 %d " % status) if status else rest == b""
        await become(lambda: not found.server.connections and found.server.held == 0)


async def test_a_slow_loris_is_cut_off_although_it_goes_on_sending() -> None:
    async with served(QUICK) as found:
        peer = await found.peer()
        await peer.send(b"GET /echo HTTP/1.1\r\n")
        for _ in range(60):
            await peer.send(b"A: b\r\n")
            await asyncio.sleep(0.02)
            if not found.server.connections:
                break
        assert not found.server.connections and not found.app.seen


async def test_a_slow_start_of_the_next_request_counts_too() -> None:
    async with served(QUICK) as found:
        peer = await found.peer()
        await peer.send(GET % b"/later" + b"GET /ec")
        await become(lambda: found.app.seen)
        await asyncio.sleep(0.4)
        assert found.server.connections
        found.app.gate.set()
        assert (await peer.answer())[2] == b"later" and (await peer.answer())[0] == 408


def deaf(port: int, data: bytes) -> socket.socket:
    """A client that sends and then takes nothing."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    found.connect(("127.0.0.1", port))
    found.sendall(data)
    return found


@pytest.mark.parametrize("path", [b"/big", b"/stream"])
async def test_a_client_that_takes_nothing_is_cut_off(path: bytes) -> None:
    async with served(QUICK) as found:
        found.app.value = b"flood"
        found.app.gate.set()
        with deaf(found.server.port, (GET % path) * 5):
            await become(lambda: found.app.seen)
            await become(lambda: not found.server.connections and not found.app.streams)
            assert len(found.app.seen) == 1


async def test_a_client_that_reads_slowly_gets_all() -> None:
    async with served() as found:
        peer = await found.peer()
        await peer.send(GET % b"/big" + put(b"/echo", b"next"))
        await asyncio.sleep(0.1)
        assert len(found.app.seen) == 1
        assert len((await peer.answer())[2]) == BIG and (await peer.answer())[2] == b"next"


async def test_an_idle_connection_makes_room_and_without_one_the_next_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async with served(Limits(connections=3, sweep_s=0.05)) as found:
        idle, *parked = [await found.peer() for _ in range(3)]
        assert (await idle.get("/echo"))[0] == 200
        for peer in parked:
            await peer.send(GET % b"/parked")
        await become(lambda: len(found.app.wakes) == 2)
        fresh = await found.peer()
        assert (await fresh.get("/echo"))[0] == 200 and await idle.rest() == b""
        await fresh.send(GET % b"/parked")
        await become(lambda: len(found.app.wakes) == 3)
        for _ in range(3):
            refused = await found.peer()
            assert (await refused.answer())[0] == 503
        await become(lambda: len(found.server.connections) == 3)
        assert [(r.levelno, r.getMessage()) for r in caplog.records if r.name == "plait.http"] == [(logging.WARNING, "http_full")]


# --- the end


async def test_an_answer_whose_work_is_cancelled_ends_its_connection() -> None:
    async with served() as found:
        peer = await found.peer()
        await peer.send(put(b"/taskless-cancelled", b"") + GET % b"/echo")
        assert await peer.rest() == b"" and len(found.app.seen) == 1
        await become(lambda: not found.server.connections)


async def test_many_answers_without_a_task_that_need_not_wait_do_not_nest() -> None:
    async with served() as found:
        peer = await found.peer()
        await peer.send(GET % b"/later" + GET % b"/taskless-now" * 2000)
        await become(lambda: len(found.app.seen) == 1)
        found.app.gate.set()
        assert [(await peer.answer())[2] for _ in range(2001)] == [b"later"] + [b"now"] * 2000


@pytest.mark.parametrize("later", [b"/later", b"/taskless"])
async def test_a_stop_lets_answers_under_way_end_and_waits_for_nobody_else(later: bytes) -> None:
    async with served() as found:
        names = {path: await found.peer() for path in (later, b"/parked", b"/stream")}
        idle = await found.peer()
        for path, peer in names.items():
            await peer.send(GET % path)
        await become(lambda: found.app.wakes and found.app.streams and len(found.app.seen) == 3)
        stop = asyncio.create_task(found.server.stop())
        await asyncio.sleep(0.01)
        found.app.gate.set()
        status, headers, _ = await names[later].answer()
        assert (status, headers["connection"]) == (200, "close")
        async with asyncio.timeout(5):
            await stop
        assert await names[b"/parked"].rest() == b"" and await idle.rest() == b""
        assert not found.app.wakes and not found.app.streams and not found.server.connections
        with pytest.raises(ConnectionRefusedError):
            await found.peer()


@pytest.mark.parametrize("later", [b"/later", b"/taskless"])
async def test_a_stop_cuts_off_what_does_not_end(later: bytes) -> None:
    async with served() as found:
        peer: Peer = await found.peer()
        await peer.send(put(later, b""))
        await become(lambda: found.app.seen)
        async with asyncio.timeout(5):
            await found.server.stop()
        assert not found.server.connections and found.app.done == 0


async def test_it_listens_on_several_addresses_until_it_is_stopped() -> None:
    async with served() as found:
        port = found.server.port
        await found.server.start("127.0.0.2", port)
        assert found.server.port == port
        for host in ("127.0.0.1", "127.0.0.2"):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
        await found.server.stop()
        for host in ("127.0.0.1", "127.0.0.2"):
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(host, port)


@pytest.mark.parametrize("seconds", [0, 784111777, 951782399.9, 951782400, 1798761599, 4102444800])
def test_dates_are_those_of_the_standard(seconds: float) -> None:
    assert http_date(784111777) == "Sun, 06 Nov 1994 08:49:37 GMT", "RFC 9110, section 5.6.7"
    assert http_date(seconds) == formatdate(seconds, usegmt=True)
