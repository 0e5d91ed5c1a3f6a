# SPDX-License-Identifier: Apache-2.0
"""The transport of connections without TLS, and who accepts them: what asyncio's own does, over real sockets."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import weakref
from collections.abc import AsyncIterator

import pytest
from tests.support.http import become

from plait.http import wire
from plait.http.readiness import Readiness
from plait.http.wire import Door, Wire

BIG = bytes(range(256)) * 40_000


class Told(asyncio.BufferedProtocol):
    """Keeps what it is told. `fails`: what it raises on bytes; `stays`: it wants to send on after the end of what comes in."""

    def __init__(self, buffer: memoryview) -> None:
        self.buffer, self.got, self.calls = buffer, b"", list[str]()
        self.fails: Exception | None = None
        self.stays = False
        self.lost: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, Wire)
        self.wire = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.got += bytes(self.buffer[:nbytes])
        if self.fails is not None:
            raise self.fails

    def eof_received(self) -> bool:
        self.calls.append("eof")
        return self.stays

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost.set_result(exc)


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Told, socket.socket]]:
    """A protocol with its wire, and the other end."""
    here, there = socket.socketpair()
    here.setblocking(False)
    there.setblocking(False)
    buffer = memoryview(bytearray(1024))
    told = Told(buffer)
    Wire(Readiness(), here, told, buffer)
    yield told, there
    there.close()
    told.wire.abort()
    async with asyncio.timeout(5):
        await told.lost
    assert here.fileno() == -1


async def read(sock: socket.socket, size: int) -> bytes:
    found = b""
    async with asyncio.timeout(5):
        while len(found) < size and (part := await asyncio.get_running_loop().sock_recv(sock, 65536)):
            found += part
    return found


async def test_more_than_the_socket_takes_arrives_in_its_order(pair: tuple[Told, socket.socket]) -> None:
    told, there = pair
    told.wire.write(BIG)
    told.wire.write(b"end")
    assert told.calls == ["pause"]
    assert await read(there, len(BIG) + 3) == BIG + b"end"
    await become(lambda: told.calls == ["pause", "resume"])
    told.wire.write(b"more")
    assert await read(there, 4) == b"more"


async def test_close_sends_what_waits(pair: tuple[Told, socket.socket]) -> None:
    told, there = pair
    told.wire.write(BIG)
    told.wire.close()
    told.wire.write(b"too late")
    assert told.wire.is_closing()
    assert await read(there, len(BIG) + 1) == BIG
    assert await told.lost is None


async def test_abort_does_not(pair: tuple[Told, socket.socket]) -> None:
    told, there = pair
    told.wire.write(BIG)
    told.wire.abort()
    assert await told.lost is None
    assert len(await read(there, len(BIG))) < len(BIG)


async def test_an_end_of_output_comes_after_what_waits(pair: tuple[Told, socket.socket]) -> None:
    told, there = pair
    told.wire.write(BIG)
    told.wire.write_eof()
    told.wire.write(b"too late")
    assert await read(there, len(BIG) + 1) == BIG
    there.send(b"heard")
    await become(lambda: told.got == b"heard")


async def test_an_end_of_input_ends_both_unless_it_is_not_wanted(pair: tuple[Told, socket.socket]) -> None:
    told, there = pair
    told.stays = True
    there.shutdown(socket.SHUT_WR)
    await become(lambda: told.calls)
    told.wire.write(b"answer")
    assert await read(there, 6) == b"answer"
    await asyncio.sleep(0.02)
    assert told.calls == ["eof"], "told once"


async def test_an_end_of_input_ends_both(pair: tuple[Told, socket.socket]) -> None:
    told, there = pair
    there.shutdown(socket.SHUT_WR)
    assert await told.lost is None
    assert await read(there, 1) == b""


async def test_a_pause_leaves_bytes_where_they_are(pair: tuple[Told, socket.socket]) -> None:
    told, there = pair
    told.wire.pause_reading()
    there.send(b"x" * 3000)
    await asyncio.sleep(0.02)
    assert told.got == b""
    told.wire.resume_reading()
    await become(lambda: len(told.got) == 3000)


@pytest.mark.parametrize("ends", ["here", "there"])
async def test_a_lost_connection_leaves_nothing_to_collect(ends: str) -> None:
    """The collector comes seldom, and connections come and go by the thousand."""
    here, there = socket.socketpair()
    here.setblocking(False)
    buffer = memoryview(bytearray(1024))
    told = Told(buffer)
    Wire(Readiness(), here, told, buffer)
    left, lost = weakref.ref(told), told.lost
    if ends == "here":
        told.wire.close()
    there.close()
    del told
    gc.disable()
    try:
        await lost
        await become(lambda: left() is None)
    finally:
        gc.enable()


async def test_a_reset_is_told(pair: tuple[Told, socket.socket]) -> None:
    told, there = pair
    there.close()
    told.wire.write(b"nobody")
    assert isinstance(await told.lost, BrokenPipeError | ConnectionResetError)


async def test_a_fault_of_the_protocol_is_told_and_ends_the_connection(pair: tuple[Told, socket.socket]) -> None:
    told, there = pair
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["exception"]))
    told.fails = ValueError("a fault")
    there.send(b"x")
    assert await told.lost is told.fails and faults == [told.fails]


async def test_a_full_system_is_given_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_REST_S", 0.05)
    tries: list[int] = []

    class Listener(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            tries.append(1)
            if len(tries) < 3:
                raise OSError(errno.EMFILE, "too many open files")
            return super().accept()

    buffer, made = memoryview(bytearray(1024)), list[Told]()

    def greet() -> Told:
        made.append(Told(buffer))
        return made[-1]

    listener = Listener(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    door = Door(Readiness(), listener, greet, buffer)
    with socket.create_connection(listener.getsockname()) as client:
        client.sendall(b"hello")
        await become(lambda: made and made[0].got == b"hello")
        assert made[0].wire.get_extra_info("peername") == client.getsockname()
        assert made[0].wire.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    async with asyncio.timeout(5):
        await made[0].lost
    assert 3 <= len(tries) < 10
    door.close()
    door.close()
    assert listener.fileno() == -1
