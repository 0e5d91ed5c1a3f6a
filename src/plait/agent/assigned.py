# SPDX-License-Identifier: Apache-2.0
"""Single addresses that go round the blocks: reserved for a container's name, or lent to a node that does not hold the block.

A node may use such an address of another's block when both hold: the store gives it to this node (`Assigned.node`, by compare-and-set,
so to one node only) and the block's present holder has promised to give it to nobody (`Assigned.cleared`; the promise is in its journal
before it is in the store). Whoever leases that block later asks the store for such addresses first. So none is given twice, whatever each
node knew before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address

from plait.agent.journal import Journal, Write
from plait.agent.keys import assigned_guard, assigned_key, assigned_prefix, block_key, network_key
from plait.agent.view import View
from plait.ipam import Asker, NamedRange, assigned_of, block_of, held_by, is_excluded, is_kept, nothing_refused, refusal, reserved_for
from plait.model.cluster import Assigned, Block, Network, Snapshot
from plait.model.errors import Conflict, NotFound, StoreUnavailable
from plait.store.api import Compare, Delete, Item, Put, Store
from plait.store.codec import decode, encode

log = logging.getLogger("plait.addresses")
GRANT_S = 3.0
"""How long the holder of a block has to promise an address of it."""
RELEASE_S = 1.5
"""How long a reserved address may seem to be in use on another node before its container is refused."""
TEND_S = 30.0
_TRIES = 16
_JOURNAL = "promise"


class Assignments:
    """Reserving, borrowing and promising addresses. `live(network, address)`: whether this node has it in use or is about to;
    `lock(network)`: held while an address is being found, perhaps for seconds; `ranges()`: what is kept for some containers."""

    def __init__(
        self,
        view: View,
        store: Store,
        journal: Journal,
        live: Callable[[str, IPv4Address], bool],
        lock: Callable[[str], asyncio.Lock],
        ranges: Callable[[], Sequence[NamedRange]],
    ) -> None:
        self._view, self._store, self._journal, self._live, self._lock = view, store, journal, live, lock
        self.ranges = ranges
        self._promised = {tuple(key.split("/")) for key in journal.load(_JOURNAL)}
        self._changed, self.wake = asyncio.Event(), asyncio.Event()
        """`wake` is to be set when what is live here, or what is being found, is another."""
        view.subscribe(self._on_view)

    def _on_view(self, kinds: frozenset[str]) -> None:
        if kinds & {"assigned", "blocks", "endpoints"}:
            self._changed.set()
            self.wake.set()

    def refuse(self, network: Network, asker: Asker) -> Callable[[IPv4Address], str]:
        """Says of an address why the asker may not have it; "" if it may. One that this node promised to give to nobody is refused too
        while the replica does not know for whom it is."""
        ranges = [one for one in self.ranges() if one.network == network.name]
        snapshot = self._view.snapshot
        if not (ranges or network.excluded or self._promised or snapshot.assigned):
            return nothing_refused

        def reason(address: IPv4Address) -> str:
            known = snapshot.assigned.get((network.name, address))
            if text := refusal(network, address, asker, known, ranges):
                return text
            promised = known is None and (network.name, str(address)) in self._promised
            if promised or (known is not None and known.node not in ("", self._view.me)):
                where = f"node {known.node}; remove its container there first" if known is not None else "another node"
                return f"address {address} of network {network.name!r} is in use on {where}"
            return ""

        return reason

    # --- by name

    async def reserve(self, network: Network, name: str, address: IPv4Address) -> Assigned:
        """Keep `address` for containers called `name`. Idempotent. Conflict names what stands against it; StoreUnavailable."""
        _check(network, address)
        for _ in range(_TRIES):
            key, snapshot = assigned_key(network.name, address), self._view.snapshot
            known, item = snapshot.assigned.get((network.name, address)), self._view.item(key)
            if known is not None and known.name == name:
                return known
            _check_free(snapshot, network, name, address, known)
            made = replace(known or Assigned(network.name, address), name=name)
            guard = await self._store.get(assigned_guard(network.name))  # one writer at a time: a name must not get two addresses
            if guard is not None and guard.mod_revision > self._view.revision:
                await self._view.caught_up(guard.mod_revision)
                continue
            of = self._view.item(network_key(network.name))
            seen = {key: item, assigned_guard(network.name): guard, network_key(network.name): of}
            compares = [Compare(where, found.mod_revision if found else 0) for where, found in seen.items()]
            result = await self._store.txn(compares, [Put(key, encode(made)), Put(assigned_guard(network.name), name.encode())])
            await self._view.caught_up(result.revision)
            if result.ok:
                log.info("address_reserved", extra={"network": network.name, "address": str(address), "container": name})
                return made
        raise Conflict(f"address {address} of network {network.name!r} could not be reserved: others reserve there at once; try again")

    async def unreserve(self, network: str, name: str) -> None:
        """End the reservation of `name`; who uses the address keeps it. NotFound if there is none."""
        for _ in range(_TRIES):
            address = reserved_for(network, name, self._view.snapshot.assigned.values())
            known = self._view.snapshot.assigned.get((network, address)) if address is not None else None
            item = self._view.item(assigned_key(network, address)) if address is not None else None
            if known is None or item is None:
                raise NotFound(f"nothing of network {network!r} is reserved for {name!r}; `plait ipam` lists what is")
            result = await self._settle(item, replace(known, name=""))
            if result:
                log.info("address_unreserved", extra={"network": network, "address": str(address), "container": name})
                return
        raise Conflict(f"the reservation of {name!r} in network {network!r} changes all the time; try again")

    async def _settle(self, item: Item, record: Assigned) -> bool:
        """Make the store's record that; one that says nothing any more goes."""
        op = Put(item.key, encode(record)) if record.name or record.node else Delete(item.key)
        result = await self._store.txn([Compare(item.key, item.mod_revision)], [op])
        await self._view.caught_up(result.revision)
        return result.ok

    # --- having one

    async def take(self, network: Network, address: IPv4Address) -> None:
        """This node has `address` from now on, although it is reserved or of another's block. Conflict, or StoreUnavailable."""
        for _ in range(_TRIES):
            block = self._view.snapshot.blocks.get((network.name, block_of(network, address)))
            lent = block is not None and block.node != self._view.me
            key = assigned_key(network.name, address)
            known, item = self._view.snapshot.assigned.get((network.name, address)), self._view.item(key)
            if user := self._user(network.name, address):
                raise Conflict(f"address {address} of network {network.name!r} is in use on node {user}; remove its container there first")
            if known is None and not lent:
                return
            mine = replace(known or Assigned(network.name, address), node=self._view.me)
            if mine != known:
                holder = self._view.item(block_key(network.name, block_of(network, address)))
                same = [Compare(block_key(network.name, block_of(network, address)), holder.mod_revision if holder else 0)]
                result = await self._store.txn([*same, Compare(key, item.mod_revision if item else 0)], [Put(key, encode(mine))])
                await self._view.caught_up(result.revision)
                if not result.ok:
                    continue
            if block is None or not lent or await self._granted(network, address, block):
                return
            await self._refused(network, address, block)
        raise Conflict(f"address {address} of network {network.name!r} changes hands all the time; try again")

    def _user(self, network: str, address: IPv4Address) -> str:
        """The other node that has it, by what is given or by what is attached there; "" if none does."""
        known, me = self._view.snapshot.assigned.get((network, address)), self._view.me
        if known is not None and known.node not in ("", me):
            return known.node
        endpoints = self._view.snapshot.endpoints.values()
        return next((e.node for e in endpoints if e.address == address and e.network == network and e.node != me), "")

    async def released(self, network: str, address: IPv4Address) -> None:
        """Wait a moment while another living node seems to have `address`: its container may have ended just now."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RELEASE_S):
                while self._user(network, address) in self._view.snapshot.alive:
                    self._changed.clear()
                    await self._changed.wait()

    async def _granted(self, network: Network, address: IPv4Address, block: Block) -> bool:
        """Wait for the promise of the block's holder; False if it says no, or nothing."""
        where = network.name, address
        if block.node not in self._view.snapshot.alive:
            known = self._view.snapshot.assigned.get(where)
            return known is not None and known.cleared == block.node
        try:
            async with asyncio.timeout(GRANT_S):
                while True:
                    self._changed.clear()
                    known = self._view.snapshot.assigned.get(where)
                    if known is None or known.node != self._view.me:
                        return False
                    if known.cleared == block.node:
                        return True
                    await self._changed.wait()
        except TimeoutError:
            return False

    async def _refused(self, network: Network, address: IPv4Address, block: Block) -> None:
        await self._give_back(network.name, address)
        silent = block.node not in self._view.snapshot.alive
        why = f"gives no sign of life (`plait node rm {block.node}` if it is gone for good)" if silent else "has it in use"
        raise Conflict(f"address {address} of network {network.name!r} lies in block {block.cidr} of node {block.node}, which {why}")

    async def _give_back(self, network: str, address: IPv4Address) -> None:
        known, item = self._view.snapshot.assigned.get((network, address)), self._view.item(assigned_key(network, address))
        if known is not None and item is not None and known.node == self._view.me:
            await self._settle(item, replace(known, node=""))

    # --- by itself

    async def tend(self) -> None:
        """Give back what this node no longer uses, promise what others want of its blocks, forget promises that nobody needs.
        StoreUnavailable leaves the rest for the next time."""
        for record in list(self._view.snapshot.assigned.values()):
            lock = self._lock(record.network)
            if record.node == self._view.me and not lock.locked():  # while it is, whoever holds it may be taking just this one
                async with lock:
                    if not self._live(record.network, record.address):
                        await self._give_back(record.network, record.address)
            await self._promise(record.network, record.address)
        for network, text in list(self._promised):
            key = assigned_key(network, IPv4Address(text))
            if self._view.item(key) is None and await self._store.get(key) is None:
                self._promised.discard((network, text))
                await self._journal.write([Write(_JOURNAL, f"{network}/{text}", None)])

    async def run(self) -> None:
        """Tend whenever something changed, and every 30 s; beside whatever else waits, because two nodes may wait for each other's
        promises. Never returns."""
        while True:
            self.wake.clear()
            with contextlib.suppress(StoreUnavailable):
                await self.tend()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TEND_S):
                    await self.wake.wait()

    async def learn(self, block: Block) -> None:
        """Promise what the store has of a block that this node has just leased, before it hands out anything of it. StoreUnavailable."""
        items = (await self._store.list(assigned_prefix(block.network))).items
        texts = [item.key.rpartition("/")[2] for item in items]
        mine = [text for text in texts if IPv4Address(text) in block.cidr]
        await self._journal.write([Write(_JOURNAL, f"{block.network}/{text}", b"") for text in mine])
        self._promised |= {(block.network, text) for text in mine}

    async def _promise(self, name: str, address: IPv4Address) -> None:
        """Say that this node, as holder of the block, gives `address` to nobody else: durable here first. Between the look whether it is in
        use and the promise nothing else runs."""
        known, network = self._view.snapshot.assigned.get((name, address)), self._view.snapshot.networks.get(name)
        item = self._view.item(assigned_key(name, address))
        if known is None or network is None or item is None or known.cleared == self._view.me:
            return
        block = self._view.snapshot.blocks.get((name, block_of(network, address)))
        if block is None or block.node != self._view.me:
            return
        if known.node != self._view.me and self._live(name, address):
            if known.node:  # in use here: no
                await self._settle(item, replace(known, node=""))
            return
        self._promised.add((name, str(address)))
        await self._journal.write([Write(_JOURNAL, f"{name}/{address}", b"")])
        await self._settle(item, replace(known, cleared=self._view.me))


def _check(network: Network, address: IPv4Address) -> None:
    what = f"address {address} cannot be reserved in network {network.name!r}"
    if address not in network.subnet:
        raise Conflict(f"{what}: it is no part of {network.subnet}")
    if is_kept(network, address):
        raise Conflict(f"{what}: it is the network's own (gateway, first or last)")
    if is_excluded(network, address):
        raise Conflict(f"{what}: it is excluded")


def _check_free(snapshot: Snapshot, network: Network, name: str, address: IPv4Address, known: Assigned | None) -> None:
    """Conflict unless `name` may have `address` reserved."""
    what = f"address {address} cannot be reserved in network {network.name!r}"
    if known is not None and known.name:
        raise Conflict(f"{what}: it is reserved for {known.name!r}")
    other = reserved_for(network.name, name, assigned_of(snapshot, network.name))
    if other is not None:
        raise Conflict(f"{what}: {name!r} has {other} (`plait ipam unreserve {network.name} {name}` ends that)")
    block = snapshot.blocks.get((network.name, block_of(network, address)))
    if block is not None and block.purpose == "bridge":
        raise Conflict(f"{what}: it lies in block {block.cidr} of Docker's default bridge on node {block.node}")
    others = (e for e in snapshot.endpoints.values() if e.network == network.name and e.name != name)
    user = next((e for e in others if address in held_by(network, e)), None)
    if user is not None:
        raise Conflict(f"{what}: {user.name or user.id} on node {user.node} uses it; remove that first")
    if any(node.tunnel == address for node in snapshot.nodes.values()):
        raise Conflict(f"{what}: it is the tunnel address of a node")


async def disown(store: Store, node: str) -> tuple[list[Compare], list[Put | Delete]]:
    """What a transaction must hold and do so that `node` has no assigned address any more. StoreUnavailable."""
    compares: list[Compare] = []
    ops: list[Put | Delete] = []
    for item in (await store.list("assigned/")).items:
        record = decode(Assigned, item.value, item.key)
        if record.node == node:
            compares.append(Compare(item.key, item.mod_revision))
            ops.append(Put(item.key, encode(replace(record, node=""))) if record.name else Delete(item.key))
    return compares, ops
