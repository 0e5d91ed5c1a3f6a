# SPDX-License-Identifier: Apache-2.0
"""One running node: the parts that `wiring` made, and the loops that tie them together.

Every loop is a task of one group; none outlives it. A programming error in any of them ends the process (systemd starts it again, the
kernel keeps forwarding meanwhile); errors of the store, the engine and the kernel are conditions and are tried again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace

from plait import __version__
from plait.agent.addresses import Addresses
from plait.agent.admin import netns_of_own
from plait.agent.config import DNS_PORTS, Config
from plait.agent.files import Paths, replace_file
from plait.agent.firewall import Firewall
from plait.agent.health import Health
from plait.agent.hostaddress import loopbacks
from plait.agent.hostlinks import CODE as PARENT_MISSING
from plait.agent.hostlinks import DNS_PORT, links_for, links_here, missing, resolver_of, resolver_places
from plait.agent.identity import Identity
from plait.agent.journal import Journal, Write
from plait.agent.judgments import COUNTING
from plait.agent.lacks import lacking
from plait.agent.limits import LimitBook
from plait.agent.networks import Networks
from plait.agent.policing import UNENFORCED, Gaps
from plait.agent.publisher import Publisher
from plait.agent.ranges import DIFFER, MISPLACED, differing, digest, misplaced
from plait.agent.reconciler import Reconciler
from plait.agent.reports import merged_meta, open_ports, strays
from plait.agent.rotation import Rotation
from plait.agent.spoofing import Spoofing
from plait.agent.tunnels import Tunnels
from plait.agent.underlay import Underlay
from plait.agent.uplink import UplinkQueues
from plait.agent.view import View
from plait.backends import child_of
from plait.dns.zone import Zone
from plait.kernel.linux import LinuxKernel
from plait.model.addr import IPAddress, mac_from_digest
from plait.model.cluster import GATEWAY_META, Network, Node, Snapshot, TunnelKey
from plait.model.errors import PlaitError, StoreUnavailable
from plait.model.hostlinks import BridgePort
from plait.model.objects import KernelObject, Plan
from plait.model.routing import RouteTable
from plait.plan import Local, guard, network_mtu, plan_node, prompt_objects
from plait.plan.backing import headless
from plait.plan.hostlease import HostLease
from plait.plan.policy import Policing
from plait.plan.vips import CAPABILITY
from plait.runtimes.api import NetworkRequest
from plait.runtimes.docker.options import docker_env
from plait.serve.dns_parent import DnsService, DnsUnavailable
from plait.services.directory import SERVER_META

log = logging.getLogger("plait.node")
LEASE_TTL_S = 6.0
"""A node that is silent this long counts as dead; its names are gone everywhere a moment later."""
_MIN_INNER_MTU = 1280


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that a node consists of, made in `wiring`."""

    config: Config
    identity: Identity
    paths: Paths
    view: View
    journal: Journal
    kernel: LinuxKernel
    health: Health
    networks: Networks
    addresses: Addresses
    publisher: Publisher
    dns: DnsService
    on_zone: Callable[[Zone], None]
    capabilities: frozenset[str]
    underlay: Underlay
    vanished: Callable[[], set[str]]
    bridged: Callable[[], Mapping[str, BridgePort]]
    rotation: Rotation
    tunnels: Tunnels
    leases: Callable[[], dict[str, HostLease]]
    limits: LimitBook
    uplink: UplinkQueues
    tables: Callable[[], tuple[RouteTable, ...]]


_CAPABILITIES_EVERY_S = 5.0
"""Between two looks at a kernel that lacks something: a module may be loaded, a program installed."""
_NAMED = frozenset({"nodes", "alive", "networks", "blocks", "endpoints", "containers", "instances", "checks", "services"}) | {
    f"catalog/{kind}" for kind in ("nodes", "instances", "checks", "tags")
}
"""Kinds of records that names are made of."""


class NodeLoops:
    """What a node does by itself. `default_network` is the cluster's first network."""

    def __init__(self, parts: Parts, default_network: str) -> None:
        self._p, self._default = parts, default_network
        self.policing = Policing(lambda: COUNTING in self._capabilities)
        self._before = Local(policing=self.policing)
        self._gateway = bool(parts.journal.load("setting").get("gateway"))
        self._zone: Zone | None = None
        self._only_passing = parts.config.dns.only_passing
        self._touched = parts.view.follow()
        self._names_dirty, self._names_done = asyncio.Event(), asyncio.Condition()
        self._names_generation, self._names_shown = 0, -1
        self._blocks_dirty = asyncio.Event()
        self._bridge_settled = not parts.config.docker_bridge
        """Whether dockerd, when it starts now, finds what there is to say of its default bridge."""
        self._capabilities = parts.capabilities
        self.firewall = Firewall(
            parts.kernel, parts.underlay, parts.health, parts.config.fast_path, lambda: self._capabilities, self._open_ports
        )
        self.spoofing = Spoofing(
            lambda: parts.view.snapshot, lambda: parts.bridged(), lambda: netns_of_own(parts.view), parts.kernel, parts.health
        )
        parts.view.subscribe(self._on_view)

    def _open_ports(self) -> list[str]:
        return [] if self._p.config.clients else open_ports(self._p.view.snapshot)

    def _on_view(self, kinds: frozenset[str]) -> None:
        if kinds & _NAMED:
            self.names_changed()
        if kinds & {"networks", "blocks", "endpoints", "assigned"}:
            self._blocks_dirty.set()
        self._p.publisher.wake()

    # --- the plan

    def plan(self) -> Plan:
        """The whole desired state of this node now."""
        return plan_node(*self._facts())

    def prompt(self) -> list[KernelObject]:
        """What of it follows an event at once."""
        return prompt_objects(*self._facts())

    def _facts(self) -> tuple[Snapshot, Local]:
        snapshot, vanished = self._p.view.snapshot, self._p.vanished()
        if vanished:
            snapshot = replace(snapshot, endpoints={key: e for key, e in snapshot.endpoints.items() if key not in vanished})
        local = replace(
            self._before,
            gateway=self._gateway,
            netns=netns_of_own(self._p.view),
            fast_path=self.firewall.fast_path.ingress,
            shortcut=self.firewall.fast_path.link,
            trusting=self.firewall.trusting,
            ipv6=self._ipv6,
            path_mtu=self._p.underlay.path_mtus.known,
            underlay=self._p.underlay.link,
            strict=self._p.underlay.strict,
            software_checksums=self._p.underlay.checksums.software,
            moved=self._p.rotation.moved,
            leases=self._p.leases(),
            limiting=self._p.limits.limiting,
            uplink=self._p.uplink.now,
            clients=self._p.config.clients,
            guards=guard.GUARDS & self._capabilities,
            bridged=self._p.bridged(),
            links=links_for(snapshot, self._p.addresses.bridge_block() is not None),
            draws=CAPABILITY in self._capabilities,
            tables=self._p.tables(),
            silent=self._p.underlay.silence.silent,
        )
        return snapshot, local

    @property
    def _ipv6(self) -> bool:
        return "ipv6" in self._p.kernel.capabilities()

    async def set_gateway(self, enabled: bool) -> None:
        """Whether this node forwards for hosts without an agent; kept over restarts."""
        await self._p.journal.write([Write("setting", "gateway", b"1" if enabled else None)])
        self._gateway = enabled
        self.refresh_node()

    # --- this node's record

    def refresh_node(self) -> None:
        """Bring the node's own record in line with its links and blocks. Cheap; called on every link event."""
        identity = self._p.identity
        known = self._p.view.snapshot.nodes.get(identity.name)
        try:
            mtu, further = self._p.underlay.look(known.address if known is not None else None), self._p.underlay.home.further()
        except OSError:  # a condition by now
            mtu, further = (known.mtu, known.further) if known is not None else (1500, ())
        node = Node(
            name=identity.name,
            id=identity.id,
            address=self._p.underlay.home.now,
            mtu=mtu,
            vtep_mac=mac_from_digest(bytes.fromhex(identity.id.replace("-", ""))),
            tunnel=self._p.addresses.tunnel_address(),
            version=__version__,
            ranges=digest(self._p.addresses.assigned.ranges()),
            meta=merged_meta(merged_meta({}, SERVER_META, not identity.store), GATEWAY_META, self._gateway),
            wireguard=self._tunnel_key(),
            link6=self._p.underlay.link6(),
            further=further,
        )
        self._p.view.put(node)
        network = self._p.view.snapshot.networks.get(self._default)
        inner = network_mtu(node, network) if network is not None else mtu
        if inner < _MIN_INNER_MTU:
            self._p.health.set("mtu-too-small", identity.name, f"containers get an MTU of {inner}, the underlay has {mtu}")
        else:
            self._p.health.clear("mtu-too-small", identity.name)

    def _tunnel_key(self) -> TunnelKey | None:
        """How this node is reached in encrypted networks; None while its kernel cannot encrypt."""
        if "wireguard" not in self._capabilities:
            return None
        key, tunnels = self._p.rotation.key(self._p.addresses.encrypted_address()), self._p.tunnels
        return replace(key, nat=self._p.config.behind_nat or tunnels.behind_nat(), elsewhere=tunnels.elsewhere)

    # --- loops

    async def keep_blocks(self) -> None:
        """Lease what is needed ahead of need; make the network `default` if this is the first node. Never returns."""
        self._write_docker_options()  # what the journal knows needs no store
        while True:
            self._blocks_dirty.clear()
            try:
                if not self._p.identity.store and self._default not in self._p.view.snapshot.networks:
                    await self._p.networks.ensure(NetworkRequest(self._default, self._p.identity.pool))
                await self._p.addresses.maintain()
                self.refresh_node()
                self._write_docker_options()
                self._bridge_settled = True
            except StoreUnavailable as error:
                log.info("blocks_wait", extra={"error": str(error)})
            except PlaitError as error:
                log.warning("blocks_failed", extra={"error": str(error)})
            try:
                async with asyncio.timeout(30):
                    await self._blocks_dirty.wait()
                await asyncio.sleep(0.02)
            except TimeoutError:
                pass

    def _write_docker_options(self) -> None:
        config, block, me = self._p.config, self._p.addresses.bridge_block(), self._p.view.snapshot.nodes.get(self._p.identity.name)
        network = self._p.view.snapshot.networks.get(self._default)
        if block is None or me is None or network is None:
            return
        text = docker_env(block.cidr, network_mtu(me, network), dns=config.dns_enabled)
        path = self._p.paths.run / "docker.env"
        if not path.exists() or path.read_text() != text:
            replace_file(path, text)
        self._bridge_settled = True

    async def serve_names(self) -> None:
        """Keep the DNS child's table and listening addresses what the view says. Never returns."""
        while True:
            self._names_dirty.clear()
            generation = self._names_generation
            try:
                await self._show_names()
            except DnsUnavailable as error:
                self._p.health.set("dns-child", "dns", str(error))
                await asyncio.sleep(0.2)
                continue
            self._p.health.clear("dns-child", "dns")
            self._name_refused()
            async with self._names_done:
                self._names_shown = generation
                self._names_done.notify_all()
            await self._names_dirty.wait()

    async def _show_names(self) -> None:
        """Tell the DNS child what changed since the last time; everything at the first."""
        config, snapshot = self._p.config, self._p.view.snapshot
        if self._zone is None:
            names = config.dns_domain, config.datacenter, config.search_domain
            self._zone = Zone(snapshot, *names, only_passing=self._only_passing, headless=headless)
            self._touched.clear()
            self._p.on_zone(self._zone)
            await self._p.dns.set_table(self._zone.table)
        else:
            touched = tuple(self._touched)
            self._touched.clear()
            await self._p.dns.change_table(self._zone.table, self._zone.advance(snapshot, touched))
        await self._p.dns.set_listen(self._listen_addresses())

    def set_only_passing(self, only_passing: bool) -> None:
        """Name instances with a warning, or no longer."""
        if only_passing != self._only_passing:
            self._only_passing, self._zone = only_passing, None
            self.names_changed()

    def names_changed(self) -> None:
        """Have the names shown again, whatever was shown before."""
        self._names_generation += 1
        self._names_dirty.set()

    def _listen_addresses(self) -> frozenset[tuple[str, int]]:
        """Where DNS is to answer; nowhere if it is switched off."""
        if not self._p.config.dns_enabled:
            return frozenset()
        loopback = {(address, port) for address in loopbacks() for port in DNS_PORTS}
        snapshot = self._p.view.snapshot
        routed = [network for network in snapshot.networks.values() if child_of(network) is None]
        gateways: set[IPAddress] = {network.gateway for network in routed}
        six = {network.gateway6 for network in routed if network.gateway6 is not None}
        if six and self._ipv6:
            gateways |= six
        if (block := self._p.addresses.bridge_block()) is not None:
            gateways.add(block.cidr[1])
        places = resolver_places(snapshot, netns_of_own(self._p.view), self._resolver())
        return frozenset(loopback | places | {(str(address), DNS_PORT) for address in gateways})

    def _resolver(self) -> str:
        """An address of this host at which it answers DNS, the one that its engine is told: containers look for it there as well."""
        block, network = self._p.addresses.bridge_block(), self._p.view.snapshot.networks.get(self._default)
        return str(block.cidr[1]) if block is not None else str(network.gateway) if network is not None else ""

    def resolver(self, network: Network) -> str:
        """Where containers of the network find DNS, "" if nowhere."""
        return resolver_of(network, self._resolver()) if self._p.config.dns_enabled else ""

    async def names_settled(self) -> None:
        """Wait until the DNS child answers what the view said when this was called; at most 2 s."""
        wanted = self._names_generation
        async with asyncio.timeout(2), self._names_done:
            await self._names_done.wait_for(lambda: self._names_shown >= wanted)

    def watching(self) -> Iterable[Coroutine[None, None, None]]:
        """Loops that look, and never return."""
        return self.watch_conditions(), self.watch_capabilities()

    async def watch_conditions(self) -> None:
        """Raise and clear what is seen by looking: lost nodes, addresses that DNS cannot have. Never returns."""
        gaps = Gaps(self.policing.compiled)
        while True:
            if self._p.underlay.home.lost:
                self.refresh_node()
            snapshot = self._p.view.snapshot
            lost = {n: f"node {n} gives no sign of life" for n in snapshot.nodes if n not in snapshot.alive}
            self._p.health.replace("node-lost", lost)
            self._p.health.replace("block-lost", strays(snapshot))
            self._p.health.replace(UNENFORCED, gaps.texts(snapshot))
            self._p.health.replace(PARENT_MISSING, missing(snapshot, links_here()))
            detours, unreached = self._p.underlay.paths.troubles()
            self._p.health.replace("path-detour", detours)
            self._p.health.replace("path-lost", unreached)
            self._p.health.replace("checksums-broken", self._p.underlay.checksums.texts)
            self._p.health.replace(DIFFER, differing(snapshot))
            wrong = misplaced(self._p.addresses.assigned.ranges(), snapshot.networks)
            self._p.health.replace(MISPLACED, {MISPLACED: "; ".join(wrong)} if wrong else {})
            self._name_refused()
            await self.spoofing.look()
            await self._p.uplink.look()
            await asyncio.sleep(1)

    def _name_refused(self) -> None:
        """Raise and clear the condition of addresses that DNS cannot have; a node that says it is ready has told of them."""
        refused = self._p.dns.bind_errors
        self._p.health.replace("dns-bind", {f"{e.address}:{e.port}/{e.protocol}": str(e) for e in refused})

    async def watch_capabilities(self) -> None:
        """Name what the kernel lacks for the networks that there are, and look again while it lacks something. Never returns."""
        looked = time.monotonic()
        while True:
            texts = (
                self._p.limits.lacking() | self._p.uplink.lacking(self._capabilities) | lacking(self._p.view.snapshot, self._capabilities)
            )
            self._p.health.replace("limit-void", self._p.limits.void())
            self._p.health.replace("kernel-lacks", texts)
            self._p.health.replace("network-unknown", dict(self._p.view.beyond))
            await asyncio.sleep(1)
            if texts and time.monotonic() - looked > _CAPABILITIES_EVERY_S:
                self._capabilities, looked = await asyncio.to_thread(self._p.kernel.capabilities, True), time.monotonic()
                self.refresh_node()

    def waiting(self, reconciler: Reconciler) -> str:
        """ "" when the node can serve containers, else what it waits for."""
        me = self._p.view.snapshot.nodes.get(self._p.identity.name)
        if self._default not in self._p.view.snapshot.networks:
            return "the cluster's state: the store has not answered yet"
        if me is None or me.tunnel is None:
            return "a block of addresses"
        if not self._bridge_settled:
            return "a block of addresses for Docker's default bridge"
        if not reconciler.passed:
            return "the first pass over the kernel"
        if self._names_shown < 0:
            return "DNS"
        return ""
