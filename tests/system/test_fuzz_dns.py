# SPDX-License-Identifier: Apache-2.0
"""Nonsense for the DNS server, over real sockets on loopback to the real child process: damaged queries, streams cut anywhere, clients
that take their time and too many of them. What it answers is DNS, it does not die, and it has no more memory afterwards.

PLAIT_FUZZ_EXAMPLES (5) is how many thousand damaged queries each transport gets, PLAIT_FUZZ_SEED another choice of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import dnslib
import pytest
from tests.support.dns import HOST, Pair, free_port
from tests.unit.test_dns_service import ask, table

from plait.serve.dns_parent import DnsService
from plait.serve.dns_tcp import CONNECTIONS, IDLE_TIMEOUT

ROUNDS = 10 * int(os.environ.get("PLAIT_FUZZ_EXAMPLES", "5"))
SEED = int(os.environ.get("PLAIT_FUZZ_SEED", "1"))
pytestmark = pytest.mark.timeout(60 + 2 * ROUNDS)
BATCH = 100
GROWTH_BYTES = 4 << 20
NAMES = [
    "web.service.consul",
    "_web._tcp.service.consul",
    "c1",
    "c1.default",
    "a.node.consul",
    "example.org",
    "2.0.28.10.in-addr.arpa",
    ".",
]
NAMES += ["app--web.label.consul", "0a1c0002.addr.consul", "x." * 120 + "consul", "*.consul", "no.query.consul"]
TYPES = ["A", "AAAA", "SRV", "ANY", "SOA", "NS", "TXT", "PTR", "AXFR", "CNAME"]
ASK = bytes(dnslib.DNSRecord.question("c1").pack())


class Damaged:
    """Queries that were right once."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def query(self) -> bytes:
        record = dnslib.DNSRecord.question(self.chance.choice(NAMES), self.chance.choice(TYPES))
        record.header.id = self.chance.randrange(1, 1 << 16)
        if self.chance.random() < 0.5:
            record.add_ar(dnslib.EDNS0(udp_len=self.chance.choice([0, 512, 1232, 65535]), ext_rcode=self.chance.randrange(256)))
        return self.damaged(bytes(record.pack()))

    def damaged(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self.chance.choice([0, 1, 1, 2, 20])):
            changed[self.chance.randrange(2, len(changed))] = self.chance.choice([0, 0xFF, 0xC0, 0x3F, 0x40, self.chance.randrange(256)])
        at = self.chance.randrange(len(changed))
        match self.chance.randrange(8):
            case 0:
                return bytes(changed[: max(at, 2)])
            case 1:
                return bytes(changed[:at] + self.chance.randbytes(self.chance.randrange(1500)) + changed[at:])
            case 2:
                return bytes(changed[:12] + b"\xc0\x0c" + changed[12:])
            case 3:
                return b"\1" + self.chance.randbytes(self.chance.randrange(4000))
        return bytes(changed)


@pytest.fixture
async def service() -> AsyncIterator[DnsService]:
    crashes: list[str] = []
    service = DnsService(on_crash=crashes.append)
    await service.start()
    await service.set_table(table(200))
    yield service
    assert (await service.stats()).restarts == 0 and not crashes
    await service.close()


@pytest.fixture
async def where(service: DnsService) -> Pair:
    address = (HOST, free_port())
    assert await service.set_listen({address}) == ()
    return address


async def memory(service: DnsService) -> int:
    """Bytes that the child has."""
    pid = (await service.stats()).pid
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def files(service: DnsService) -> int:
    """How many files and sockets the child has open."""
    return len(os.listdir(f"/proc/{(await service.stats()).pid}/fd"))


async def come_down_to(most: int, service: DnsService) -> None:
    async with asyncio.timeout(10):
        while await files(service) > most:  # noqa: ASYNC110 (another process tells of no changes)
            await asyncio.sleep(0.02)


def is_answer(data: bytes) -> bool:
    """Whether it is a response that another implementation can read, as far as it reads names that are no UTF-8."""
    with contextlib.suppress(dnslib.DNSError) if any(byte > 127 for byte in data[12:]) else contextlib.nullcontext():
        dnslib.DNSRecord.parse(data)
    return len(data) >= 12 and bool(data[2] & 0x80)


def over_udp(where: Pair, made: Damaged, batches: int) -> int:
    """How many of so many batches were answered. A right query behind each tells that all before it were looked at."""
    answered = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect(where)
        udp.settimeout(10)
        for _ in range(batches):
            for _ in range(BATCH):
                udp.send(made.query())
            udp.send(bytes(2) + ASK[2:])
            while (data := udp.recv(65535))[:2] != bytes(2):
                assert is_answer(data)
                answered += 1
    return answered


def over_tcp(where: Pair, made: Damaged, batches: int) -> int:
    answered = 0
    for _ in range(batches):
        frames = (made.query() for _ in range(BATCH))
        stream = b"".join(len(frame).to_bytes(2, "big") + frame for frame in frames)
        if made.chance.random() < 0.5:
            stream = stream[: made.chance.randrange(len(stream))] + made.chance.randbytes(made.chance.randrange(3000))
        received = bytearray()
        with socket.create_connection(where, timeout=IDLE_TIMEOUT + 10) as tcp:
            tcp.sendall(stream)
            tcp.shutdown(socket.SHUT_WR)
            while chunk := tcp.recv(1 << 20):
                received += chunk
        while received:
            size = int.from_bytes(received[:2], "big")
            assert is_answer(bytes(received[2 : 2 + size]))
            del received[: 2 + size]
            answered += 1
    return answered


@pytest.mark.parametrize("transport", [over_udp, over_tcp])
async def test_damaged_queries_are_answered_in_dns_or_not_at_all(service: DnsService, where: Pair, transport: object) -> None:
    assert callable(transport)
    assert await asyncio.to_thread(transport, where, Damaged(SEED), ROUNDS) > BATCH * ROUNDS / 4
    before = await memory(service)
    await asyncio.to_thread(transport, where, Damaged(SEED + 1), ROUNDS)
    assert await memory(service) - before < GROWTH_BYTES
    assert (await ask("c1", where)).rr


async def test_so_many_names_that_nobody_has_leave_nothing(service: DnsService, where: Pair) -> None:
    def flood(first: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.connect(where)
            udp.settimeout(10)
            for number in range(first, first + 1000 * ROUNDS):
                name = f"x{number}"
                udp.send(ASK[:12] + bytes([len(name)]) + name.encode() + b"\7service\6consul\0\0\1\0\1")
                if number % BATCH == 0:
                    for _ in range(BATCH if number > first else 1):
                        udp.recv(65535)

    await asyncio.to_thread(flood, 0)
    before = await memory(service)
    await asyncio.to_thread(flood, 10_000_000)
    assert await memory(service) - before < GROWTH_BYTES


async def test_connections_are_bounded_and_given_back(service: DnsService, where: Pair) -> None:
    assert (await ask("c1", where)).rr
    before = await files(service)
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS + 150):
            stack.enter_context(socket.create_connection(where, timeout=10))
        assert (await ask("c1", where)).rr
        await come_down_to(before + CONNECTIONS, service)  # one that makes room is closed a moment after the next was accepted
        assert await files(service) > before + CONNECTIONS // 2
    await come_down_to(before, service)


async def test_who_reads_nothing_costs_no_more_than_its_bound(service: DnsService, where: Pair) -> None:
    """Twenty clients ask without end for what is large, and take none of it."""
    before = await memory(service)
    query = bytes(dnslib.DNSRecord.question("web.service.consul", "SRV").pack())
    flood = (len(query).to_bytes(2, "big") + query) * 20_000
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(socket.create_connection(where, timeout=10))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.send(flood)
        for _ in range(20):
            assert (await ask("c1", where)).rr, "others are answered meanwhile"
        assert await memory(service) - before < 20 * (1 << 20)


async def test_whoever_sends_a_byte_at_a_time_is_cut_off(service: DnsService, where: Pair) -> None:
    def drip() -> float:
        began = time.monotonic()
        with socket.create_connection(where, timeout=10) as slow:
            try:
                slow.sendall(b"\0\xff")
                for _ in range(200):
                    slow.sendall(b"\0")
                    slow.settimeout(0.2)
                    with contextlib.suppress(TimeoutError):
                        assert slow.recv(1) == b"", "it is told nothing"
                        break
            except ConnectionError:
                pass
        return time.monotonic() - began

    assert await asyncio.to_thread(drip) < 2 * IDLE_TIMEOUT, "else it went on to its end"
    assert (await ask("c1", where)).rr
