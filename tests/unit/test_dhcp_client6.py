# SPDX-License-Identifier: Apache-2.0
"""A lease of IPv6: the same life, said in other words."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address

import pytest
from tests.support.dhcp import DUID, SERVER_MAC, SIX, FakeServer

from plait.dhcp.client import Client, Send, State, Step, Who, begin, decline, end, heard, tick
from plait.dhcp.dialect6 import Dialect6
from plait.dhcp.message6 import Kind6, Message6

WHO = Who(b"\x02\0\0\0\0\1", b"\xff\0\0\0\1duid", Dialect6(), "web")
TEN = IPv6Address("fd00::10")


def half() -> float:
    return 0.5


def talk(step: Step, server: FakeServer, now: float) -> tuple[Client, list[Message6]]:
    client, said, waiting = step.client, list[Message6](), list(step.sends)
    while waiting:
        message = waiting.pop(0).message
        assert isinstance(message, Message6)
        said.append(message)
        if (answer := server.answer6(message)) is not None:
            after = heard(client, answer, SERVER_MAC, SIX, now, half)
            client = after.client
            waiting += after.sends
    return client, said


def bound(server: FakeServer | None = None) -> Client:
    client, _ = talk(begin(WHO, 1000.0, half), server or FakeServer(), 1000.0)
    assert client.state is State.BOUND
    return client


def message(send: Send) -> Message6:
    assert isinstance(send.message, Message6)
    return send.message


def test_it_is_offered_an_address_and_asks_for_it() -> None:
    client, said = talk(begin(WHO, 1000.0, half), FakeServer(), 1000.0)
    lease = client.lease
    assert [one.kind for one in said] == [Kind6.SOLICIT, Kind6.REQUEST] and all(one.client == b"duid" for one in said)
    assert (said[0].address, said[0].server, said[1].address, said[1].server) == (None, b"", TEN, DUID)
    assert lease is not None and (lease.address, lease.server, lease.server_id) == (TEN, SIX, DUID.hex())
    assert (lease.ends, lease.t1, lease.t2, client.due) == (1120.0, 60, 96, 1060.0)
    assert client.xid < 1 << 24


def test_it_renews_with_its_server_then_with_any_then_loses_the_address() -> None:
    step = tick(bound(), 1060.0, half)
    (said,) = step.sends
    assert (message(said).kind, message(said).server, message(said).address) == (Kind6.RENEW, DUID, TEN)
    step = tick(step.client, 1096.0, half)
    (said,) = step.sends
    assert (message(said).kind, message(said).server, message(said).address) == (Kind6.REBIND, b"", TEN)
    step = tick(step.client, 1120.0, half)
    (said,) = step.sends
    assert step.client.lease is None and (message(said).kind, message(said).address) == (Kind6.SOLICIT, TEN)


@pytest.mark.parametrize(("back", "kind"), [(1050.0, Kind6.REBIND), (1200.0, Kind6.SOLICIT)])
def test_after_a_restart_it_has_what_it_had_prolonged(back: float, kind: Kind6) -> None:
    server = FakeServer()
    client, said = talk(begin(WHO, back, half, bound(server).lease), server, back)
    assert said[0].kind is kind and client.lease is not None and (client.lease.address, client.lease.since) == (TEN, back)


def test_what_the_server_does_not_know_any_more_is_given_up_at_once() -> None:
    server = FakeServer()
    client = bound(server)
    server.leases6 = {b"somebody": TEN}
    client, said = talk(tick(client, 1060.0, half), server, 1060.0)
    assert [one.kind for one in said] == [Kind6.RENEW, Kind6.SOLICIT, Kind6.REQUEST]
    assert client.lease is not None and client.lease.address == IPv6Address("fd00::11")


def test_it_gives_back_and_declines() -> None:
    server = FakeServer()
    client = bound(server)
    (said,) = end(client, 1001.0)
    assert (message(said).kind, message(said).server, message(said).address) == (Kind6.RELEASE, DUID, TEN)
    step = decline(client, 1001.0)
    assert message(step.sends[0]).kind is Kind6.DECLINE and step.client.lease is None


def test_what_is_not_for_it_changes_nothing() -> None:
    server, step = FakeServer(), begin(WHO, 0.0, half)
    offer = server.answer6(message(step.sends[0]))
    assert offer is not None
    others = (
        replace(offer, xid=offer.xid ^ 1),
        replace(offer, client=b"other"),
        replace(offer, server=b""),
        replace(offer, status=2),
        replace(offer, address=None),
        replace(offer, address=IPv6Address("fe80::1")),
        replace(offer, valid=0),
        replace(offer, kind=Kind6.REPLY),
    )
    for other in others:
        assert heard(step.client, other, SERVER_MAC, SIX, 0.0, half) == Step(step.client)
    asked = heard(step.client, offer, SERVER_MAC, SIX, 0.0, half)
    given = server.answer6(message(asked.sends[0]))
    assert given is not None
    for other in (replace(given, server=b"other"), replace(given, status=1), replace(given, kind=Kind6.ADVERTISE)):
        assert heard(asked.client, other, SERVER_MAC, SIX, 0.0, half) == Step(asked.client)
    assert heard(asked.client, given, SERVER_MAC, SIX, 0.0, half).client.state is State.BOUND
