# SPDX-License-Identifier: Apache-2.0
"""One connection of the HTTP server: HTTP/1.1 (RFC 9112), one answer after the other in the order of requests.

Data in: bytes as they come. Data out: requests to the `App`, answers to the client. While a request is answered nothing is parsed; bytes
that come meanwhile are kept up to a limit, then not read. What a client may not do is answered with the reason, and the connection ends.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import Awaitable, Coroutine
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

from plait.http.message import COMPRESS_APART, Answer, Parked, Request, StreamAnswer, Taskless, compressed, compressible, head_bytes
from plait.http.reader import RequestReader

if TYPE_CHECKING:
    from plait.http.server import HttpServer

log = logging.getLogger("plait.http")
_SLICE = 16 * 1024
"""Bytes that are parsed at once, which bounds how many requests wait."""
_AHEAD = 64 * 1024
"""Bytes that may come while a request is answered."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_NEVER = math.inf
_BROKEN = Request("", b"", {})
"""Stands for one that could not be read."""


class Connection(asyncio.BufferedProtocol):
    """The server looks at the deadline. `_busy`: a request is answered, `_steps`: by steps without a task; `_ending`: no more is parsed."""

    __slots__ = (
        "_blocked", "_busy", "_current", "_drained", "_due", "_ending", "_lingers", "_lost", "_parked", "_queue", "_reader",
        "_rest", "_server", "_steps", "_task", "_timer", "_transport", "deadline",
    )  # fmt: skip

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self.deadline = _NEVER
        self._transport: asyncio.Transport
        self._queue: list[Request | Answer] = []
        self._reader: RequestReader | None = None
        self._rest = b""
        self._busy = self._due = self._ending = self._lingers = self._blocked = self._lost = self._steps = False
        self._current = _BROKEN
        self._task: asyncio.Future[None] | None = None
        self._parked: Parked | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None

    # --- the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        full = not self._server.admit(self, sock)
        self.deadline = self._server.now + self._server.limits.idle_s
        if full:
            self._ending = True
            self._finish(self._server.app.rejected(503, "the agent has as many connections as it takes; close some, or try again later"))
            self._close()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._server.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._ending:
            return
        data = bytes(self._server.buffer[:nbytes])
        if self._busy or self._blocked:
            self._rest += data
            if len(self._rest) > _AHEAD:
                self._transport.pause_reading()
            return
        if nbytes > _SLICE or self._begun:
            self._rest += data
        elif (known := self._server.recall(data)) is not None:
            self._answer(known)
        else:
            self._parse(data)
            if len(self._queue) == 1 and not (self._ending or self._begun or self._rest):
                self._server.remember(data, self._queue[0])
        self._go_on()

    def eof_received(self) -> bool:
        """Whoever only ends its side may still get the answers to its writes; nothing waits for a client that may be gone."""
        self._ending, self._rest = True, b""
        waits = self._parked is not None or (self._task is not None and self._current.method == "GET")
        halves = self._transport.can_write_eof()  # which TLS cannot
        return halves and (self._busy or self._blocked) and not (self._lingers or waits)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = self._ending = True
        self._rest = b""
        self._queue.clear()
        self._unpark()
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self._task.cancelled() if self._task is not None else not self._steps:
            self._server.connections.pop(self, None)
        elif self._task is not None and self._current.method == "GET":  # a write that has begun goes on to its end
            self._task.cancel()
        self.deadline = _NEVER

    def pause_writing(self) -> None:
        self._blocked = True
        self.deadline = self._server.now + self._server.limits.stall_s

    def resume_writing(self) -> None:
        self._blocked = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self.deadline = _NEVER
        self._go_on()

    # --- the server

    @property
    def idle(self) -> bool:
        """Whether it is between two requests."""
        return not (self._busy or self._blocked or self._ending or self._begun)

    @property
    def _begun(self) -> bool:
        """Whether a part of a request is there."""
        return self._reader is not None and self._reader.phase != "between"

    def expire(self) -> None:
        """The deadline has passed."""
        if self._parked is not None:
            self._look_after(self.deadline + 2 * self._server.limits.sweep_s - _time())
            self.deadline = _NEVER
        elif self._lingers or self._blocked or self._ending or not self._begun:
            self.abort()
        else:
            self._queue.append(self._server.app.rejected(408, "the request did not come in time"))
            self._ending, self._rest = True, b""
            self._go_on()

    def stop(self) -> asyncio.Future[None] | None:
        """Take no more requests. What answers the present one if that is worth waiting for; else the connection ends."""
        self._ending, self._rest = True, b""
        self._queue.clear()
        if self._steps and self._task is None:
            self._task = asyncio.get_running_loop().create_future()
        elif self._task is None:
            self._close()
        return self._task

    def abort(self) -> None:
        """Cut it off."""
        self._ending = True
        if not self._lost:
            self._transport.abort()

    def look(self, over: bool) -> None:
        """A parked request: answer if there is something to say now."""
        self._due = False
        if self._parked is None:
            return
        try:
            answer = self._parked.look(over)
        except Exception as error:
            answer = self._server.app.refused(error, self._current)
        if answer is not None:
            self._unpark()
            self._finish(answer)
            self._busy = False
            self._go_on()

    def __call__(self) -> None:
        """Wake it: have a parked request look again soon."""
        if not self._due:
            self._due = True
            self._server.look_soon(self)

    # --- answering

    def _parse(self, data: bytes) -> None:
        """Queue the requests that end in `data`."""
        server = self._server
        if self._reader is None:
            self._reader = RequestReader(server.allowed, self._queue)
        reader = self._reader
        before = reader.count, reader.phase
        self._rest = reader.feed(data) + self._rest
        if reader.ended:
            self._ending, self._rest = True, b""
        elif (reader.count, reader.phase) != before:
            if reader.phase == "head":
                self.deadline = server.now + server.limits.head_s
            elif reader.phase == "body":
                self.deadline = server.now + server.limits.body_s + reader.length / server.limits.body_rate

    def _go_on(self) -> None:
        """Answer what waits, parse what came; else wait for more, or end."""
        while not (self._busy or self._blocked or self._lost):
            if self._queue:
                self._answer(self._queue.pop(0))
            elif self._ending:
                return self._end()
            elif self._rest:
                data, self._rest = self._rest[:_SLICE], self._rest[_SLICE:]
                self._parse(data)
            else:
                return self._wait()
        return None

    def _wait(self) -> None:
        """For bytes."""
        limits, now, reader = self._server.limits, self._server.now, self._reader
        if reader is None or reader.phase == "between":
            self.deadline = now + limits.idle_s
        else:
            if self.deadline == _NEVER:  # it began while another request was answered
                self.deadline = now + limits.body_s
            if reader.expects:
                reader.expects = False
                self._transport.write(_CONTINUE)
        self._transport.resume_reading()

    def _answer(self, request: Request | Answer) -> None:
        if isinstance(request, Answer):
            self._current, self._lingers = _BROKEN, True
            return self._finish(request)
        self._current, self._busy, self.deadline = request, True, _NEVER
        server = self._server
        try:
            made = server.app.respond(request) if server.may_write is None else server.respond(request, self._transport)
        except Exception as error:
            made = server.app.refused(error, request)
        if type(made) is Answer and len(made.body) < COMPRESS_APART:
            self._finish(made)
            self._busy = False
        elif isinstance(made, Parked):
            self._park(made)
        elif isinstance(made, Taskless):
            self._steps = not self._advance(made.steps)
            self._busy = self._steps
        else:
            self._task = asyncio.get_running_loop().create_task(self._work(made))
        return None

    async def _work(self, made: Answer | Awaitable[Answer | Parked]) -> None:
        """Answer the present request with what is not there at once, or not in one piece."""
        answer: Answer | Parked | None = None
        try:
            try:
                answer = made if isinstance(made, Answer) else await made
            except Exception as error:
                answer = self._server.app.refused(error, self._current)
            if isinstance(answer, StreamAnswer):
                await self._stream(answer)
            elif isinstance(answer, Answer):
                large = len(answer.body) >= COMPRESS_APART and compressible(answer, self._current)
                self._finish(answer, await asyncio.to_thread(compressed, answer.body) if large else None)
        finally:
            self._answered(answer)

    def _answered(self, answer: Answer | Parked | None) -> None:
        """What answered the present request is done: it is sent, unless it is parked."""
        self._task, self._steps = None, False
        if self._lost:
            self._server.connections.pop(self, None)
        elif isinstance(answer, Parked) and not self._ending:
            self._park(answer)
        else:
            self._busy = False
            self._go_on()

    def _advance(self, steps: Coroutine[Any, None, Answer]) -> bool:
        """Run the present request's steps on. Whether they came to their end; else they go on when what they await is done."""
        try:
            awaited = steps.send(None)
        except StopIteration as end:
            self._finish(end.value)
        except Exception as error:
            self._finish(self._server.app.refused(error, self._current))
        except asyncio.CancelledError:  # of what they awaited: the agent is stopping
            self._queue.clear()
            self.abort()
        else:
            if awaited is None:
                asyncio.get_running_loop().call_soon(self._resume, steps)
            else:
                awaited._asyncio_future_blocking = False  # which is how a task tells that it waits (asyncio.Future.__await__)
                awaited.add_done_callback(partial(self._resume, steps))
            return False
        return True

    def _resume(self, steps: Coroutine[Any, None, Answer], _: object = None) -> None:
        if self._advance(steps):
            if self._task is not None and not self._task.done():
                self._task.set_result(None)
            self._answered(None)

    def _finish(self, answer: Answer, small: bytes | None = None) -> None:
        """Send an answer; `small`: its compressed body, if that was made already."""
        if self._lost:
            return None
        try:
            data = answer.wire(self._current, self._keeps(self._current.keep), self._server.stamp, small)
        except ValueError as error:
            return self._finish(self._server.app.refused(error, self._current))
        self._transport.write(data)
        self._server.answered[answer.status // 100] += 1
        return None

    def _keeps(self, may: bool) -> bool:
        """Whether something may follow the present answer; if not, nothing will."""
        keep = may and (bool(self._queue) or not self._ending)
        if not keep:
            self._ending, self._rest = True, b""
            self._queue.clear()
        return keep

    async def _stream(self, answer: StreamAnswer) -> None:
        """Send it part by part, no faster than the client takes it. The generator is closed whatever happens."""
        request = self._current
        try:
            async with aclosing(answer.chunks) as chunks:
                keep = self._keeps(request.keep and not request.old)
                self._transport.write(head_bytes(answer, request, None, keep, self._server.stamp))
                self._server.answered[answer.status // 100] += 1
                if request.method == "HEAD":
                    return None
                async for chunk in chunks:
                    if chunk and not self._lost:
                        self._transport.write(chunk if request.old else b"%x\r\n%b\r\n" % (len(chunk), chunk))
                    await self._drain()
                    if self._lost:
                        return None
        except Exception as error:
            self._server.app.refused(error, request)  # it is too late to send that, but not to log it
            return self.abort()
        if not request.old:
            self._transport.write(b"0\r\n\r\n")
        return None

    async def _drain(self) -> None:
        if self._blocked and not self._lost:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained
            self._drained = None

    # --- waiting, ending

    def _park(self, parked: Parked) -> None:
        if not self._begun:
            self._reader = None  # of the memory that ten thousand of these need, a good part
        self._parked = parked
        self._server.parked += 1
        wait_s, sweep_s = parked.wait_s(), self._server.limits.sweep_s
        if wait_s < 4 * sweep_s:
            self._look_after(wait_s)
        else:  # a timer is not worth its memory before the end is near
            self.deadline = _time() + wait_s - 2 * sweep_s
        parked.join(self)

    def _look_after(self, wait_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(wait_s, self.look, True)

    def _unpark(self) -> None:
        parked, self._parked = self._parked, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if parked is not None:
            self._server.parked -= 1
            parked.leave(self)

    def _end(self) -> None:
        """All is answered. A client that was refused may still be sending; it would not see why if the connection were reset."""
        if self._lingers and self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()
            self._transport.resume_reading()
            self.deadline = self._server.now + self._server.limits.linger_s
        else:
            self._close()

    def _close(self) -> None:
        """Send what is left, then end."""
        self._transport.close()
        self.deadline = self._server.now + self._server.limits.stall_s


def _time() -> float:
    return asyncio.get_running_loop().time()
