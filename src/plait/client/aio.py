# SPDX-License-Identifier: Apache-2.0
"""The asyncio client: `plait.client.sync` with `await`, `async for` and `async with`, on the standard library alone.

Data in: method calls of one event loop's tasks. Data out: results. Every method raises Unreachable, ApiError or BadAnswer besides what it
names itself, and ConfigError for arguments that make no sense, before anything is sent.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Self, TypeVar, Unpack

from plait.client import discovery, event, kv, lock, session, txn
from plait.client.aio_io import Transport, run
from plait.client.aio_parts import Changes, Closes, Endpoints, Lock, Registration, method, watching
from plait.client.balance import Balancer, Ejection, Policy, Zone
from plait.client.discovery import Search, Service
from plait.client.errors import LockLost
from plait.client.lock import LockHold, LockOptions, LockSpec, SemaphoreHold
from plait.client.settings import settings
from plait.client.steps import Request, Steps, call
from plait.client.types import Event
from plait.client.watch import Watch

T = TypeVar("T")


class Room:
    """A group of operations of a client."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self.settings, self.wait_s, self.adopt = client.settings, client.wait_s, client.adopt

    async def run(self, steps: Steps[T]) -> T:
        return await self._client.run(steps)


class KeyValue(Room):
    """`client.kv`: the key-value store."""

    get = method(kv.get)
    list = method(kv.list_entries)
    keys = method(kv.keys)
    put = method(kv.put_value)
    acquire = method(kv.acquire)
    release = method(kv.release)
    delete = method(kv.delete)
    delete_tree = method(kv.delete_tree)
    txn = method(kv.txn)
    watch = watching(kv.entry)
    watch_prefix = watching(kv.entries)


class Sessions(Room):
    """`client.sessions`: what locks belong to."""

    create = method(session.create)
    renew = method(session.renew)
    destroy = method(session.destroy)
    info = method(session.info)
    list = method(session.list_sessions)


class Events(Room):
    """`client.events`: short messages to whoever listens."""

    fire = method(event.fire)
    list = method(event.list_events)

    def watch(self, name: str = "", *, replay: bool = False) -> Changes[tuple[Event, ...]]:
        """The events fired from now on (`replay`: also those still remembered), each once, in order; several at a time if they came so."""
        return Changes(self._client, event.EventWatch(name, self.wait_s, replay))


class Catalog(Room):
    """`client.catalog`: what the cluster knows."""

    services = method(discovery.list_services)
    nodes = method(discovery.list_nodes)
    checks = method(discovery.list_checks)
    state = method(discovery.list_state)
    members = method(discovery.members)
    leader = method(discovery.leader)
    agent = method(discovery.agent_self)
    watch_services = watching(discovery.services)
    watch_nodes = watching(discovery.nodes)
    watch_checks = watching(discovery.checks)
    watch_state = watching(discovery.state)


class AsyncClient:
    """One agent. `address` is http://HOST:PORT, https://HOST:PORT or unix:///PATH; None: CONSUL_HTTP_ADDR, else http://127.0.0.1:8500.

    `token` None: CONSUL_HTTP_TOKEN. `datacenter` "": the agent's own. `timeout_s` bounds each request, apart from the time that it asks
    the agent to hold the answer back; `wait_s` is that time for watches. `stale`: reads may come from what any agent
    has. `environ`: what is read instead of the environment. `aclose` (or the end of the `async with` block) ends all that it
    started.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        datacenter: str = "",
        timeout_s: float = 10.0,
        wait_s: float = 60.0,
        stale: bool = False,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        given = settings(address, token, datacenter, timeout_s, os.environ if environ is None else environ)
        self.settings = replace(given, stale=stale)
        self.wait_s = wait_s
        self._transport = Transport(self.settings)
        self._parts: weakref.WeakSet[Closes] = weakref.WeakSet()
        self.kv, self.sessions, self.events, self.catalog = KeyValue(self), Sessions(self), Events(self), Catalog(self)

    register = method(discovery.register)
    deregister = method(discovery.deregister)
    update_check = method(discovery.update_check)
    maintenance = method(discovery.maintenance)
    resolve = method(discovery.resolve)
    txn = method(txn.transact)
    watch = watching(discovery.instances)
    watch_leader = watching(lock.leader)

    def registration(self, service: Service) -> Registration:
        """Offer the service while the `async with` block runs: registered, kept alive by heartbeats (`ttl_s`), registered again if the
        agent forgets it, withdrawn at the end. Starts as passing."""
        return Registration(self, service)

    def endpoints(
        self,
        name: str,
        *,
        policy: Policy = "round_robin",
        zone: Zone | None = None,
        ejection: Ejection | None = None,
        **search: Unpack[Search],
    ) -> Endpoints:
        """The instances of a service, kept up to date while the `async with` block runs, one chosen for each `use()`."""
        if policy == "nearest":
            search.setdefault("near", "_agent")
        query = discovery.instances(name, **search)
        return Endpoints(self, Changes(self, Watch(query, self.wait_s)), Balancer(policy, ejection, zone))

    def lock(
        self,
        key: str,
        *,
        timeout_s: float | None = None,
        cancel: bool = True,
        **options: Unpack[LockOptions],
    ) -> Lock:
        """A lock for an `async with` block, which waits for it `timeout_s` at most (None: for ever; else NotAcquired).

        Lost (agent away for `ttl_s`, session destroyed, `checks` critical): `lost` is set, the block is cancelled (unless `cancel` is
        False) and its end raises LockLost. Then nobody gets the lock for `lock_delay_s`.
        """
        return Lock(self, LockHold(LockSpec(key, **options)), timeout_s, cancel)

    def semaphore(
        self,
        prefix: str,
        limit: int,
        *,
        timeout_s: float | None = None,
        cancel: bool = True,
        **options: Unpack[LockOptions],
    ) -> Lock:
        """One of `limit` places for an `async with` block. All who use the prefix must name the same limit. Otherwise as `lock`."""
        return Lock(self, SemaphoreHold(LockSpec(prefix, **options), limit), timeout_s, cancel)

    async def lead(self, key: str, name: str, work: Callable[[Lock], Awaitable[T]], **options: Unpack[LockOptions]) -> T:
        """Stand for election under `name`, for ever: run `work(term)` when elected, and again if its term was lost (it is cancelled then).

        Returns what `work` returns in a term that was held to its end. `watch_leader(key)` tells everybody the leader's name.
        """
        options["value"] = name.encode()
        while True:
            try:
                async with self.lock(key, **options) as term:
                    done = await work(term)
                break
            except LockLost:
                continue
        return done

    async def raw(self, method: str, path: str, params: tuple[tuple[str, str], ...] = (), body: bytes | None = None) -> bytes:
        """The body of the answer to any other request; `path` comes after /v1/. ApiError unless the status is 200."""
        return (await self.run(call(Request(method, path, params, body)))).body

    async def run(self, steps: Steps[T]) -> T:
        """Perform an operation of the core (`Steps`) in this task."""
        return await run(steps, self._transport)

    def adopt(self, part: Closes) -> None:
        """Close `part` with the client."""
        self._parts.add(part)

    async def aclose(self) -> None:
        for part in tuple(self._parts):
            await part.aclose()
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
