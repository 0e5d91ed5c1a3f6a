# SPDX-License-Identifier: Apache-2.0
"""Routing with routers that know nothing of plait: `/etc/plait/routing.toml` and this node's blocks -> BIRD, its state -> conditions.

Data in: the file (followed), the snapshot, BIRD's answers, once a second. Data out: BIRD's configuration, the plan's tables of routes,
conditions. Routes go from BIRD to the kernel by themselves; neither an agent nor a BIRD that is away takes any from there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Protocol
from zlib import crc32

from plait.agent.birdprocess import BirdError
from plait.agent.health import Health
from plait.agent.journal import Journal
from plait.agent.ownfile import Kept, OwnFile
from plait.agent.view import View
from plait.model.addr import lies_in
from plait.model.cluster import Node, Snapshot
from plait.model.errors import PlaitError
from plait.model.objects import Addr
from plait.model.routing import RouteTable
from plait.model.routingreport import LearnedRow, RefusedRow, RoutingView, SessionRow
from plait.plan.announced import Prefixes, announced, guarded, served
from plait.plan.desired import carried
from plait.plan.outside import unroutable
from plait.routing import (
    Channel,
    Facts,
    FilteredRoute,
    Routing,
    Speaker,
    bird_config,
    channels,
    is_default,
    parse_filtered,
    parse_protocols,
    parse_routes,
    parse_routing,
    refusal,
    table_name,
)

log = logging.getLogger("plait.routing")
EVERY_S = 1.0
"""Between two looks at the daemon."""
PATIENCE_S = 10.0
"""How long a session may take to come up before it is a condition."""
REFUSED, DAEMON, DOWN, WRONG, UNROUTABLE = "routing-refused", "routing-daemon", "routing-down", "routing-wrong", "routing-network"
STARTING, SILENT = "starting", "BIRD does not answer"
MOST_NAMED = 5
"""Announcements that a condition names."""
_KINDS = frozenset({"nodes", "networks", "blocks", "endpoints", "assigned"})
"""Records that decide what is announced and what is refused."""
_OF_SERVICES = frozenset({"services", "endpoints", "containers", "instances", "checks", "alive"})
"""Records that decide which services lead somewhere."""


class Tables(Protocol):
    """What is asked of the kernel (`kernel.linux.LinuxKernel`), in a thread, for it may block."""

    def addresses(self) -> list[Addr]: ...

    def capabilities(self) -> frozenset[str]: ...

    def table_sizes(self) -> dict[int, int]: ...

    def flush_tables(self, kept: tuple[int, ...] = ()) -> None: ...


class Daemon(Protocol):
    """What is asked of BIRD (`birdprocess.BirdProcess`)."""

    log: Path
    starts: int

    async def bring(self, config: str) -> bool: ...

    async def ask(self, command: str) -> list[str]: ...

    async def stop(self) -> bool: ...


class RoutingLoop:
    """`changed` is called when the plan has other tables than before."""

    def __init__(
        self,
        path: Path,
        bird: Daemon,
        view: View,
        kernel: Tables,
        journal: Journal,
        health: Health,
        changed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bird, self._view, self._kernel, self._health, self._clock = bird, view, kernel, health, clock
        self._file = OwnFile(path, Kept("routing", REFUSED), parse_routing, journal, health, changed)
        self._dirty = asyncio.Event()
        self._seen: dict[str, float] = {}
        """When each peer was asked for first."""
        self._met: set[tuple[str, str]] = set()
        """Channels that were up since."""
        self._flushed: tuple[int, ...] | None = None
        self._speakers: dict[tuple[str, str], Speaker] = {}
        self._absent = STARTING
        """What is shown of a session of which BIRD said nothing."""
        self._refused: list[FilteredRoute] = []
        self._served: Prefixes = {}
        self._served_of: frozenset[str] = frozenset()
        """Networks that `_served` is of."""
        self._served_old, self._served_at = True, float("-inf")
        """Whether something has changed since it was found, and when that was."""
        view.subscribe(self._on_view)

    def _on_view(self, kinds: frozenset[str]) -> None:
        if kinds & _KINDS:
            self._dirty.set()
        if kinds & _OF_SERVICES:
            self._served_old = True

    @property
    def tables(self) -> tuple[RouteTable, ...]:
        """For the plan."""
        return self._file.value.route_tables()

    async def run(self) -> None:
        """Never returns."""
        while True:
            self._dirty.clear()
            await self._file.look()
            try:
                await self._look(self._file.value)
            except (PlaitError, OSError) as error:
                self._health.set(DAEMON, "bird", str(error))
                self._speakers, self._refused, self._absent = {}, [], SILENT
            else:
                self._health.clear(DAEMON, "bird")
            try:
                async with asyncio.timeout(EVERY_S):
                    await self._dirty.wait()
                await asyncio.sleep(0.05)
            except TimeoutError:
                pass

    async def _look(self, routing: Routing) -> None:
        """Bring the daemon in line and learn its state; nothing at all without a file."""
        snapshot = self._view.snapshot
        me = snapshot.nodes.get(snapshot.me)
        bad = {name: why for table in routing.tables for name in table.networks if (why := unroutable(snapshot.networks.get(name)))}
        self._health.replace(UNROUTABLE, {name: f"network {name} takes no part in routing: {why}" for name, why in bad.items()})
        if not routing.sessions:
            await self._end()
            return
        if me is None:
            return
        facts = await self._facts(me, routing, snapshot)
        starts = self._bird.starts
        if await self._bird.bring(bird_config(routing, facts, str(self._bird.log))):
            log.info("routing_configured", extra={"sessions": len(routing.sessions), "started": self._bird.starts != starts})
        await self._tidy(tuple(table.number for table in routing.route_tables()))
        self._speakers, self._absent = parse_protocols(await self._bird.ask("show protocols all")), STARTING
        refusing = sorted({speaker.name for speaker in self._speakers.values() if speaker.refused})
        self._refused = [one for name in refusing for one in await self._filtered(name)]
        self._judge(routing, facts, snapshot)

    async def _facts(self, me: Node, routing: Routing, snapshot: Snapshot) -> Facts:
        """Networks have the families that this host can carry."""
        addresses = await asyncio.to_thread(self._kernel.addresses)
        here, ipv6 = [(addr.address, addr.dev) for addr in addresses], "ipv6" in self._kernel.capabilities()
        able = {name: carried(snapshot, one, ipv6) for name, one in snapshot.networks.items() if not unroutable(one)}
        dual = [name for name, network in able.items() if network.subnet6 is not None]
        own = self._announced(routing, replace(snapshot, networks={**snapshot.networks, **able}))
        return Facts(router_id(me), own, guarded(snapshot, here), dual, here)

    def _announced(self, routing: Routing, snapshot: Snapshot) -> Prefixes:
        """Services are looked through once in `EVERY_S` at most, however often somebody starts or fails."""
        now = self._clock()
        if self._served_of != routing.serving or (self._served_old and now - self._served_at >= EVERY_S):
            self._served_of, self._served_old, self._served_at = routing.serving, False, now
            self._served = served(snapshot, routing.serving)
        return announced(snapshot, self._served)

    async def _filtered(self, name: str) -> list[FilteredRoute]:
        return parse_filtered(await self._bird.ask(f"show route filtered protocol {name} all"))

    async def _end(self) -> None:
        """Nothing is asked for: end what an earlier file began."""
        if self._flushed != ():
            await self._bird.stop()
        await self._tidy(())
        self._speakers, self._refused, self._seen, self._met, self._absent = {}, [], {}, set(), STARTING
        for code in (DOWN, WRONG):
            self._health.replace(code, {})

    async def _tidy(self, kept: tuple[int, ...]) -> None:
        """Routes stay in the kernel when the daemon forgets a table; once for each change."""
        if self._flushed != kept:
            await asyncio.to_thread(self._kernel.flush_tables, kept)
            self._flushed = kept

    def _judge(self, routing: Routing, facts: Facts, snapshot: Snapshot) -> None:
        found: dict[str, list[Channel]] = {}
        for channel in channels(routing, facts):
            found.setdefault(channel.peer, []).append(channel)
        down = {peer: why for peer, spoken in found.items() if (why := self._down(peer, spoken))}
        self._health.replace(DOWN, down)
        wrong: dict[str, list[str]] = {}
        for row in self._refused_rows(routing, facts, snapshot):
            if row["wrong"]:
                wrong.setdefault(row["peer"], []).append(f"{row['prefix']} ({row['why']})")
        self._health.replace(WRONG, {peer: wrong_text(peer, found) for peer, found in wrong.items()})

    def _down(self, peer: str, spoken: list[Channel]) -> str:
        """What is wrong with a peer, "" if nothing is. A family that it does not speak is, if `import` names something of it."""
        waited = self._clock() - self._seen.setdefault(peer, self._clock())
        up = {channel.key for channel in spoken if (speaker := self._speakers.get(channel.key)) is not None and speaker.up}
        self._met |= up
        patient = waited < PATIENCE_S
        for channel in spoken:
            wanted = channel.key in self._met or (not patient and (not up or channel.family.of(channel.session.imports)))
            if wanted and channel.key not in up:
                what = f"{channel.family.word} routes" if up else "routes"
                return f"no {what} are exchanged: {self._row(channel)['state']}"
        return ""

    def _refused_rows(self, routing: Routing, facts: Facts, snapshot: Snapshot) -> list[RefusedRow]:
        """Without what other nodes announce by the same routers: they have these addresses. OSPF tells of the links that all are on."""
        own = {str(router_id(node)) for node in snapshot.nodes.values()}
        by = {channel.name: channel for channel in channels(routing, facts)}
        rows: list[RefusedRow] = []
        for route in self._refused:
            channel = by.get(route.by)
            if channel is None or route.origin in own or (route.within_area and route.prefix in facts.guarded):
                continue
            why = refusal(route.prefix, channel.session, facts.guarded)
            origin = route.origin or (f"AS {route.path[-1]}" if route.path else "")
            wrong = is_default(route.prefix) or any(lies_in(route.prefix, one) for one in facts.guarded)
            rows.append(
                {
                    "peer": channel.peer,
                    "prefix": str(route.prefix),
                    "origin": origin,
                    "why": why,
                    "wrong": wrong and bool(why),
                }
            )
        return rows

    async def view(self) -> RoutingView:
        """What `plait routing` shows, as of the last look; what only BIRD knows is left out while it does not answer."""
        routing, snapshot = self._file.value, self._view.snapshot
        me = snapshot.nodes.get(snapshot.me)
        if not routing.sessions or me is None:
            return {"sessions": [], "announced": {}, "learned": [], "refused": []}
        facts = await self._facts(me, routing, snapshot)
        tables = [(table.name, table_name(table.name, family)) for table in routing.tables for family in facts.families(table.networks)]
        wanted = {network for session in routing.sessions for network in session.exports}
        return {
            "sessions": [self._row(channel) for channel in channels(routing, facts)],
            "announced": {name: list(map(str, facts.own.get(name, ()))) for name in sorted(wanted)},
            "learned": [row for table, known in tables for row in await self._learned(table, known)],
            "refused": self._refused_rows(routing, facts, snapshot),
        }

    def _row(self, channel: Channel) -> SessionRow:
        shown = self._speakers.get(channel.key) or Speaker(channel.name, "", False, channel.closed or self._absent)
        return {
            "peer": channel.peer,
            "protocol": channel.name.partition("_")[0],
            "family": channel.family.word,
            "table": channel.session.table,
            "up": shown.up,
            "state": shown.info,
            "learned": shown.learned,
            "announced": shown.announced,
            "refused": shown.refused,
        }

    async def _learned(self, table: str, known: str) -> list[LearnedRow]:
        """`known`: BIRD's name of the table."""
        try:
            found = parse_routes(await self._bird.ask(f"show route primary table {known} where source != RTS_STATIC"))
        except BirdError:
            return []
        return [{"table": table, "prefix": str(one.prefix), "via": one.via, "dev": one.dev} for one in found]


def router_id(me: Node) -> IPv4Address:
    """What the file does not say: the node's address, or a number that is as much its own."""
    return me.address if isinstance(me.address, IPv4Address) else IPv4Address(crc32(me.id.encode()) | 1)


def wrong_text(peer: str, found: list[str]) -> str:
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return f"{peer} announces {', '.join(found[:MOST_NAMED])}{more}; refused"
