# SPDX-License-Identifier: Apache-2.0
"""This node's share of the directory: services, health checks, keys, sessions, queries, and the HTTP API over them.

Data in: the view, the store, changes of the replica. Data out: an API to be served and loops to be run. It needs nothing of the network
that plait steers, so that an agent without one (`solo`) is made of the same parts.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from functools import partial

from plait.agent.autoregister import AutoRegister
from plait.agent.catalog import Catalog
from plait.agent.checkup import CheckPolicy, Checkup
from plait.agent.checkwatch import CheckWatch
from plait.agent.config import Config
from plait.agent.consulstate import KINDS as STATE_KINDS
from plait.agent.consulstate import ConsulState
from plait.agent.dnsqueries import NEAR_CLIENT, QueryNames, node_at
from plait.agent.dnswatch import DnsWatch
from plait.agent.figures import Figures, of_health
from plait.agent.followed import Followed
from plait.agent.health import Health
from plait.agent.identity import Identity
from plait.agent.indexes import Indexes
from plait.agent.journal import Journal
from plait.agent.keys import kind_of
from plait.agent.kv import Kv
from plait.agent.outside import OutsideCatalog
from plait.agent.publisher import Publisher
from plait.agent.queries import KINDS as QUERY_KINDS
from plait.agent.queries import Queries
from plait.agent.roundtrips import RoundTrips
from plait.agent.sessions import SessionSteward
from plait.agent.transactions import Transactions
from plait.agent.view import View
from plait.checks.command import Commands
from plait.checks.runners import Runners
from plait.dns.answer import Origin
from plait.model.addr import IPAddress
from plait.model.cluster import Instance
from plait.serve.consul import ConsulApi
from plait.serve.consul_coordinate import CoordinateApi, coord_json, near
from plait.serve.consul_event import EventApi
from plait.serve.consul_kv import KvApi
from plait.serve.consul_operator import OperatorApi
from plait.serve.consul_query import QueryApi
from plait.serve.consul_runtime import RuntimeApi
from plait.serve.consul_txn import TxnApi
from plait.serve.event_hub import EventHub
from plait.serve.plait_events import PlaitEventsApi
from plait.serve.plait_openapi import OpenApi
from plait.services.checkviews import Json
from plait.services.figures import Reading, Summary, readings
from plait.services.queries import Far
from plait.services.views import Views
from plait.store.api import Change, Store

_NOT_VIEWED = STATE_KINDS | QUERY_KINDS
"""Kinds of records of which the snapshot, and so the plan, knows nothing."""


@dataclass(frozen=True, slots=True)
class DiscoveryParts:
    """What it is made of. `contact_ms` as `Catalog` has it; `engine` runs the checks inside containers, None: there is none."""

    config: Config
    identity: Identity
    journal: Journal
    store: Store
    view: View
    health: Health
    publisher: Publisher
    contact_ms: Callable[[], int | None]
    engine: Commands | None = None


class Discovery:
    def __init__(self, parts: DiscoveryParts) -> None:
        self._p = parts
        config, view, journal = parts.config, parts.view, parts.journal
        which, where = config.register_services, config.register_address
        self.automatic = AutoRegister(view, journal, parts.health, str(parts.identity.address), which, where)
        self.outside = OutsideCatalog(view, parts.store)
        self.catalog = Catalog(view, journal, parts.publisher.publish, parts.contact_ms, self.automatic.dismiss, self.outside.forget)
        policy = CheckPolicy(config.script_checks, config.local_script_checks, config.parallel_checks)
        self.runners = Runners(parts.engine)
        self.checkup = Checkup(view, journal, self.runners, policy, self.remove, time.monotonic, random.random)
        self.kv = Kv(view, parts.store, parts.contact_ms)
        self.consul_state = ConsulState(view, parts.store, parts.contact_ms)
        self.queries = Queries(view, parts.store, self.kv)
        self.indexes = Indexes(journal)
        self._behind = True
        self.figures = Figures()
        self.figures.add(self._readings)
        self.figures.add(partial(of_health, parts.health))
        self.api = self._api()
        self.names = QueryNames(self.queries.all, self._entries, self._instance, self.near, self._node_at, config.datacenter)

    def _api(self) -> ConsulApi:
        name, datacenter = self._p.identity.name, self._p.config.datacenter
        parts = (
            KvApi(self.kv, name),
            TxnApi(Transactions(self._p.view, self._p.store, self.kv, self.outside), datacenter),
            EventApi(self.consul_state),
            OperatorApi(self.consul_state, datacenter),
            CoordinateApi(self.consul_state, datacenter),
            RuntimeApi(self.figures),
            QueryApi(self.queries, datacenter, self._entries, self._p.contact_ms, self.near),
        )
        more = [route for part in parts for route in part.routes]
        api = ConsulApi(self.catalog, name, datacenter, more, self.checkup, self.outside, self.indexes)
        api.set_coordinates(lambda: coord_json(self.consul_state.coordinate(name)[0]), partial(near, self.consul_state))
        self.events = EventHub(self.catalog, lambda: api.directory(), datacenter)
        api.add((*PlaitEventsApi(self.events).routes, *OpenApi(lambda: api.routes).routes))
        return api

    def _instance(self, node: str, ident: str) -> Instance | None:
        return self._p.view.snapshot.instances.get((node, ident))

    def _node_at(self, origin: Origin) -> str:
        return node_at(self._p.view.snapshot, origin)

    def near(self, name: str) -> Far | None:
        """How far others are from the node of that name (over HTTP who asks is taken to be on this one); of one that nobody measures itself
        is near and all others are far."""
        name = self._p.identity.name if name in ("_agent", NEAR_CLIENT) else name
        return near(self.consul_state, name) or (lambda other: float(other != name)) if name else None

    def roundtrips(self) -> RoundTrips:
        """Measures how far the living others are, and publishes where this node is among them."""
        state, me = self.consul_state, self._p.identity.name

        def peers() -> dict[str, IPAddress]:
            snapshot = self._p.view.snapshot
            return {name: node.address for name, node in snapshot.nodes.items() if name != me and name in snapshot.alive}

        found = RoundTrips(me, peers, lambda node: state.coordinate(node)[0], state.set_coordinate)
        self.figures.add(lambda: [Reading("plait.roundtrips", float(found.measured))])
        return found

    def watch_dns(self, watch: DnsWatch) -> None:
        """Show what it counts."""
        self.figures.add(lambda: watch.figures)

    def _readings(self) -> list[Reading]:
        snapshot = self._p.view.snapshot
        own = [instance for instance in snapshot.instances.values() if instance.node == snapshot.me]
        waiting = self.api.parked() + len(self.events.watchers)
        values: dict[str, float | Summary] = {
            "consul.autopilot.healthy": float(self._p.contact_ms() is not None),
            "consul.state.nodes": float(len(snapshot.nodes) + len(snapshot.catalog_nodes)),
            "consul.state.service_instances": float(len(snapshot.instances)),
            "consul.catalog.services.local": float(len(own)),
            "consul.state.checks": float(len(snapshot.checks)),
            "consul.state.services": float(len({instance.name for instance in snapshot.instances.values()})),
            "consul.state.kv_entries": float(len(self.kv.table)),
            "consul.kvs.apply": self.kv.took_ms,
            "plait.sessions": float(len(self.kv.sessions)),
            "plait.store.revision": float(snapshot.revision),
            "plait.http.waiting": float(waiting),
        }
        runs = [Reading("plait.checks.runs", float(count), (("status", status),)) for status, count in self.runners.runs.items()]
        return [*readings(values), *runs, *self.api.figures()]

    def change(self, changes: Iterable[Change], revision: int) -> None:
        """What the store says goes to who keeps that kind; keys and sessions are none of the view's business."""
        others = self.kv.change(changes, revision)
        if others:  # keys change so often that nobody else should look at each
            self.consul_state.change(others)
            self.queries.change(others)
        self._p.view.change((change for change in others if kind_of(change.item.key) not in _NOT_VIEWED), revision)

    def start(self, changes: Iterable[Change], revision: int) -> None:
        """Begin with what the disk has of the store, which may be older than what was answered before."""
        self._behind = True
        self.kv.start()
        self.change(changes, revision)

    def linked(self) -> None:
        """The replica is a whole copy of the store. The first one may lack deletions that were answered before the start: no index stays
        below its revision."""
        if self._behind:
            self._behind = False
            revision = self._p.view.revision
            self.kv.heard(revision)
            self.consul_state.start_at(revision)
            self.queries.start_at(revision)

    def loops(self) -> list[Coroutine[None, None, None]]:
        """What runs as long as the agent; on the node that carries the store also who ends sessions."""
        view = self._p.view
        followed, watch = Followed(view, self.checkup), CheckWatch(view, self.checkup, self._p.health)
        found = [self.checkup.run(), followed.run(), watch.run(), self.automatic.run(self.checkup)]
        found += [self.indexes.run(lambda: view.revision), self.figures.run()]
        if not self._p.identity.store:
            found.append(SessionSteward(self.kv, view, self.queries.drop_unbound).run())
        return found

    async def close(self) -> None:
        """The journal has the last of all checks, and of the indexes, afterwards."""
        await self.checkup.flush()
        await self.indexes.close()
        await self.runners.close()

    async def remove(self, service_id: str) -> None:
        """Deregister a service of this node with its checks."""
        async with self.checkup.changing(service_id):
            await self.catalog.deregister(service_id)
            await self.checkup.remove([check.id for check in self.checkup.of_service(service_id)])

    def _entries(self, service: str) -> list[Json]:
        """The instances of a service as `/v1/health/service` shows them."""
        views = Views(self.api.directory(), self._p.config.datacenter)
        return [views.health_entry(instance) for instance in views.instances(service)]
