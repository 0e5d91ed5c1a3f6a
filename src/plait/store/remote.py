# SPDX-License-Identifier: Apache-2.0
"""The store of another agent, over one TLS connection for all requests and watches.

Data in: calls of the store seam. Data out: the server's answers. Connects when first used and again after a loss, with a growing pause
between attempts. In the first seconds after a loss calls wait for the next attempts, so that a restart of the agent that carries the store
fails no write that begins meanwhile elsewhere (Consul holds calls for 7 s, `rpc_hold_timeout`); then they fail at once within the pause. A
call whose connection is lost raises StoreUnavailable; whether a transaction happened is then not known, its compares make a repetition
safe. Watches are not resumed: list and watch again.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from plait.model.addr import at_port
from plait.model.errors import Conflict, StoreUnavailable
from plait.store.api import Change, Compare, Delete, Item, Listing, Put, TxnResult
from plait.store.link import Link
from plait.store.protocol import Answer, Get, Grant, Items, Keepalive, List, Message, Result, Revoke, pack_txn
from plait.store.state import check_key, check_ttl, check_txn
from plait.store.tls import reason_of

CONNECT_TIMEOUT = 3.0
"""Seconds for TCP, TLS and Hello together."""
REQUEST_TIMEOUT = 5.0
"""Seconds for one call, with the connection if there is none."""
BACKOFF = (0.1, 2.0)
"""Seconds between attempts to connect: the first pause, doubled each time, and the longest."""
HOLD = 3.0
"""Seconds after a loss in which calls wait for the next attempt. An agent is back within one."""

A = TypeVar("A", bound=Answer)


class RemoteStore:
    """Store seam over the wire. `context` is that of `tls.ssl_context_client`, `run` as in `protocol.Hello`. Calls raise Conflict if the
    server refuses this agent because another one of the same node is there, unless it had let this one in before."""

    def __init__(
        self,
        host: str,
        port: int,
        context: ssl.SSLContext,
        *,
        run: str = "",
        timeout: float = REQUEST_TIMEOUT,
        jitter: Callable[[float, float], float] = random.uniform,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places, self._context, self._run = [(host, port)], context, run
        self._timeout, self._jitter, self._clock = timeout, jitter, clock
        self._let_in = False
        self._link: Link | None = None
        self._connecting = asyncio.Lock()
        self._pause, self._not_before = BACKOFF[0], 0.0
        self._hold_until: float | None = None
        self._nudged = asyncio.Event()
        self._last_error = ""
        self._closed = False

    # --- where it is

    @property
    def place(self) -> tuple[str, int]:
        """Host and port that it is reached at, or tried at next."""
        return self._places[0]

    @property
    def server_run(self) -> str:
        """The run of the agent that serves it; "" while there is no connection."""
        return self._link.server_run if self._link is not None and self._link.lost is None else ""

    @property
    def _name(self) -> str:
        return f"store at {at_port(*self.place)}"

    def look_at(self, host: str, port: int) -> None:
        """It may be there now: tried at once, then in turn with where it was."""
        if (host, port) != self.place:
            self._places = [(host, port), self.place]
        self._try_now()

    def connect_anew(self, why: str) -> None:
        """End the connection, if there is one; the next call makes another at once."""
        if self._link is not None:
            self._link.close(StoreUnavailable(f"{self._name}: {why}; retry"))
        self._try_now()

    def _try_now(self) -> None:
        self._pause, self._not_before = BACKOFF[0], 0.0
        self._nudged.set()

    # --- the seam

    async def get(self, key: str) -> Item | None:
        check_key(key)
        items, _ = await self._items(lambda number: Get(number, key))
        return items[0] if items else None

    async def list(self, prefix: str) -> Listing:
        check_key(prefix, prefix=True)
        items, revision = await self._items(lambda number: List(number, prefix))
        return Listing(items, revision)

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        check_txn(compares, ops)
        result = await self._result(lambda number: pack_txn(number, compares, ops))
        return TxnResult(result.ok, result.number)

    async def watch(self, prefix: str, from_revision: int) -> AsyncIterator[tuple[Change, ...]]:
        check_key(prefix, prefix=True)
        async with self._bounded():
            link = await self._connected()
        number, queue = link.watch(prefix, from_revision)
        try:
            while True:
                yield await queue.take()
        finally:
            link.unwatch(number)

    async def grant(self, ttl: float) -> int:
        check_ttl(ttl)
        return (await self._result(lambda number: Grant(number, ttl))).number

    async def keepalive(self, lease: int) -> bool:
        return (await self._result(lambda number: Keepalive(number, lease))).ok

    async def revoke(self, lease: int) -> None:
        await self._result(lambda number: Revoke(number, lease))

    async def close(self) -> None:
        """End the connection; calls and watches raise StoreUnavailable from now on. Idempotent."""
        self._closed = True
        self._nudged.set()
        if self._link is not None:
            self._link.close(StoreUnavailable(f"{self._name}: closed because the agent is stopping"))
            self._link = None

    # --- calls

    async def _items(self, make: Callable[[int], Message]) -> tuple[tuple[Item, ...], int]:
        answer = await self._call(make, Items)
        return tuple(Item(*item) for item in answer.items), answer.revision

    async def _result(self, make: Callable[[int], Message]) -> Result:
        return await self._call(make, Result)

    async def _call(self, make: Callable[[int], Message], wanted: type[A]) -> A:
        async with self._bounded():
            answer = await (await self._connected()).call(make)
        if not isinstance(answer, wanted):
            raise StoreUnavailable(
                f"{self._name}: a {type(answer).__name__} where a {wanted.__name__} was due; do both run the same version?"
            )
        return answer

    @asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout):
                yield
        except TimeoutError as error:
            raise StoreUnavailable(f"{self._name}: no answer within {self._timeout:g} s; retry") from error

    # --- the connection

    async def _connected(self) -> Link:
        """The living connection, made now if there is none. Raises StoreUnavailable: soon after a loss when that was long enough to come
        back, later within a pause at once."""
        async with self._connecting:
            while True:
                wait = await self._pause_left()
                if self._closed:
                    raise StoreUnavailable(f"{self._name}: closed because the agent is stopping; retry when it runs again")
                if self._link is not None and self._link.lost is None:
                    return self._link
                if wait > 0:
                    raise StoreUnavailable(f"{self._last_error} (next attempt in {wait:.1f} s)")
                try:
                    self._link = await self._attempt()
                except StoreUnavailable:
                    if not self._holds:
                        raise

    @property
    def _holds(self) -> bool:
        return self._clock() < (self._hold_until or 0.0)

    async def _pause_left(self) -> float:
        """Wait out the pause if the connection was lost a moment ago; else say how long it still is."""
        while (wait := self._not_before - self._clock()) > 0 and self._holds and not self._closed:
            self._nudged.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._nudged.wait()
        return wait

    async def _attempt(self) -> Link:
        place = self.place
        if self._hold_until is None:
            self._hold_until = self._clock() + (HOLD if self._let_in else 0.0)
        try:
            link = await self._connect(*place)
        except StoreUnavailable as error:
            self._last_error = str(error)
            self._not_before = self._clock() + self._pause * self._jitter(0.5, 1.0)
            self._pause = min(2 * self._pause, BACKOFF[1])
            if self.place == place:  # nobody told of another one meanwhile
                self._places = [*self._places[1:], place]
            raise
        self._pause, self._places, self._let_in, self._hold_until = BACKOFF[0], [place], True, None
        return link

    async def _connect(self, host: str, port: int) -> Link:
        name = f"store at {at_port(host, port)}"
        link = Link(name, self._run)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await loop.create_connection(lambda: link, host, port, ssl=self._context, server_hostname="plait")
                await link.ready
        except (OSError, TimeoutError) as error:
            why = StoreUnavailable(f"{name}: cannot connect: {_reason(error)}; is its agent running and the port open? retry")
            link.close(why)
            raise why from error
        except Conflict as error:
            link.close(StoreUnavailable(str(error)))
            if self._let_in:
                raise StoreUnavailable(str(error)) from error
            raise
        except asyncio.CancelledError:
            link.close(StoreUnavailable(f"{name}: the caller gave up while connecting; retry"))
            raise
        return link


def _reason(error: OSError | TimeoutError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the other side is not of this cluster ({error.verify_message})"
    if isinstance(error, TimeoutError):
        return f"no answer within {CONNECT_TIMEOUT:g} s"
    return reason_of(error)
