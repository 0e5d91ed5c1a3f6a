# SPDX-License-Identifier: Apache-2.0
"""How containers of this host get to the outside otherwise than by its default route: by routers, by gateways."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterator

from plait.agent.birdprocess import BirdProcess
from plait.agent.egress import Egresses
from plait.agent.files import Paths
from plait.agent.health import Health
from plait.agent.journal import Journal
from plait.agent.kernelwork import PassReport
from plait.agent.routing import RoutingLoop, Tables
from plait.agent.view import View
from plait.store.api import Store


class Outward:
    """`mark` asks for a pass, `once` makes one."""

    def __init__(
        self,
        paths: Paths,
        view: View,
        store: Store,
        journal: Journal,
        health: Health,
        kernel: Tables,
        mark: Callable[[], None],
        once: Callable[[], Awaitable[PassReport]],
    ) -> None:
        self.routing = RoutingLoop(paths.routing, BirdProcess(paths.run), view, kernel, journal, health, mark)
        self.egresses = Egresses(view, store, health, once, kernel.addresses)

    def loops(self) -> Iterator[Coroutine[None, None, None]]:
        """They never return."""
        yield self.routing.run()
        yield self.egresses.run()
