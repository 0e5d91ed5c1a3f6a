# SPDX-License-Identifier: Apache-2.0
"""Limits of published ports in the kernel: what comes and goes by a publication is held to them, and nothing else of the container."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.kernel import test_dual
from tests.kernel.test_datapath import WIRE, Hosts

from plait.kernel.linux import LinuxKernel
from plait.kernel.linux.netns import in_thread, inside
from plait.model.addr import IPAddress
from plait.model.cluster import PortMapping
from plait.model.limits import PORT_PREFIX, PORT_WORDS, port_limits_of
from plait.shaping import Limiting, Means

pytestmark = pytest.mark.root
ENDS = (WIRE["A"], test_dual.WIRE["A"])
MEANS = Means.of({"metered"})


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with test_dual.dual_hosts(tmp_path_factory.mktemp("ports"), fast=True) as made:
        web = made.snapshot.endpoints["web"]
        ports = (*web.ports, PortMapping("udp", 8053, 53))
        made.snapshot = replace(made.snapshot, endpoints={**made.snapshot.endpoints, "web": replace(web, ports=ports)})
        yield made


@contextlib.contextmanager
def held(hosts: Hosts, port: str, **words: str) -> Iterator[None]:
    """The published port of `web` is held to that, as said by command."""
    limits = port_limits_of({word.strip("_").replace("_", "-"): text for word, text in words.items()}, "")
    hosts.limiting = Limiting(means=MEANS, ports={("default", "web", port): limits})
    try:
        hosts.converge("A")
        assert hosts.converge("A") == 0, "the kernel gives back what it was given"
        yield
    finally:
        hosts.limiting = Limiting()
        hosts.converge("A")
        assert hosts.converge("A") == 0
        assert "port_" not in hosts.run("A", "nft list table inet plait")


def dropped(hosts: Hosts, name: str) -> dict[str, int]:
    def work() -> dict[str, int]:
        with hosts.paths["A"].open() as file, inside(file.fileno()), contextlib.closing(LinuxKernel()) as kernel:
            return kernel.counted_elements(name)

    return in_thread(work)


def answered(hosts: Hosts, client: str, to: IPAddress, port: int, count: int = 30) -> int:
    """How many of so many datagrams, each from a port of its own, `web` answers at its port 53."""
    six = to.version == 6
    with contextlib.ExitStack() as stack:
        kind = socket.AF_INET6 if six else socket.AF_INET
        server = stack.enter_context(hosts.socket("web", socket.AF_INET6, kind=socket.SOCK_DGRAM))
        server.bind(("::", 53))
        server.settimeout(0.3)
        callers = [stack.enter_context(hosts.socket(client, kind, kind=socket.SOCK_DGRAM)) for _ in range(count)]
        for caller in callers:
            with contextlib.suppress(PermissionError):  # so the host itself is told of what is dropped on its way
                caller.sendto(b"?", (str(to), port))
        with contextlib.suppress(TimeoutError):
            while True:
                data, whence = server.recvfrom(100)
                server.sendto(data, whence)
        found = 0
        for caller in callers:
            caller.settimeout(0.01)
            with contextlib.suppress(TimeoutError):
                found += bool(caller.recv(100))
        return found


@pytest.mark.parametrize("to", ENDS, ids=str)
@pytest.mark.parametrize("word", ["connections_in", "packets_in", "packets_out"])
def test_what_is_too_much_by_the_published_port_is_dropped_and_counted(hosts: Hosts, to: IPAddress, word: str) -> None:
    web = hosts.snapshot.endpoints["web"]
    inside_address = web.address if to.version == 4 else web.address6
    assert inside_address is not None
    with held(hosts, "53/udp", **{word: "10"}):
        assert 10 <= answered(hosts, "B", to, 8053) <= 16, "ten at once, and what half a second brings"
        key = f"{inside_address} . udp . 53"
        counted = dropped(hosts, f"port_{word}{'6' if to.version == 6 else ''}")
        assert 14 <= counted[key] <= 20
        for client in ("near", "A"):
            assert answered(hosts, client, inside_address, 53) == 30, "who comes by the container's own address is free"
        assert hosts.connects("B", to, 8080) is not None, "and so is another port of it"
        time.sleep(0.3)
        assert 1 <= answered(hosts, "A", to, 8053, 20) <= 16, "the host itself comes by the port as well"


def test_two_publications_of_a_port_share_its_limit_and_labels_say_it_of_all(hosts: Hosts) -> None:
    web = hosts.snapshot.endpoints["web"]
    labelled = replace(web, labels={f"{PORT_PREFIX}connections-in": "5"}, ports=(*web.ports, PortMapping("udp", 8054, 53)))
    snapshot = replace(hosts.snapshot, endpoints={**hosts.snapshot.endpoints, "web": labelled})
    hosts.limiting = Limiting(means=MEANS)
    try:
        hosts.converge("A", snapshot)
        assert hosts.converge("A", snapshot) == 0
        first, second = answered(hosts, "B", WIRE["A"], 8053, 20), answered(hosts, "B", WIRE["A"], 8054, 20)
        assert 5 <= first + second <= 12
        counted = dropped(hosts, "port_connections_in")
        assert counted.keys() == {f"{web.address} . udp . 53", f"{web.address} . tcp . 80"}
        assert counted[f"{web.address} . udp . 53"] == 40 - first - second
    finally:
        hosts.limiting = Limiting()
        hosts.converge("A")


@pytest.mark.parametrize("direction", ["in", "out"])
def test_a_rate_of_a_port_holds(hosts: Hosts, direction: str) -> None:
    """The bucket is a second of the rate and 128 KB, and then it is the rate."""
    rate, size = 4_000_000, 1_600_000
    with held(hosts, "80/tcp", **{f"_{direction}": f"{rate // 1000}K"}):
        took = seconds(hosts, direction, size)
        at_once = rate / 8 + (1 << 17)
        assert took > 0.8 * (size - at_once) * 8 / rate
        assert took < 4 * (size - at_once) * 8 / rate
    assert seconds(hosts, direction, size) < 0.5


def seconds(hosts: Hosts, direction: str, size: int) -> float:
    """How long so many bytes take between host B and the published port 8080 of `web`."""
    with hosts.socket("web") as listener, hosts.socket("B") as caller:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", 80))
        listener.listen()
        caller.settimeout(30)
        caller.connect((str(WIRE["A"]), 8080))
        taken, _ = listener.accept()
        with taken:
            taken.settimeout(30)
            source, sink = (caller, taken) if direction == "in" else (taken, caller)
            sender = threading.Thread(target=source.sendall, args=(bytes(size),))
            started, got = time.monotonic(), 0
            sender.start()
            while got < size:
                got += len(sink.recv(1 << 16))
            took = time.monotonic() - started
            sender.join()
    return took


def test_words_are_those_that_there_are_sets_for(hosts: Hosts) -> None:
    with held(hosts, "80/tcp", **{word if "-" in word else f"_{word}": "100k" for word in PORT_WORDS}):
        assert hosts.connects("B", WIRE["A"], 8080) is not None
        text = hosts.run("A", "nft list table inet plait")
        assert all(f"port_{word.replace('-', '_')} " in text for word in PORT_WORDS)
