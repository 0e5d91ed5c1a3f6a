# SPDX-License-Identifier: Apache-2.0
"""Answers of names that somebody wants to know of first: told, held back, let go. With the real child process, but for the codec."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import dnslib
import pytest
from tests.support.dns import HOST, Pair, ask, free_port, resolver

from plait.dns import message as m
from plait.dns.heeded import Addresses, Heeded
from plait.dns.zone import build_table
from plait.model.cluster import Instance, Node, Snapshot
from plait.model.domains import patterns_of
from plait.serve import dns_handover
from plait.serve.dns_heed import OUTSTANDING, WAIT, Heeding
from plait.serve.dns_link import Upstreams
from plait.serve.dns_parent import DnsService
from plait.serve.dns_responder import Counters

ZONE = {
    "api.example.com": "A 198.51.100.1\nA 198.51.100.2",
    "API.example.com": "A 198.51.100.3",
    "six.example.com": "AAAA 2001:db8::1",
    "www.example.org": "CNAME edge.example.net",
    "other.example.net": "A 198.51.100.9",
    "db.example.org": "A 198.51.100.5",
}
PATTERNS = frozenset({"api.example.com", "six.example.com", "*.example.org"})
NODES = {"a": Node("a", "1", IPv4Address("192.0.2.1"))}
TABLE = build_table(Snapshot("a", 1, NODES, instances={("a", "out"): Instance("out", "out", "a", "db.example.org", 5432)}))


class Agent:
    """Says of what it is told that it has it, unless it is `deaf`."""

    def __init__(self) -> None:
        self.told: list[tuple[str, list[str], int]] = []
        self.deaf = False
        self.waiting: list[Callable[[], None]] = []
        self.heard = asyncio.Event()

    def __call__(self, name: str, addresses: Addresses, kept: Callable[[], None]) -> None:
        self.told.append((name, [str(ip_address(packed)) for packed, _ in addresses], min(ttl for _, ttl in addresses)))
        self.heard.set()
        if self.deaf:
            self.waiting.append(kept)
        else:
            kept()


@pytest.fixture
def agent() -> Agent:
    return Agent()


@contextlib.asynccontextmanager
async def serving(agent: Agent, successors: Path | None = None) -> AsyncIterator[tuple[DnsService, Pair]]:
    service, where = DnsService(on_crash=print, on_answer=agent, successors=successors), (HOST, free_port())
    await service.start()
    try:
        async with resolver(ZONE) as (address, _):
            await service.set_table(TABLE)
            await service.set_upstreams(Upstreams([address]))
            await service.set_heeded(PATTERNS)
            assert await service.set_listen({where}) == ()
            yield service, where
    finally:
        await service.close()


async def test_the_agent_hears_of_addresses_before_the_client_does(agent: Agent) -> None:
    agent.deaf = True
    async with serving(agent) as (_, where):
        asking = asyncio.ensure_future(ask("API.example.com", where))
        await agent.heard.wait()
        assert agent.told == [("api.example.com", ["198.51.100.3"], 60)]
        await asyncio.sleep(WAIT / 4)
        assert not asking.done(), "it waits"
        agent.waiting.pop()()
        assert len((await asyncio.wait_for(asking, WAIT / 4)).rr) == 1


async def test_an_agent_that_says_nothing_holds_nobody_up_for_long(agent: Agent) -> None:
    agent.deaf = True
    async with serving(agent) as (service, where):
        started = time.monotonic()
        assert len((await ask("api.example.com", where)).rr) == 2
        assert WAIT * 0.9 < time.monotonic() - started < WAIT + 1
        agent.waiting.pop()()
        assert len((await ask("other.example.net", where)).rr) == 1, "what comes too late does no harm"
        counters = (await service.stats()).counters
        assert (counters["answers_heeded"], counters["answers_unheeded"]) == (1, 1)


async def test_it_hears_of_names_that_are_wanted_however_they_are_asked_for(agent: Agent) -> None:
    async with serving(agent) as (service, where):
        assert (await ask("other.example.net", where)).rr and (await ask("gone.example.org", where)).header.rcode == m.NXDOMAIN
        assert (await ask("db.example.org", where, "MX")).header.rcode == m.NOERROR and agent.told == []
        await ask("six.example.com", where, "AAAA")
        assert agent.told.pop() == ("six.example.com", ["2001:db8::1"], 60)
        assert len((await ask("out.service.consul", where)).rr) == 2
        assert agent.told.pop() == ("db.example.org", ["198.51.100.5"], 60), "behind an alias of ours too"
        await service.set_heeded(frozenset())
        assert (await ask("api.example.com", where)).rr and agent.told == []


async def test_without_an_agent_answers_go_out_as_they_come(agent: Agent, tmp_path: Path) -> None:
    agent.deaf = True
    async with serving(agent, tmp_path / "dns.sock") as (service, where):
        asking = asyncio.ensure_future(ask("api.example.com", where))
        await agent.heard.wait()
        started = time.monotonic()
        await service.close()  # the child lives on
        assert len((await asking).rr) == 2 and len((await ask("api.example.com", where)).rr) == 2
        assert time.monotonic() - started < WAIT / 2
    await asyncio.to_thread(dns_handover.dismiss, tmp_path / "dns.sock")


def test_so_many_wait_at_most_and_each_is_sent_once() -> None:
    sent, counters = list[int](), Counters()
    heeding = Heeding(counters)
    heeding.heeded, heeding.say = Heeded(["api.example.com"]), lambda *_: None
    query, response = packets("api.example.com", "api.example.com 60 A 198.51.100.1")
    for number in range(OUTSTANDING + 2):
        heeding.pass_on(query, response, lambda number=number: sent.append(number))  # type: ignore[misc]
    assert sent == [OUTSTANDING, OUTSTANDING + 1] and counters.answers_unheeded == 2
    heeding.kept(1)
    heeding.kept(1)
    heeding.kept(99999)
    heeding.orphaned()
    assert sorted(sent) == list(range(OUTSTANDING + 2)) and heeding.next_deadline() is None


def packets(name: str, *records: str, rcode: int = 0, qtype: str = "A") -> tuple[bytes, bytes]:
    query = dnslib.DNSRecord.question(name, qtype)
    reply = query.reply()
    reply.header.rcode = rcode
    for record in records:
        reply.add_answer(*dnslib.RR.fromZone(record))
    return bytes(query.pack()), bytes(reply.pack())


@pytest.mark.parametrize(
    ("records", "found"),
    [
        (("www.example.org 60 A 198.51.100.1",), [("198.51.100.1", 60)]),
        (("www.example.org 60 CNAME a.example.net", "a.example.net 20 A 198.51.100.1"), [("198.51.100.1", 20)]),
        (("a.example.net 90 A 198.51.100.1", "www.example.org 5 CNAME A.example.net"), [("198.51.100.1", 5)]),
        (("www.example.org 60 CNAME a.example.net",), None),
        (("other.example.org 60 A 198.51.100.1",), None),
        (("www.example.org 60 CNAME a.example.net", "b.example.net 20 A 198.51.100.1"), None),
        (("www.example.org 60 CNAME a.example.net", "a.example.net 60 CNAME www.example.org"), None),
    ],
    ids=["its own", "behind an alias", "in whatever order", "an alias alone", "another's", "behind no alias", "in a circle"],
)
def test_addresses_count_for_the_name_that_was_asked_for(records: tuple[str, ...], found: list[tuple[str, int]] | None) -> None:
    learned = Heeded(PATTERNS).learned(*packets("www.example.org", *records))
    assert (learned and [(str(ip_address(packed)), ttl) for packed, ttl in learned[1]]) == found


def test_what_is_no_good_answer_teaches_nothing() -> None:
    heeded, record = Heeded(PATTERNS), "api.example.com 60 A 198.51.100.1"
    assert heeded.learned(*packets("api.example.com", record)) is not None
    assert heeded.learned(*packets("api.example.com", record, rcode=m.NXDOMAIN)) is None
    assert heeded.learned(*packets("api.example.com", record, qtype="ANY")) is None
    query, response = packets("api.example.com", record)
    assert heeded.learned(query, response[:-2]) is None, "cut off"
    sly = query.replace(b"\3api\7example\3com", b"\x0bapi.example\3com")
    assert heeded.learned(sly, response.replace(b"\3api\7example\3com", b"\x0bapi.example\3com")) is None, "a dot inside a label"
    odd, odd_response = packets("a\\032b.example.org", "a\\032b.example.org 60 A 198.51.100.1")
    assert heeded.learned(odd, odd_response) is None


def test_a_name_meets_itself_and_what_is_above_it() -> None:
    assert list(patterns_of("a.b.example.org")) == ["a.b.example.org", "*.b.example.org", "*.example.org", "*.org"]
    assert list(patterns_of("*.example.org")) == ["*.example.org", "*.org"]
    assert "*.example.org" not in patterns_of("example.org") and "*.example.org" not in patterns_of("my-example.org")
