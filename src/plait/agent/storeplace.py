# SPDX-License-Identifier: Apache-2.0
"""Where the store is: the node that carries it serves it and goes to those that do not come; the others follow it to another address.

Data in: this node's identity and its way to the store, the view. Data out: the loops for that, what `plait status` says of it, and the
identity file where the place is kept. A copy of the store's node is found out before it serves: the others follow a living one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path

from plait.agent.health import Health
from plait.agent.hostaddress import HostAddress
from plait.agent.identity import Identity, load_identity, save_identity
from plait.agent.keys import node_key
from plait.agent.storehost import StoreHost
from plait.agent.view import View
from plait.model.addr import at_port
from plait.model.cluster import Node
from plait.model.errors import ConfigError, Conflict, StoreUnavailable
from plait.model.report import StoreState
from plait.services.directory import SERVER_META
from plait.store.api import Store
from plait.store.join import split_address
from plait.store.joinserver import PORT as JOIN_PORT
from plait.store.joinserver import JoinServer
from plait.store.knock import Knocked, KnockServer, knock
from plait.store.local import LocalStore
from plait.store.remote import RemoteStore
from plait.store.server import PORT, StoreServer
from plait.store.tls import ssl_context_client, ssl_context_join_server, ssl_context_server

log = logging.getLogger("plait.store")
IN_USE = "identity-in-use"
EVERY_S = 3.0
"""Between two rounds of knocks at nodes that give no sign of life."""
START_S = 1.0
"""Most seconds that the store waits for the others to say whether they follow another one of this node."""
ANSWER_S = 2.0
"""So soon must the store answer a node that is asked whether it follows one."""
_AT_ONCE = 16


class StorePlace:
    """`file` keeps the identity, `pki` the certificates; `run` is that of this agent (`protocol.Hello`). Not thread-safe."""

    def __init__(
        self,
        identity: Identity,
        file: Path,
        pki: Path,
        store: Store,
        run: str,
        view: View,
        home: HostAddress,
        health: Health,
        connected: Callable[[], bool],
    ) -> None:
        self._identity, self._file, self._pki, self._store, self._run = identity, file, pki, store, run
        self._view, self._home, self._health, self._connected = view, home, health, connected
        self._remote = store if isinstance(store, RemoteStore) else None
        self._address = home.now
        self._moved = asyncio.Event()
        view.subscribe(self._on_view)

    # --- what is known

    @property
    def address(self) -> str:
        """HOST:PORT of the store's server."""
        return at_port(*self._remote.place) if self._remote is not None else at_port(self._home.now, PORT)

    def state(self) -> StoreState:
        return {
            "role": "remote" if self._remote is not None else "embedded",
            "address": self.address,
            "reachable": self._connected(),
            "revision": self._view.revision,
        }

    def _server(self) -> Node | None:
        """The node that carries the store, as far as is known."""
        return next((node for node in self._view.snapshot.nodes.values() if SERVER_META in node.meta), None)

    def _server_name(self) -> str | None:
        server = self._server()
        return server.name if server is not None else None

    def reached(self) -> None:
        """The store answers: remember where, for the next start."""
        if self._remote is None:
            return
        kept = load_identity(self._file)
        if kept.store != self.address:
            log.info("store_moved", extra={"address": self.address, "before": kept.store})
            save_identity(self._file, replace(kept, store=self.address))

    def _on_view(self, kinds: frozenset[str]) -> None:
        if "nodes" in kinds and self._address != self._home.now:
            self._address = self._home.now
            self._moved.set()
            if self._remote is not None:
                self._remote.connect_anew("this host has another address now")

    # --- loops

    def loops(self) -> Iterator[Coroutine[None, None, None]]:
        """What keeps the others, or this node, at the store; none of it ever returns."""
        if self._remote is None:
            yield self._serve()
            return
        yield StoreHost(self._view, lambda: split_address(self.address, PORT), self._server_name, self._connected).run()
        door = KnockServer("", PORT, ssl_context_server(self._pki), self.answer)
        try:
            door.open()
        except ConfigError as error:
            log.warning("knocks_unheard", extra={"error": str(error)})
        else:
            yield door.run()

    async def _serve(self) -> None:
        await self.refuse_copy()
        info = {"pool": str(self._identity.pool)}
        assert isinstance(self._store, LocalStore)
        server = StoreServer(self._store, "", PORT, ssl_context_server(self._pki), run=self._run)
        context = ssl_context_join_server(self._pki)
        joins = JoinServer(self._store, self._pki, "", JOIN_PORT, context, store_address=lambda: self.address, info=info)
        async with asyncio.TaskGroup() as group:
            for listener in (server, joins):
                listener.open()
                group.create_task(listener.run())
            group.create_task(self._call())

    async def refuse_copy(self) -> None:
        """Conflict if others follow another living store of this node: this host is a copy of its host, or was copied."""
        found = await self._knock_at([n for n in self._view.snapshot.nodes.values() if n.name != self._view.me], START_S)
        for name, other in sorted(found.items()):
            raise Conflict(
                f"this host says that it is node {self._view.me!r}, which carries the store, and so does another one: node {name!r} "
                f"follows that at {other.place}; one is a copy: there, `plait down --purge`, then `plait join` or `plait init`"
            )

    async def _call(self) -> None:
        """Go to the nodes that give no sign of life, and to all when this host has another address: they know where the store was."""
        while True:
            snapshot, moved = self._view.snapshot, self._moved.is_set()
            self._moved.clear()
            found = await self._knock_at(
                [node for name, node in snapshot.nodes.items() if name != snapshot.me and (moved or name not in snapshot.alive)]
            )
            texts = {name: f"node {name} follows another store of this node, at {other.place}" for name, other in found.items()}
            self._health.replace(IN_USE, texts)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._moved.wait()

    async def _knock_at(self, nodes: list[Node], within_s: float | None = None) -> dict[str, Knocked]:
        """By node, which other store it follows; only of those that do, and that answered in time."""
        found: dict[str, Knocked] = {}
        context, turns = ssl_context_client(self._pki), asyncio.Semaphore(_AT_ONCE)

        async def at(node: Node) -> None:
            async with turns:
                try:
                    answer = await knock(node.address, self._run, context)
                except StoreUnavailable as error:
                    log.debug("knock_unanswered", extra={"node": node.name, "error": str(error)})
                    return
            if answer.run and answer.run != self._run:
                found[node.name] = answer

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s), asyncio.TaskGroup() as group:
                for node in nodes:
                    group.create_task(at(node))
        return found

    async def answer(self, node_id: str, source: str) -> Knocked | None:
        """To the node that carries the store, as it knocks from `source`: which store this node follows. If none, it looks there."""
        server = self._server()
        if self._remote is None or server is None or server.id != node_id:
            return None
        if self._connected():
            try:
                async with asyncio.timeout(ANSWER_S):
                    await self._store.get(node_key(self._view.me))
                return Knocked(self._remote.server_run, self.address)
            except (StoreUnavailable, TimeoutError):
                self._remote.connect_anew("it did not answer, and its node came from elsewhere")
        self._remote.look_at(source, PORT)
        return Knocked()
