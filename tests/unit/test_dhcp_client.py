# SPDX-License-Identifier: Apache-2.0
"""The life of a lease, second by second: what is sent in each state, when, and what each answer makes of it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise

import pytest
from tests.support.dhcp import ROUTER, SERVER_MAC, FakeServer, routes

from plait.dhcp.client import Client, Lease, Send, State, Step, Who, begin, decline, end, heard, tick
from plait.dhcp.dialect4 import Dialect4
from plait.dhcp.message import NOWHERE, Kind, Message, Option
from plait.model.leases import Way

WHO = Who(b"\x02\0\0\0\0\1", b"\xffid", Dialect4(), "web")
TEN = IPv4Address("198.18.0.10")


def half() -> float:
    return 0.5


def talk(step: Step, server: FakeServer, now: float) -> tuple[Client, list[Send]]:
    """Let the server answer whatever is sent until nobody says anything more."""
    client, said, waiting = step.client, [], list(step.sends)
    while waiting:
        send = waiting.pop(0)
        said.append(send)
        assert isinstance(send.message, Message)
        if (answer := server.answer(send.message)) is not None:
            after = heard(client, answer, SERVER_MAC, ROUTER, now, half)
            client = after.client
            waiting += after.sends
    return client, said


def bound(server: FakeServer | None = None, now: float = 1000.0) -> Client:
    client, _ = talk(begin(WHO, now, half), server or FakeServer(), now)
    assert client.state is State.BOUND
    return client


def kinds(said: list[Send] | tuple[Send, ...]) -> list[Kind]:
    return [one.message.kind for one in said]


def test_it_is_offered_an_address_and_asks_for_it() -> None:
    server = FakeServer(more=routes(("10.9.0.0/16", "198.18.0.7"), ("0.0.0.0/0", "198.18.0.254")) | {Option.MTU: b"\x05\x78"})
    client, said = talk(begin(WHO, 1000.0, half), server, 1000.0)
    lease = client.lease
    assert lease is not None and kinds(said) == [Kind.DISCOVER, Kind.REQUEST]
    assert all(one.to is None and one.message.broadcast and one.message.ciaddr == NOWHERE for one in said)
    assert said[1].message.address(Option.ADDRESS) == TEN and said[1].message.address(Option.SERVER) == ROUTER
    assert (lease.address, lease.server, lease.server_mac, lease.ends, lease.t1, lease.t2) == (TEN, ROUTER, SERVER_MAC, 1120.0, 60, 105)
    assert (lease.leased.prefix, lease.leased.mtu, lease.leased.gateway) == (24, 1400, ROUTER)
    assert lease.leased.ways[0] == Way(IPv4Network("10.9.0.0/16"), IPv4Address("198.18.0.7"))


def test_nobody_answers_and_it_asks_ever_more_seldom() -> None:
    step, at, times = begin(WHO, 0.0, half), 0.0, [0.0]
    while len(times) < 10:
        at = step.client.due
        step = tick(step.client, at, half)
        assert kinds(step.sends) == [Kind.DISCOVER] and step.sends[0].message.secs == int(at)
        times.append(at)
    gaps = [later - sooner for sooner, later in pairwise(times)]
    assert gaps == [1, 2, 4, 8, 16, 32, 64, 64, 64]
    assert tick(step.client, step.client.due - 0.1, half).sends == ()
    assert {begin(WHO, 0.0, lambda pick=pick: pick).client.due for pick in (0.0, 0.5, 0.75)} == {0.9, 1.0, 1.05}, "not all at once"


def test_a_server_that_offers_and_is_gone_is_given_up() -> None:
    server = FakeServer()
    step = begin(WHO, 0.0, half)
    offer = server.answer(step.sends[0].message)
    assert offer is not None
    step = heard(step.client, offer, SERVER_MAC, ROUTER, 0.0, half)
    sent = kinds(step.sends)
    while step.client.due < 30:
        step = tick(step.client, step.client.due, half)
        sent += kinds(step.sends)
    assert sent[:5] == [Kind.REQUEST] * 4 + [Kind.DISCOVER]


def test_it_renews_with_its_server_by_unicast_then_with_any_then_loses_the_address() -> None:
    client = bound()
    step = tick(client, client.due, half)
    assert (client.due, step.client.state, kinds(step.sends)) == (1060.0, State.RENEWING, [Kind.REQUEST])
    (asked,) = step.sends
    assert (asked.to, asked.mac, asked.source, asked.message.ciaddr, asked.message.broadcast) == (ROUTER, SERVER_MAC, TEN, TEN, False)
    assert Option.SERVER not in asked.message.options and Option.ADDRESS not in asked.message.options
    times = [step.client.due]
    while step.client.state is State.RENEWING:
        step = tick(step.client, step.client.due, half)
        times.append(step.client.due)
    assert all(later > sooner for sooner, later in pairwise(times)) and len(times) < 12
    (asked,) = step.sends
    assert step.client.state is State.REBINDING and (asked.to, asked.message.ciaddr) == (None, TEN)
    at = 0.0
    while step.client.lease is not None:
        at = step.client.due
        step = tick(step.client, at, half)
    assert at == 1120.0 and step.client.state is State.SELECTING and kinds(step.sends) == [Kind.DISCOVER]
    assert step.sends[0].message.address(Option.ADDRESS) == TEN, "it would like the same again"


@pytest.mark.parametrize("late", [60.0, 106.0])
def test_a_renewal_counts_from_when_it_was_asked_for(late: float) -> None:
    server = FakeServer()
    client, said = talk(tick(bound(server), 1000.0 + late, half), server, 1000.0 + late)
    assert client.state is State.BOUND and kinds(said) == [Kind.REQUEST]
    assert client.lease is not None and (client.lease.since, client.lease.address) == (1000.0 + late, TEN)


def test_another_server_takes_over_when_the_first_is_gone() -> None:
    first, second = FakeServer(), FakeServer(address=IPv4Address("198.18.0.253"))
    client = bound(first)
    second.leases = first.leases
    step = tick(tick(client, 1060.0, half).client, 1105.0, half)
    client, _ = talk(step, second, 1105.0)
    assert client.lease is not None and (client.lease.server, client.lease.address) == (second.address, TEN)


def test_a_refusal_takes_the_address_away_at_once_and_another_is_asked_for() -> None:
    server = FakeServer()
    client = bound(server)
    server.leases = {b"somebody else": TEN}
    client, said = talk(tick(client, 1060.0, half), server, 1060.0)
    assert kinds(said) == [Kind.REQUEST, Kind.DISCOVER, Kind.REQUEST]
    assert client.lease is not None and client.lease.address == IPv4Address("198.18.0.11")


def test_a_server_that_always_refuses_is_not_asked_all_the_time() -> None:
    server = FakeServer(refuses=True)
    client, _ = talk(begin(WHO, 0.0, half), server, 0.0)
    at, asked = 0.0, 0
    while at < 300:
        at = client.due
        client, said = talk(tick(client, at, half), server, at)
        asked += len(said)
    assert asked < 30 and client.lease is None


def test_after_a_restart_it_asks_whether_it_may_go_on() -> None:
    server = FakeServer()
    lease = bound(server).lease
    client, said = talk(begin(WHO, 1050.0, half, lease), server, 1050.0)
    assert kinds(said) == [Kind.REQUEST] and said[0].message.address(Option.ADDRESS) == TEN and said[0].message.ciaddr == NOWHERE
    assert client.lease is not None and (client.lease.address, client.lease.since) == (TEN, 1050.0)
    refused = FakeServer(refuses=True)
    client, said = talk(begin(WHO, 1050.0, half, lease), refused, 1050.0)
    assert client.lease is None and kinds(said)[:2] == [Kind.REQUEST, Kind.DISCOVER]


@pytest.mark.parametrize(("back", "state"), [(1001.0, State.BOUND), (1050.0, State.RENEWING), (1095.0, State.REBINDING)])
def test_after_a_restart_without_a_server_it_keeps_what_it_has_until_that_ends(back: float, state: State) -> None:
    lease = bound().lease
    step = begin(WHO, back, half, lease)
    for _ in range(4):
        step = tick(step.client, step.client.due, half)
    assert (step.client.state, step.client.lease) == (state, lease)
    while step.client.lease is not None:
        step = tick(step.client, step.client.due, half)
    assert step.client.began == 1120.0


def test_a_lease_that_ended_while_nobody_ran_is_nothing_but_a_wish() -> None:
    step = begin(WHO, 1200.0, half, bound().lease)
    assert step.client.lease is None and kinds(step.sends) == [Kind.DISCOVER]
    assert step.sends[0].message.address(Option.ADDRESS) == TEN


def test_it_gives_back_and_declines() -> None:
    client = bound()
    (said,) = end(client, 1001.0)
    assert (said.message.kind, said.to, said.mac, said.source, said.message.ciaddr) == (Kind.RELEASE, ROUTER, SERVER_MAC, TEN, TEN)
    assert end(replace(client, lease=None), 1001.0) == ()
    step = decline(client, 1001.0)
    assert kinds(step.sends) == [Kind.DECLINE] and step.sends[0].message.address(Option.ADDRESS) == TEN
    assert step.sends[0].message.ciaddr == NOWHERE and step.client.lease is None and step.client.due == 1002.0
    (said,) = tick(step.client, 1002.0, half).sends
    assert said.message.kind is Kind.DISCOVER and Option.ADDRESS not in said.message.options


def lease_of(**more: bytes) -> Lease:
    names = {
        "t1": Option.T1,
        "t2": Option.T2,
        "time": Option.LEASE_TIME,
        "domain": Option.DOMAIN,
        "routes": Option.ROUTES,
        "mtu": Option.MTU,
    }
    found = bound(FakeServer(more={names[key]: value for key, value in more.items()})).lease
    assert found is not None
    return found


def test_times_that_cannot_be_are_reckoned_anew() -> None:
    assert (lease_of(t1=b"\0\0\0\5", t2=b"\0\0\0\6").t1, lease_of(t1=b"\0\0\0\6", t2=b"\0\0\0\5").t1) == (5, 60)
    assert lease_of(t1=b"\0\0\0\5").t2 == 105 and lease_of(t1=b"\5", t2=b"\6").t1 == 60
    assert lease_of(time=b"\xff\xff\xff\xff").t1 > 60 * 365 * 86400


def test_what_a_server_says_badly_is_as_if_it_were_not_said() -> None:
    assert lease_of(routes=b"\x21\1\2\3\4\5").leased.gateway == ROUTER, "a prefix of 33 bits; the router counts then"
    assert lease_of(mtu=b"\0\x20").leased.mtu == 0 and lease_of(mtu=b"\5").leased.mtu == 0
    assert lease_of(domain=b"example.org").leased.domain == "example.org"
    for bad in (b"a b", b"x\nnameserver 192.0.2.1", b"", b"a..b", b"\xff"):
        assert lease_of(domain=bad).leased.domain == ""


def test_what_is_not_for_it_changes_nothing() -> None:
    server, step = FakeServer(), begin(WHO, 0.0, half)
    offer = server.answer(step.sends[0].message)
    assert offer is not None
    others = (
        replace(offer, xid=offer.xid ^ 1),
        replace(offer, mac=b"\x02\0\0\0\0\2"),
        replace(offer, reply=False),
        replace(offer, kind=Kind.ACK),
        replace(offer, yiaddr=NOWHERE),
        replace(offer, options={}),
    )
    for other in others:
        assert heard(step.client, other, SERVER_MAC, ROUTER, 0.0, half) == Step(step.client)
    asked = heard(step.client, offer, SERVER_MAC, ROUTER, 0.0, half)
    ack = server.answer(asked.sends[0].message)
    assert ack is not None
    foreign = replace(ack, options={**ack.options, Option.SERVER: b"\xc6\x12\0\xfd"})
    for other in (foreign, replace(foreign, kind=Kind.NAK), replace(ack, options={Option.SERVER: ROUTER.packed})):
        assert heard(asked.client, other, SERVER_MAC, ROUTER, 0.0, half) == Step(asked.client)
    assert heard(asked.client, ack, SERVER_MAC, ROUTER, 0.0, half).client.state is State.BOUND
