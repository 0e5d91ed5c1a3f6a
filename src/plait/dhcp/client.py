# SPDX-License-Identifier: Apache-2.0
"""The life of a lease of IPv4 as pure steps: what a client does when time passes, and when a server says something.

`begin`, `tick`, `heard`, `decline` and `end` take the client as it is and give the client as it is then, with the messages that are to be
sent. Times are seconds of one clock that goes on over restarts; `due` is when `tick` has something to do. Source: RFC 2131, sections 3.1
to 3.3 and 4.4. Unlike there the first message is repeated after one second, not four (as RFC 8415 has it for IPv6): a container waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network

from plait.dhcp.message import ASKED, NOWHERE, Kind, Message, Option
from plait.model.leases import Leased, Way

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
EVERYWHERE = IPv4Network("0.0.0.0/0")
LEAST_MTU = 68
_LARGEST_MESSAGE = (1472).to_bytes(2, "big")


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
    """`server` gave `address` for `seconds` from `since` on; `server_mac` is by whom it is reached. `t1` and `t2`: seconds until it is to
    be renewed with that server, and with any."""

    address: IPv4Address
    server: IPv4Address
    server_mac: str
    since: float
    seconds: int
    t1: float
    t2: float
    leased: Leased

    @property
    def ends(self) -> float:
        return self.since + self.seconds


@dataclass(frozen=True, slots=True)
class Who:
    """Whom a server knows: by `client_id` (option 61), the MAC being where it is told. `name` goes into the server's list."""

    mac: bytes
    client_id: bytes
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
    wanted: IPv4Address | None = None
    offer: Message | None = None
    sent: float = 0.0


@dataclass(frozen=True, slots=True)
class Send:
    """`to` None: everybody on the link, the client having no address; else the server, by `mac`, from `source`."""

    message: Message
    to: IPv4Address | None = None
    mac: str = ""
    source: IPv4Address = NOWHERE


@dataclass(frozen=True, slots=True)
class Step:
    client: Client
    sends: tuple[Send, ...] = field(default=())


def begin(who: Who, now: float, pick: Pick, lease: Lease | None = None, wanted: IPv4Address | None = None) -> Step:
    """A client that asks for an address; one that has a `lease` of before asks whether it may go on with that (INIT-REBOOT)."""
    if lease is not None and now < lease.ends:
        return _say(Client(who, State.REBOOTING, _xid(pick), now, now, lease=lease), now, pick)
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


def heard(client: Client, message: Message, by: str, now: float, pick: Pick) -> Step:
    """A server's message, which came from the MAC `by`. What is not for this client, or not in its turn, changes nothing."""
    if not message.reply or message.xid != client.xid or message.mac != client.who.mac:
        return Step(client)
    if client.state is State.SELECTING:
        return _offered(client, message, now, pick) if message.kind is Kind.OFFER else Step(client)
    if client.state is State.BOUND or (client.offer is not None and message.address(Option.SERVER) != client.offer.address(Option.SERVER)):
        return Step(client)
    if message.kind is Kind.ACK:
        lease = _lease(client, message, by)
        if lease is None:
            return Step(client)
        return Step(replace(client, state=State.BOUND, lease=lease, offer=None, tries=0, refusals=0, due=lease.since + lease.t1))
    if message.kind is Kind.NAK:
        return _refused(client, now, pick)
    return Step(client)


def decline(client: Client, now: float) -> Step:
    """Somebody else has the address: the server shall know, and the client asks for another one after a while (RFC 2131, section 3.1.5)."""
    if client.lease is None:
        return Step(client)
    options: dict[int, bytes] = {Option.ADDRESS: client.lease.address.packed, Option.SERVER: client.lease.server.packed}
    said = Send(_message(replace(client, lease=None), Kind.DECLINE, options, now))
    refusals = client.refusals + 1
    wait = FIRST_S if refusals == 1 else DECLINED_S
    return Step(replace(_without(client), wanted=None, refusals=refusals, due=now + wait), (said,))


def end(client: Client, now: float) -> tuple[Send, ...]:
    """What the server is told when nobody needs the address any more; nothing if there is none."""
    lease = client.lease
    if lease is None:
        return ()
    released = _message(client, Kind.RELEASE, {Option.SERVER: lease.server.packed}, now)
    return (Send(released, lease.server, lease.server_mac, lease.address),)


# --- what is sent


def _discover(client: Client, now: float, pick: Pick) -> Step:
    return _say(replace(client, state=State.SELECTING, xid=_xid(pick), began=now, tries=0, offer=None), now, pick)


def _say(client: Client, now: float, pick: Pick) -> Step:
    """Send what the state asks for, once more; the next time is due after twice as long, more or less."""
    wait = min(FIRST_S * 2.0**client.tries, LONGEST_S) * (0.9 + 0.2 * pick())
    sent = now if client.tries == 0 else client.sent
    said = replace(client, tries=client.tries + 1, due=now + wait, sent=sent)
    return Step(said, (Send(_asking(said, now)),))


def _prolong(client: Client, lease: Lease, now: float, pick: Pick) -> Step:
    """Ask the server, from T2 on any server, for more time; again after half of what is left until the next stage."""
    state = State.REBINDING if now >= lease.since + lease.t2 else State.RENEWING
    if state is not client.state:
        client = replace(client, state=state, xid=_xid(pick), began=now, tries=0)
    stage = lease.ends if state is State.REBINDING else lease.since + lease.t2
    gap = min((stage - now) / 2, AGAIN_S * 2.0 ** min(client.tries, 32))
    due = min(now + max(gap, min(PATIENT_S, lease.seconds / 32)), stage)
    client = replace(client, tries=client.tries + 1, due=due, sent=now)
    message = _asking(client, now)
    if state is State.REBINDING:
        return Step(client, (Send(message, source=lease.address),))
    return Step(client, (Send(message, lease.server, lease.server_mac, lease.address),))


def _asking(client: Client, now: float) -> Message:
    """RFC 2131, table 5: what of the address, the server and the client's own address each request says."""
    options: dict[int, bytes] = {}
    kind = Kind.DISCOVER if client.state is State.SELECTING else Kind.REQUEST
    if client.state is State.SELECTING and client.wanted is not None:
        options[Option.ADDRESS] = client.wanted.packed
    if client.state is State.REBOOTING and client.lease is not None:
        options[Option.ADDRESS] = client.lease.address.packed
    if client.state is State.REQUESTING and client.offer is not None:
        options[Option.ADDRESS] = client.offer.yiaddr.packed
        options[Option.SERVER] = client.offer.options[Option.SERVER]
    options |= {Option.PARAMETERS: ASKED, Option.LARGEST_MESSAGE: _LARGEST_MESSAGE}
    if client.who.name:
        options[Option.HOST_NAME] = client.who.name.encode()
    return _message(client, kind, options, now)


def _message(client: Client, kind: Kind, options: dict[int, bytes], now: float) -> Message:
    held = client.lease is not None and (client.state in HOLDING or kind is Kind.RELEASE)
    return Message(
        kind=kind,
        xid=client.xid,
        mac=client.who.mac,
        options=options | {Option.CLIENT: client.who.client_id},
        secs=max(0, int(now - client.began)),
        broadcast=not held,
        ciaddr=client.lease.address if held and client.lease is not None else NOWHERE,
    )


# --- what is heard


def _offered(client: Client, message: Message, now: float, pick: Pick) -> Step:
    """The first server that offers something is asked for it."""
    if message.address(Option.SERVER) is None or not _usable(message.yiaddr):
        return Step(client)
    return _say(replace(client, state=State.REQUESTING, offer=message, tries=0), now, pick)


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


def _lease(client: Client, message: Message, by: str) -> Lease | None:
    """None if it says too little to be used. What it does not say again of before goes on."""
    seconds, before = message.number(Option.LEASE_TIME), client.lease
    server = message.address(Option.SERVER) or (before.server if before is not None else None)
    if not seconds or server is None or not _usable(message.yiaddr):
        return None
    return Lease(message.yiaddr, server, by, client.sent, seconds, *_times(message, seconds), facts(message))


def _times(message: Message, seconds: int) -> tuple[float, float]:
    """T1 and T2 as the server says them if that can be, else as RFC 2131, section 4.4.5, has them."""
    t1, t2 = message.number(Option.T1), message.number(Option.T2)
    return (float(t1), float(t2)) if t1 and t2 and t1 < t2 < seconds else (seconds * 0.5, seconds * 0.875)


def _usable(address: IPv4Address) -> bool:
    return not (address.is_unspecified or address.is_multicast or address.is_loopback or address == IPv4Address("255.255.255.255"))


def facts(message: Message) -> Leased:
    ways = message.routes
    if ways is None:
        router = message.address(Option.ROUTER)
        ways = ((EVERYWHERE, router),) if router is not None else ()
    mtu = message.number(Option.MTU, 2) or 0
    return Leased(
        prefix=message.prefix or 0,
        ways=tuple(Way(to, via) for to, via in ways),
        dns=tuple(one for one in message.addresses(Option.DNS) if _usable(one)),
        domain=message.text(Option.DOMAIN),
        mtu=mtu if mtu >= LEAST_MTU else 0,
    )


def _xid(pick: Pick) -> int:
    return int(pick() * 0x100000000) & 0xFFFFFFFF
