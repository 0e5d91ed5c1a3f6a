# SPDX-License-Identifier: Apache-2.0
"""The only file that names concrete classes: it makes a node's parts, hands them to each other and runs them as one task tree."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Iterator
from functools import partial
from ipaddress import IPv4Network

from plait.agent.addresses import Addresses
from plait.agent.addressing import Addressing, learned
from plait.agent.admin import AdminParts, AgentAdmin
from plait.agent.announcer import Announcer
from plait.agent.answered import Answered
from plait.agent.config import Config, load_config
from plait.agent.dhcp import Leases
from plait.agent.dhcpwires import Wires
from plait.agent.discovery import Discovery, DiscoveryParts
from plait.agent.dnsnear import DnsNear
from plait.agent.dnswatch import DnsWatch
from plait.agent.engines import EngineParts, Engines
from plait.agent.exposures import Exposures
from plait.agent.figures import of_kernel
from plait.agent.files import Paths
from plait.agent.following import Following
from plait.agent.health import Health
from plait.agent.hostaddress import HostAddress
from plait.agent.hostleases import HostLeases
from plait.agent.hostranges import HostRangesWatch
from plait.agent.hostresolvers import HostResolvers
from plait.agent.identity import Identity, new_id
from plait.agent.ipamcare import IpamCare
from plait.agent.joiner import Joiner
from plait.agent.joining import Joining
from plait.agent.journal import Journal
from plait.agent.kernelwork import KernelWork
from plait.agent.limits import LimitBook
from plait.agent.neighbours import Neighbours
from plait.agent.networks import Networks
from plait.agent.node import LEASE_TTL_S, NodeLoops, Parts
from plait.agent.operations import AgentOperations
from plait.agent.outward import Outward
from plait.agent.policies import Policies
from plait.agent.publications import Publications
from plait.agent.publisher import Publisher
from plait.agent.ranges import RangesFile
from plait.agent.reconciler import Reconciler
from plait.agent.removal import Forgetting
from plait.agent.rotation import Doors, Rotation
from plait.agent.sandboxes import Sandboxes
from plait.agent.services import Services
from plait.agent.storeplace import StorePlace
from plait.agent.stores import open_store
from plait.agent.tokens import Tokens
from plait.agent.tunnels import Tunnels
from plait.agent.underlay import Underlay
from plait.agent.uplink import UplinkQueues
from plait.agent.view import View
from plait.dns.zone import Zone
from plait.kernel import linux
from plait.model.errors import NotSupported
from plait.serve.admin import AdminServer
from plait.serve.consul_control import ControlApi
from plait.serve.dns_parent import DnsService
from plait.store.api import Change, Store
from plait.store.replica import Replica

log = logging.getLogger("plait.node")
DEFAULT_NETWORK = "default"
_WIRES = partial(Wires, linux.PacketSocket, linux.open_arp, linux.open_claims, linux.open_neighbours)
"""On which DHCP is spoken."""
_FOLLOW_S = 3.0
"""Most seconds that the DNS process of the agent before goes on while this one waits for the store."""


async def run_node(config: Config, identity: Identity, paths: Paths) -> None:
    """Run this node until cancelled."""
    journal = Journal(paths.lib / "journal.db")
    try:
        run = new_id()
        async with open_store(identity, paths, run) as store:
            await _Wiring(config, identity, paths, journal, store, run).run()
    finally:
        journal.close()


class _Wiring:
    """Makes everything in order of dependence; `run` starts it all and waits."""

    def __init__(self, config: Config, identity: Identity, paths: Paths, journal: Journal, store: Store, run: str) -> None:
        self.config, self.identity, self.paths, self.journal, self.store = config, identity, paths, journal, store
        self.view, self.health = View(identity.name), Health(time.time)
        self.kernel = linux.LinuxKernel(paths.lib, paths.sysctls)
        self.work, self.replica = KernelWork(self.kernel), Replica(store, paths.lib / "replica.bin")
        self.host_ranges = HostRangesWatch(self.view, self.health, self.kernel.host_ranges, lambda: self.engines.others(), self._bridge)
        self.leases = Leases(journal, self.health, identity.id, config.dhcp_timeout_s, _WIRES)
        self.host_leases = HostLeases(self.view, self.leases, self.health, linux.link_mac, linux.announce_here)
        self.networks = self._networks()
        self.ranges = RangesFile(paths.ranges, journal, self.health, lambda: self.loops.refresh_node())
        ranges = lambda: self.ranges.ranges  # noqa: E731
        self.addresses = Addresses(self.view, store, journal, DEFAULT_NETWORK, config.docker_bridge, config.reuse_after_s, ranges)
        self.addressing = Addressing(self.addresses, self.leases, self.view, self.work.put)
        self.publisher, self.dns = Publisher(self.view, store, self.view.caught_up), self._dns()
        self.answered = Answered(self.view, self.dns, paths.answered, config.policy_min_ttl_s, lambda: self.reconciler.once())
        self.resolvers = HostResolvers(self.dns.set_upstreams)
        home = HostAddress.of(config, identity, self.kernel, self.health)
        self.underlay = Underlay(journal, self.view, self.kernel, home, lambda: self.reconciler.mark())
        linked = lambda: self.replica.connected  # noqa: E731
        self.place = StorePlace(identity, paths.identity, paths.lib / "pki", store, run, self.view, home, self.health, linked)
        self.tunnels = Tunnels(lambda: self.view.snapshot, self.kernel, self.health, self._on_tunnels)
        self.rotation, self._linked = self._rotation(), asyncio.Event()
        self.limits = self._limits()
        self.outward, self.loops = self._outward(), NodeLoops(self._parts(), DEFAULT_NETWORK)
        self.reconciler = self._reconciler()
        self.ops, self.policies = self._operations(), Policies(self.view, store, self.answered.enforce, self.kernel)
        self.following = Following(self.view, self.leases, self.ops, self.health, linux.readdress, lambda: self.reconciler.mark())
        self.sandboxes, self.exposures = self._sandboxes(), Exposures(identity.name, self.ops)
        self.engines, self.services = self._engines(), Services(self.view, store, self.health, self.view.caught_up, self.reconciler.once)
        docker, contact_ms = self.engines.docker_api, lambda: 0 if self.replica.connected else None
        parts = DiscoveryParts(config, identity, journal, store, self.view, self.health, self.publisher, contact_ms, docker)
        self.discovery = Discovery(parts)
        self.discovery.api.add(ControlApi(self, identity.name).routes)
        self.dns_watch = DnsWatch(self.dns, self.health)
        self.dns_near = DnsNear(self.dns, lambda: self.view.snapshot, lambda: self.discovery.near("_agent"))
        self.discovery.watch_dns(self.dns_watch)
        self.discovery.figures.add(partial(of_kernel, self.work), self.tunnels.readings, self.loops.spoofing.readings)
        self.view.subscribe(self._on_view)
        self.joiner = Joiner(identity, config, paths, store, self.replica.items, linked, self.health, lambda: not self.dns.followed)
        self.replica.subscribe(self.discovery.change, self._on_store)
        self.replica.subscribe(self.joiner.change)

    def _reconciler(self) -> Reconciler:
        told = self.loops.refresh_node, self.loops.firewall.changed, self.host_ranges.mark
        return Reconciler(self.kernel, self.work, self.loops.plan, self.loops.prompt, lambda: self.replica.synced, self.health, *told)

    def _bridge(self) -> IPv4Network | None:
        block = self.addresses.bridge_block()
        return block.cidr if block is not None else None

    def _operations(self) -> AgentOperations:
        loops, once, fast_path = self.loops, self.reconciler.once, lambda: self.loops.firewall.fast_path
        parts = self.view, self.journal, self.work, self.addressing, self.networks
        return AgentOperations(*parts, loops.names_settled, once, fast_path, lambda: self.limits.limiting)

    def _networks(self) -> Networks:
        able, learn = self.kernel.capabilities, partial(learned, self.leases)
        return Networks(self.view, self.store, DEFAULT_NETWORK, self.view.caught_up, self.host_ranges.look, able, learn)

    def _outward(self) -> Outward:
        parts = self.paths, self.view, self.store, self.journal, self.health, self.kernel
        return Outward(*parts, lambda: self.reconciler.mark(), lambda: self.reconciler.once())

    def _dns(self) -> DnsService:
        return DnsService(
            on_crash=self._on_dns_crash,
            on_query=lambda *query: self.discovery.names(*query),
            on_answer=lambda *answer: self.answered.take(*answer),
            successors=self.paths.dns_successors,
            open_inside=linux.open_resolver,
        )

    def _parts(self) -> Parts:
        return Parts(
            config=self.config,
            identity=self.identity,
            paths=self.paths,
            view=self.view,
            journal=self.journal,
            kernel=self.kernel,
            health=self.health,
            networks=self.networks,
            addresses=self.addresses,
            publisher=self.publisher,
            dns=self.dns,
            on_zone=self._on_zone,
            capabilities=self.kernel.capabilities(),
            underlay=self.underlay,
            vanished=lambda: self.engines.vanished(),
            bridged=lambda: self.engines.bridged(),
            rotation=self.rotation,
            tunnels=self.tunnels,
            leases=lambda: self.host_leases.known,
            limits=self.limits,
            uplink=self._uplink(),
            tables=lambda: self.outward.routing.tables,
        )

    def _limits(self) -> LimitBook:
        once, honours = lambda: self.reconciler.once(), bool(self.config.uplink.rate)
        return LimitBook(self.view, self.journal, self.kernel.capabilities, once, self.kernel, honours)

    def _uplink(self) -> UplinkQueues:
        link, changed = lambda: self.underlay.link, lambda: self.reconciler.mark()
        return UplinkQueues(self.config.uplink, self.kernel, self.health, link, self.limits.with_priority, changed)

    def _rotation(self) -> Rotation:
        doors = Doors(lambda: self.loops.refresh_node(), lambda: self.reconciler.once())
        return Rotation(self.view, self.store, self.replica.items, self.paths.lib, self.config.rotate_days, doors)

    def _on_tunnels(self) -> None:
        self.loops.refresh_node()
        self.reconciler.mark()

    def _sandboxes(self) -> Sandboxes:
        name, run_dir, settled = self.identity.name, self.paths.run, self.loops.names_settled
        return Sandboxes(name, self.ops, self.journal, run_dir, linux.create_netns, linux.delete_netns, linux.netns_exists, settled)

    def _engines(self) -> Engines:
        return Engines(
            EngineParts(
                config=self.config,
                paths=self.paths,
                node=self.identity.name,
                journal=self.journal,
                view=self.view,
                ops=self.ops,
                work=self.work,
                health=self.health,
                default_network=DEFAULT_NETWORK,
                plan=self.loops.plan,
                waiting=lambda: self.loops.waiting(self.reconciler),
                current=lambda: self.replica.synced and self.replica.connected,
                on_others=self.host_ranges.mark,
                on_port=lambda: self.reconciler.mark(),
                resolver=self.loops.resolver,
            )
        )

    def _on_view(self, kinds: frozenset[str]) -> None:
        quiet = {"answered"} if self.view.snapshot.services else {"answered", "checks"}
        if not kinds <= quiet:  # of answers a pass is made by who takes them; without services the plan knows nothing of checks
            self.reconciler.hurry()
        if self.view.unsettled():
            self.publisher.wake()
        if "networks" in kinds:
            self.engines.networks_changed()

    async def run(self) -> None:
        admin = AdminServer(AgentAdmin(self._admin_parts()), self.paths.admin_socket)
        http = self.discovery.api.server()
        self._load()
        self.leases.recover()
        await admin.start()
        try:
            await self.engines.answer_docker()
            await http.start(str(self.config.http_address), self.config.http_port)
            await self._set_dns(self.config)
            await self.dns.start()
            await self._run_loops()
        finally:
            await admin.stop()
            await http.stop()
            await self.discovery.close()
            await self.dns.close()
            await self.engines.close()
            await self.joiner.close()
            self.work.close()

    def _load(self) -> None:
        """Know the cluster as it last was before anybody is answered."""
        self.replica.load()
        self.answered.recover()
        items = self.replica.items.values()
        self.discovery.start((Change("put", item, item.mod_revision) for item in items), self.replica.revision)
        self.loops.refresh_node()  # without the disk copy the view would not even know this node

    async def _run_loops(self) -> None:
        await self.loops.firewall.look()
        await self.ranges.look()
        for part in (self.following, self.ops, self.sandboxes, self.exposures, self.engines):
            await part.recover()
        async with asyncio.TaskGroup() as group:
            for loop in (
                *self.place.loops(),
                self.replica.run(),
                self.joiner.run(),
                self._notice_absent_store(),
                self.publisher.run(),
                self.publisher.stay_alive(LEASE_TTL_S),
                self.loops.keep_blocks(),
                self._serve_names(),
                self.host_ranges.run(),
                Forgetting(self.view, self.store, self.config.forget_after_s, lambda: self.replica.connected).run(),
                self.ranges.run(),
                *self.outward.loops(),
                self.addresses.assigned.run(),
                self.leases.run(),
                self.following.run(),
                self.host_leases.run(self.reconciler.mark),
                self.dns_watch.run(),
                self.resolvers.run(),
                self.dns_near.run(),
                *self.loops.watching(),
                self.loops.firewall.watch(self.reconciler.mark),
                *self.reconciler.loops(),
                self.sandboxes.run(),
                self.policies.judgments.run(),
                self.answered.run(),
                self.services.run(),
                Announcer(self.view, linux.tell_neighbours).run(),
                Neighbours(self.health, linux.neigh_tables, time.monotonic).run(),
                self.engines.run(),
                *self.discovery.loops(),
                *self._measuring(),
            ):
                group.create_task(loop)

    def _measuring(self) -> Iterator[Coroutine[None, None, None]]:
        roundtrips = self.discovery.roundtrips() if self.config.coordinates else None
        return self.underlay.measuring(self.tunnels, self.rotation, roundtrips, self.config.path_mtu)

    async def _serve_names(self) -> None:
        """The DNS process of the agent before goes on answering until this one has heard of what happened meanwhile."""
        if self.dns.followed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FOLLOW_S):
                    await self._linked.wait()
        await self.loops.serve_names()

    # --- what the admin socket asks

    def _admin_parts(self) -> AdminParts:
        return AdminParts(
            identity=self.identity,
            view=self.view,
            store=self.store,
            ops=self.ops,
            sandboxes=self.sandboxes,
            limits=self.limits,
            publications=Publications(self.view, self.ops, self.reconciler.once),
            work=self.work,
            health=self.health,
            underlay=self.underlay,
            tunnels=self.tunnels,
            addresses=self.addresses,
            care=IpamCare(self.view, self.store, self.ops, self.addressing, self.work, self.loops.plan, linux.netns_exists),
            default_network=DEFAULT_NETWORK,
            search=self.config.search_domain,
            resolver=self.loops.resolver,
            plan=self.loops.plan,
            waiting=lambda: self.loops.waiting(self.reconciler),
            store_state=self.place.state,
            engines=self.engines.states,
            token=Tokens(self.store, self.paths.lib / "pki", self.place).create,
            gateway=self.loops.set_gateway,
            exposures=self.exposures,
            host_leases=self.host_leases.reservations,
            caught_up=self.view.caught_up,
            services=self.services,
            policies=self.policies,
            outward=self.outward,
            joining=Joining(self.view, self.store, self.replica.items, self.joiner, not self.identity.store, DEFAULT_NETWORK),
        )

    def _on_dns_crash(self, text: str) -> None:
        self.health.set("dns-child", "dns", text)
        self.loops.names_changed()

    async def _notice_absent_store(self) -> None:
        """A store that was never reached since the start is a condition too, after a moment."""
        await asyncio.sleep(3)
        if not self.replica.connected:
            self._on_store(False)

    # --- what clients of the HTTP API may ask of the agent

    async def leave(self) -> None:
        raise NotSupported("this agent also steers the host's network; `plait down` ends it, `plait down --purge` leaves the cluster")

    async def reload(self) -> None:
        """The configuration file again: the upstreams of DNS, its TTLs and limits, and the level of the log. The rest needs a restart."""
        config = load_config(self.paths.config)
        await self._set_dns(config)
        logging.getLogger("plait").setLevel(config.log_level.upper())

    def _on_zone(self, zone: Zone) -> None:
        self.discovery.names.zone = zone

    async def _set_dns(self, config: Config) -> None:
        await self.resolvers.configure(config.dns)
        await self.dns_near.configure(config.dns)
        await self.dns.set_limits(config.dns.limits)
        self.loops.set_only_passing(config.dns.only_passing)

    def members(self) -> frozenset[str]:
        return frozenset(self.view.snapshot.nodes)

    def _on_store(self, connected: bool) -> None:
        if connected:
            self._linked.set()
            self.place.reached()
            self.discovery.linked()
            self.health.clear("store-unreachable", "store")
            self.publisher.wake()
        else:
            self.health.set("store-unreachable", "store", f"no connection to the store at {self.place.address}")
