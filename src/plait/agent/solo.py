# SPDX-License-Identifier: Apache-2.0
"""An agent of the directory alone: the HTTP API, health checks and DNS on one host, without a network, a kernel or a cluster.

It is what `plait consul agent` runs, made of the same parts as the whole agent, for test suites and for people who only want the
directory. It needs no root, listens on loopback unless told otherwise, and touches nothing of the host but its data directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from plait import __version__
from plait.agent.config import Config, parse_config
from plait.agent.consulconfig import SoloSettings
from plait.agent.consultls import https_context, load_files
from plait.agent.discovery import Discovery, DiscoveryParts
from plait.agent.dnswatch import DnsWatch
from plait.agent.health import Health
from plait.agent.identity import Identity, new_id
from plait.agent.journal import Journal, Write
from plait.agent.listeners import listening
from plait.agent.node import LEASE_TTL_S
from plait.agent.publisher import Publisher
from plait.agent.view import View
from plait.dns.table import Table
from plait.dns.zone import Zone
from plait.model.cluster import Node
from plait.model.errors import PlaitError
from plait.serve.consul_control import AgentControl, ControlApi
from plait.serve.dns_parent import DnsService
from plait.services.checkrequests import of_service, parse_check, service_checks
from plait.services.directory import SERVER_META
from plait.services.requests import parse_service
from plait.store.api import Store
from plait.store.memory import MemoryStore
from plait.store.replica import Replica
from plait.store.sqlite import SqliteStore

log = logging.getLogger("plait.solo")
_START_S = 20.0
Read = Callable[[], SoloSettings]
"""Reads the configuration again, for a reload."""


async def run_solo(settings: SoloSettings, read: Read, ready: Callable[[Identity], None]) -> None:
    """Serve until SIGTERM, SIGINT or `PUT /v1/agent/leave`; SIGHUP reads the services and checks of the files again. `ready` is called
    when everything answers. PlaitError if a port is taken."""
    with tempfile.TemporaryDirectory(prefix="plait-consul-") as scratch:
        folder = settings.data_dir or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        journal = Journal(folder / "journal.db")
        try:
            async with _open_store(settings, folder) as store:
                await _Solo(settings, folder, journal, store, read).run(ready)
        finally:
            journal.close()


@contextlib.asynccontextmanager
async def _open_store(settings: SoloSettings, folder: Path) -> AsyncIterator[Store]:
    store: Store = MemoryStore() if settings.data_dir is None else await SqliteStore.open(folder / "store.db")
    try:
        yield store
    finally:
        await store.close()


def _config(settings: SoloSettings) -> Config:
    raw: dict[str, dict[str, object]] = {
        "docker": {"enabled": False},
        "dns": {"domain": settings.domain, "datacenter": settings.datacenter},
        "checks": {"enable_script_checks": settings.script_checks, "enable_local_script_checks": settings.local_script_checks},
    }
    return parse_config(raw, "configuration")


@dataclass(frozen=True, slots=True)
class _Defined:
    """Ids of what the configuration files define."""

    services: frozenset[str] = frozenset()
    checks: frozenset[str] = frozenset()


class _Solo(AgentControl):
    def __init__(self, settings: SoloSettings, folder: Path, journal: Journal, store: Store, read: Read) -> None:
        self.settings, self._read, self._journal = settings, read, journal
        kept = journal.load("setting").get("node_id", b"").decode()
        self.identity = Identity(settings.node_name, settings.node_id or kept or new_id(), settings.address)
        self.view = View(settings.node_name)
        self.replica = Replica(store, folder / "replica.bin")
        self.publisher = Publisher(self.view, store, self.view.caught_up)
        self.health = Health(time.time)
        config = _config(settings)
        self.discovery = Discovery(DiscoveryParts(config, self.identity, journal, store, self.view, self.health, self.publisher, lambda: 0))
        self.discovery.api.add(ControlApi(self, settings.node_name).routes)
        self.discovery.api.router.pretty = settings.data_dir is None  # as Consul's -dev does
        self._http = self.discovery.api.server()
        self._tls = https_context(settings.https) if settings.https_port else None
        self._set_http()
        self._listed = asyncio.Event()
        self.replica.subscribe(self.discovery.change, self._on_store)
        self.view.subscribe(self._on_view)
        self.dns = DnsService(on_crash=log.warning, on_query=self.discovery.names)
        self.dns_watch = DnsWatch(self.dns, self.health)
        self.discovery.watch_dns(self.dns_watch)
        self._names = asyncio.Event()
        self._ended = asyncio.Event()
        self._defined = _Defined()

    # --- what clients may ask of the agent itself

    async def leave(self) -> None:
        self._ended.set()

    async def reload(self) -> None:
        settings = self._read()
        if self._tls is not None:
            load_files(self._tls, settings.https)
        self.settings = settings
        self._set_http()
        await self._define()
        if self.settings.dns_port:
            await self._set_dns()
            self._names.set()

    def _set_http(self) -> None:
        """Have HTTP follow `http_config`."""
        settings = self.settings
        self._http.fields = settings.response_headers
        self._http.may_write = settings.may_write
        self.discovery.api.router.block(settings.blocked)

    def members(self) -> frozenset[str]:
        return frozenset(self.view.snapshot.nodes)

    # --- the run

    async def run(self, ready: Callable[[Identity], None]) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ended.set)
        async with asyncio.TaskGroup() as group:
            reloads = asyncio.Event()
            loop.add_signal_handler(signal.SIGHUP, reloads.set)
            loops = [self.replica.run(), self.publisher.run(), self.publisher.stay_alive(LEASE_TTL_S), *self.discovery.loops()]
            tasks = [group.create_task(work) for work in (*loops, self._reload_on(reloads))]
            try:
                await self._begin()
                await self._listen_for_names()
                async with listening(self._http, self.settings, self._tls):
                    if self.settings.dns_port:
                        tasks += [group.create_task(self._serve_names()), group.create_task(self.dns_watch.run())]
                    ready(self.identity)
                    await self._ended.wait()
            finally:
                for task in tasks:
                    task.cancel()
                await self._http.stop()
                await self.dns.close()
                await self.discovery.close()

    async def _begin(self) -> None:
        """The node's own record, and what the files define; all of it is published when this returns."""
        await self._journal.write([_setting("node_id", self.identity.id)])
        async with asyncio.timeout(_START_S):
            await self._listed.wait()
        meta = {**self.settings.node_meta, SERVER_META: "yes"}
        self.view.put(Node(self.identity.name, self.identity.id, self.identity.address, version=__version__, meta=meta))
        await self._define()
        await self.publisher.publish()

    async def _listen_for_names(self) -> None:
        """Before HTTP: whoever is answered by that may ask it."""
        settings = self.settings
        if settings.dns_port:
            await self.dns.set_table(self._table())
            await self.dns.start()
            await self._set_dns()
            for failed in await self.dns.set_listen([(str(address), settings.dns_port) for address in settings.dns_listen]):
                raise PlaitError(str(failed))

    async def _set_dns(self) -> None:
        await self.dns.set_upstreams(self.settings.dns.upstreams)
        await self.dns.set_options(self.settings.dns.options)
        await self.dns.set_limits(self.settings.dns.limits)

    async def _define(self) -> None:
        """Register what the files define, and take away what they defined before and do no more."""
        node, now = self.identity.name, self.settings
        services = [(parse_service(body, node), body) for body in now.services]
        checks = [parse_check(body, node) for body in now.checks]
        for instance, body in services:
            checks += service_checks(body, instance)
        by_id = {instance.id: instance for instance, _ in services}
        checkup = self.discovery.checkup
        async with contextlib.AsyncExitStack() as held:
            for key in sorted(by_id):
                await held.enter_async_context(checkup.changing(key))
            await checkup.add([of_service(c, by_id[c.service_id]) if c.service_id in by_id else c for c in checks], remote=False)
            for instance, _ in services:
                await self.discovery.catalog.register(instance)
        defined = _Defined(frozenset(by_id), frozenset(check.id for check in checks))
        for gone in self._defined.services - defined.services:
            await self.discovery.remove(gone)
        await checkup.remove(self._defined.checks - defined.checks)
        self._defined = defined

    async def _reload_on(self, asked: asyncio.Event) -> None:
        while True:
            await asked.wait()
            asked.clear()
            try:
                await self.reload()
            except PlaitError as error:
                log.warning("reload_failed", extra={"error": str(error)})

    # --- names

    def _on_store(self, connected: bool) -> None:
        if connected:
            self.discovery.linked()
            self._listed.set()
            self.publisher.wake()

    def _on_view(self, kinds: frozenset[str]) -> None:
        self._names.set()
        if self.view.unsettled():
            self.publisher.wake()

    def _table(self) -> Table:
        settings = self.settings
        zone = Zone(self.view.snapshot, settings.domain, settings.datacenter, only_passing=settings.dns.only_passing)
        self.discovery.names.zone = zone
        return zone.table

    async def _serve_names(self) -> None:
        while True:
            self._names.clear()
            await self.dns.set_table(self._table())
            await self._names.wait()
            await asyncio.sleep(0.005)


def _setting(key: str, value: str) -> Write:
    return Write("setting", key, value.encode())
