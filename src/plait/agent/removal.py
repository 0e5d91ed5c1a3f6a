# SPDX-License-Identifier: Apache-2.0
"""Taking a node that is gone out of the cluster, with everything that it had: when somebody says so, or when it is gone for long."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from plait.agent.assigned import disown
from plait.agent.echo import Echo
from plait.agent.keys import alive_key, block_key, own_prefixes, record_key, single_keys
from plait.agent.view import View
from plait.ipam import held_by
from plait.model.addr import IPAddress
from plait.model.cluster import Ghosts
from plait.model.errors import Conflict, NotFound, StoreUnavailable
from plait.store.api import Compare, Delete, Put, Store
from plait.store.codec import encode

log = logging.getLogger("plait.node")
MOST_GHOSTS = 4096
EVERY_S, RETRY_S = 1.0, 10.0
"""Between two looks, and between two tries to remove the same node."""


async def forget_node(view: View, store: Store, name: str) -> None:
    """Remove the records of node `name`; its blocks and assigned addresses are free afterwards. What its containers had is remembered, in
    case they live on (`Ghosts`). NotFound; Conflict while it gives signs of life or if it comes back meanwhile: then nothing is changed."""
    snapshot = view.snapshot
    if name not in snapshot.nodes:
        raise NotFound(f"there is no node {name!r}; `plait nodes` lists them")
    if name in snapshot.alive:
        raise Conflict(f"node {name!r} gives signs of life; run `plait down --purge` there instead")
    blocks = [block_key(b.network, b.cidr) for b in snapshot.blocks.values() if b.node == name]
    held = [item for item in map(view.item, blocks) if item is not None]
    ops: list[Put | Delete] = [Delete(prefix, prefix=True) for prefix in own_prefixes(name)]
    ops += [Delete(key) for key in (*single_keys(name), *(item.key for item in held))]
    gone = (e for e in snapshot.endpoints.values() if e.node == name)
    had = sorted((e.network, a) for e in gone for a in held_by(snapshot.networks.get(e.network), e))[:MOST_GHOSTS]
    if had:
        ghosts = Ghosts(name, tuple(had))
        ops.append(Put(record_key(ghosts), encode(ghosts)))
    unchanged, given_back = await disown(store, name)
    unchanged += [Compare(item.key, item.mod_revision) for item in held]
    result = await store.txn([Compare(alive_key(name), 0), *unchanged], [*ops, *given_back])
    if not result.ok:
        raise Conflict(f"node {name!r} came back, or its blocks changed, while it was to be removed; look at `plait nodes` and try again")
    await view.caught_up(result.revision)


async def host_answers(address: IPAddress) -> bool:
    """Whether the host at `address` answers an echo, in two tries; True if it cannot be asked."""
    try:
        echo = Echo()
    except OSError:
        return True
    return any([(await echo.ask(address)).rtt_s is not None for _ in range(2)])


class Forgetting:
    """Removes nodes that gave no sign of life for `after_s` (0: none) and whose host is silent too: where only the agent is gone, the
    containers go on with their addresses. Counted by a clock that does not jump, and only while this node hears the store: what it cannot
    hear of may live. Every node may do so at once: the first one's removal counts."""

    def __init__(
        self,
        view: View,
        store: Store,
        after_s: float,
        connected: Callable[[], bool],
        answers: Callable[[IPAddress], Awaitable[bool]] = host_answers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._view, self._store, self._after_s = view, store, after_s
        self._connected, self._answers, self._clock = connected, answers, clock
        self._since: dict[str, float] = {}
        self._due: dict[str, float] = {}

    async def look(self) -> None:
        """Notice who is silent, and remove those that have been for too long."""
        snapshot, now = self._view.snapshot, self._clock()
        silent = snapshot.nodes.keys() - snapshot.alive if self._connected() else frozenset()
        self._since = {name: self._since.get(name, now) for name in silent}
        self._due = {name: self._due.get(name, since + self._after_s) for name, since in self._since.items()}
        for name in sorted(name for name, due in self._due.items() if due <= now):
            self._due[name] = now + RETRY_S
            try:
                if await self._answers(snapshot.nodes[name].address):
                    raise Conflict(f"its host answers at {snapshot.nodes[name].address}: only its agent is gone")
                await forget_node(self._view, self._store, name)
            except (Conflict, NotFound, StoreUnavailable) as error:
                log.info("node_not_forgotten", extra={"node": name, "error": str(error)})
            else:
                log.warning("node_forgotten", extra={"node": name, "after_s": round(now - self._since[name])})

    async def run(self) -> None:
        """Never returns, unless there is nothing to do."""
        while self._after_s:
            await self.look()
            await asyncio.sleep(EVERY_S)
