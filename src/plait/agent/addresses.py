# SPDX-License-Identifier: Apache-2.0
"""This node's addresses: blocks leased from the store ahead of need, reservations kept in the journal.

An address is only ever handed out from a block that this node holds: it made the block's key in the store (compare-and-set on "does not
exist") and has the block in its journal. So no address can be given twice, and giving one needs neither a peer nor the store. The journal
loses a block before the store does, never after. Where the two disagree, because the node was taken for gone (`plait node rm`), a network
was removed while it was away or it was killed between the two, the store decides, and `maintain` brings the journal in line. Single
addresses that go round the blocks: `assigned.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address

from plait.agent.assigned import Assignments
from plait.agent.cooling import Cooling
from plait.agent.journal import Journal, Write
from plait.agent.keys import Record, network_key, record_key
from plait.agent.ownblocks import OwnBlocks, pick
from plait.agent.view import View
from plait.ipam import (
    NOBODY,
    Asker,
    NamedRange,
    Reservation,
    block_of,
    choices_for,
    choose_address,
    exhausted_in,
    expire,
    free_blocks,
    ghosts_of,
    image,
    in_use_elsewhere,
    is_block_of,
    is_large,
    of_pool,
    origin_of,
    range_addresses,
    range_exhausted,
    reserved_for,
)
from plait.model.cluster import Block, Network
from plait.model.errors import Conflict, NotFound, NotSupported, PoolExhausted, StoreUnavailable
from plait.plan.desired import first_default_block
from plait.runtimes.api import paired
from plait.store.api import Compare, Delete, Put, Store
from plait.store.codec import decode, encode

log = logging.getLogger("plait.addresses")
_TRIES, PATIENCE_S = 32, 5.0  # seconds for an address of a range among blocks of other nodes, which may be slow to lend one


class Addresses:
    """Reservations of this node by network and address, and the leasing of its blocks. `reuse_after_s`: how long after its release an
    address is kept from other names; `ranges()`: what is kept for some containers; `clock` must not jump."""

    def __init__(
        self,
        view: View,
        store: Store,
        journal: Journal,
        default_network: str,
        docker_bridge: bool,
        reuse_after_s: float = 0.0,
        ranges: Callable[[], Sequence[NamedRange]] = tuple,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._view, self._store, self._journal = view, store, journal
        self._default, self._docker_bridge = default_network, docker_bridge
        self._own = OwnBlocks(view)
        self._cooling = Cooling(reuse_after_s, clock, self._own.network_made)
        self._held: dict[str, dict[IPv4Address, Reservation]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        for key, body in journal.load("reservation").items():
            reservation = decode(Reservation, body, key)
            self._held.setdefault(reservation.network, {})[reservation.address] = reservation
            if not reservation.live:
                self._cooling.began(reservation.network, reservation.address)
        self._serials = itertools.count(1 + max((r.serial for r in self.reservations()), default=0))
        self._saving: dict[str, asyncio.Future[None]] = {}  # by owner
        self._giving: dict[str, IPv4Address] = {}  # by network; set in the moment in which it is chosen
        for key, body in journal.load("block").items():
            view.put(decode(Block, body, key))
        self.assigned = Assignments(view, store, journal, self.is_live, self._lock, ranges)

    # --- addresses

    async def reserve(
        self, network: Network, owner: str, wanted: IPv4Address | None = None, asker: Asker = NOBODY, *, later: bool = False
    ) -> IPv4Interface:
        """See `Operations.reserve`. Durable before it returns; if `later`, before `saved` does, which must be awaited."""
        return IPv4Interface((await self._reserve(network, owner, wanted, asker, asker.name, later), network.subnet.prefixlen))

    async def saved(self, owner: str) -> None:
        """Wait until the disk has what was reserved for the owner to be saved later. NotSaved: it is to be released. The disk gets it
        even if nobody waits to the end."""
        if (saving := self._saving.pop(owner, None)) is not None:
            await asyncio.shield(saving)

    async def _reserve(self, network: Network, owner: str, wanted: IPv4Address | None, asker: Asker, name: str, later: bool) -> IPv4Address:
        """`name`: what the address is remembered for."""
        async with self._lock(network.name):
            try:
                address = await self._address_for(network, owner, wanted, asker)
                known = self._held.get(network.name, {}).get(address)
                if known is None or not known.live or known.owner != owner or (name and known.name != name):
                    kept = name or (known.name if known is not None and known.owner == owner else "")
                    await self._record(Reservation(network.name, address, owner, kept, True, next(self._serials)), later)
            finally:
                self._giving.pop(network.name, None)
                self.assigned.wake.set()
            return address

    async def reserve6(
        self, network: Network, owner: str, address: IPv4Address, wanted: IPv6Address | None = None, asker: Asker = NOBODY
    ) -> IPv6Address:
        """See `Operations.reserve6`; `owner` has `address`. What goes with another one is remembered for no name: next time too the name
        has `address` first."""
        own = image(network, address)
        if own is None:
            raise NotSupported(f"network {network.name!r} has no IPv6: make one with `plait network create NAME --ipv6`")
        if wanted in (None, own):
            return own
        try:
            await self._reserve(network, paired(owner), origin_of(network, wanted), asker, "", later=False)
        except (Conflict, NotFound) as error:
            raise Conflict(f"IPv6 address {wanted} cannot be had: {error}") from error
        return wanted

    async def release(self, network: str, address: IPv4Address) -> None:
        """The address is free again, remembered for its name. Unknown: success. The disk is not waited for: what a crash makes it forget
        is found idle at the start (`recover`, Docker's collector)."""
        known = self._held.get(network, {}).get(address)
        if known is not None and known.live:
            free = replace(known, live=False, serial=next(self._serials))
            self._journal.queue([Write("reservation", f"{network}/{address}", encode(free))])
            self._held[network][address] = free
            self._saving.pop(known.owner, None)
            self._cooling.began(network, address)
            self.assigned.wake.set()

    async def hand_over(self, network: str, address: IPv4Address, owner: str) -> None:
        """A live reservation of `address` belongs to `owner` from now on. The caller knows that nothing else uses it."""
        known = self._held.get(network, {}).get(address)
        if known is not None and known.live and known.owner != owner:
            await self._record(replace(known, owner=owner))

    def reservations(self) -> list[Reservation]:
        """All of this node's, live and remembered."""
        return [r for per_network in self._held.values() for r in per_network.values()]

    def is_live(self, network: str, address: IPv4Address) -> bool:
        """Whether somebody on this node has `address`, or is getting it."""
        if self._giving.get(network) == address:
            return True
        known = self._held.get(network, {}).get(address)
        return known is not None and known.live

    async def _address_for(self, network: Network, owner: str, wanted: IPv4Address | None, asker: Asker) -> IPv4Address:
        held = self._held.get(network.name, {}).values()
        has = next((r.address for r in held if r.live and r.owner == owner and wanted in (None, r.address)), None)
        if has is not None:
            return has
        reserved = reserved_for(network.name, asker.name, self._view.snapshot.assigned.values())
        ranges = choices_for(network.name, asker, self.assigned.ranges())
        if wanted is None and reserved is None and ranges:
            return await self._find_in(network, owner, asker, ranges)
        wanted = wanted or reserved
        if wanted is not None and wanted in network.subnet and (wanted == reserved or any(wanted in one for one in ranges)):
            if wanted == reserved:
                await self.assigned.released(network.name, wanted)
            return await self._take(network, owner, asker, wanted)
        return await self._find(network, owner, wanted, asker)

    async def _take(self, network: Network, owner: str, asker: Asker, wanted: IPv4Address) -> IPv4Address:
        """One that is meant for the asker, whoever holds its block."""
        if reason := self.assigned.refuse(network, asker)(wanted):
            raise Conflict(reason)
        known = self._held.get(network.name, {}).get(wanted)
        if known is not None and known.live and known.owner != owner:
            raise Conflict(f"address {wanted} of network {network.name!r} is in use by {known.name or known.owner!r} on this node")
        block = self._view.snapshot.blocks.get((network.name, block_of(network, wanted)))
        if block is None or (block.node == self._view.me and block.purpose == "pool"):
            await self._find(network, owner, wanted, asker)
        elif block.purpose == "bridge":
            raise Conflict(f"address {wanted} of network {network.name!r} lies in a block of Docker's default bridge on node {block.node}")
        self._giving[network.name] = wanted
        await self.assigned.take(network, wanted)
        return wanted

    async def _find_in(self, network: Network, owner: str, asker: Asker, ranges: Sequence[NamedRange]) -> IPv4Address:
        """An address of the ranges: the one the name had last, then of blocks of this node, then any."""
        held = self._held.get(network.name, {})
        taken = {a for a, r in held.items() if r.live} | in_use_elsewhere(self._view.snapshot, network.name)
        refuse = self.assigned.refuse(network, asker)
        found = [a for a in range_addresses(network, ranges, taken) if not refuse(a)]
        last = {a: -r.serial for a, r in held.items() if asker.name and r.name == asker.name}
        cooling = (self._cooling.of(network.name) | ghosts_of(self._view.snapshot, network.name)) - last.keys()
        mine = {b.cidr for b in self._own.of(network.name)}
        found.sort(key=lambda a: (last.get(a, 0), a in cooling, block_of(network, a) not in mine))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                for address in found:
                    with contextlib.suppress(Conflict):
                        return await self._take(network, owner, asker, address)
        raise range_exhausted(network, ranges, self._view.snapshot)

    async def _find(self, network: Network, owner: str, wanted: IPv4Address | None, asker: Asker) -> IPv4Address:
        tunnel, cooling = self.tunnel_address(), self._cooling.of(network.name) | ghosts_of(self._view.snapshot, network.name)
        for _ in range(_TRIES):
            blocks = [b.cidr for b in self._own.of(network.name) if b.purpose == "pool"]
            held, refuse = self._held.get(network.name, {}), self.assigned.refuse(network, asker)
            try:
                elsewhere = in_use_elsewhere(self._view.snapshot, network.name)
                found = choose_address(network, blocks, held, owner, asker.name, wanted, tunnel, elsewhere, refuse, cooling)
            except NotFound:
                if wanted is None or wanted not in network.subnet:
                    raise
                found = None
            if found is not None:
                self._giving[network.name] = found
                return found
            unconfirmed = self._own.unconfirmed(network.name)
            for block in unconfirmed:
                await self._confirm(block)
            try:
                if not unconfirmed:
                    await self.lease(network, wanted, avoid=cooling)
            except PoolExhausted:
                if not cooling:
                    raise
                log.warning("address_reused_early", extra={"network": network.name, "container": asker.name})
                cooling = set()
        raise exhausted_in(self._view.snapshot, network)

    async def _record(self, reservation: Reservation, later: bool = False) -> None:
        saving = self._journal.queue([Write("reservation", f"{reservation.network}/{reservation.address}", encode(reservation))])
        if later:
            self._saving[reservation.owner] = saving
        else:
            await saving
        self._held.setdefault(reservation.network, {})[reservation.address] = reservation

    def _lock(self, network: str) -> asyncio.Lock:
        return self._locks.setdefault(network, asyncio.Lock())

    # --- blocks

    async def lease(
        self, network: Network, wanted: IPv4Address | None = None, purpose: str = "pool", avoid: set[IPv4Address] | None = None
    ) -> Block:
        """Lease one more block from the store: the one that holds `wanted`, if given, else one with addresses that are not to be avoided.
        PoolExhausted, Conflict or StoreUnavailable."""
        refused: set[IPv4Network] = set()
        for _ in range(_TRIES):
            cidr = pick(self._view.snapshot, network, refused, wanted, avoid or set())
            block = Block(network.name, cidr, self._view.me, "bridge" if purpose == "bridge" else "pool")
            key = record_key(block)
            of = self._view.item(network_key(network.name))
            still = Compare(network_key(network.name), of.mod_revision if of is not None else -1)
            result = await self._store.txn([Compare(key, 0), still], [Put(key, encode(block)), *self._view.introduction()])
            if result.ok:
                await self._hold(block)
                log.info("block_leased", extra={"network": network.name, "cidr": str(cidr), "purpose": block.purpose})
                return block
            if await self._store.get(network_key(network.name)) is None:
                raise NotFound(f"network {network.name!r} was removed while an address of it was asked for")
            refused.add(cidr)
        raise exhausted_in(self._view.snapshot, network)

    async def maintain(self) -> None:
        """Bring this node's blocks to what they should be: in the journal exactly what it holds by the store; in large pools one block and
        one spare that is untouched, for Docker's bridge a block of its own; in small pools give back what is empty. Errors of one
        network do not stop the others."""
        with contextlib.suppress(StoreUnavailable):
            await self._reconcile()
        for network in [network for network in self._view.snapshot.networks.values() if not network.by_dhcp]:
            try:
                await self._maintain(network)
            except (PoolExhausted, NotFound, StoreUnavailable) as error:
                log.warning("block_lease_failed", extra={"network": network.name, "error": str(error)})
                if isinstance(error, StoreUnavailable):
                    return
        with contextlib.suppress(StoreUnavailable):
            await self.assigned.tend()

    async def _maintain(self, network: Network) -> None:
        if network.name == self._default and self._docker_bridge and self.bridge_block() is None:
            await self.lease(network, purpose="bridge")
        if not is_large(network):
            await self._return_empty(network, [])
            return
        of_host, own = {self.tunnel_address(), self.encrypted_address()}, self._own.of(network.name)
        kept = [block for block in own if of_pool(network, block) or block.cidr[0] in of_host]
        if len(kept) < len(own):  # the range was another one
            await self._return_empty(network, kept)
        async with self._lock(network.name):
            own = [b for b in self._own.of(network.name) if b.purpose == "pool" and of_pool(network, b)]
            live = {a for a, r in self._held.get(network.name, {}).items() if r.live}
            spare = sum(1 for b in own if not any(a in b.cidr for a in live))
            # Before first use: the block to be used and the spare; later always one untouched block.
            for _ in range((1 if len(own) > spare else 2) - spare):
                await self.lease(network)

    async def _return_empty(self, network: Network, kept: Collection[Block]) -> None:
        async with self._lock(network.name):
            own = [block for block in self._own.of(network.name) if block not in kept]
            held = self._held.get(network.name, {})
            taken = {b.cidr for b in self._view.snapshot.blocks.values() if b.network == network.name}
            scarce = next(free_blocks(network, taken), None) is None
            cooling = set() if scarce else self._cooling.of(network.name)
            for block in own:
                if block.purpose == "bridge" or any((r.live or a in cooling) and a in block.cidr for a, r in held.items()):
                    continue
                stored = self._view.item(record_key(block))
                if stored is None:  # leased a moment ago, or lost by the store and soon there again
                    continue
                await self._drop(block)
                await self._store.txn([Compare(stored.key, stored.mod_revision)], [Delete(stored.key)])

    async def _hold(self, block: Block) -> None:
        """The store says that `block` is this node's."""
        await self.assigned.learn(block)
        await self._journal.write([Write("block", record_key(block), encode(block))])
        self._own.confirmed(block)
        self._view.put(block)

    async def _drop(self, block: Block) -> None:
        """Hold `block` no longer, and forget what its addresses are remembered for; live ones stay with their owners."""
        held = self._held.get(block.network, {})
        gone = expire(held, [b.cidr for b in self._own.of(block.network) if b != block])
        writes = [Write("block", record_key(block), None), *(Write("reservation", f"{r.network}/{r.address}", None) for r in gone)]
        await self._journal.write(writes)
        self._view.drop(block)
        for reservation in gone:
            held.pop(reservation.address, None)

    async def _reconcile(self) -> None:
        """Journal and store agree about this node's blocks afterwards. StoreUnavailable leaves the rest for the next time."""
        for key, block in [(k, r) for k, r in self._view.own_records().items() if isinstance(r, Block)]:
            async with self._lock(block.network):
                if self._view.own(key) is not None:
                    await self._give_up(block, self._view.record(key))
        for block in self._own.unconfirmed():
            async with self._lock(block.network):
                await self._confirm(block)

    async def _give_up(self, block: Block, stored: Record | None) -> None:
        """Drop `block` if another node holds it now or it is no part of its network any more."""
        network = self._view.snapshot.networks.get(block.network)
        if isinstance(stored, Block) and stored.node != self._view.me:
            await self._drop(block)
            log.warning("block_lost", extra={"network": block.network, "cidr": str(block.cidr), "node": stored.node})
        elif (network is None or not is_block_of(network, block.cidr)) and await self._is_void(block):
            await self._drop(block)
            log.info("block_void", extra={"network": block.network, "cidr": str(block.cidr)})

    async def _is_void(self, block: Block) -> bool:
        """Whether the store, asked now, has no network that `block` is of: this node's copy may be an old one."""
        item = await self._store.get(network_key(block.network))
        return item is None or not is_block_of(decode(Network, item.value, item.key), block.cidr)

    async def _confirm(self, block: Block) -> None:
        """A block that the store gives this node but that its journal lacks: taken again, so that only the present holder can."""
        stored, network = self._view.item(record_key(block)), self._view.snapshot.networks.get(block.network)
        if stored is None or self._view.own(stored.key) is not None:
            return
        same = [Compare(stored.key, stored.mod_revision)]
        if network is None or not is_block_of(network, block.cidr):
            if await self._is_void(block):
                await self._store.txn(same, [Delete(stored.key)])
        else:
            result = await self._store.txn(same, [Put(stored.key, encode(block))])
            if result.ok:
                await self._hold(block)
            await self._view.caught_up(result.revision)

    def bridge_block(self) -> Block | None:
        """The block of Docker's default bridge on this node, if leased."""
        return next((b for b in self._own.of(self._default) if b.purpose == "bridge"), None)

    def tunnel_address(self) -> IPv4Address | None:
        """The node's tunnel address: the first of its first default block."""
        block = first_default_block(self._view.snapshot.blocks.values(), self._view.me, self._default)
        return block.cidr.network_address if block is not None else None

    def encrypted_address(self) -> IPv4Address | None:
        """The host's own address in encrypted networks: the first of its first block of the first of them."""
        networks = self._view.snapshot.networks
        own = (b for name in sorted(networks) if networks[name].encrypted for b in self._own.of(name))
        block = next((b for b in own if b.purpose == "pool" and b.cidr.network_address != networks[b.network].gateway), None)
        return block.cidr.network_address if block is not None else None
