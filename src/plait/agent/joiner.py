# SPDX-License-Identifier: Apache-2.0
"""Each node's part in joining another cluster with its whole own one: it gets ready when told to, and goes when the other holds it.

Data in: wishes, `merging/<node>`, in the own cluster's store; `nodes/<node>` in that of the other. Data out: a `Stage`, what this node says
of it, `merged/<node>`, and `Moved`, which ends this run of the agent. A node goes by what the other cluster's store says and by nothing
else, so that neither a crash of whoever leads nor of itself leaves it behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network

from plait.agent.config import Config
from plait.agent.files import Paths
from plait.agent.health import Health
from plait.agent.identity import Identity
from plait.agent.keys import node_key
from plait.agent.staging import Ready, Stage
from plait.model.addr import at_port
from plait.model.cluster import Block, Node
from plait.model.errors import Conflict, PlaitError
from plait.store.api import Change, Item, Put, Store
from plait.store.codec import decode, encode
from plait.store.join import join_cluster, split_address
from plait.store.local import LocalStore
from plait.store.remote import RemoteStore
from plait.store.server import PORT as STORE_PORT
from plait.store.tls import ssl_context_client
from plait.store.token import parse_token

log = logging.getLogger("plait.joining")
UNDECIDED = "joining-undecided"
LOOK_S = 0.3
"""Between two looks into the other cluster's store while this node is ready to go."""
WISH, SAID = "merging/", "merged/"


class Moved(Exception):
    """This node is one of another cluster by now: the agent is to start anew."""


@dataclass(frozen=True, slots=True)
class Wish:
    """That a node get ready to be one of the cluster whose first node is at `address`; the token is for this node alone."""

    address: str
    token: str


@dataclass(frozen=True, slots=True)
class Said:
    """What a node says to a wish: the pin of the cluster that it is ready for, or why it cannot be."""

    pin: str = ""
    error: str = ""


def reach(stage: Stage, ready: Ready) -> RemoteStore:
    """The other cluster's store, for who has a certificate of it. Close it after use."""
    return RemoteStore(*split_address(ready.store, STORE_PORT), ssl_context_client(stage.pki))


class Joiner:
    """`items` is what the own store holds, live; `current()` whether that is so now. `busy` keeps this node here for the moment, and so
    does `settled()` while it is false: an agent that ends before it has taken over from the one before leaves a mess."""

    def __init__(
        self, identity: Identity, config: Config, paths: Paths, store: Store, items: Mapping[str, Item], current: Callable[[], bool],
        health: Health, settled: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._identity, self._config, self._store, self._health = identity, config, store, health
        self._items, self._current, self._settled = items, current, settled
        self.stage = Stage(paths)
        self.busy = False
        self._wake = asyncio.Event()
        self._there: RemoteStore | None = None

    def change(self, changes: tuple[Change, ...], _revision: int) -> None:
        """Replicated changes."""
        if any(change.item.key.startswith(WISH) for change in changes):
            self._wake.set()

    async def run(self) -> None:
        """Obey wishes. Moved when this node belongs elsewhere; else it never returns."""
        if self.stage.asked:
            why, ready = "its agent ended while another cluster was asked to take it in", self.stage.ready()
            await self.freeze(why)
            self._health.set(UNDECIDED, "store", f"{why}, whose store is at {ready.store if ready is not None else '?'}")
        while True:
            self._wake.clear()
            try:
                await self._look()
            except PlaitError as error:
                log.debug("joining_waits", extra={"error": str(error)})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S if self.stage.ready() is not None else None):
                    await self._wake.wait()

    async def freeze(self, why: str) -> None:
        """Take no writes into the own cluster's store, which this node carries."""
        if isinstance(self._store, LocalStore):
            await self._store.freeze(f"the cluster's store takes no writes: {why}; retry")

    def undecided(self, asked: bool) -> None:
        """Whether the other cluster may hold this one without this node knowing. If not, the own store takes writes."""
        if asked != self.stage.asked:
            self.stage.set_asked(asked)
        if not asked:
            if isinstance(self._store, LocalStore):
                self._store.thaw()
            self._health.clear(UNDECIDED, "store")

    async def _look(self) -> None:
        item, ready = self._items.get(WISH + self._identity.name), self.stage.ready()
        wish = decode(Wish, item.value, item.key) if item is not None else None
        if wish is not None and (ready is None or ready.pin != parse_token(wish.token).pin):
            await self._get_ready(wish)
        elif ready is not None:
            if not self.busy and self._settled():
                await self._go_or_stay(ready)
            if self._current() and wish is not None and self.stage.ready() == ready and self._said() != Said(ready.pin):
                await self._say(Said(ready.pin))

    async def _go_or_stay(self, ready: Ready) -> None:
        """Moved if the other cluster has this node; else throw away what nobody wishes any more."""
        if await self._is_held(ready):
            raise Moved
        self.undecided(False)
        if self._current() and WISH + self._identity.name not in self._items:  # looked at now: asking took a while
            await self._give_up()

    async def _get_ready(self, wish: Wish) -> None:
        """Get a certificate of the other cluster, and say so; or why not."""
        try:
            if self._config.store != "none" and self._identity.store:
                raise Conflict(f"node.store of {Paths().config} says {self._config.store}; take that out and restart the agent first")
            self.stage.clear()
            name, node_id = self._identity.name, self._identity.id
            joined = await join_cluster(wish.address, wish.token, name, node_id, self.stage.pki)
            pool = IPv4Network(joined.info.get("pool", str(self._identity.pool)))
            ready = Ready(parse_token(wish.token).pin, at_port(joined.store_host, joined.store_port), pool)
            self.stage.set_ready(ready)
            said = Said(ready.pin)
            log.info("joining_ready", extra={"address": wish.address})
        except (PlaitError, OSError) as error:
            said = Said(error=str(error))
        await self._say(said)
        if said.error:
            log.warning("joining_refused", extra={"error": said.error})
            await self._until_another(wish)

    async def _say(self, said: Said) -> None:
        await self._store.txn([], [Put(SAID + self._identity.name, encode(said))])

    def _said(self) -> Said | None:
        item = self._items.get(SAID + self._identity.name)
        return decode(Said, item.value, item.key) if item is not None else None

    async def _until_another(self, wish: Wish) -> None:
        """What could not be done once is not tried again before somebody wishes it anew."""
        key = WISH + self._identity.name
        while (item := self._items.get(key)) is not None and decode(Wish, item.value, key) == wish:
            self._wake.clear()
            await self._wake.wait()

    async def _is_held(self, ready: Ready) -> bool:
        """Whether the other cluster has this node; then what this host starts with next is written down. StoreUnavailable."""
        there = self._there = self._there or reach(self.stage, ready)
        item = await there.get(node_key(self._identity.name))
        if item is None or decode(Node, item.value, item.key).id != self._identity.id:
            return False
        blocks = (decode(Block, item.value, item.key) for item in (await there.list("blocks/")).items)
        self.stage.decide(block for block in blocks if block.node == self._identity.name)
        log.info("joined", extra={"address": ready.store})
        return True

    async def _give_up(self) -> None:
        """Nobody wishes it any more, and the other cluster does not have this node."""
        if self._there is not None:
            await self._there.close()
            self._there = None
        self.stage.clear()
        log.info("joining_given_up", extra={})

    async def close(self) -> None:
        if self._there is not None:
            await self._there.close()


def refused_by(items: Mapping[str, Item], pin: str) -> dict[str, str]:
    """By node, why it does not get ready; "" for one that is not yet."""
    found: dict[str, str] = {}
    for name in [key.removeprefix(WISH) for key in items if key.startswith(WISH)]:
        item = items.get(SAID + name)
        said = decode(Said, item.value, item.key) if item is not None else Said()
        if said.pin != pin:
            found[name] = said.error
    return found
