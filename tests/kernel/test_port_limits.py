# SPDX-License-Identifier: Apache-2.0
"""Limits of published ports in the kernel: what comes and goes by a publication is held to them, and nothing else of the container."""

from __future__ import annotations

import contextlib
import re
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
from plait.model.limits import PORT_PREFIX, PORT_WORDS, Limit, Limits, port_limits_of
from plait.shaping import Limiting, Means

pytestmark = pytest.mark.root
ENDS = (WIRE["A"], test_dual.WIRE["A"])
MEANS = Means.of({"metered", "tbf", "htb", "ifb", "fwd"})


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


SHAPED = {"manner": "shape"}
BURST, SIZE = 40, 1000


def served(hosts: Hosts, client: str, to: IPAddress, port: int, inside_port: int = 53, back: bool = False) -> tuple[int, float]:
    """How many of `BURST` datagrams of `SIZE` bytes, sent to `web` at once or ("back") by it, arrive, and after how long the last one."""
    kind = socket.AF_INET6 if to.version == 6 else socket.AF_INET
    with (
        hosts.socket("web", socket.AF_INET6, kind=socket.SOCK_DGRAM) as server,
        hosts.socket(client, kind, kind=socket.SOCK_DGRAM) as caller,
    ):
        server.bind(("::", inside_port))
        server.settimeout(2)
        caller.settimeout(2)
        caller.sendto(b"?", (str(to), port))
        _, whence = server.recvfrom(100)
        started, last, got = time.monotonic(), 0.0, 0
        for _ in range(BURST):
            server.sendto(bytes(SIZE), whence) if back else caller.sendto(bytes(SIZE), (str(to), port))
        with contextlib.suppress(TimeoutError):
            while got < BURST:
                (caller if back else server).recv(2000)
                got, last = got + 1, time.monotonic() - started
        return got, last


@pytest.mark.parametrize("to", ENDS, ids=str)
@pytest.mark.parametrize("direction", ["in", "out"])
def test_what_exceeds_a_rate_waits_and_the_rest_of_the_container_does_not(hosts: Hosts, to: IPAddress, direction: str) -> None:
    """40 KB at 160 kbit/s, of which 16 KB may pass at once."""
    web, back = hosts.snapshot.endpoints["web"], direction == "out"
    own = web.address if to.version == 4 else web.address6
    assert own is not None
    with held(hosts, "53/udp", **{f"_{direction}": "160K"}, **SHAPED):
        got, took = served(hosts, "B", to, 8053, back=back)
        assert got == BURST and 0.8 < took < 2.5, "all of it comes, later"
        got, took = served(hosts, "B", to, 8053, back=not back)
        assert got == BURST and took < 0.5, "the other direction is free"
        got, took = served(hosts, "near", own, 54, 54, back)
        assert got == BURST and took < 0.5, "another port of the container is"
        got, took = served(hosts, "near", own, 53, back=back)
        assert got == BURST and (took < 0.5) != back, "only what the container sends is told by its port alone"


@pytest.mark.parametrize("direction", ["in", "out"])
def test_the_limit_of_the_container_holds_over_its_queues(hosts: Hosts, direction: str) -> None:
    rate, size = 4_000_000, 1_200_000
    whole = Limits(Limit(rate)) if direction == "in" else Limits(outgoing=Limit(rate))
    with held(hosts, "80/tcp", **{f"_{direction}": "100M"}, **SHAPED):
        assert seconds(hosts, direction, size) < 1
        alone = hosts.limiting
        hosts.limiting = replace(alone, told={("default", "web"): whole})
        hosts.converge("A")
        assert hosts.converge("A") == 0
        assert 0.8 * size * 8 / rate < seconds(hosts, direction, size) < 3 * size * 8 / rate
        got, took = served(hosts, "B", WIRE["A"], 8053, back=direction == "out")
        assert got == BURST and took < 0.5, "what goes by no limited port has its part too"
        hosts.limiting = alone
        hosts.converge("A")
        assert seconds(hosts, direction, size) < 1


def control(hosts: Hosts) -> str:
    """Traffic control of host A, but for handles that the kernel chose and what it counts."""
    devices = hosts.run("A", "ls /sys/class/net") and hosts.run("A", "ip -o link")
    shown = hosts.run("A", "tc qdisc show")
    shown += "".join(hosts.run("A", f"tc class show dev {dev}") for dev in ("pl-eweb", "pl-iweb") if f" {dev}:" in devices)
    return re.sub(r"(bfifo|leaf) [0-9a-f]+:|(direct_packets_stat) \d+", r"\1\2", shown)


def test_what_somebody_deletes_comes_back_and_a_rate_changes_in_place(hosts: Hosts) -> None:
    free = control(hosts)
    with held(hosts, "80/tcp", _in="10M", _out="20M", **SHAPED):
        told = control(hosts)
        for gone in (
            "tc qdisc del dev pl-eweb root",
            "tc qdisc replace dev pl-eweb root handle 5: tbf rate 1mbit burst 16k limit 64k",
            "tc class del dev pl-eweb classid 71:11",
            "tc class change dev pl-iweb classid 72:11 htb rate 1mbit",
            "tc qdisc replace dev pl-iweb parent 72:11 bfifo limit 1000",
            "ip link del pl-iweb",
            "nft flush map inet plait port_queue_in",
            "nft flush map netdev plait port_queue_out6",
        ):
            hosts.run("A", gone)
            assert hosts.converge("A") > 0, gone
            assert hosts.converge("A") == 0 and control(hosts) == told
        changed = port_limits_of({"in": "30M", "manner": "shape"}, "")
        hosts.limiting = replace(hosts.limiting, ports={("default", "web", "80/tcp"): changed})
        made = re.findall(r"bfifo ([0-9a-f]+:) dev pl-eweb", hosts.run("A", "tc qdisc show"))
        assert hosts.converge("A") > 0
        assert made == re.findall(r"bfifo ([0-9a-f]+:) dev pl-eweb", hosts.run("A", "tc qdisc show")), "the queue is the one that was there"
        assert "rate 31" in hosts.run("A", "tc class show dev pl-eweb") and "pl-iweb" not in control(hosts)
    assert control(hosts) == free
