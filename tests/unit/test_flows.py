# SPDX-License-Identifier: Apache-2.0
"""Connections that were there before something was published, or is no more: which of them are forgotten."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path

import pytest
from tests.unit.test_ports import WEB, a_node, attach, told

from plait.kernel.linux import netlink as nl
from plait.kernel.linux.conntrack import decode_flow
from plait.model.errors import KernelError
from plait.model.flows import Flow, PortRule, Target
from plait.model.objects import KernelObject, NftSet, Op
from plait.model.ports import parse_held, parse_sources
from plait.plan.flows import changed_ports

A, A6 = IPv4Address, IPv6Address
HOST, OTHER, CLIENT = A("198.18.0.1"), A("198.18.0.9"), A("198.18.0.2")
OLD: Target = (A("10.28.1.2"), 53)
NEW: Target = (A("10.28.1.3"), 53)
LOCAL = frozenset({HOST, A("127.0.0.1")})


def flow(led: Target | None, source: IPv4Address = CLIENT, to: IPv4Address = HOST, port: int = 5353) -> Flow:
    return Flow("udp", source, to, port, led)


def rule(
    leads: Target | None, led: Iterable[Target] = (), host: IPv4Address | None = None, others: Iterable[IPv4Address] = (), *sources: str
) -> PortRule:
    lists = tuple((ip_network(text),) for text in sources)
    return PortRule("udp", 5353, 4, host, frozenset(others), frozenset(led), leads, lists)


@pytest.mark.parametrize(
    ("what", "one", "row", "stale"),
    [
        ("it leads to another container now", rule(NEW, [OLD]), flow(OLD), True),
        ("it goes where it should", rule(NEW, [OLD]), flow(NEW), False),
        ("it leads nowhere any more", rule(None, [OLD]), flow(OLD), True),
        ("the host itself was meant, and is no more", rule(NEW), flow(None), True),
        ("the host itself is meant still", rule(None, [OLD]), flow(None), False),
        ("somebody else's translation", rule(NEW, [OLD]), flow((A("172.17.0.2"), 53)), False),
        ("passed on to another host", rule(NEW), flow(None, to=OTHER), False),
        ("another port", rule(NEW, [OLD]), flow(OLD, port=5354), False),
        ("at one address", rule(NEW, [OLD], HOST), flow(OLD), True),
        ("at another one", rule(NEW, [OLD], A("127.0.0.1")), flow(OLD), False),
        ("at one that has its own", rule(NEW, [OLD], None, [HOST]), flow(OLD), False),
        ("from one who may come no more", rule(OLD, [], None, [], "10.0.0.0/8"), flow(OLD), True),
        ("from one who may come", rule(OLD, [], None, [], "198.18.0.0/24"), flow(OLD), False),
        ("from one whom a single list names", rule(OLD, [], None, [], "198.18.0.0/24", "10.0.0.0/8"), flow(OLD), True),
        ("from one who never might", rule(OLD, [], None, [], "10.0.0.0/8"), flow(None), False),
        ("from the host itself, whoever may come", rule(OLD, [], None, [], "10.0.0.0/8"), flow(OLD, source=HOST), False),
        ("of the other family", rule(NEW, [OLD]), Flow("udp", A6("fd99::2"), A6("fd99::1"), 5353, None), False),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_what_would_go_elsewhere_now_is_stale(what: str, one: PortRule, row: Flow, stale: bool) -> None:
    assert one.stale(row, LOCAL) == stale, what


# --- which ports an operation touches


def ports(*elements: str) -> NftSet:
    return NftSet("ports_any", "t", frozenset(elements), kind="map")


def sets(*objects: NftSet) -> dict[tuple[str, ...], KernelObject]:
    return {one.key: one for one in objects}


def test_each_touched_port_is_told_once_with_what_holds_of_it_now() -> None:
    before = ports("udp . 53 : 10.28.1.2 . 53", "udp . 54 : 10.28.1.2 . 54")
    after = ports("udp . 53 : 10.28.1.3 . 53", "udp . 54 : 10.28.1.2 . 54", "udp . 55 : 10.28.1.2 . 55")
    exact = NftSet("ports", "t", frozenset({"198.18.0.1 . udp . 55 : 10.28.1.9 . 1"}), kind="map")
    guarded = NftSet("guarded_any", "t", frozenset({"udp . 55"}))
    sources = NftSet("sources_any", "t", frozenset({"udp . 55 . 10.0.0.0/8", "udp . 55 . 192.0.2.7"}), ("interval",))
    clients = NftSet("clients", "t", frozenset({"198.18.0.0/24"}), ("interval",))
    first, second = changed_ports([Op("put", after, before)], sets(after, exact, guarded, sources, clients))
    assert (first.port, first.led, first.leads, first.sources) == (53, {OLD}, NEW, ((ip_network("198.18.0.0/24"),),))
    assert (second.port, second.led, second.others) == (55, frozenset(), {HOST})
    assert [set(one) for one in second.sources] == [{ip_network("198.18.0.0/24")}, {ip_network("10.0.0.0/8"), ip_network("192.0.2.7")}]


def test_other_clients_of_the_host_touch_every_port() -> None:
    now = ports("tcp . 80 : 10.28.1.2 . 80")
    clients = NftSet("clients", "t", frozenset({"10.0.0.0/8"}), ("interval",))
    (found,) = changed_ports([Op("put", clients)], sets(now, clients))
    assert (found.port, found.sources) == (80, ((ip_network("10.0.0.0/8"),),))
    (found,) = changed_ports([Op("del", None, clients)], sets(now))
    assert (found.port, found.sources) == (80, ())


def test_a_new_port_of_tcp_touches_nothing_and_one_less_does() -> None:
    now = ports("tcp . 80 : 10.28.1.2 . 80")
    assert changed_ports([Op("put", now, ports())], sets(now)) == []
    assert [one.port for one in changed_ports([Op("put", ports(), now)], sets(ports()))] == [80]
    assert [one.port for one in changed_ports([Op("del", None, now)], {})] == [80]


def test_what_is_the_other_tables_or_no_port_is_no_matter() -> None:
    other = NftSet("ports_any", "t", frozenset({"udp . 1 : 10.0.0.1 . 1"}), kind="map", family="netdev")
    assert changed_ports([Op("put", other), Op("put", NftSet("pools", "t", frozenset({"10.28.0.0/16"})))], {}) == []


# --- that it is done


async def test_the_kernel_is_told_with_every_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with a_node(tmp_path) as node:
        await node.converge()
        noted = node.kernel.flow_rules
        noted.clear()
        await node.publications.publish("web", "", [told("5353:53/udp")])
        assert [(one.port, one.leads is not None) for one in noted] == [(5353, True)]
        await node.publications.publish("web", "", [told("5353:53/udp", sources=parse_sources(["10.0.0.0/8"]))])
        assert [len(one.sources) for one in noted] == [0, 1]
        await node.publications.unpublish("web", "", [parse_held("5353/udp")])
        assert (noted[-1].port, noted[-1].leads) == (5353, None)
        noted.clear()
        await attach(node, "db", [WEB])
        await node.ops.detach("e-db")
        await asyncio.wait_for(_some(noted), 5)
        assert [(one.proto, one.port, one.leads) for one in noted] == [("tcp", 8080, None)]

        def broken(rules: object) -> int:
            raise KernelError("forget", "tracked connections", errno.EPERM)

        node.kernel.forget_flows = broken  # type: ignore[method-assign]
        with caplog.at_level(logging.WARNING):
            await node.publications.publish("web", "", [told("5353:53/udp")])
        assert [record.msg for record in caplog.records] == ["flows_kept"], "and what is published is"


async def _some(noted: list[PortRule]) -> None:
    while not noted:  # noqa: ASYNC110 (a detach does not wait for it)
        await asyncio.sleep(0.005)


# --- rows of the kernel


def row(*attributes: bytes) -> bytes:
    return b"\x02\0\0\0" + b"".join(attributes)


def direction(kind: int, source: str, to: str, sport: int, dport: int, number: int = 17) -> bytes:
    addresses = nl.nested(1, nl.attr(1, A(source).packed), nl.attr(2, A(to).packed))
    return nl.nested(kind, addresses, nl.nested(2, nl.attr_u8(1, number), nl.attr_u16be(2, sport), nl.attr_u16be(3, dport)))


ORIG, REPLY = direction(1, "198.18.0.2", "198.18.0.1", 7, 5353), direction(2, "10.28.1.2", "198.18.0.2", 53, 7)
TRANSLATED = nl.attr(3, (1 << 5).to_bytes(4, "big"))


def test_a_row_is_read_with_what_names_it() -> None:
    ident = nl.attr(12, b"1234")
    assert decode_flow(row(ORIG, REPLY, TRANSLATED, ident)) == Flow("udp", CLIENT, HOST, 5353, OLD, ORIG + ident)
    found = decode_flow(row(ORIG, REPLY))
    assert found is not None and found.led is None
    assert decode_flow(row(direction(1, "10.0.0.1", "10.0.0.2", 0, 0, 1), REPLY)) is None, "ICMP has no ports"


@pytest.mark.parametrize("broken", [row(), row(ORIG), row(nl.nested(1), REPLY), row(nl.nested(1, nl.nested(1, nl.attr(1, b"123"))), REPLY)])
def test_a_row_that_is_none_is_refused(broken: bytes) -> None:
    with pytest.raises(nl.NetlinkParseError):
        decode_flow(broken)
