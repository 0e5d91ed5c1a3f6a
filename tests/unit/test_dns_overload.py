# SPDX-License-Identifier: Apache-2.0
"""More queries than can be answered: those whose clients no longer wait are dropped, and no client takes the share of another."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from ipaddress import IPv4Address

import dnslib
import pytest
from tests.support.dns import HOST, Pair, ask, free_port

from plait.agent.dnswatch import DnsWatch
from plait.agent.health import Health
from plait.dns.zone import build_table
from plait.model.cluster import Instance, Node, Snapshot
from plait.serve.dns_core import Core
from plait.serve.dns_limit import CLIENTS, Limiter
from plait.serve.dns_link import Limits
from plait.serve.dns_parent import DnsService
from plait.serve.dns_responder import Counters
from plait.serve.dns_udp import SLOTS, Batch, UdpListener

QUERY = bytes(dnslib.DNSRecord.question("web.service.consul").pack())[2:]


@pytest.fixture
async def service() -> AsyncIterator[DnsService]:
    service = DnsService(on_crash=print)
    await service.start()
    yield service
    await service.close()


@pytest.fixture
async def where(service: DnsService) -> Pair:
    address = (HOST, free_port())
    nodes = {"a": Node("a", "1", IPv4Address("192.0.2.1"))}
    instances = {("a", "web"): Instance("web", "web", "a", "10.28.0.1", 80)}
    await service.set_table(build_table(Snapshot(me="a", revision=1, nodes=nodes, instances=instances)))
    assert await service.set_listen({address}) == ()
    return address


def client(where: Pair, host: str = HOST) -> socket.socket:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((host, 0))
    udp.connect(where)
    udp.settimeout(0.3)
    return udp


def send(udp: socket.socket, numbers: range) -> None:
    for number in numbers:
        udp.send(number.to_bytes(2, "big") + QUERY)


def received(udp: socket.socket) -> list[int]:
    """The numbers of all answers that come, until none has come for a while."""
    found: list[int] = []
    try:
        while True:
            found.append(int.from_bytes(udp.recv(2048)[:2], "big"))
    except TimeoutError:
        return found


def codes(health: Health) -> dict[str, str]:
    return {active.condition.code: active.text for active in health.active()}


async def test_queries_whose_clients_no_longer_wait_are_dropped_and_the_others_answered(service: DnsService, where: Pair) -> None:
    health = Health(time.time)
    watch = DnsWatch(service, health)
    await watch.look()
    await service.set_limits(Limits(client_timeout=0.3))
    pid = (await service.stats()).pid
    with client(where) as udp:
        os.kill(pid, signal.SIGSTOP)
        try:
            send(udp, range(100))
            await asyncio.sleep(0.5)
            send(udp, range(100, 110))
        finally:
            os.kill(pid, signal.SIGCONT)
        assert await asyncio.to_thread(received, udp) == list(range(100, 110))
        send(udp, range(5))
        assert await asyncio.to_thread(received, udp) == list(range(5))
    assert (await service.stats()).counters["expired"] == 100
    await watch.look()
    assert codes(health) == {"dns-late": "100 queries in a second were dropped: they had waited for more than dns.client_timeout"}
    for _ in range(10):
        await watch.look()
    assert codes(health) == {}


@pytest.mark.parametrize("ahead_s", [86400.0, -86400.0])
def test_a_clock_that_jumps_drops_nothing(monkeypatch: pytest.MonkeyPatch, ahead_s: float) -> None:
    """Whatever the clock says: what came since the process last looked has not waited for long."""
    core, real = Core(), time.time
    monkeypatch.setattr("plait.serve.dns_udp.time.time", lambda: real() + ahead_s)
    monkeypatch.setattr("plait.serve.dns_udp.ROUNDS", 1)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.bind((HOST, 0))
    listener = UdpListener(sock, Batch(), core)
    with client(sock.getsockname()) as udp:
        for _ in range(3):
            core.reactor.poll(0)  # as the process does at least once a second
            send(udp, range(2 * SLOTS))  # more than one round reads
            for _ in range(4):
                core.reactor.poll(0)
            assert len(received(udp)) == 2 * SLOTS
        listener.close()
    assert core.counters.expired == 0


async def test_queries_that_waited_less_are_all_answered(service: DnsService, where: Pair) -> None:
    pid = (await service.stats()).pid
    with client(where) as udp:
        os.kill(pid, signal.SIGSTOP)
        try:
            send(udp, range(200))
            await asyncio.sleep(0.5)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert await asyncio.to_thread(received, udp) == list(range(200)), "five seconds by default"
    assert (await service.stats()).counters["expired"] == 0


async def test_a_client_that_asks_too_often_takes_nothing_from_others(service: DnsService, where: Pair) -> None:
    health = Health(time.time)
    watch = DnsWatch(service, health)
    await service.set_limits(Limits(client_rate=20))
    with client(where) as greedy, client(where, "127.0.0.2") as modest:
        send(greedy, range(200))
        send(modest, range(10))
        assert await asyncio.to_thread(received, modest) == list(range(10))
        answered = await asyncio.to_thread(received, greedy)
        assert 20 <= len(answered) <= 40, "at most two seconds' shares"
    stats = await service.stats()
    assert stats.counters["client_limited"] == 200 - len(answered) and stats.limited == HOST
    await watch.look()
    assert codes(health) == {
        "dns-client-limited": f"{200 - len(answered)} queries in a second were above dns.client_rate, the last one of {HOST}"
    }
    assert {r.name: r.value for r in watch.figures}["plait.dns.client_limited"] == 200 - len(answered)
    await service.set_limits(Limits())
    with client(where) as greedy:
        send(greedy, range(200))
        assert len(await asyncio.to_thread(received, greedy)) == 200, "without a rate there is no limit"


async def test_over_tcp_the_connection_of_such_a_client_ends(service: DnsService, where: Pair) -> None:
    await service.set_limits(Limits(client_rate=20))
    reader, writer = await asyncio.open_connection(*where)
    writer.write((len(QUERY) + 2).to_bytes(2, "big") + b"\0\1" + QUERY)
    assert len(await reader.readexactly(2)) == 2
    writer.write(((len(QUERY) + 2).to_bytes(2, "big") + b"\0\1" + QUERY) * 100)
    with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
        async with asyncio.timeout(2):
            await reader.readexactly(1 << 20)
    writer.close()
    assert (await service.stats()).counters["client_limited"] >= 1
    with client(where, "127.0.0.2") as other:
        send(other, range(3))
        assert await asyncio.to_thread(received, other) == [0, 1, 2]
    await asyncio.sleep(1.0)
    assert (await ask("web.service.consul", where)).rr, "the next second is a new one"


def test_who_comes_from_very_many_addresses_costs_no_memory() -> None:
    limiter = Limiter(Counters())
    limiter.limits = Limits(client_rate=1)
    assert limiter.last() == ""
    for number in range(3 * CLIENTS):
        assert limiter.admits(number.to_bytes(4, "big"))
        assert len(limiter) <= CLIENTS
    address = bytes(15) + b"\1"
    assert [limiter.admits(address) for _ in range(3)] == [True, False, False] and limiter.last() == "::1"
