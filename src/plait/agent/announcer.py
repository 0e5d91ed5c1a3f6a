# SPDX-License-Identifier: Apache-2.0
"""Containers on a link of their host, told to the other machines on it: an address may have been another container's a moment ago, and
whoever talked to that one would go on to send to its MAC until his kernel doubts it, for many seconds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from plait.agent.admin import netns_of_containers
from plait.agent.view import View
from plait.backends import child_of
from plait.model.addr import EitherAddress
from plait.model.cluster import Endpoint

AGAIN_S = 0.5
"""Until those are looked for again whose link was not there yet."""


class Announcer:
    """`announce(netns, alias, mac, address)` blocks; False: there is no such link yet. OSError: the namespace is gone."""

    def __init__(self, view: View, announce: Callable[[str, str, str, EitherAddress], bool]) -> None:
        self._view, self._announce = view, announce
        self._told: set[tuple[str, str, EitherAddress]] = set()
        """(id, path of the namespace, address) of whom the neighbours know."""
        self._dirty = asyncio.Event()
        view.subscribe(self._on_view)

    def _on_view(self, kinds: frozenset[str]) -> None:
        if kinds & {"endpoints", "containers", "networks"}:
            self._dirty.set()

    async def run(self) -> None:
        """Never returns."""
        while True:
            self._dirty.clear()
            waiting = await self._tell()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S if waiting else None):
                    await self._dirty.wait()

    async def _tell(self) -> bool:
        """Announce whoever is new; whether any is left to be."""
        present = self._present()
        self._told &= present.keys()
        for key, endpoint in present.items():
            if key in self._told:
                continue
            with contextlib.suppress(OSError):  # gone meanwhile: its own end tells so
                if await asyncio.to_thread(self._announce, key[1], endpoint.dev, endpoint.mac, key[2]):
                    self._told.add(key)
        return bool(present.keys() - self._told)

    def _present(self) -> dict[tuple[str, str, EitherAddress], Endpoint]:
        snapshot = self._view.snapshot
        on_links = {name for name, network in snapshot.networks.items() if child_of(network) is not None}
        own = {e.id: e for e in snapshot.endpoints.values() if e.node == snapshot.me and e.network in on_links}
        found = netns_of_containers(self._view, own)
        placed = [(e, path) for e in own.values() if (path := e.netns or found.get(e.id, ""))]
        return {(e.id, path, address): e for e, path in placed for address in e.present}
