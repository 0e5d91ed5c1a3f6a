# SPDX-License-Identifier: Apache-2.0
"""A running DNS child and the agent's side of the conversation with it (`dns_link`)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

from plait.dns.answer import Found, Origin
from plait.dns.heeded import Addresses
from plait.serve.dns_link import MOST_FDS, Frames, SocketName, frame

CALL_TIMEOUT = 5.0
"""Seconds a child has to acknowledge; then it is taken for hung and replaced."""
_END_TIMEOUT = 1.0
_CHUNK = 65536
OnQuery = Callable[[bytes, Origin], Found | None]
"""Name of a prepared query, and who asks for it."""
OnAnswer = Callable[[str, Addresses, Callable[[], None]], None]
"""A name, the addresses that a resolver gives for it, and what is to be called once the client may have them."""


class DnsProcess:
    """Made by `spawn`. Exactly one of `end` and `leave` comes last."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        descriptors: socket.socket,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        on_query: OnQuery,
        on_answer: OnAnswer,
    ) -> None:
        self._process, self._descriptors, self._on_query, self._on_answer = process, descriptors, on_query, on_answer
        reader, self._writer = streams
        self.pid = process.pid
        self._number = 0
        self._serving: dict[SocketName, socket.socket] = {}
        self._answers: dict[int, asyncio.Future[object]] = {}
        self._listener = asyncio.create_task(self._listen(reader), name=f"dns child {process.pid}")

    @classmethod
    async def spawn(cls, python: str, on_query: OnQuery, on_answer: OnAnswer, successors: socket.socket | None) -> DnsProcess:
        """Start a child and wait until it is up. `successors`: where it waits for one once its agent has ended; None: it ends then. Raises
        OSError, EOFError or TimeoutError."""
        ours, theirs = socket.socketpair()
        descriptors, taken = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        given = [sock.fileno() for sock in (theirs, taken, successors) if sock is not None]
        command = (python, "-I", "-m", "plait.serve.dns_child", *map(str, given))
        try:
            with theirs, taken:
                process = _started(command, given)
            streams = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            descriptors.close()
            raise
        child = cls(process, descriptors, streams, on_query, on_answer)
        try:
            await child._answer_to(0)
        except BaseException:
            await child.end()
            raise
        return child

    async def call(self, verb: str, *arguments: object) -> object:
        """Ask the child to do `verb` and return its result. Raises EOFError if it ends first, TimeoutError if it hangs."""
        self._number += 1
        self._writer.write(frame((self._number, verb, *arguments)))
        return await self._answer_to(self._number)

    async def serve(self, sockets: Mapping[SocketName, socket.socket]) -> None:
        """Have it answer on exactly these sockets; one that was closed meanwhile and opened anew is another. Raises as `call`."""
        gone = [name for name, sock in self._serving.items() if sockets.get(name) is not sock]
        if gone:
            await self.call("close", gone)
        new = [name for name, sock in sockets.items() if self._serving.get(name) is not sock]
        for start in range(0, len(new), MOST_FDS):
            some = new[start : start + MOST_FDS]
            await self._call_with([sockets[name] for name in some], "open", some)
        self._serving = dict(sockets)

    async def succeed(self, link: socket.socket) -> None:
        """Have it take over from the child at the other end of `link`. Raises as `call`."""
        await self._call_with([link], "succeed")

    async def _call_with(self, sockets: list[socket.socket], verb: str, *arguments: object) -> object:
        socket.send_fds(self._descriptors, [b"\0"], [sock.fileno() for sock in sockets])
        return await self.call(verb, *arguments)

    async def wait(self, event: asyncio.Event, timeout: float | None) -> None:
        """Return when `event` is set or `timeout` seconds have passed. Raises EOFError when the child ends."""
        waiter = asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait({waiter, self._listener}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()
        if self._listener.done():
            self._listener.result()

    async def verdict(self) -> str:
        """Why the process is gone, once its link is."""
        code = await self._exit_status()
        if code is None:
            return "it closed its link to the agent"
        return f"killed by signal {-code}" if code < 0 else f"exit status {code}, its last words are above"

    async def leave(self) -> None:
        """Close the link and let it wait for a successor."""
        await self._close()
        self._process.returncode = 0  # it shall outlive this object, which is no oversight that deserves a warning

    async def end(self, *, at_once: bool = False) -> None:
        """Close the link, which ends a child that waits for nobody; kill it if that takes more than a second, or `at_once`."""
        if at_once:
            self._process.kill()
        await self._close()
        if await self._exit_status() is None:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)

    async def _close(self) -> None:
        self._listener.cancel()
        self._writer.close()
        self._descriptors.close()
        await asyncio.gather(self._listener, return_exceptions=True)

    async def _exit_status(self) -> int | None:
        """The status once it has ended, None if that takes too long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return await asyncio.to_thread(self._process.wait, _END_TIMEOUT)
        return None

    async def _answer_to(self, number: int) -> object:
        if self._listener.done():
            self._listener.result()
        future = self._answers.setdefault(number, asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                return await future
        finally:
            self._answers.pop(number, None)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Hand answers to those who wait for them until the child ends; then they and this end with EOFError."""
        frames, gone = Frames(), EOFError("the DNS child is gone")
        try:
            while data := await reader.read(_CHUNK):
                for number, result in frames.feed(data):
                    if number < 0:
                        self._asked(-number, result)
                    elif (future := self._answers.get(number)) is not None and not future.done():
                        future.set_result(result)
        except OSError:
            pass
        for future in self._answers.values():
            if not future.done():
                future.set_exception(gone)
        raise gone

    def _asked(self, number: int, about: tuple[str, Any, Any]) -> None:
        verb, name, more = about
        if verb == "answer":
            self._on_answer(name, more, functools.partial(self._tell, "kept", number))
        else:
            self._tell("found", number, self._on_query(name, more))

    def _tell(self, *message: object) -> None:
        """Say something that needs no answer; nobody hears it who is gone."""
        if not self._writer.is_closing():
            self._writer.write(frame((0, *message)))


def _started(command: tuple[str, ...], descriptors: list[int]) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C at a terminal is for the agent, which then ends the child. Not by asyncio, which would kill a child
    that shall outlive it."""
    return subprocess.Popen(command, pass_fds=descriptors, start_new_session=True)
