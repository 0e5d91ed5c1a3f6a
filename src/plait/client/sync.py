# SPDX-License-Identifier: Apache-2.0
"""The blocking client. `plait.client.aio` is the same for asyncio.

Data in: method calls of any thread. Data out: results. Every method raises Unreachable, ApiError or BadAnswer besides what it names itself,
and ConfigError for arguments that make no sense, before anything is sent.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Self, TypeVar, Unpack

from plait.client import discovery, event, kv, lock, session, txn
from plait.client.balance import Balancer, Ejection, Policy, Zone
from plait.client.discovery import Search, Service
from plait.client.errors import LockLost
from plait.client.lock import LockHold, LockOptions, LockSpec, SemaphoreHold
from plait.client.settings import settings
from plait.client.steps import Request, Steps, call
from plait.client.sync_io import Stop, Transport, run
from plait.client.sync_parts import Changes, Closes, Endpoints, Lock, Registration, method, watching
from plait.client.types import Event
from plait.client.watch import Watch

T = TypeVar("T")


class Room:
    """A group of operations of a client."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.settings, self.wait_s, self.adopt = client.settings, client.wait_s, client.adopt

    def run(self, steps: Steps[T], stop: Stop | None = None) -> T:
        return self._client.run(steps, stop)


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


class Client:
    """One agent. `address` is http://HOST:PORT, https://HOST:PORT or unix:///PATH; None: CONSUL_HTTP_ADDR, else http://127.0.0.1:8500.

    `token` None: CONSUL_HTTP_TOKEN. `datacenter` "": the agent's own. `timeout_s` bounds each request, apart from the time that it asks
    the agent to hold the answer back; `wait_s` is that time for watches. `stale`: reads may come from what any agent
    has. `environ`: what is read instead of the environment. `close` (or the end of the `with` block) ends all that it started.
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
        self._parts_lock = threading.Lock()
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
        """Offer the service while the `with` block runs: registered, kept alive by heartbeats (`ttl_s`), registered again if the
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
        """The instances of a service, kept up to date while the `with` block runs, one chosen for each `use()`."""
        if policy == "nearest":
            search.setdefault("near", "_agent")
        query = discovery.instances(name, **search)
        return Endpoints(self, Changes(self, Watch(query, self.wait_s)), Balancer(policy, ejection, zone))

    def lock(
        self,
        key: str,
        *,
        timeout_s: float | None = None,
        on_loss: Callable[[str], None] | None = None,
        **options: Unpack[LockOptions],
    ) -> Lock:
        """A lock for a `with` block, which waits for it `timeout_s` at most (None: for ever; else NotAcquired).

        Lost (agent away for `ttl_s`, session destroyed, `checks` critical): `lost` is set and `on_loss` called with the reason, in a
        thread of the library; the block's end raises LockLost. Then nobody gets the lock for `lock_delay_s`.
        """
        return Lock(self, LockHold(LockSpec(key, **options)), timeout_s, on_loss)

    def semaphore(
        self,
        prefix: str,
        limit: int,
        *,
        timeout_s: float | None = None,
        on_loss: Callable[[str], None] | None = None,
        **options: Unpack[LockOptions],
    ) -> Lock:
        """One of `limit` places for a `with` block. All who use the prefix must name the same limit. Otherwise as `lock`."""
        return Lock(self, SemaphoreHold(LockSpec(prefix, **options), limit), timeout_s, on_loss)

    def lead(self, key: str, name: str, work: Callable[[Lock], T], **options: Unpack[LockOptions]) -> T:
        """Stand for election under `name`, for ever: run `work(term)` when elected, and again if it raised LockLost or its term was lost.

        Returns what `work` returns in a term that was held to its end. `work` calls `term.check()` before what only the leader may do.
        `watch_leader(key)` tells everybody the leader's name.
        """
        options["value"] = name.encode()
        while True:
            try:
                with self.lock(key, **options) as term:
                    done = work(term)
                break
            except LockLost:
                continue
        return done

    def raw(self, method: str, path: str, params: tuple[tuple[str, str], ...] = (), body: bytes | None = None) -> bytes:
        """The body of the answer to any other request; `path` comes after /v1/. ApiError unless the status is 200."""
        return self.run(call(Request(method, path, params, body))).body

    def run(self, steps: Steps[T], stop: Stop | None = None) -> T:
        """Perform an operation of the core (`Steps`) in this thread."""
        return run(steps, self._transport, Stop() if stop is None else stop)

    def adopt(self, part: Closes) -> None:
        """Close `part` with the client."""
        with self._parts_lock:
            self._parts.add(part)

    def close(self) -> None:
        with self._parts_lock:
            parts = tuple(self._parts)
        for part in parts:
            part.close()
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
