# SPDX-License-Identifier: Apache-2.0
"""The agent's side of DNS: wanted table, listen set and upstreams -> a child process that holds exactly these.

`DnsService` keeps what is wanted apart from what the present child has acknowledged, and one task brings the second to the
first: whatever came in meanwhile goes out together, and of a table only the names that changed. A child that died or hangs is
replaced and gets everything anew, so a caller waiting for an acknowledgement gets it from the next one; the sockets stay open here
meanwhile, so that queries wait for it too. A child whose agent ends may wait for the next agent's (`dns_handover`).
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from plait.dns.answer import Found, Origin
from plait.dns.heeded import Addresses
from plait.dns.options import DEFAULTS, Options
from plait.dns.table import EMPTY, HIDDEN, Changes, Table, diff_tables
from plait.model.errors import PlaitError
from plait.serve import dns_handover
from plait.serve.dns_link import Address, Limits, Upstreams
from plait.serve.dns_process import CALL_TIMEOUT, DnsProcess, OnAnswer, OnQuery
from plait.serve.dns_sockets import BindError, OpenInside, Sockets

ACKNOWLEDGE_TIMEOUT = 2 * CALL_TIMEOUT
"""Seconds that a caller waits, perhaps for the child after the present one."""
BIND_RETRY = 5.0
"""Seconds between attempts at addresses that could not be listened on."""
BACKOFF = 0.1, 5.0
"""Seconds before the second restart in a row and at most; the first is immediate."""
STEADY = 10.0
"""Seconds a child must have lived for its end to count as the first in a row."""
NO_UPSTREAMS, NO_LIMITS = Upstreams(), Limits()


def _no_queries(name: bytes, origin: Origin) -> Found | None:
    return None


def _all_kept(name: str, addresses: Addresses, kept: Callable[[], None]) -> None:
    kept()


class DnsUnavailable(PlaitError):
    """The DNS child cannot be started or does not follow in time; the service keeps trying."""


@dataclass(frozen=True, slots=True)
class Stats:
    """`counters` are the present child's (see `dns_responder.Counters`), `limited` is the client that was turned away last, "" if none was,
    `restarts` the children that died unasked."""

    counters: dict[str, int]
    limited: str
    restarts: int
    pid: int
    names: int


@dataclass(frozen=True, slots=True)
class _State:
    """What a child shall hold, or holds."""

    listen: frozenset[Address] = frozenset()
    upstreams: Upstreams = NO_UPSTREAMS
    options: Options = DEFAULTS
    limits: Limits = NO_LIMITS
    heeded: frozenset[str] = frozenset()
    table: Table = field(default=EMPTY)


class DnsService:
    """One DNS child and its replacement whenever it dies.

    `start` first, `close` last; the setters may be called before, between and concurrently. `on_crash` is called with a
    sentence for the log each time a child ended unasked; `on_query` says what the prepared query of a name gives, `on_answer` hears of
    the addresses of names that are heeded. `successors`: path of the socket by which the child of one agent follows that of another; None:
    a child ends with its agent. `open_inside` opens sockets in other namespaces (`dns_socket.Place`).
    """

    def __init__(
        self,
        *,
        on_crash: Callable[[str], None],
        on_query: OnQuery = _no_queries,
        on_answer: OnAnswer = _all_kept,
        python: str = sys.executable,
        successors: Path | None = None,
        open_inside: OpenInside | None = None,
    ) -> None:
        self._on_crash, self._on_query, self._on_answer, self._python = on_crash, on_query, on_answer, python
        self._path = successors
        self._sockets = Sockets(open_inside) if open_inside is not None else Sockets()
        self._predecessor: socket.socket | None = None
        self._successors: socket.socket | None = None
        self._wanted, self._version = _State(), 0
        self._applied = 0
        self._whole, self._changes = False, list[Changes]()
        self._bind_errors: tuple[BindError, ...] = ()
        self._changed = asyncio.Event()
        self._progress = asyncio.Condition()
        self._child: DnsProcess | None = None
        self._task: asyncio.Task[None] | None = None
        self._restarts = 0

    @property
    def bind_errors(self) -> tuple[BindError, ...]:
        """What is wanted but not listened on at present."""
        return self._bind_errors

    @property
    def followed(self) -> bool:
        """Whether a child of the agent before still answers: until the first `set_listen` after the start."""
        return self._predecessor is not None

    async def start(self) -> None:
        """Start the child and return once it holds what was set so far. Raises DnsUnavailable; OSError if there can be no `successors`."""
        if self._task is None:
            if self._path is not None:
                await self._follow(self._path)
            self._version += 1
            self._task = asyncio.create_task(self._supervise(), name="dns")
        await self._acknowledged()

    async def _follow(self, path: Path) -> None:
        found = await asyncio.to_thread(dns_handover.find, path)
        if found is not None:
            self._predecessor = found.link
            self._sockets.held.update(found.sockets)
        self._successors = dns_handover.listen(path)

    async def close(self) -> None:
        """End the child, or leave it to its successor. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._sockets.close()
        for sock in (self._predecessor, self._successors):
            if sock is not None:
                sock.close()

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
        could not be opened, which is tried again. An upstream among them is not asked meanwhile. Raises DnsUnavailable as `set_table`."""
        wanted = frozenset(addresses)
        if wanted != self._wanted.listen or self._bind_errors:  # else there is nothing to wait for: every change of names asks
            await self._want(replace(self._wanted, listen=wanted))
        return self._bind_errors

    async def set_upstreams(self, upstreams: Upstreams) -> None:
        """Forward names that are not ours to these, but for those on which plait itself answers; none: refuse them. Raises
        DnsUnavailable as `set_table`."""
        await self._want(replace(self._wanted, upstreams=upstreams))

    async def set_options(self, options: Options) -> None:
        """Cut answers to size and give them TTLs like this. Raises DnsUnavailable as `set_table`."""
        await self._want(replace(self._wanted, options=options))

    async def set_limits(self, limits: Limits) -> None:
        """Ask that of clients. Raises DnsUnavailable as `set_table`."""
        await self._want(replace(self._wanted, limits=limits))

    async def set_heeded(self, patterns: frozenset[str]) -> None:
        """Hold back what upstreams answer to names that meet one of these until `on_answer` says that the client may have it, a second at
        most. Raises DnsUnavailable as `set_table`."""
        if patterns != self._wanted.heeded:
            await self._want(replace(self._wanted, heeded=patterns))

    async def stats(self) -> Stats:
        """Counters of the present child. Raises DnsUnavailable while there is none."""
        child = self._child
        if child is None:
            raise DnsUnavailable("asking the DNS child for its counters: it is being restarted; ask again")
        try:
            found = await child.call("stats")
        except (OSError, EOFError, TimeoutError) as error:
            raise DnsUnavailable("asking the DNS child for its counters: it died or hangs and is replaced; ask again") from error
        assert isinstance(found, tuple)
        counters, limited = found
        names = sum(not name.startswith(HIDDEN) for name in self._wanted.table.names)
        return Stats(counters, limited, self._restarts, child.pid, names)

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
            await asyncio.wait({waiter, task}, timeout=ACKNOWLEDGE_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
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
            child = await DnsProcess.spawn(self._python, self._on_query, self._on_answer, self._successors)
        except (OSError, EOFError, TimeoutError) as error:
            return f"it did not start ({error!r})"
        leaving = False
        try:
            self._child = child
            await self._keep_in_step(child)
        except asyncio.CancelledError:
            leaving = self._successors is not None
            raise
        except TimeoutError:
            return f"it did not answer for {CALL_TIMEOUT:g} s and was killed"
        except (OSError, EOFError):
            return await child.verdict()
        finally:
            self._child = None
            await (child.leave() if leaving else child.end())
        raise AssertionError("unreachable: a child in step ends only by an exception")

    async def _keep_in_step(self, child: DnsProcess) -> None:
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

    async def _push(self, child: DnsProcess, held: _State, wanted: _State) -> None:
        """Send what differs, the table first, so that nothing is answered from an older one."""
        whole, changes = self._whole or held.table is EMPTY, self._changes
        self._whole, self._changes = False, []
        if whole:
            await child.call("table", wanted.table.parts())
        elif changes:
            await child.call("changes", [part.parts() for part in changes])
        if wanted.options is not held.options:
            await child.call("options", wanted.options.parts())
        if wanted.limits is not held.limits:
            await child.call("limits", wanted.limits.parts())
        if wanted.heeded != held.heeded:
            await child.call("heed", sorted(wanted.heeded))
        if wanted.upstreams is not held.upstreams or wanted.listen != held.listen:
            await child.call("upstreams", wanted.upstreams.without(wanted.listen).parts())
        if wanted.listen != held.listen or self._bind_errors:
            self._bind_errors = await self._sockets.set(wanted.listen)
            await child.serve(self._sockets.held)
            if self._predecessor is not None:
                await child.succeed(self._predecessor)
                self._predecessor.close()
                self._predecessor = None
