# SPDX-License-Identifier: Apache-2.0
"""The DHCP client of this node: a lease for each container of a network whose addresses come from a server on the link.

The agent speaks for its containers on the parent link, with their MACs, before their own links exist and while they run. A lease is
in the journal before anybody uses its address, so an agent that is killed goes on with it; one that nobody needs is given back. Data in:
who needs an address, messages, time. Data out: leases, and by `changes` the owners whose lease has become another one or is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from ipaddress import IPv4Address

from plait.agent.dhcpwires import Wire, Wires, frame_of
from plait.agent.journal import Journal, Write
from plait.agent.leaserecords import LeaseRecord, client_id, forgettable, host_name
from plait.dhcp import client as life
from plait.dhcp.client import Client, Dialect, Lease, State, Step, Who
from plait.dhcp.dialect4 import Dialect4
from plait.dhcp.dialect6 import Dialect6
from plait.dhcp.frames import mac_bytes
from plait.dhcp.message import Message
from plait.dhcp.message6 import Message6
from plait.model.addr import EitherAddress, mac_from_digest
from plait.model.errors import Conflict, LeaseFailed
from plait.model.leases import Leased
from plait.runtimes.api import Health
from plait.store.codec import decode, encode

log = logging.getLogger("plait.dhcp")
KIND = "lease"
LOST, LATE, MOVED = "lease-lost", "lease-late", "lease-moved"
_CHANCE = random.SystemRandom()
_BASE = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


_DIALECTS: dict[int, Dialect] = {4: Dialect4(), 6: Dialect6()}


def steady() -> float:
    """Seconds since the epoch as they were at the start, counted on by a clock that neither jumps nor stops while the host sleeps."""
    return _BASE + time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(slots=True)
class Held:
    """A client and what the journal says of it. `settled`: its address was found to be nobody else's, so it is in use; `durable`: the
    lease that the journal has. `turn` is set whenever something has become of it; `answers` counts what servers said."""

    record: LeaseRecord
    client: Client
    settled: bool = False
    durable: Lease | None = None
    answers: int = 0
    turn: asyncio.Event = field(default_factory=asyncio.Event)


class Leases:
    """`timeout_s`: how long servers have to give an address. `identity` makes this node's clients its own; `clock` in seconds since the
    epoch, must not jump; `pick` a number from 0 to 1."""

    def __init__(
        self,
        journal: Journal,
        health: Health,
        identity: str,
        timeout_s: float,
        make_wires: Callable[[Callable[[], None]], Wires],
        clock: Callable[[], float] = steady,
        pick: Callable[[], float] = _CHANCE.random,
    ) -> None:
        self._journal, self._health, self._identity, self._timeout_s = journal, health, identity, timeout_s
        self._clock, self._pick = clock, pick
        self._wake = asyncio.Event()
        self._wires = make_wires(self._wake.set)
        self._held: dict[str, Held] = {}
        """By owner."""
        self._looking: dict[int, Held] = {}
        """Who only asks what there is, by the number of the exchange."""
        self.changes: asyncio.Queue[str] = asyncio.Queue()
        self._known = {key: decode(LeaseRecord, body, key) for key, body in journal.load(KIND).items()}
        """All records by client, also of those whose owner is gone."""

    # --- what others ask

    def of(self, owner: str) -> Lease | None:
        """What the owner has now."""
        held = self._held.get(owner)
        return held.client.lease if held is not None else None

    def all(self) -> list[LeaseRecord]:
        """Those whose owners have an address."""
        return [held.record for held in self._held.values() if held.client.lease is not None and held.settled]

    async def obtain(
        self, link: str, network: str, owner: str, mac: str, name: str, wanted: EitherAddress | None = None, family: int = 4
    ) -> Lease:
        """A lease for `owner`, the same one if it has it. LeaseFailed if no server on `link` gives one in time; Conflict if the address is
        another one than is `wanted`. Durable before it returns; on an error nothing of a new one is left."""
        known = self._held.get(owner)
        held = known or self._start(LeaseRecord(owner, network, link, name, mac, "", family=family), wanted)
        try:
            with self._wires.standing_in(link, mac) if family == 6 else contextlib.nullcontext():
                lease = await self._usable(held)
            if known is None and wanted not in (None, lease.address):
                raise Conflict(
                    f"address {wanted} of network {network!r} cannot be had: the DHCP server {lease.server} on {link} gives {lease.address}"
                )
        except BaseException:
            if known is None:
                await self.release(owner)
            raise
        return lease

    async def look(self, link: str) -> tuple[IPv4Address, Leased]:
        """What a server on `link` would give, an address and what goes with it; nothing is taken. LeaseFailed."""
        ident = client_id(self._identity, link, "")
        record = LeaseRecord("", "", link, "", mac_from_digest(ident[-8:]), ident.hex())
        step = life.begin(_who(record), self._clock(), self._pick)
        held = self._looking[step.client.xid] = Held(record, step.client)
        try:
            self._take(held, step)
            async with self._bounded(held):
                while (offer := held.client.offer) is None:
                    held.turn.clear()
                    await held.turn.wait()
        finally:
            del self._looking[step.client.xid]
        assert isinstance(offer.address, IPv4Address)
        return offer.address, offer.leased

    async def hand_over(self, owner: str, to: str) -> None:
        """The lease is `to`'s from now on. Unknown: success."""
        held = self._held.pop(owner, None)
        if held is not None:
            self._held[to] = held
            held.record = replace(held.record, owner=to)
            await self._save(held.record)

    async def release(self, owner: str) -> None:
        """Give the lease back, and remember its address for the next time. Unknown: success."""
        held = self._held.pop(owner, None)
        if held is None:
            return
        if held.client.lease is not None:
            for said in life.end(held.client, self._clock()):
                self._wires.send(held.record.link, held.record.mac, said)
            log.info("lease_released", extra=_fields(held.record))
        for code in (LOST, LATE, MOVED):
            self._health.clear(code, owner)
        self._wake.set()
        if held.record.lease is not None:
            await self._save(replace(held.record, owner=""))

    async def holder(self, link: str, mac: str, address: EitherAddress) -> str:
        """See `Wires.is_taken`."""
        return await self._wires.is_taken(link, mac, address)

    # --- the life of them all

    def recover(self) -> None:
        """Once at start, before anybody asks: go on with what the journal has. The servers are asked whether that is well."""
        for record in self._known.values():
            if record.owner and record.lease is not None:
                step = life.begin(_who(record), self._clock(), self._pick, record.lease)
                held = self._held[record.owner] = Held(record, step.client, settled=True, durable=record.lease)
                self._take(held, step)
                if step.client.lease is None:
                    self.changes.put_nowait(record.owner)

    async def run(self) -> None:
        """Never returns."""
        try:
            while True:
                self._wake.clear()
                for link, message, by, source in self._wires.messages():
                    await self._heard(link, message, by, source)
                for held in [*self._held.values(), *self._looking.values()]:
                    if held.client.due <= self._clock():
                        await self._settle(held, life.tick(held.client, self._clock(), self._pick))
                self._wires.keep({held.record.link for held in [*self._held.values(), *self._looking.values()]})
                due = min((held.client.due for held in [*self._held.values(), *self._looking.values()]), default=None)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if due is None else max(0.0, due - self._clock())):
                        await self._wake.wait()
        finally:
            self._wires.keep(())

    def _start(self, asked: LeaseRecord, wanted: EitherAddress | None) -> Held:
        """`asked` still without a client id."""
        record = replace(asked, client_id=client_id(self._identity, asked.network, asked.name or asked.owner).hex())
        if any(held.record.key == record.key for held in self._held.values()):  # two of one name: only one can be known by it
            record = replace(asked, client_id=client_id(self._identity, asked.network, f"{asked.name}\0{asked.owner}").hex())
        known = self._known.get(record.key)
        last = known.lease.address if known is not None and known.lease is not None else None
        step = life.begin(_who(record), self._clock(), self._pick, wanted=wanted or last)
        held = self._held[record.owner] = Held(record, step.client)
        self._take(held, step)
        return held

    async def _usable(self, held: Held) -> Lease:
        """The lease once there is one whose address nobody else has."""
        async with self._bounded(held):
            while True:
                held.turn.clear()
                lease = held.client.lease
                if lease is None or lease is not held.durable:
                    await held.turn.wait()
                elif held.settled or not await self._taken(held, lease):
                    held.settled = True
                    return lease

    async def _taken(self, held: Held, lease: Lease) -> bool:
        """Whether somebody else on the link has the address; then the server is told, and asked for another one."""
        by = await self._wires.is_taken(held.record.link, held.record.mac, lease.address)
        if by and held.client.lease is lease:
            log.warning("lease_declined", extra=_declined(held.record, by))
            await self._settle(held, life.decline(held.client, self._clock()))
            self._wake.set()
        return bool(by)

    @contextlib.asynccontextmanager
    async def _bounded(self, held: Held) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError:
            record = held.record
            said = "servers answered, but none gave an address that is free" if held.answers else "no server answered"
            whom = f" for {record.name} on network {record.network}" if record.network else ""
            raise LeaseFailed(
                f"asking DHCP for an address{whom}: {said} on link {record.link} within {self._timeout_s:g} s, with the MAC {record.mac}; "
                f"look whether a server is there and has addresses left (`tcpdump -ni {record.link} port 67 or port 68`), and whether the "
                f"switch allows several MACs a port"
            ) from None

    async def _heard(self, link: str, message: Message | Message6, by: str, source: EitherAddress) -> None:
        looker = self._looking.get(message.xid)
        offer = looker.client.who.dialect.read(looker.client, message, by, source) if looker is not None else None
        if looker is not None and isinstance(offer, life.Offer) and offer.leased.prefix:
            looker.client = replace(looker.client, offer=offer)
            looker.turn.set()
        for held in [h for h in self._held.values() if h.client.xid == message.xid and h.record.link == link]:
            held.answers += 1
            step = life.heard(held.client, message, by, source, self._clock(), self._pick)
            again = held.settled and held.client.lease is None and step.client.lease is not None
            await self._settle(held, step)
            if again and step.client.lease is not None:  # nobody waits for it, so nobody else asks whether somebody has it
                await self._taken(held, step.client.lease)

    async def _settle(self, held: Held, step: Step) -> None:
        """Take a step, durably, and tell who must know what has become of the lease."""
        had, lease = held.client.lease, step.client.lease
        self._take(held, step)
        if lease is not None and lease is not had:
            held.record = replace(held.record, lease=lease)
            await self._save(held.record)
            held.durable = lease
        held.turn.set()
        if self._held.get(held.record.owner) is held:  # else it was released meanwhile
            self._tell(held, had, lease)
            self._judge(held)

    def _tell(self, held: Held, had: Lease | None, lease: Lease | None) -> None:
        if lease is had:
            return
        if lease is None:
            log.warning("lease_lost", extra=_fields(held.record))
        elif had is None:
            log.info("lease_obtained", extra=_fields(held.record))
        elif (had.address, had.leased) == (lease.address, lease.leased):
            log.debug("lease_renewed", extra=_fields(held.record))
            return
        else:
            log.info("lease_changed", extra=_fields(held.record))
        if held.settled:
            self.changes.put_nowait(held.record.owner)

    def _take(self, held: Held, step: Step) -> None:
        held.client = step.client
        for said in step.sends:
            self._wires.send(held.record.link, held.record.mac, said)
        self._wake.set()

    def _judge(self, held: Held) -> None:
        """What of the lease people should know."""
        record, lease, owner = held.record, held.client.lease, held.record.owner
        if not held.settled:
            return
        what = f"{record.name or owner} of network {record.network}"
        if lease is None and record.lease is not None:
            text = f"{what} has lost its address {record.lease.address}: no DHCP server on {record.link} lets it have that or another one"
            self._health.set(LOST, owner, text)
        else:
            self._health.clear(LOST, owner)
        if lease is not None and held.client.state is State.REBINDING and held.client.tries > 1:
            ends = datetime.fromtimestamp(lease.ends, UTC).strftime("%H:%M:%S UTC")
            self._health.set(
                LATE, owner, f"{what}: no DHCP server on {record.link} has prolonged the lease of {lease.address}, it ends at {ends}"
            )
        else:
            self._health.clear(LATE, owner)

    async def _save(self, record: LeaseRecord) -> None:
        self._known[record.key] = record
        gone = forgettable(self._known.values())
        for one in gone:
            del self._known[one.key]
        await self._journal.write([Write(KIND, record.key, encode(record)), *(Write(KIND, one.key, None) for one in gone)])


def give_back(journal: Journal, open_wire: Callable[[str], Wire], now: float) -> int:
    """Tell the servers that nobody here needs his lease any more, for a node that leaves; how many were told. No agent runs."""
    told = 0
    for key, body in journal.load(KIND).items():
        record = decode(LeaseRecord, body, key)
        if record.owner and record.lease is not None and now < record.lease.ends:
            client = Client(_who(record), State.BOUND, 1, now, now, lease=record.lease)
            with contextlib.suppress(OSError), contextlib.closing(open_wire(record.link)) as wire:
                for said in life.end(client, now):
                    wire.send(frame_of(record.mac, said))
                    told += 1
    return told


def _who(record: LeaseRecord) -> Who:
    return Who(mac_bytes(record.mac), bytes.fromhex(record.client_id), _DIALECTS[record.family], host_name(record.name))


def _fields(record: LeaseRecord) -> dict[str, str]:
    return {
        "network": record.network,
        "container": record.name,
        "address": str(record.lease.address) if record.lease is not None else "",
        "server": str(record.lease.server) if record.lease is not None else "",
        "link": record.link,
    }


def _declined(record: LeaseRecord, by: str) -> dict[str, str]:
    return {
        "network": record.network,
        "address": str(record.lease.address) if record.lease is not None else "",
        "link": record.link,
        "mac": by,
    }
