# SPDX-License-Identifier: Apache-2.0
"""Clients that ask a DNS server without pause, each in a thread, and count every query: asked, answered, answered wrongly."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import dnslib

from tests.support.dns import HOST, Pair

PATIENCE_S, AT_MOST_S = 3.0, 30.0


class Load(threading.Thread):
    """Rounds of queries for `name`, until stopped; a query counts as lost if it is not answered within `PATIENCE_S`."""

    def __init__(self, address: Pair, name: str = "web.service.consul") -> None:
        super().__init__()
        self.address = address
        self.query = bytes(dnslib.DNSRecord.question(name).pack())[2:]
        self.asked = self.answered = self.wrong = 0
        self.slowest_s = 0.0
        self.stopping = threading.Event()

    def run(self) -> None:
        deadline = time.monotonic() + AT_MOST_S
        while not self.stopping.is_set() and time.monotonic() < deadline:
            started = time.monotonic()
            with contextlib.suppress(OSError):
                self.round()
            self.slowest_s = max(self.slowest_s, time.monotonic() - started)

    def round(self) -> None:
        raise NotImplementedError

    def heard(self, response: bytes) -> None:
        self.answered += 1
        self.wrong += response[3] & 0xF != 0

    def __str__(self) -> str:
        lost = self.asked - self.answered
        return f"{type(self).__name__}: {self.asked} asked, {lost} lost, {self.wrong} wrong, slowest {1000 * self.slowest_s:.0f} ms"


class UdpLoad(Load):
    in_flight = 16

    def round(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.connect(self.address)
            udp.settimeout(PATIENCE_S)
            for number in range(self.in_flight):
                udp.send(number.to_bytes(2, "big") + self.query)
            self.asked += self.in_flight
            for _ in range(self.in_flight):
                self.heard(udp.recv(2048))


class TcpLoad(Load):
    """A connection of its own for each query."""

    def round(self) -> None:
        self.asked += 1
        with socket.create_connection(self.address, PATIENCE_S) as tcp, tcp.makefile("rb") as stream:
            tcp.sendall((len(self.query) + 2).to_bytes(2, "big") + b"\0\1" + self.query)
            self.heard(_framed(stream.read(2), stream))


class PipelinedLoad(Load):
    """One connection for all queries, eight underway, the last of a round in two pieces."""

    in_flight = 8

    def __init__(self, address: Pair, name: str = "web.service.consul") -> None:
        super().__init__(address, name)
        self.tcp = socket.create_connection(address, PATIENCE_S)
        self.stream = self.tcp.makefile("rb")

    def round(self) -> None:
        frame = (len(self.query) + 2).to_bytes(2, "big") + b"\0\1" + self.query
        self.asked += self.in_flight
        self.tcp.sendall(frame * (self.in_flight - 1) + frame[:7])
        for _ in range(self.in_flight - 1):
            self.heard(_framed(self.stream.read(2), self.stream))
        time.sleep(0.002)
        self.tcp.sendall(frame[7:])
        self.heard(_framed(self.stream.read(2), self.stream))

    def run(self) -> None:
        with self.tcp, self.stream:
            super().run()


def _framed(prefix: bytes, stream) -> bytes:  # type: ignore[no-untyped-def]
    """The response behind its length. OSError if the connection ends before."""
    response = stream.read(int.from_bytes(prefix, "big")) if len(prefix) == 2 else b""
    if len(response) < 12:
        raise ConnectionResetError
    return bytes(response)


@contextlib.contextmanager
def running(*loads: Load) -> Iterator[None]:
    for load in loads:
        load.start()
    try:
        yield
    finally:
        for load in loads:
            load.stopping.set()
        for load in loads:
            load.join()


@contextlib.contextmanager
def slow_resolver(delay_s: float) -> Iterator[Pair]:
    """Answers every query over UDP with 198.51.100.1, each `delay_s` after it came."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((HOST, 0))
        udp.settimeout(0.2)
        ended = threading.Event()

        def respond(data: bytes, client: Pair) -> None:
            reply = dnslib.DNSRecord.parse(data).reply()
            reply.add_answer(dnslib.RR(reply.q.qname, rdata=dnslib.A("198.51.100.1")))
            with contextlib.suppress(OSError):
                udp.sendto(bytes(reply.pack()), client)

        def serve() -> None:
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    threading.Timer(delay_s, respond, udp.recvfrom(2048)).start()

        server = threading.Thread(target=serve)
        server.start()
        try:
            yield udp.getsockname()
        finally:
            ended.set()
            server.join()
