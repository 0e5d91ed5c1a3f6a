# SPDX-License-Identifier: Apache-2.0
"""The agent's side of DNS: wanted table, listen set and upstreams -> a child process that holds exactly these.

`DnsService` keeps what is wanted apart from what the present child has acknowledged, and one task brings the second to the
first: whatever came in meanwhile goes out together, and of a table only the names that changed. A child that died or hangs is
replaced and gets everything anew, so a caller waiting for an acknowledgement gets it from the next one.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from plait.dns.answer import Found
from plait.dns.options import DEFAULTS, Options
from plait.dns.table import EMPTY, Changes, Table, diff_tables
from plait.model.errors import ConfigError, PlaitError
from plait.serve.dns_holder import holder
from plait.serve.dns_link import Address, Frames, Upstreams, frame

CALL_TIMEOUT = 5.0
"""Seconds a child has to acknowledge; then it is taken for hung and replaced."""
BIND_RETRY = 5.0
"""Seconds between attempts at addresses that could not be listened on."""
BACKOFF = 0.1, 5.0
"""Seconds before the second restart in a row and at most; the first is immediate."""
STEADY = 10.0
"""Seconds a child must have lived for its end to count as the first in a row."""
NO_UPSTREAMS = Upstreams()
_CHUNK = 65536


OnQuery = Callable[[bytes], Found | None]


def _no_queries(name: bytes) -> Found | None:
    return None


class DnsUnavailable(PlaitError):
    """The DNS child cannot be started or does not follow in time; the service keeps trying."""


@dataclass(frozen=True, slots=True)
class BindError:
    """One socket that could not be opened; it is tried again every few seconds. `holder`: "name (pid 123)" or ""."""

    protocol: str
    address: str
    port: int
    errno: int
    holder: str = ""

    def __str__(self) -> str:
        why = os.strerror(self.errno).lower() + (f" by {self.holder}" if self.holder else "")
        return f"listening for DNS on {self.address}:{self.port}/{self.protocol}: {why}; stop what holds it or choose another address"


@dataclass(frozen=True, slots=True)
class Stats:
    """`counters` are the present child's (see `dns_responder.Counters`), `restarts` the children that died unasked."""

    counters: dict[str, int]
    restarts: int
    pid: int
    names: int


@dataclass(frozen=True, slots=True)
class _State:
    """What a child shall hold, or holds."""

    listen: frozenset[Address] = frozenset()
    upstreams: Upstreams = NO_UPSTREAMS
    options: Options = DEFAULTS
    table: Table = field(default=EMPTY)


class DnsService:
    """One DNS child and its replacement whenever it dies.

    `start` first, `close` last; the setters may be called before, between and concurrently. `on_crash` is called with a
    sentence for the log each time a child ended unasked; `on_query` says what the prepared query of a name gives.
    """

    def __init__(self, *, on_crash: Callable[[str], None], on_query: OnQuery = _no_queries, python: str = sys.executable) -> None:
        self._on_crash, self._on_query, self._python = on_crash, on_query, python
        self._wanted, self._version = _State(), 0
        self._applied = 0
        self._whole, self._changes = False, list[Changes]()
        self._bind_errors: tuple[BindError, ...] = ()
        self._changed = asyncio.Event()
        self._progress = asyncio.Condition()
        self._child: _Child | None = None
        self._task: asyncio.Task[None] | None = None
        self._restarts = 0

    @property
    def bind_errors(self) -> tuple[BindError, ...]:
        """What is wanted but not listened on at present."""
        return self._bind_errors

    async def start(self) -> None:
        """Start the child and return once it holds what was set so far. Raises DnsUnavailable."""
        if self._task is None:
            self._version += 1
            self._task = asyncio.create_task(self._supervise(), name="dns")
        await self._acknowledged()

    async def close(self) -> None:
        """End the child. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def set_table(self, table: Table) -> None:
        """Answer from `table`: every query that comes after the return is. Raises DnsUnavailable if no child takes it in time."""
        before = self._wanted.table
        if table.head != before.head:
            self._whole = True
        elif table is not before:
            await self.change_table(table, diff_tables(before, table))
            return
        await self._want(replace(self._wanted, table=table))

    async def change_table(self, table: Table, changes: Changes | None) -> None:
        """As `set_table`, of a table that is that of the last call with `changes` made (the same one, or another), at their cost."""
        if changes is not None:
            self._changes.append(changes)
        await self._want(replace(self._wanted, table=table))

    async def set_listen(self, addresses: Iterable[Address]) -> tuple[BindError, ...]:
        """Listen on exactly these (address, port), UDP and TCP; sockets that stay wanted are not touched. Returns what
        could not be opened. Raises ConfigError if an upstream is among them, DnsUnavailable as `set_table`."""
        listen = frozenset(addresses)
        _check_loop(listen, self._wanted.upstreams)
        await self._want(replace(self._wanted, listen=listen))
        return self._bind_errors

    async def set_upstreams(self, upstreams: Upstreams) -> None:
        """Forward names that are not ours to these; none: refuse them. Raises as `set_listen`."""
        _check_loop(self._wanted.listen, upstreams)
        await self._want(replace(self._wanted, upstreams=upstreams))

    async def set_options(self, options: Options) -> None:
        """Cut answers to size and give them TTLs like this. Raises DnsUnavailable as `set_table`."""
        await self._want(replace(self._wanted, options=options))

    async def stats(self) -> Stats:
        """Counters of the present child. Raises DnsUnavailable while there is none."""
        child = self._child
        if child is None:
            raise DnsUnavailable("asking the DNS child for its counters: it is being restarted; ask again")
        try:
            counters = await child.call("stats")
        except (OSError, EOFError, TimeoutError) as error:
            raise DnsUnavailable("asking the DNS child for its counters: it died or hangs and is replaced; ask again") from error
        assert isinstance(counters, dict)
        return Stats(counters, self._restarts, child.pid, len(self._wanted.table.names))

    async def _want(self, state: _State) -> None:
        self._wanted = state
        self._version += 1
        self._changed.set()
        if self._task is not None:
            await self._acknowledged()

    async def _acknowledged(self) -> None:
        """Wait until a child holds what is wanted now, or something newer."""
        version, task = self._version, self._task
        assert task is not None

        async def reached() -> None:
            async with self._progress:
                await self._progress.wait_for(lambda: self._applied >= version)

        waiter = asyncio.ensure_future(reached())
        try:
            await asyncio.wait({waiter, task}, timeout=2 * CALL_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
            if waiter.done():
                return waiter.result()
        finally:
            waiter.cancel()
        if task.done() and not task.cancelled():
            task.result()  # a programming error: raise it where somebody sees it
        raise DnsUnavailable("changing the DNS child's state: it did not acknowledge in time; see the log for why it ends")

    async def _supervise(self) -> None:
        """Keep a child running and in step, for ever."""
        loop, in_a_row = asyncio.get_running_loop(), 0
        while True:
            started = loop.time()
            reason = await self._live()
            self._restarts += 1
            self._on_crash(f"the DNS child ended: {reason}; it is started again")
            in_a_row = 0 if loop.time() - started >= STEADY else in_a_row + 1
            if in_a_row > 1:
                await asyncio.sleep(min(BACKOFF[1], BACKOFF[0] * 2 ** min(in_a_row - 2, 16)))

    async def _live(self) -> str:
        """One child's life. Returns why it ended."""
        try:
            child = await _Child.spawn(self._python, self._on_query)
        except (OSError, EOFError, TimeoutError) as error:
            return f"it did not start ({error!r})"
        try:
            self._child = child
            await self._keep_in_step(child)
        except TimeoutError:
            return f"it did not answer for {CALL_TIMEOUT:g} s and was killed"
        except (OSError, EOFError):
            return await child.verdict()
        finally:
            self._child = None
            await child.end()
        raise AssertionError("unreachable: a child in step ends only by an exception")

    async def _keep_in_step(self, child: _Child) -> None:
        """Bring `child` to what is wanted whenever that changes. Ends by EOFError when the child does, or TimeoutError."""
        held = _State(table=EMPTY)
        while True:
            self._changed.clear()
            version, wanted = self._version, self._wanted
            await self._push(child, held, wanted)
            held = wanted
            async with self._progress:
                self._applied = max(self._applied, version)
                self._progress.notify_all()
            await child.wait(self._changed, BIND_RETRY if self._bind_errors else None)

    async def _push(self, child: _Child, held: _State, wanted: _State) -> None:
        """Send what differs, the table first, so that nothing is answered from an older one."""
        whole, changes = self._whole or held.table is EMPTY, self._changes
        self._whole, self._changes = False, []
        if whole:
            await child.call("table", wanted.table.parts())
        elif changes:
            await child.call("changes", [part.parts() for part in changes])
        if wanted.options is not held.options:
            await child.call("options", wanted.options.parts())
        if wanted.upstreams is not held.upstreams:
            await child.call("upstreams", wanted.upstreams.parts())
        if wanted.listen != held.listen or self._bind_errors:
            failures = await child.call("listen", sorted(wanted.listen))
            assert isinstance(failures, list)
            self._bind_errors = tuple([await _explain(*failure) for failure in failures])


class _Child:
    """A running child process and the conversation with it."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, on_query: OnQuery
    ) -> None:
        self._process, self._writer, self._on_query = process, writer, on_query
        self.pid = process.pid
        self._number = 0
        self._answers: dict[int, asyncio.Future[object]] = {}
        self._listener = asyncio.create_task(self._listen(reader), name=f"dns child {process.pid}")

    @classmethod
    async def spawn(cls, python: str, on_query: OnQuery = _no_queries) -> _Child:
        """Start a child and wait until it is up. Raises OSError, EOFError or TimeoutError."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                arguments = ("-I", "-m", "plait.serve.dns_child", str(theirs.fileno()))
                # A session of its own: Ctrl-C at a terminal is for the agent, which then ends the child.
                process = await asyncio.create_subprocess_exec(python, *arguments, pass_fds=(theirs.fileno(),), start_new_session=True)
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        child = cls(process, reader, writer, on_query)
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
        try:
            async with asyncio.timeout(1.0):
                code = await self._process.wait()
        except TimeoutError:
            return "it closed its link to the agent"
        return f"killed by signal {-code}" if code < 0 else f"exit status {code}, its last words are above"

    async def end(self) -> None:
        """Close the link, which ends the child; kill it if that takes more than a second."""
        self._listener.cancel()
        self._writer.close()
        await asyncio.gather(self._listener, return_exceptions=True)
        try:
            async with asyncio.timeout(1.0):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

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
                        self._writer.write(frame((0, "found", -number, self._on_query(result))))
                    elif (future := self._answers.get(number)) is not None and not future.done():
                        future.set_result(result)
        except OSError:
            pass
        for future in self._answers.values():
            if not future.done():
                future.set_exception(gone)
        raise gone


async def _explain(protocol: str, address: str, port: int, errno: int) -> BindError:
    """The child's failure with the name of who is in the way."""
    try:
        async with asyncio.timeout(CALL_TIMEOUT):
            found = await asyncio.to_thread(holder, protocol, address, port)
    except TimeoutError:
        found = ""
    return BindError(protocol, address, port, errno, found)


def _check_loop(listen: frozenset[Address], upstreams: Upstreams) -> None:
    """Raises ConfigError if a query could be forwarded to ourselves."""
    for address in upstreams.places:
        if address in listen:
            where = f"{address[0]}:{address[1]}"
            raise ConfigError("dns.upstreams", where, "is where plait itself answers DNS", "name the resolver that stands behind it")
