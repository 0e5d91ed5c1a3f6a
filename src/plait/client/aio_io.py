# SPDX-License-Identifier: Apache-2.0
"""Performs effects with asyncio streams: keep-alive connections, time limits; stopping is cancelling the task.

Data in: Steps. Data out: their results. For the tasks of one event loop.
"""

from __future__ import annotations

import asyncio
from errno import ECONNRESET
from typing import TypeAlias, TypeVar

from plait.client.errors import Closed, Unreachable
from plait.client.settings import Settings
from plait.client.steps import Answer, Request, Sleep, Steps
from plait.client.wire import Reader, WireError, failure, request_bytes

T = TypeVar("T")
IDLE_MAX = 8
"""Connections kept for later."""
_PIECE = 64 * 1024

Line: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Transport:
    """Connections to one agent."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._tls = settings.tls_context()
        self._idle: list[Line] = []
        self._closed = False

    async def send(self, request: Request) -> Answer:
        """The answer; Unreachable if there is none. A read is repeated once if a kept connection had died unseen."""
        try:
            async with asyncio.timeout(request.limit(self.settings.timeout_s)):
                line = self._kept(request)
                if line is not None:
                    try:
                        return await self._exchange(line, request)
                    except Unreachable:
                        if not request.again:
                            raise
                return await self._exchange(await self._connect(request), request)
        except TimeoutError as error:
            raise failure(request, self.settings, error, True) from error

    async def close(self) -> None:
        """Close the kept connections; those in use end with their requests."""
        self._closed = True
        idle, self._idle = self._idle, []
        for _, writer in idle:
            writer.close()
        for _, writer in idle:
            try:
                await writer.wait_closed()
            except OSError:
                pass  # it is closed, that is all that was wanted

    async def _exchange(self, line: Line, request: Request) -> Answer:
        incoming, outgoing = line
        reader = Reader()
        try:
            outgoing.write(request_bytes(request, self.settings))
            await outgoing.drain()
            while reader.answer is None:
                reader.feed(await incoming.read(_PIECE))
        except (OSError, WireError) as error:
            outgoing.transport.abort()
            raise failure(request, self.settings, error, True) from error
        except BaseException:
            outgoing.transport.abort()
            raise
        if reader.keep and not self._closed and len(self._idle) < IDLE_MAX:
            self._idle.append(line)
        else:
            outgoing.close()
        return reader.answer

    async def _connect(self, request: Request) -> Line:
        settings = self.settings
        try:
            async with asyncio.timeout(settings.timeout_s):
                if settings.unix:
                    return await asyncio.open_unix_connection(settings.host)
                name = (settings.server_name or settings.host) if self._tls else None
                return await asyncio.open_connection(settings.host, settings.port, ssl=self._tls, server_hostname=name)
        except (OSError, UnicodeError) as error:
            raise failure(request, settings, error, False) from error

    def _kept(self, request: Request) -> Line | None:
        """A kept connection that the other side has not closed. Unreachable if all have been and that must not go unseen."""
        died = False
        if self._closed:
            raise Closed("the client was closed")
        while self._idle:
            incoming, outgoing = self._idle.pop()
            if not incoming.at_eof() and not outgoing.is_closing():
                return incoming, outgoing
            died = True
            outgoing.close()
        if died and request.wait_s:
            raise failure(request, self.settings, ConnectionResetError(ECONNRESET, ""), False)
        return None


async def run(steps: Steps[T], transport: Transport) -> T:
    """Perform an operation in this task."""
    clock = asyncio.get_running_loop().time
    try:
        effect = next(steps)
        while True:
            if isinstance(effect, Request):
                try:
                    answer = await transport.send(effect)
                except Unreachable as error:
                    effect = steps.throw(error)
                    continue
                effect = steps.send(answer)
            elif isinstance(effect, Sleep):
                await asyncio.sleep(effect.seconds)
                effect = steps.send(None)
            else:
                effect = steps.send(clock())
    except StopIteration as done:
        result: T = done.value
        return result
