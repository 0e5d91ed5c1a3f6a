# SPDX-License-Identifier: Apache-2.0
"""The only file that names concrete classes: it makes a node's parts, hands them to each other and runs them as one task tree."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from pathlib import Path

from aiohttp import web

from plait.agent.addresses import Addresses
from plait.agent.admin import AdminParts, AgentAdmin
from plait.agent.autoregister import AutoRegister
from plait.agent.catalog import Catalog
from plait.agent.checkup import CheckPolicy, Checkup
from plait.agent.checkwatch import CheckWatch
from plait.agent.config import Config, Paths
from plait.agent.consulstate import KINDS as STATE_KINDS
from plait.agent.consulstate import ConsulState
from plait.agent.followed import Followed
from plait.agent.health import Health
from plait.agent.identity import Identity
from plait.agent.journal import Journal, Write
from plait.agent.kernelwork import KernelWork
from plait.agent.keys import alive_key, kind_of, node_key, own_prefixes
from plait.agent.kv import KINDS as KV_KINDS
from plait.agent.kv import Kv
from plait.agent.networks import Networks
from plait.agent.node import LEASE_TTL_S, NodeLoops, Parts
from plait.agent.operations import AgentOperations
from plait.agent.outside import OutsideCatalog
from plait.agent.publisher import Publisher
from plait.agent.queries import KINDS as QUERY_KINDS
from plait.agent.queries import Queries
from plait.agent.reconciler import Reconciler
from plait.agent.sandboxes import Sandboxes
from plait.agent.sessions import SessionSteward
from plait.agent.storehost import StoreHost
from plait.agent.view import View
from plait.checks.runners import Runners
from plait.kernel.linux import LinuxKernel, create_netns, delete_netns, netns_exists
from plait.model.errors import PlaitError
from plait.model.report import StoreState, TokenView
from plait.plan.fastpath import CAPABILITY
from plait.runtimes.docker.engine import DockerEngine
from plait.runtimes.docker.plugin import inherited_socket
from plait.runtimes.docker.runtime import DockerRuntime
from plait.runtimes.docker.state import CachedState
from plait.serve.admin import AdminServer
from plait.serve.consul import ConsulApi
from plait.serve.consul_event import EventApi
from plait.serve.consul_kv import KvApi
from plait.serve.consul_operator import OperatorApi
from plait.serve.consul_query import QueryApi
from plait.serve.dns_parent import DnsService
from plait.services.checkviews import Json
from plait.services.directory import SERVER_META
from plait.services.views import Views
from plait.store.api import Change, Delete, Store
from plait.store.join import split_address
from plait.store.joinserver import PORT as JOIN_PORT
from plait.store.joinserver import JoinServer
from plait.store.remote import RemoteStore
from plait.store.replica import Replica
from plait.store.server import PORT as STORE_PORT
from plait.store.server import StoreServer
from plait.store.sqlite import SqliteStore
from plait.store.tls import cluster_pin, ssl_context_client, ssl_context_join_server, ssl_context_server
from plait.store.token import create_token

log = logging.getLogger("plait.node")
DEFAULT_NETWORK = "default"
_NOT_VIEWED = KV_KINDS | STATE_KINDS | QUERY_KINDS
"""Kinds of records of which the snapshot, and so the plan, knows nothing."""


async def run_node(config: Config, identity: Identity, paths: Paths) -> None:
    """Run this node until cancelled."""
    journal = Journal(paths.lib / "journal.db")
    try:
        async with _open_store(identity, paths) as store:
            await _Wiring(config, identity, paths, journal, store).run()
    finally:
        journal.close()


async def leave(identity: Identity, paths: Paths) -> str:
    """Remove this node's records from the store; says what happened. Never raises for a store out of reach."""
    async with _open_store(identity, paths) as store:
        ops = [Delete(prefix, prefix=True) for prefix in own_prefixes(identity.name)]
        try:
            blocks = [item.key for item in (await store.list("blocks/")).items if f'"{identity.name}"'.encode() in item.value]
            keys = [node_key(identity.name), alive_key(identity.name), *blocks]
            await store.txn([], [*ops, *(Delete(key) for key in keys)])
        except PlaitError as error:
            return f"could not tell the cluster ({error}); run `plait node rm {identity.name}` on another node"
    return "left the cluster"


@contextlib.asynccontextmanager
async def _open_store(identity: Identity, paths: Paths) -> AsyncIterator[Store]:
    """The embedded store on the node that carries it, else the one over the wire."""
    store: Store
    if identity.store:
        host, port = split_address(identity.store, STORE_PORT)
        store = RemoteStore(host, port, ssl_context_client(paths.lib / "pki"))
    else:
        store = await SqliteStore.open(paths.lib / "store.db")
    try:
        yield store
    finally:
        await store.close()


class _Wiring:
    """Makes everything in order of dependence; `run` starts it all and waits."""

    def __init__(self, config: Config, identity: Identity, paths: Paths, journal: Journal, store: Store) -> None:
        self.config, self.identity, self.paths, self.journal, self.store = config, identity, paths, journal, store
        self.view = View(identity.name)
        self.health = Health(time.time)
        self.kernel = LinuxKernel()
        self.work = KernelWork(self.kernel)
        fast_path = config.fast_path and CAPABILITY in self.kernel.capabilities()
        self.replica = Replica(store, paths.lib / "replica.bin")
        self.networks = Networks(self.view, store, DEFAULT_NETWORK, self.view.caught_up)
        self.addresses = Addresses(self.view, store, journal, DEFAULT_NETWORK, config.docker_bridge)
        self.publisher = Publisher(self.view, store, self.view.caught_up)
        self.dns = DnsService(on_crash=self._on_dns_crash)
        self.loops = NodeLoops(
            Parts(
                config=config,
                identity=identity,
                paths=paths,
                view=self.view,
                journal=journal,
                kernel=self.kernel,
                health=self.health,
                networks=self.networks,
                addresses=self.addresses,
                publisher=self.publisher,
                dns=self.dns,
                fast_path=fast_path,
            ),
            DEFAULT_NETWORK,
        )
        self.reconciler = Reconciler(
            self.kernel,
            self.work,
            self.loops.plan,
            lambda: self.replica.synced,
            self.health,
            self.loops.refresh_node,
            self.loops.firewall_changed,
        )
        self.ops = AgentOperations(
            self.view,
            journal,
            self.work,
            self.addresses,
            self.networks,
            self.loops.names_settled,
            self.reconciler.once,
            lambda: self.loops.fast_path,
        )
        self.sandboxes = self._sandboxes()
        which, where = config.register_services, config.register_address
        self.automatic = AutoRegister(self.view, journal, self.health, str(identity.address), which, where)
        self.catalog = Catalog(self.view, journal, self.publisher.publish, self._contact_ms, self.automatic.dismiss)
        engine = DockerEngine(Path(config.docker_socket)) if config.docker_enabled else None
        self.docker = self._docker(engine) if engine is not None else None
        self.checks = _Checks(config, self.view, journal, self.health, self.catalog, engine)
        self.view.subscribe(self._on_view)
        self.kv = Kv(self.view, store, self._contact_ms)
        self.consul_state = ConsulState(self.view, store, self._contact_ms)
        self.queries = Queries(self.view, store, self.kv)
        self.api: ConsulApi | None = None
        self.replica.subscribe(self._on_changes, self._on_store)

    def _sandboxes(self) -> Sandboxes:
        name, run_dir, settled = self.identity.name, self.paths.run, self.loops.names_settled
        return Sandboxes(name, self.ops, self.journal, run_dir, create_netns, delete_netns, netns_exists, settled)

    def _docker(self, engine: DockerEngine) -> DockerRuntime:
        async def write(kind: str, key: str, body: bytes | None) -> None:
            await self.journal.write([Write(kind, key, body)])

        state = CachedState(self.journal.load, write)
        return DockerRuntime(
            self.identity.name,
            self.ops,
            state,
            engine,
            self.health,
            DEFAULT_NETWORK,
            lambda: self.replica.synced and self.replica.connected,
        )

    def _on_changes(self, changes: Iterable[Change], revision: int) -> None:
        """What the store says goes to who keeps that kind; keys and sessions are none of the view's business."""
        told = list(changes)
        self.kv.change(told, revision)
        self.consul_state.change(told)
        self.queries.change(told)
        self.view.change((change for change in told if kind_of(change.item.key) not in _NOT_VIEWED), revision)

    def _on_view(self, kinds: frozenset[str]) -> None:
        if kinds != {"checks"}:  # of which the plan knows nothing, and which change all the time
            self.reconciler.mark()
        if self.view.unsettled():
            self.publisher.wake()
        if self.docker is not None and "networks" in kinds:
            self.docker.networks_changed()

    async def run(self) -> None:
        admin = AdminServer(AgentAdmin(self._admin_parts()), self.paths.admin_socket)
        datacenter = self.config.datacenter
        parts = (
            KvApi(self.kv, self.identity.name),
            EventApi(self.consul_state),
            OperatorApi(self.consul_state, datacenter),
            QueryApi(self.queries, self.identity.name, datacenter, self._entries, self._contact_ms),
        )
        more = [route for part in parts for route in part.routes]
        outside = OutsideCatalog(self.view, self.store)
        self.api = ConsulApi(self.catalog, self.identity.name, datacenter, more, self.checks.checkup, outside)
        http = self.api.runner()
        await admin.start()
        try:
            if self.docker is not None:
                path = self.paths.docker_plugin
                await self.docker.start(path, inherited_socket(path, os.environ, os.getpid()))
            await http.setup()
            await web.TCPSite(http, str(self.config.http_address), self.config.http_port).start()
            await self.dns.set_upstreams(_upstreams(self.config))
            await self.dns.start()
            await self._run_loops()
        finally:
            await self.checks.close()
            await admin.stop()
            await http.cleanup()
            await self.dns.close()
            if self.docker is not None:
                await self.docker.close()
            self.work.close()

    def _entries(self, service: str) -> list[Json]:
        """The instances of a service as `/v1/health/service` shows them."""
        assert self.api is not None, "queries are answered by the API"
        views = Views(self.api.directory(), self.config.datacenter)
        return [views.health_entry(instance) for instance in views.instances(service)]

    async def _run_loops(self) -> None:
        if self.replica.load():
            items = self.replica.items.values()
            self._on_changes((Change("put", item, item.mod_revision) for item in items), self.replica.revision)
        self.loops.refresh_node()  # without the disk copy the view would not even know this node
        await self.loops.look_at_firewall()
        await self.ops.recover()
        await self.sandboxes.recover()
        async with asyncio.TaskGroup() as group:
            if not self.identity.store:
                self._serve_store(group)
                group.create_task(SessionSteward(self.kv, self.view, self.queries.drop_unbound).run())
            else:
                host, port = split_address(self.identity.store, STORE_PORT)
                group.create_task(StoreHost(self.view, host, port, self._server_name, lambda: self.replica.connected).run())
            if self.docker is not None:
                group.create_task(self.docker.run())
            for loop in (
                self.replica.run(),
                self._notice_absent_store(),
                self.publisher.run(),
                self.publisher.stay_alive(LEASE_TTL_S),
                self.loops.keep_blocks(),
                self.loops.serve_names(),
                self.loops.watch_conditions(),
                self.loops.watch_capabilities(),
                self.loops.watch_firewall(self.reconciler.mark),
                self.reconciler.watch(),
                self.reconciler.run(),
                self.sandboxes.run(),
                *self.checks.loops(),
                self.automatic.run(self.checks.checkup),
            ):
                group.create_task(loop)

    def _serve_store(self, group: asyncio.TaskGroup) -> None:
        pki = self.paths.lib / "pki"
        server = StoreServer(self.store, "0.0.0.0", STORE_PORT, ssl_context_server(pki))
        joins = JoinServer(
            self.store,
            pki,
            "0.0.0.0",
            JOIN_PORT,
            ssl_context_join_server(pki),
            store_address=f"{self.identity.address}:{STORE_PORT}",
            info={"pool": str(self.identity.pool)},
        )
        for listener in (server, joins):
            listener.open()
            group.create_task(listener.run())

    # --- what the admin socket asks

    def _admin_parts(self) -> AdminParts:
        return AdminParts(
            identity=self.identity,
            view=self.view,
            store=self.store,
            ops=self.ops,
            sandboxes=self.sandboxes,
            work=self.work,
            health=self.health,
            default_network=DEFAULT_NETWORK,
            search=self.config.search_domain,
            plan=self.loops.plan,
            waiting=lambda: self.loops.waiting(self.reconciler),
            store_state=self._store_state,
            engines=lambda: [self.docker.state] if self.docker is not None else [],
            token=self._token,
            gateway=self.loops.set_gateway,
            caught_up=self.view.caught_up,
        )

    def _store_state(self) -> StoreState:
        return {
            "role": "remote" if self.identity.store else "embedded",
            "address": self.identity.store or f"{self.identity.address}:{STORE_PORT}",
            "reachable": self.replica.connected,
            "revision": self.view.revision,
        }

    def _on_dns_crash(self, text: str) -> None:
        self.health.set("dns-child", "dns", text)
        self.loops.names_changed()

    async def _notice_absent_store(self) -> None:
        """A store that was never reached since the start is a condition too, after a moment."""
        await asyncio.sleep(3)
        if not self.replica.connected:
            self._on_store(False)

    def _on_store(self, connected: bool) -> None:
        if connected:
            self.health.clear("store-unreachable", "store")
            self.publisher.wake()
        else:
            self.health.set("store-unreachable", "store", f"no connection to the store at {self._store_state()['address']}")

    def _server_name(self) -> str | None:
        """The node that carries the store, as far as is known."""
        return next((n.name for n in self.view.snapshot.nodes.values() if SERVER_META in n.meta), None)

    def _contact_ms(self) -> int | None:
        return 0 if self.replica.connected else None

    async def _token(self, ttl_s: int) -> TokenView:
        now = time.time()
        token = await create_token(self.store, cluster_pin(self.paths.lib / "pki"), ttl_s, now)
        address = self.identity.store.partition(":")[0] or str(self.identity.address)
        return {"token": token, "address": address, "expires": now + ttl_s}


class _Checks:
    """This node's health checks with all that they need."""

    def __init__(self, config: Config, view: View, journal: Journal, health: Health, catalog: Catalog, engine: DockerEngine | None) -> None:
        policy = CheckPolicy(config.script_checks, config.local_script_checks, config.parallel_checks)
        self.runners = Runners(engine)
        self.checkup = Checkup(view, journal, self.runners, policy, self._gone, time.monotonic, random.random)
        self._catalog = catalog
        self.followed = Followed(view, self.checkup)
        self.watch = CheckWatch(view, self.checkup, health)

    def loops(self) -> list[Coroutine[None, None, None]]:
        return [self.checkup.run(), self.followed.run(), self.watch.run()]

    async def _gone(self, service_id: str) -> None:
        """A service that was critical for too long goes with its checks."""
        await self._catalog.deregister(service_id)
        await self.checkup.remove([check.id for check in self.checkup.of_service(service_id)])

    async def close(self) -> None:
        """The journal has the last of all checks afterwards."""
        await self.checkup.flush()
        await self.runners.close()


def _upstreams(config: Config) -> list[tuple[str, int]]:
    """The configured resolvers as (address, port)."""
    return [(host, int(port or 53)) for host, _, port in (entry.partition(":") for entry in config.dns_upstreams)]
