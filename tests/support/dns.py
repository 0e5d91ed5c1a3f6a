# SPDX-License-Identifier: Apache-2.0
"""Clients and resolvers for tests of DNS, on loopback."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Mapping

import dnslib

Pair = tuple[str, int]
HOST = "127.0.0.1"


def free_port(host: str = HOST) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tcp:
        tcp.bind((host, 0))
        return int(tcp.getsockname()[1])


def exchange(data: bytes, address: Pair, timeout: float = 5.0) -> bytes:
    """The response to `data` over UDP. TimeoutError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(timeout)
        udp.connect(address)
        udp.send(data)
        return udp.recv(65535)


async def ask(name: str, address: Pair, qtype: str = "A", timeout: float = 5.0) -> dnslib.DNSRecord:
    query = bytes(dnslib.DNSRecord.question(name, qtype).pack())
    return dnslib.DNSRecord.parse(await asyncio.to_thread(exchange, query, address, timeout))


@contextlib.asynccontextmanager
async def resolver(zone: Mapping[str, str], host: str = HOST) -> AsyncIterator[tuple[Pair, list[str]]]:
    """Answers the names of `zone` ("TYPE data", lines; "TC": only over TCP) and NXDOMAIN to all others; and the names it was asked for."""
    asked: list[str] = []

    def respond(data: bytes, stream: bool) -> bytes:
        query = dnslib.DNSRecord.parse(data)
        name = str(query.q.qname).rstrip(".")
        asked.append(name)
        reply = query.reply(aa=0)
        lines = zone.get(name)
        reply.header.rcode = 3 if lines is None else 0
        for line in (lines or "").splitlines():
            if line == "TC":
                reply.header.tc = int(not stream)
            elif stream or not reply.header.tc:
                reply.add_answer(*dnslib.RR.fromZone(f"{name} 60 {line}"))
        return bytes(reply.pack())

    async with answering(respond, host) as address:
        yield address, asked


@contextlib.asynccontextmanager
async def answering(respond: Callable[[bytes, bool], bytes], host: str = HOST) -> AsyncIterator[Pair]:
    """Serves `respond(query, whether it came over TCP)` over UDP and TCP; where."""

    class Udp(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Pair) -> None:
            self.transport.sendto(respond(data, False), addr)  # type: ignore[attr-defined]

    async def tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            response = respond(await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")), True)
            writer.write(len(response).to_bytes(2, "big") + response)
        writer.close()

    address = (host, free_port(host))
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Udp, address)
    async with await asyncio.start_server(tcp, *address):
        yield address
    transport.close()
