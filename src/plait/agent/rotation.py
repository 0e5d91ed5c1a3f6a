# SPDX-License-Identifier: Apache-2.0
"""This node's part in rotations of WireGuard keys, its own and others' (`plan.rotation` says how they go).

Data in: requests in the store (`rotate/<node>`), the age of the key, the other nodes' records, echoes through each device. Data out: what
the node's record says of its keys, which nodes are sent to by the spare device, key files. It goes on where it was after a restart: the
record and the files hold all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from plait.agent.echo import Echoed
from plait.agent.keys import rotate_key
from plait.agent.tunnelkeys import key_file, new_key, own_public_key
from plait.agent.view import View
from plait.backends.wireguard import DEVICE, PORT, SPARE
from plait.model.cluster import TunnelKey
from plait.model.errors import PlaitError
from plait.plan.rotation import all_moved, moved, partners, spare_wanted
from plait.store.api import Delete, Item, Store

log = logging.getLogger("plait.rotation")
IDLE_S, BUSY_S = 1.0, 0.1
"""Between two looks: while nobody rotates (a change of the nodes wakes at once), and while somebody does."""
PATIENCE_S = 30.0
"""A node that takes no part for so long is waited for no longer; it may lose what is under way."""
LINGER_S = 0.3
"""For packets that were on their way when a device was left."""
_DAY_S = 86400.0
ViaProbe = Callable[[IPv4Address, str, IPv4Address], Awaitable[Echoed]]
"""An echo to an address, through a device, from an address."""


@dataclass(frozen=True, slots=True)
class Doors:
    """What a rotation does to the rest: have the node's record made anew, and have a pass made over the kernel."""

    refresh: Callable[[], None]
    apply: Callable[[], Awaitable[object]]


class Rotation:
    """`items` are the store's, as replicated. `days` after which the key is changed by itself, 0: never."""

    def __init__(self, view: View, store: Store, items: Mapping[str, Item], lib: Path, days: int, doors: Doors) -> None:
        self._view, self._store, self._items, self._lib, self._days, self._doors = view, store, items, lib, days, doors
        self._public, self._swapped = "", False
        self._spare, self._rotating, self._since, self._unused_since = "", 0, 0.0, 0.0
        self._published: Mapping[str, int] = {}
        self.moved: Mapping[str, int] = {}
        """To whom this node sends by the spare device: the plan's. The record says so once that is done."""
        self._woken = asyncio.Event()
        view.subscribe(self._on_view)

    def _on_view(self, kinds: frozenset[str]) -> None:
        if "nodes" in kinds:
            self._woken.set()

    def key(self, address: IPv4Address | None) -> TunnelKey:
        """What this node's record says of its keys. The file is read once: what happens to it later ends nothing. ConfigError if it is
        damaged at the start."""
        if not self._public:
            self._public = own_public_key(self._lib)
            self._resume()
        return TunnelKey(self._public, PORT, address, self._spare, self._rotating, self._published)

    def _resume(self) -> None:
        node = self._view.snapshot.nodes.get(self._view.me)
        known = node.wireguard if node is not None else None
        if known is not None and known.spare and key_file(self._lib, SPARE).exists() and own_public_key(self._lib, SPARE) == known.spare:
            self._spare, self._rotating, self._published = known.spare, known.rotating, known.moved
            self.moved, self._since = known.moved, time.monotonic()
        else:  # an agent that was killed as the spare device went, or before anybody knew of one
            key_file(self._lib, SPARE).unlink(missing_ok=True)

    # --- the loop

    async def run(self, probe: ViaProbe) -> None:
        """Step after step. Never returns."""
        while True:
            self._woken.clear()
            busy = False
            try:
                busy = await self.step(probe)
            except PlaitError as error:  # the store is away: what there is goes on
                log.debug("rotation_waits", extra={"error": str(error)})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BUSY_S if busy else IDLE_S):
                    await self._woken.wait()

    async def step(self, probe: ViaProbe) -> bool:
        """One look at what is to be done, and doing it. True while a rotation is under way."""
        snapshot = self._view.snapshot
        me = snapshot.nodes.get(snapshot.me)
        if me is None or me.wireguard is None:
            return False
        others = partners(snapshot)
        if not self._rotating and await self._is_due():
            self._rotating, self._swapped, self._since = 1 + int.from_bytes(os.urandom(6)), False, time.monotonic()
            log.info("key_rotation_began", extra={"node": me.name})
        own = self.key(me.wireguard.address)
        if not spare_wanted(own, others):
            return await self._without_spare()
        self._unused_since = 0.0
        if not self._spare:
            self._spare = new_key(self._lib, SPARE)
        await self._publish()
        source = own.address or me.tunnel
        main, spare = await self._answers(probe, source, others) if source is not None else (frozenset[str](), frozenset[str]())
        await self._move(moved(self.key(own.address), others, main, spare))
        if self._rotating:
            await self._advance(me.name, others, main)
        return True

    async def _is_due(self) -> bool:
        asked = self._items.get(rotate_key(self._view.me))
        if asked is not None:
            await self._store.txn([], [Delete(asked.key)])
            return True
        return bool(self._days) and time.time() - key_file(self._lib).stat().st_mtime > self._days * _DAY_S

    async def _answers(self, probe: ViaProbe, source: IPv4Address, others: Mapping[str, TunnelKey]) -> tuple[Set[str], Set[str]]:
        """Who answers through the main and who through the spare device, of those whose keys have not changed meanwhile."""

        async def ask(device: str, name: str, key: TunnelKey) -> str:
            assert key.address is not None
            echoed = await probe(key.address, device, source)
            node = self._view.snapshot.nodes.get(name)
            same = node is not None and node.wireguard is not None and node.wireguard.public == key.public
            return name if echoed.rtt_s is not None and same else ""

        async def through(device: str) -> Set[str]:
            return frozenset(await asyncio.gather(*(ask(device, name, key) for name, key in others.items()))) - {""}

        main, spare = await asyncio.gather(through(DEVICE), through(SPARE))
        return main, spare

    async def _move(self, moved: Mapping[str, int]) -> None:
        """The kernel first, then the word that it is done."""
        if moved != self.moved:
            self.moved = moved
            await self._doors.apply()
        if moved != self._published:
            self._published = moved
            self._doors.refresh()

    async def _advance(self, me: str, others: Mapping[str, TunnelKey], main: Set[str]) -> None:
        """The rotating node's own steps: change the key when nobody uses it, end when everybody answers to the new one."""
        patient = time.monotonic() - self._since < PATIENCE_S
        if not self._swapped and (all_moved(me, self.key(None), others) or not patient):
            _name_absent("moved", [name for name, key in others.items() if key.moved.get(me) != self._rotating])
            await asyncio.sleep(LINGER_S)
            self._public = new_key(self._lib)
            await self._publish()
            self._swapped, self._since = True, time.monotonic()
        elif self._swapped and (others.keys() <= main or not patient):
            _name_absent("answered", sorted(others.keys() - main))
            self._rotating = 0
            self._doors.refresh()
            log.info("key_rotated", extra={"node": me})

    async def _without_spare(self) -> bool:
        """The spare device goes when nobody has used it for a moment."""
        if not self._spare:
            return False
        self._unused_since = self._unused_since or time.monotonic()
        if time.monotonic() - self._unused_since > 2 * LINGER_S:
            self._spare, self._unused_since = "", 0.0
            await self._publish()
            key_file(self._lib, SPARE).unlink(missing_ok=True)
        return True

    async def _publish(self) -> None:
        """The record as it is now, and the kernel with it."""
        node = self._view.snapshot.nodes.get(self._view.me)
        before = node.wireguard if node is not None else None
        self._doors.refresh()
        now = self.key(None)
        if before is not None and (now.public, now.spare, now.rotating) != (before.public, before.spare, before.rotating):
            await self._doors.apply()


def _name_absent(what: str, names: Iterable[str]) -> None:
    if found := ", ".join(names):
        log.warning("key_rotation_alone", extra={"kind": what, "nodes": found})
