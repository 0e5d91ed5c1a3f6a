# SPDX-License-Identifier: Apache-2.0
"""The life of a lease as pure steps: what a client does when time passes, and when a server says something.

`begin`, `tick`, `heard`, `decline` and `end` take the client as it is and give the client as it is then, with the messages that are to be
sent. Times are seconds of one clock that goes on over restarts; `due` is when `tick` has something to do. Sources: RFC 2131, sections 3.1
to 3.3 and 4.4; RFC 8415, section 18. Both families go through the same states; what is said in them is a `Dialect`'s. In IPv4 too the
first message is repeated after one second (RFC 2131 has four): a container waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv4Address
from typing import Protocol

from plait.dhcp.message import Message
from plait.dhcp.message6 import Message6
from plait.model.addr import EitherAddress
from plait.model.leases import Leased

Pick = Callable[[], float]
"""A number from 0 up to 1, by chance."""
FIRST_S, LONGEST_S = 1.0, 64.0
TRIES = 4
"""Of a request before the client starts anew: fifteen seconds."""
AGAIN_S = 4.0
"""Until a renewal is asked for once more; then ever longer, up to half of what is left (RFC 2131, section 4.4.5): what does not answer may
be about to be replaced."""
PATIENT_S = 60.0
"""Least seconds between two tries when little is left of a long lease."""
DECLINED_S = 10.0


class State(StrEnum):
    SELECTING = "selecting"
    REQUESTING = "requesting"
    REBOOTING = "rebooting"
    BOUND = "bound"
    RENEWING = "renewing"
    REBINDING = "rebinding"


HOLDING = frozenset({State.BOUND, State.RENEWING, State.REBINDING})
"""States in which the client has an address and the server knows of it."""


@dataclass(frozen=True, slots=True)
class Lease:
    """`server` gave `address` for `seconds` from `since` on; `server_mac` is by whom it is reached, `server_id` how it is called where that
    is not its address (hex). `t1` and `t2`: seconds until the lease is to be renewed with that server, and with any."""

    address: EitherAddress
    server: EitherAddress
    server_mac: str
    since: float
    seconds: int
    t1: float
    t2: float
    leased: Leased
    server_id: str = ""

    @property
    def four(self) -> IPv4Address:
        """The address, of a lease of IPv4."""
        assert isinstance(self.address, IPv4Address)
        return self.address

    @property
    def ends(self) -> float:
        return self.since + self.seconds


@dataclass(frozen=True, slots=True)
class Offer:
    """What a server would give; asking for it takes it."""

    address: EitherAddress
    server_id: bytes
    leased: Leased


class Refused:
    """A server says that the client may not have what it asks for."""


@dataclass(frozen=True, slots=True)
class Who:
    """Whom a server knows: by `client_id` (IPv4: option 61; IPv6: the DUID in it), the MAC being where it is told. `name` goes into the
    server's list."""

    mac: bytes
    client_id: bytes
    dialect: Dialect
    name: str = ""


@dataclass(frozen=True, slots=True)
class Client:
    """`lease` None: it has no address. `wanted`: the one that it asks for first; `offer` what it was offered and has asked for. `xid` and
    `began` are those of the exchange that is under way, `tries` how often its message was sent (`sent`: when), `refusals` how many
    exchanges have failed in a row."""

    who: Who
    state: State
    xid: int
    began: float
    due: float
    tries: int = 0
    refusals: int = 0
    lease: Lease | None = None
    wanted: EitherAddress | None = None
    offer: Offer | None = None
    sent: float = 0.0


@dataclass(frozen=True, slots=True)
class Send:
    """`to` None: whoever serves on the link; else the server, by `mac`. `source` None: the client has no address."""

    message: Message | Message6
    to: EitherAddress | None = None
    mac: str = ""
    source: EitherAddress | None = None


class Dialect(Protocol):
    """What is said and read in each state, in DHCP of one family. Pure."""

    @property
    def largest_xid(self) -> int: ...

    def ask(self, client: Client, now: float) -> Send:
        """What the client's state asks for."""
        ...

    def decline(self, client: Client, lease: Lease, now: float) -> Send: ...

    def end(self, client: Client, lease: Lease, now: float) -> Send: ...

    def read(self, client: Client, message: Message | Message6, by: str, source: EitherAddress) -> Offer | Lease | Refused | None:
        """What a message, from the MAC `by`, is to this client; None for nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    client: Client
    sends: tuple[Send, ...] = field(default=())


def begin(who: Who, now: float, pick: Pick, lease: Lease | None = None, wanted: EitherAddress | None = None) -> Step:
    """A client that asks for an address; one that has a `lease` of before asks whether it may go on with that (INIT-REBOOT)."""
    if lease is not None and now < lease.ends:
        return _say(Client(who, State.REBOOTING, _xid(who, pick), now, now, lease=lease), now, pick)
    return _discover(Client(who, State.SELECTING, 0, now, now, wanted=lease.address if lease is not None else wanted), now, pick)


def tick(client: Client, now: float, pick: Pick) -> Step:
    """Time has passed. Before `due` nothing happens."""
    if now < client.due:
        return Step(client)
    lease = client.lease
    if lease is not None and now >= lease.ends:
        return _discover(_without(client), now, pick)
    if client.state is State.SELECTING:
        return _say(client, now, pick) if client.tries else _discover(client, now, pick)
    if client.state is State.REQUESTING and client.tries >= TRIES:
        return _discover(replace(client, offer=None), now, pick)
    if client.state is State.REBOOTING and client.tries >= TRIES:
        assert lease is not None  # no server said anything: it may go on with what it has (RFC 2131, section 3.2)
        held = replace(client, state=State.BOUND, due=lease.since + lease.t1, tries=0)
        return tick(held, now, pick) if now >= held.due else Step(held)
    if lease is not None and client.state in HOLDING:
        return _prolong(client, lease, now, pick)
    return _say(client, now, pick)


def heard(client: Client, message: Message | Message6, by: str, source: EitherAddress, now: float, pick: Pick) -> Step:
    """A server's message, which came from the MAC `by`. What is not for this client, or not in its turn, changes nothing."""
    found = client.who.dialect.read(client, message, by, source) if message.xid == client.xid else None
    if client.state is State.SELECTING:
        return _say(replace(client, state=State.REQUESTING, offer=found, tries=0), now, pick) if isinstance(found, Offer) else Step(client)
    if client.state is State.BOUND or found is None or isinstance(found, Offer):
        return Step(client)
    if isinstance(found, Refused):
        return _refused(client, now, pick)
    return Step(replace(client, state=State.BOUND, lease=found, offer=None, tries=0, refusals=0, due=found.since + found.t1))


def decline(client: Client, now: float) -> Step:
    """Somebody else has the address: the server shall know, and the client asks for another one after a while (RFC 2131, section 3.1.5)."""
    if client.lease is None:
        return Step(client)
    said = client.who.dialect.decline(client, client.lease, now)
    refusals = client.refusals + 1
    wait = FIRST_S if refusals == 1 else DECLINED_S
    return Step(replace(_without(client), wanted=None, refusals=refusals, due=now + wait), (said,))


def end(client: Client, now: float) -> tuple[Send, ...]:
    """What the server is told when nobody needs the address any more; nothing if there is none."""
    return (client.who.dialect.end(client, client.lease, now),) if client.lease is not None else ()


# --- what is sent


def _discover(client: Client, now: float, pick: Pick) -> Step:
    return _say(replace(client, state=State.SELECTING, xid=_xid(client.who, pick), began=now, tries=0, offer=None), now, pick)


def _say(client: Client, now: float, pick: Pick) -> Step:
    """Send what the state asks for, once more; the next time is due after twice as long, more or less."""
    wait = min(FIRST_S * 2.0**client.tries, LONGEST_S) * (0.9 + 0.2 * pick())
    sent = now if client.tries == 0 else client.sent
    said = replace(client, tries=client.tries + 1, due=now + wait, sent=sent)
    return Step(said, (said.who.dialect.ask(said, now),))


def _prolong(client: Client, lease: Lease, now: float, pick: Pick) -> Step:
    """Ask the server, from T2 on any server, for more time; again after half of what is left until the next stage."""
    state = State.REBINDING if now >= lease.since + lease.t2 else State.RENEWING
    if state is not client.state:
        client = replace(client, state=state, xid=_xid(client.who, pick), began=now, tries=0)
    stage = lease.ends if state is State.REBINDING else lease.since + lease.t2
    gap = min((stage - now) / 2, AGAIN_S * 2.0 ** min(client.tries, 32))
    due = min(now + max(gap, min(PATIENT_S, lease.seconds / 32)), stage)
    client = replace(client, tries=client.tries + 1, due=due, sent=now)
    return Step(client, (client.who.dialect.ask(client, now),))


def _refused(client: Client, now: float, pick: Pick) -> Step:
    """The address may not be used (any more). The first time the client asks anew at once, then ever later."""
    lost = replace(_without(client), refusals=client.refusals + 1)
    if client.refusals == 0:
        return _discover(lost, now, pick)
    return Step(replace(lost, due=now + min(2.0**client.refusals, LONGEST_S)))


def _without(client: Client) -> Client:
    """It has no address any more, but would like the same one again."""
    wanted = client.lease.address if client.lease is not None else None
    return replace(client, state=State.SELECTING, lease=None, offer=None, wanted=wanted, tries=0)


def _xid(who: Who, pick: Pick) -> int:
    return min(int(pick() * (who.dialect.largest_xid + 1)), who.dialect.largest_xid)
