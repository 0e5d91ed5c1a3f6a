# SPDX-License-Identifier: Apache-2.0
"""Joining another cluster with the whole own one: led by the agent of the node that carries the store, one step after the other.

1. Look at the other cluster by the token, which stays good, and refuse if anything conflicts.
2. Have every node of this cluster get ready (`joiner.py`): first this one, which then makes tokens for the others there.
3. Write into the other store what its nodes must know beforehand: the addresses in use. They give none of these from then on; after a
   moment what they gave before is known too. Write into the own store which blocks are the others', so that hosts whose tunnel address
   some host there has too take another one now: were the two seen at once, one address would mean two hosts for a moment.
4. Take no more writes here, look at both once more, and write the rest in one transaction. It is what decides: before it, both clusters are
   as they were; after it, each node finds itself in the other one and goes there by itself.
Nothing is taken out of the own store: what ends before step 4 is withdrawn, or found and taken up by the next try.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from plait.agent.joiner import SAID, WISH, Joiner, Said, Wish, reach, refused_by
from plait.agent.keys import NETWORK_GUARD, alive_key, assigned_guard, kind_of, network_key, node_key
from plait.agent.merging import Items, Move, locks, move, standing
from plait.agent.publisher import in_batches
from plait.agent.view import View
from plait.ipam.merge import Clash
from plait.model.cluster import Node, Snapshot
from plait.model.errors import ConfigError, Conflict, PlaitError, StoreUnavailable
from plait.plan.desired import first_default_block
from plait.store.api import Compare, Delete, Item, Put, Store
from plait.store.codec import decode, encode
from plait.store.join import peek_cluster
from plait.store.peek import shown
from plait.store.remote import RemoteStore
from plait.store.token import create_token, parse_token

log = logging.getLogger("plait.joining")
READY_S, MOST_S = 8.0, 24.0
"""Most seconds that a node may take to get ready, and the whole of it; a little less than an answer may take."""
WAY_S = 6.0
"""Most seconds until all hosts have tunnel addresses of their own."""
SETTLE_S = 1.0
"""So long the other cluster's nodes have to hear which addresses are in use here, and to tell what they gave meanwhile."""
_TOKEN_S, _ALIVE_S = 120.0, 30.0
"""Lifetime of a node's token, and of the sign of life that is given in its place until it gives its own."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`clashes` stand against it if any of them stops it; then nothing was changed. `nodes` are those that went, or would; `locks` keys
    whose lock was released, or would be."""

    clashes: Sequence[Clash]
    nodes: Sequence[str]
    locks: Sequence[str]
    joined: bool


class Joining:
    """Not for two at once."""

    def __init__(self, view: View, store: Store, items: Mapping[str, Item], joiner: Joiner, leads: bool, default: str) -> None:
        self._view, self._store, self._items, self._joiner = view, store, items, joiner
        self._leads, self._default = leads, default
        self._before: dict[str, bytes | None] = {}
        """Blocks of this cluster that were written over, as they were."""

    async def join(self, address: str, token: str, dry_run: bool, both_names: bool) -> Outcome:
        """Conflict, ConfigError or StoreUnavailable if it cannot be; then both clusters are as they were."""
        if not self._leads:
            raise Conflict("a cluster joins another one from the node that carries its store (`plait nodes` says which); run this there")
        if self._joiner.busy:
            raise Conflict("this cluster is joining another one at this moment; `plait status` shows where it ends")
        pin = parse_token(token).pin
        ready = self._joiner.stage.ready()
        known = ready is not None and ready.pin == pin
        theirs = shown((await self._listed(pin)).values()) if known else await peek_cluster(address, token)
        ours = self._ours()
        outcome = Outcome(_judged(ours, theirs, both_names), sorted(self._view.snapshot.nodes), locks(ours), False)
        if dry_run or any(clash.stops for clash in outcome.clashes):
            return outcome
        self._joiner.busy = True
        try:
            done = replace(outcome, nodes=await self._lead(address, token, pin, both_names), joined=True)
            asyncio.get_running_loop().call_later(0.5, self._leave)  # the answer is on its way by then
            return done
        except BaseException:
            self._joiner.busy = False
            raise

    def _leave(self) -> None:
        self._joiner.busy = False

    def _ours(self) -> Items:
        return {key: item.value for key, item in self._items.items()}

    async def _listed(self, pin: str) -> dict[str, Item]:
        """Everything in the other cluster's store, by key."""
        async with _Reached(self._joiner, pin) as there:
            return {item.key: item for item in (await there.list("")).items}

    async def _lead(self, address: str, token: str, pin: str, both_names: bool) -> Sequence[str]:
        """The nodes that went."""
        early: set[str] = set()
        self._before.clear()
        try:
            async with asyncio.timeout(MOST_S):
                self._all_alive()
                await self._get_ready(address, token, pin)
                async with _Reached(self._joiner, pin) as there:
                    return await self._write(there, both_names, early)
        except (PlaitError, TimeoutError) as error:
            if self._joiner.stage.asked:
                raise StoreUnavailable("the other cluster's store does not say whether it took this one in; `plait status` will") from error
            self._joiner.undecided(False)
            await self._withdraw(pin, early)
            log.warning("joining_refused", extra={"error": str(error)})
            if isinstance(error, TimeoutError):
                raise StoreUnavailable(f"joining took more than {MOST_S:.0f} s; nothing was changed, try again") from error
            raise

    async def _withdraw(self, pin: str, early: set[str]) -> None:
        """Take back what was wished here and written ahead there. What cannot be there is found by `plait ipam reclaim`."""
        try:
            if early:
                async with _Reached(self._joiner, pin) as there:
                    for batch in in_batches([Delete(key) for key in sorted(early)]):
                        await there.txn([], batch)
        except PlaitError as error:
            log.warning("joining_left_behind", extra={"items": len(early), "error": str(error)})
        back: list[Put | Delete] = [Delete(key) if value is None else Put(key, value) for key, value in sorted(self._before.items())]
        for batch in in_batches([*back, Delete(WISH, prefix=True), Delete(SAID, prefix=True)]):
            await self._store.txn([], batch)

    def _all_alive(self) -> None:
        snapshot = self._view.snapshot
        if silent := sorted(snapshot.nodes.keys() - snapshot.alive):
            hint = "start their agents, or take them out with `plait node rm`"
            raise Conflict(f"nodes {', '.join(silent)} give no sign of life and would be left behind: {hint}")

    # --- step 2

    async def _get_ready(self, address: str, token: str, pin: str) -> None:
        await self._wish({self._view.me: Wish(address, token)}, pin)
        wishes: dict[str, Wish] = {}
        async with _Reached(self._joiner, pin) as there:
            for name in self._view.snapshot.nodes:
                if name != self._view.me and self._pin_of(name) != pin:
                    wishes[name] = Wish(address, await create_token(there, pin, _TOKEN_S, time.time()))
        await self._wish(wishes, pin)

    def _pin_of(self, name: str) -> str:
        item = self._items.get(SAID + name)
        return decode(Said, item.value, item.key).pin if item is not None else ""

    async def _wish(self, wishes: Mapping[str, Wish], pin: str) -> None:
        """Have these nodes get ready and wait until all are. Conflict names those that are not, and why."""
        wanted = {name: wish for name, wish in wishes.items() if self._pin_of(name) != pin}
        if not wanted:
            return
        ops: list[Put | Delete] = [Put(WISH + name, encode(wish)) for name, wish in wanted.items()]
        told = await self._store.txn([], [*ops, *(Delete(SAID + name) for name in wanted)])
        await self._view.caught_up(told.revision)
        end = time.monotonic() + READY_S
        while left := {name: why for name, why in refused_by(self._items, pin).items() if name in wanted}:
            if any(left.values()) or time.monotonic() > end:
                late = f"not ready within {READY_S:.0f} s; is its agent of this version?"
                texts = sorted(f"{name}: {why or late}" for name, why in left.items())
                raise Conflict(f"not every node can join: {'; '.join(texts)}; nothing was changed")
            await asyncio.sleep(0.05)

    # --- steps 3 and 4

    async def _write(self, there: RemoteStore, both_names: bool, early: set[str]) -> Sequence[str]:
        theirs = {item.key: item for item in (await there.list("")).items}
        plan = self._planned(self._ours(), theirs, both_names)
        await _put(there, plan.ahead, theirs, early)
        await self._make_way(plan, theirs)
        await asyncio.sleep(SETTLE_S)
        await self._joiner.freeze("it is joining another cluster")
        ours = {item.key: item.value for item in (await self._store.list("")).items}
        theirs = {item.key: item for item in (await there.list("")).items}
        plan = self._planned(ours, theirs, both_names)
        await _put(there, plan.ahead, theirs, early)
        theirs |= {item.key: item for item in (await there.list("")).items}
        self._joiner.undecided(True)
        await self._decide(there, plan, theirs, ours)
        await _after(there, plan.after)
        log.info("cluster_joined", extra={"nodes": ", ".join(plan.nodes)})
        return plan.nodes

    async def _make_way(self, plan: Move, theirs: Mapping[str, Item]) -> None:
        """Have nobody here hold, or lease, a block that somebody there holds. Returns when all hosts have tunnel addresses of their own."""
        of_others = {key: item.value for key, item in theirs.items() if kind_of(key) == "blocks" and _network_key(key) in self._items}
        in_place = {key: value for key, value in plan.last.items() if kind_of(key) == "blocks" and key not in self._items}
        ours = {key: self._items.get(key) for key in (*of_others, *in_place)}
        wanted = {key: value for key, value in (of_others | in_place).items() if (item := ours[key]) is None or item.value != value}
        for batch in in_batches([Put(key, value) for key, value in sorted(wanted.items())]):
            same = [Compare(op.key, item.mod_revision if (item := ours[op.key]) is not None else 0) for op in batch]
            result = await self._store.txn(same, batch)
            if not result.ok:
                raise Conflict("blocks of this cluster changed at the same moment; try again")
            self._before |= {op.key: item.value if (item := ours[op.key]) is not None else None for op in batch}
            await self._view.caught_up(result.revision)
        end = time.monotonic() + WAY_S
        while stuck := _not_moved(self._view.snapshot, self._default):
            if time.monotonic() > end:
                raise Conflict(f"nodes {', '.join(stuck)} did not take another tunnel address within {WAY_S:.0f} s; try again")
            await asyncio.sleep(0.05)

    def _planned(self, ours: Items, theirs: Mapping[str, Item], both_names: bool) -> Move:
        seen = shown(theirs.values())
        if stops := [clash for clash in _judged(ours, seen, both_names) if clash.stops]:
            first = "; ".join(f"{clash.kind}: {clash.here} and {clash.there}" for clash in stops[:3])
            raise Conflict(f"{len(stops)} conflicts came up meanwhile ({first}); `plait join --merge --dry-run` lists them")
        return move(ours, seen, self._default)

    async def _decide(self, there: RemoteStore, plan: Move, theirs: Mapping[str, Item], ours: Items) -> None:
        """The transaction that joins the clusters. Where its answer is lost, the other store is asked what it holds."""
        guards = {NETWORK_GUARD, *(assigned_guard(key.partition("/")[2]) for key in ours if kind_of(key) == "networks")}
        lease = await there.grant(_ALIVE_S)
        ops: list[Put | Delete] = [Put(key, value) for key, value in plan.last.items()]
        ops += [Put(key, b'"joined"') for key in sorted(guards)]
        ops += [Put(alive_key(name), b"1", lease) for name in plan.nodes]
        ops += [Delete(key) for key in theirs if _is_stale(key, plan.nodes, ours)]
        keys = {*plan.last, *guards}
        same = [Compare(key, theirs[key].mod_revision if key in theirs else 0) for key in sorted(keys)]
        try:
            ok = (await there.txn(same, ops)).ok
        except StoreUnavailable:
            ok = await self._asked_again(there)
        except ConfigError as error:
            self._joiner.undecided(False)
            raise Conflict(f"the cluster is too large to be joined in one step: {error}") from error
        if not ok:
            self._joiner.undecided(False)
            raise Conflict("the other cluster's networks or blocks changed at the same moment; try again")

    async def _asked_again(self, there: RemoteStore) -> bool:
        """Whether the other cluster has this node. StoreUnavailable if it cannot be asked: the joiner goes on asking."""
        item = await there.get(node_key(self._view.me))
        own = self._items.get(node_key(self._view.me))
        return item is not None and own is not None and decode(Node, item.value, "").id == decode(Node, own.value, "").id


class _Reached:
    """The other cluster's store, as long as it is used."""

    def __init__(self, joiner: Joiner, pin: str) -> None:
        ready = joiner.stage.ready()
        if ready is None or ready.pin != pin:
            raise Conflict("this node is not ready for the other cluster; try again")
        self._store = reach(joiner.stage, ready)

    async def __aenter__(self) -> RemoteStore:
        return self._store

    async def __aexit__(self, *_: object) -> None:
        await self._store.close()


def _judged(ours: Items, theirs: Items, both_names: bool) -> list[Clash]:
    found = standing(ours, theirs)
    return [replace(clash, stops=clash.stops and not (both_names and clash.kind == "name")) for clash in found]


def _network_key(block: str) -> str:
    """The key of the network of a block's key."""
    return network_key(block.split("/")[1])


def _not_moved(snapshot: Snapshot, default: str) -> list[str]:
    """Nodes whose tunnel address is not what their blocks say."""
    firsts = {name: first_default_block(snapshot.blocks.values(), name, default) for name in snapshot.nodes}
    found = (name for name, first in firsts.items() if first is not None and snapshot.nodes[name].tunnel != first.cidr.network_address)
    return sorted(found)


def _is_stale(key: str, nodes: Sequence[str], ours: Items) -> bool:
    """Whether it is an endpoint of ours that was written ahead and is gone by now."""
    kind, _, rest = key.partition("/")
    return kind == "endpoints" and rest.partition("/")[0] in nodes and key not in ours


async def _put(there: RemoteStore, items: Items, theirs: Mapping[str, Item], early: set[str]) -> None:
    """Write them in as many transactions as it takes, each only over what was seen. Conflict if that is not so any more."""
    ops: list[Put | Delete] = [Put(key, value) for key, value in sorted(items.items())]
    for batch in in_batches(ops):
        same = [Compare(op.key, theirs[op.key].mod_revision if op.key in theirs else 0) for op in batch]
        if not (await there.txn(same, batch)).ok:
            raise Conflict("the other cluster's records changed at the same moment; try again")
        early |= {op.key for op in batch if op.key not in theirs}


async def _after(there: RemoteStore, items: Items) -> None:
    """What the nodes would tell by themselves, sooner."""
    try:
        for batch in in_batches([Put(key, value) for key, value in sorted(items.items())]):
            await there.txn([], batch)
    except PlaitError as error:
        log.info("joining_unpublished", extra={"error": str(error)})
