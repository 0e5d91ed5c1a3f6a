# SPDX-License-Identifier: Apache-2.0
"""An application for the HTTP server whose paths each do one thing, and a client that sends bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from plait.http.message import Answer, Parked, Request, Response, StreamAnswer, Taskless, plain
from plait.http.server import HttpServer, Limits

MAX_BODY = 100_000
BIG = 16 << 20


class Parts:
    """`respond` answers by the target's path; what it saw is in `seen`, errors in `faults`."""

    def __init__(self) -> None:
        self.seen: list[Request] = []
        self.faults: list[Exception] = []
        self.value = b""
        self.wakes: set[Callable[[], None]] = set()
        self.gate, self.done = asyncio.Event(), 0
        self.streams = 0

    def respond(self, request: Request) -> Response:
        self.seen.append(request)
        match request.target.partition(b"?")[0]:
            case b"/echo":
                return plain(200, request.body.decode("latin-1"))
            case b"/later":
                return self._later()
            case b"/taskless":
                return Taskless(self._later())
            case b"/taskless-now":
                return Taskless(self._now())
            case b"/taskless-fault":
                return Taskless(self._fault())
            case b"/taskless-cancelled":
                return Taskless(self._cancelled())
            case b"/parked":
                return Parked(
                    lambda: 30.0,
                    lambda over: plain(200, self.value.decode()) if self.value or over else None,
                    self.wakes.add,
                    self.wakes.discard,
                )
            case b"/swept":
                return self._parked(0.4)
            case b"/soon":
                return Parked(lambda: 0.05, lambda over: plain(200, "over") if over else None, self.wakes.add, self.wakes.discard)
            case b"/later-parked":
                return self._later_parked()
            case b"/stream":
                return StreamAnswer(self._stream())
            case b"/big":
                return Answer(200, b"x" * BIG, "application/octet-stream")
            case b"/text":
                return plain(200, "text " * 1000)
            case b"/long":
                return plain(200, "text " * 100_000)
            case b"/split":
                return Answer(200, b"", "text/plain", {"X-Evil": "a\r\nSet-Cookie: b"})
            case b"/fault":
                raise RuntimeError("broken")
        return plain(404, "")

    def refused(self, error: Exception, request: Request) -> Answer:
        self.faults.append(error)
        return plain(500, repr(error))

    def rejected(self, status: int, text: str) -> Answer:
        return plain(status, text)

    def max_body(self, target: bytes) -> int:
        return MAX_BODY

    def wake(self) -> None:
        for wake in list(self.wakes):
            wake()

    async def _later(self) -> Answer:
        await asyncio.sleep(0)
        await self.gate.wait()
        self.done += 1
        return plain(200, "later")

    async def _now(self) -> Answer:
        return plain(200, "now")

    async def _cancelled(self) -> Answer:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        loop.call_later(0.01, future.cancel)
        return await future

    async def _fault(self) -> Answer:
        await asyncio.sleep(0.01)
        raise RuntimeError("broken")

    async def _later_parked(self) -> Parked:
        await asyncio.sleep(0)
        return self._parked(30.0)

    def _parked(self, wait_s: float) -> Parked:
        """Waits for a value."""

        def look(over: bool) -> Answer | None:
            return plain(200, self.value.decode() or "over") if self.value or over else None

        return Parked(lambda: wait_s, look, self.wakes.add, self.wakes.discard)

    async def _stream(self) -> AsyncGenerator[bytes]:
        self.streams += 1
        try:
            for _ in range(3):
                yield b"part"
            await self.gate.wait()
            yield b"" if self.value != b"flood" else b"f" * BIG
            if self.value == b"broken":
                raise RuntimeError("broken")
        finally:
            self.streams -= 1


class Peer:
    """A client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    def reset(self) -> None:
        """End the connection by a reset (RST)."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next whole answer. asyncio.IncompleteReadError if the server ends the connection instead."""
        async with asyncio.timeout(15):
            first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            return int(first.split()[1]), headers, await self.reader.readexactly(int(headers.get("content-length", 0)))

    async def rest(self) -> bytes:
        """All until the server ends the connection."""
        async with asyncio.timeout(15):
            with contextlib.suppress(ConnectionError):
                return await self.reader.read()
            return b""

    async def get(self, path: str, *fields: str) -> tuple[int, dict[str, str], bytes]:
        await self.send("\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *fields, "", ""]).encode())
        return await self.answer()


class Served:
    """A server of `Parts` on loopback."""

    def __init__(self, server: HttpServer, app: Parts) -> None:
        self.server, self.app = server, app
        self.peers: list[Peer] = []

    async def peer(self) -> Peer:
        peer = Peer(*await asyncio.open_connection("127.0.0.1", self.server.port))
        self.peers.append(peer)
        return peer


@contextlib.asynccontextmanager
async def served(limits: Limits | None = None) -> AsyncIterator[Served]:
    app = Parts()
    server = HttpServer(app, limits)
    await server.start("127.0.0.1", 0)
    found = Served(server, app)
    try:
        yield found
    finally:
        await server.stop()
        for peer in found.peers:
            peer.writer.close()
            with contextlib.suppress(ConnectionError):
                await peer.writer.wait_closed()


async def become(true: Callable[[], object]) -> None:
    """Until `true()` is; TimeoutError after ten seconds or more."""
    for _ in range(2000):
        if true():
            return
        await asyncio.sleep(0.005)
    raise TimeoutError("it did not become true")
