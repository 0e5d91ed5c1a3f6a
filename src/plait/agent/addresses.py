# SPDX-License-Identifier: Apache-2.0
"""This node's addresses: blocks leased from the store ahead of need, reservations kept in the journal.

An address is only ever handed out from a block that this node holds, and a block is held by whoever made its key in the store
(compare-and-set on "does not exist"), so no address can be given twice, and giving one needs neither a peer nor the store.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from itertools import islice

from plait.agent.journal import Journal, Write
from plait.agent.keys import block_key
from plait.agent.view import View
from plait.ipam import Reservation, block_of, choose_address, exhausted, expire, free_blocks, is_large, usable
from plait.model.cluster import Block, Network
from plait.model.errors import Conflict, NotFound, PoolExhausted, StoreUnavailable
from plait.plan.desired import first_default_block
from plait.store.api import Compare, Delete, Put, Store
from plait.store.codec import decode, encode

log = logging.getLogger("plait.addresses")
_TRIES = 32


class Addresses:
    """Reservations of this node by network and address, and the leasing of its blocks."""

    def __init__(self, view: View, store: Store, journal: Journal, default_network: str, docker_bridge: bool) -> None:
        self._view, self._store, self._journal = view, store, journal
        self._default, self._docker_bridge = default_network, docker_bridge
        self._held: dict[str, dict[IPv4Address, Reservation]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._serial = 0
        for key, body in journal.load("reservation").items():
            reservation = decode(Reservation, body, key)
            self._held.setdefault(reservation.network, {})[reservation.address] = reservation
            self._serial = max(self._serial, reservation.serial)
        for key, body in journal.load("block").items():
            view.put(decode(Block, body, key))

    # --- addresses

    async def reserve(self, network: Network, owner: str, wanted: IPv4Address | None = None, name: str = "") -> IPv4Interface:
        """See `Operations.reserve`. Durable before it returns."""
        async with self._lock(network.name):
            address = await self._find(network, owner, wanted, name)
            known = self._held.get(network.name, {}).get(address)
            if known is None or not known.live or known.owner != owner or (name and known.name != name):
                kept = name or (known.name if known is not None and known.owner == owner else "")
                await self._record(Reservation(network.name, address, owner, kept, True, self._next_serial()))
            return IPv4Interface((address, network.subnet.prefixlen))

    async def release(self, network: str, address: IPv4Address) -> None:
        """The address is free again, remembered for its name. Unknown: success."""
        known = self._held.get(network, {}).get(address)
        if known is not None and known.live:
            await self._record(replace(known, live=False, serial=self._next_serial()))

    async def hand_over(self, network: str, address: IPv4Address, owner: str) -> None:
        """A live reservation of `address` belongs to `owner` from now on. The caller knows that nothing else uses it."""
        known = self._held.get(network, {}).get(address)
        if known is not None and known.live and known.owner != owner:
            await self._record(replace(known, owner=owner))

    def reservations(self) -> list[Reservation]:
        """All of this node's, live and remembered."""
        return [r for per_network in self._held.values() for r in per_network.values()]

    async def forget_network(self, network: str) -> None:
        """Drop all reservations and blocks of a network that is gone."""
        async with self._lock(network):
            held = self._held.pop(network, {})
            blocks = self._own_blocks(network)
            writes = [Write("reservation", f"{network}/{address}", None) for address in held]
            writes += [Write("block", block_key(b.network, b.cidr), None) for b in blocks]
            await self._journal.write(writes)
            for block in blocks:
                self._view.drop(block)

    async def _find(self, network: Network, owner: str, wanted: IPv4Address | None, name: str) -> IPv4Address:
        me = self._view.snapshot.nodes.get(self._view.me)
        tunnel = me.tunnel if me is not None else None
        for _ in range(_TRIES):
            blocks = [b.cidr for b in self._own_blocks(network.name) if b.purpose == "pool"]
            held = self._held.get(network.name, {})
            try:
                found = choose_address(network, blocks, held, owner, name, wanted, tunnel)
            except NotFound:
                if wanted is None or wanted not in network.subnet:
                    raise
                found = None
            if found is not None:
                return found
            await self.lease(network, wanted)
        raise exhausted(network, self._view.snapshot.blocks.values(), self._live(network.name))

    async def _record(self, reservation: Reservation) -> None:
        key = f"{reservation.network}/{reservation.address}"
        await self._journal.write([Write("reservation", key, encode(reservation))])
        self._held.setdefault(reservation.network, {})[reservation.address] = reservation

    def _next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def _lock(self, network: str) -> asyncio.Lock:
        return self._locks.setdefault(network, asyncio.Lock())

    def _own_blocks(self, network: str) -> list[Block]:
        blocks = self._view.snapshot.blocks.values()
        return sorted((b for b in blocks if b.network == network and b.node == self._view.me), key=lambda b: b.cidr)

    def _live(self, network: str) -> dict[str, int]:
        live: dict[str, int] = {}
        for endpoint in self._view.snapshot.endpoints.values():
            if endpoint.network == network:
                live[endpoint.node] = live.get(endpoint.node, 0) + 1
        return live

    # --- blocks

    async def lease(self, network: Network, wanted: IPv4Address | None = None, purpose: str = "pool") -> Block:
        """Lease one more block (the one that holds `wanted`, if given) from the store. PoolExhausted, Conflict or StoreUnavailable."""
        refused: set[IPv4Network] = set()
        for _ in range(_TRIES):
            taken = {b.cidr for b in self._view.snapshot.blocks.values() if b.network == network.name} | refused
            cidr = self._pick(network, taken, wanted)
            block = Block(network.name, cidr, self._view.me, "bridge" if purpose == "bridge" else "pool")
            key = block_key(network.name, cidr)
            result = await self._store.txn([Compare(key, 0)], [Put(key, encode(block))])
            if result.ok:
                await self._journal.write([Write("block", key, encode(block))])
                self._view.put(block)
                log.info("block_leased", extra={"network": network.name, "cidr": str(cidr), "purpose": block.purpose})
                return block
            refused.add(cidr)
        raise exhausted(network, self._view.snapshot.blocks.values(), self._live(network.name))

    def _pick(self, network: Network, taken: set[IPv4Network], wanted: IPv4Address | None) -> IPv4Network:
        if wanted is not None:
            cidr = block_of(network, wanted)
            if cidr in taken:
                who = next((b.node for b in self._view.snapshot.blocks.values() if b.cidr == cidr), "another node")
                raise Conflict(
                    f"address {wanted} of network {network.name!r} lies in block {cidr}, which node {who} holds:"
                    f" start the container there, or ask for an address outside that block"
                )
            return cidr
        cidr_or_none = next(iter(islice(free_blocks(network, taken), 1)), None)
        if cidr_or_none is None:
            raise exhausted(network, self._view.snapshot.blocks.values(), self._live(network.name))
        return cidr_or_none

    async def maintain(self) -> None:
        """Bring this node's blocks to what they should be: in large pools one block and one spare that is untouched, for Docker's
        bridge a block of its own; in small pools give back what is empty. Errors of one network do not stop the others."""
        for network in list(self._view.snapshot.networks.values()):
            try:
                await self._maintain(network)
            except (PoolExhausted, StoreUnavailable) as error:
                log.warning("block_lease_failed", extra={"network": network.name, "error": str(error)})
                if isinstance(error, StoreUnavailable):
                    return

    async def _maintain(self, network: Network) -> None:
        if network.name == self._default and self._docker_bridge and self.bridge_block() is None:
            await self.lease(network, purpose="bridge")
        if not is_large(network):
            await self._return_empty(network)
            return
        async with self._lock(network.name):
            own = [b for b in self._own_blocks(network.name) if b.purpose == "pool"]
            live = {a for a, r in self._held.get(network.name, {}).items() if r.live}
            spare = sum(1 for b in own if not any(a in b.cidr for a in live))
            touched = len(own) - spare
            # Before first use: the block to be used and the spare; later always one untouched block.
            for _ in range((1 if touched else 2) - spare):
                await self.lease(network)

    async def _return_empty(self, network: Network) -> None:
        async with self._lock(network.name):
            own = self._own_blocks(network.name)
            held = self._held.get(network.name, {})
            for block in own:
                if block.purpose == "bridge" or any(r.live and a in block.cidr for a, r in held.items()):
                    continue
                key = block_key(network.name, block.cidr)
                await self._store.txn([], [Delete(key)])
                self._view.drop(block)
                gone = expire(held, [b.cidr for b in self._own_blocks(network.name) if b != block])
                writes = [Write("block", key, None), *(Write("reservation", f"{r.network}/{r.address}", None) for r in gone)]
                await self._journal.write(writes)
                for reservation in gone:
                    held.pop(reservation.address, None)

    def bridge_block(self) -> Block | None:
        """The block of Docker's default bridge on this node, if leased."""
        return next((b for b in self._own_blocks(self._default) if b.purpose == "bridge"), None)

    def tunnel_address(self) -> IPv4Address | None:
        """The node's tunnel address: the first of its first default block."""
        block = first_default_block(self._view.snapshot.blocks.values(), self._view.me, self._default)
        return block.cidr.network_address if block is not None else None

    def free_count(self, network: Network) -> int:
        """Addresses that could be handed out now without another block."""
        held = self._held.get(network.name, {})
        live = {a for a, r in held.items() if r.live}
        own = [b.cidr for b in self._own_blocks(network.name) if b.purpose == "pool"]
        return sum(1 for block in own for a in usable(network, block) if a not in live)
