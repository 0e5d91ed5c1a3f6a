# SPDX-License-Identifier: Apache-2.0
"""Published ports in the kernel: for whom they are, and whom they are the only way for. Two hosts with the plans of their nodes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from tests.kernel import test_dual
from tests.kernel.test_datapath import WIRE, Hosts

from plait.agent.kernelwork import KernelWork
from plait.kernel.linux import LinuxKernel
from plait.kernel.linux.netns import in_thread, inside
from plait.model.addr import EitherNetwork, IPAddress
from plait.model.cluster import PortMapping
from plait.plan import Local, plan_node

pytestmark = pytest.mark.root
A, A6 = IPv4Address, IPv6Address
WIRE6 = test_dual.WIRE
BOTH = (WIRE["A"], WIRE6["A"])
LOOP = A("127.0.0.1")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with test_dual.dual_hosts(tmp_path_factory.mktemp("ports"), fast=True) as made:
        yield made


def networks(*texts: str) -> tuple[EitherNetwork, ...]:
    return tuple(map(ip_network, texts))


@contextlib.contextmanager
def publishing(hosts: Hosts, *ports: PortMapping, clients: tuple[EitherNetwork, ...] = ()) -> Iterator[None]:
    """`web` publishes these for a while, beside what it does."""
    web = hosts.snapshot.endpoints["web"]
    snapshot = replace(hosts.snapshot, endpoints={**hosts.snapshot.endpoints, "web": replace(web, ports=(*web.ports, *ports))})
    try:
        hosts.clients = clients
        hosts.converge("A", snapshot)
        assert hosts.converge("A", snapshot) == 0, "the kernel gives back what it was given"
        yield
    finally:
        hosts.clients = ()
        hosts.converge("A")
        assert hosts.converge("A") == 0


def refused_at_once(hosts: Hosts, client: str, to: IPAddress, port: int, listen: int = 80) -> bool:
    """Although `web` listens, in both families."""
    with (
        hosts.socket("web", socket.AF_INET6) as listener,
        hosts.socket(client, socket.AF_INET6 if to.version == 6 else socket.AF_INET) as caller,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("::", listen))
        listener.listen()
        try:
            caller.connect((str(to), port))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


@pytest.mark.parametrize("to", BOTH, ids=str)
def test_a_port_is_for_its_sources_and_for_the_host_itself(hosts: Hosts, to: IPAddress) -> None:
    """To others it is a port of the host on which nobody listens."""
    with publishing(hosts, PortMapping("tcp", 8090, 80, sources=networks("198.18.0.2", "10.99.0.0/16", "fd99::2", "fd01::/16"))):
        assert hosts.connects("B", to, 8090) in (WIRE["B"], WIRE6["B"]), "and it sees the client's address"
        assert hosts.connects("A", to, 8090) is not None
        assert refused_at_once(hosts, "near", to, 8090)
        assert hosts.connects("near", to, 8080) is not None, "no other port is guarded"
    with publishing(hosts, PortMapping("tcp", 8090, 80, sources=networks("10.28.1.3", "fd00:28::103"))):
        assert refused_at_once(hosts, "B", to, 8090)
        assert hosts.connects("near", to, 8090) is not None


def test_who_is_named_by_one_family_alone_does_not_come_by_the_other(hosts: Hosts) -> None:
    with publishing(hosts, PortMapping("tcp", 8090, 80, sources=networks("0.0.0.0/0"))):
        assert hosts.connects("B", WIRE["A"], 8090) is not None
        assert refused_at_once(hosts, "B", WIRE6["A"], 8090)


@pytest.mark.parametrize("to", BOTH, ids=str)
def test_so_is_one_on_a_single_address_of_the_host(hosts: Hosts, to: IPAddress) -> None:
    with publishing(hosts, PortMapping("tcp", 8090, 80, to, sources=networks("198.18.0.0/24", "fd99::/64"))):
        assert hosts.connects("B", to, 8090) is not None
        assert hosts.connects("near", to, 8090) is None


@pytest.mark.parametrize("to", BOTH, ids=str)
def test_the_hosts_list_of_clients_holds_for_every_port(hosts: Hosts, to: IPAddress) -> None:
    port = PortMapping("tcp", 8090, 80, sources=networks("10.28.1.3", "fd00:28::103"))
    with publishing(hosts, port, clients=networks("198.18.0.0/24", "fd99::/64")):
        assert hosts.connects("B", to, 8080) is not None
        assert refused_at_once(hosts, "near", to, 8080)
        assert refused_at_once(hosts, "near", to, 8090) and refused_at_once(hosts, "B", to, 8090), "each must be named by both"
        assert hosts.connects("A", to, 8080) is not None and hosts.connects("A", LOOP, 8081) is not None
        assert hosts.connects("web", WIRE["B"], 9000, "B", 9000) == WIRE["A"], "what containers begin is something else"


@pytest.mark.parametrize("to", BOTH, ids=str)
def test_by_nat_the_host_reaches_the_port_of_the_container_through_its_own_alone(hosts: Hosts, to: IPAddress) -> None:
    web = hosts.snapshot.endpoints["web"]
    inside = web.address if to.version == 4 else web.address6
    assert inside is not None
    with publishing(hosts, PortMapping("tcp", 8091, 81, hidden=True)):
        assert refused_at_once(hosts, "A", inside, 81, 81)
        for client in ("A", "B", "near", "far", "web"):
            assert hosts.connects(client, to, 8091, listen=81) is not None, client
        assert hosts.connects("A", LOOP, 8091, listen=81) is not None
        assert hosts.connects("near", inside, 81, listen=81) is not None, "its network is not the host"
        assert hosts.connects("A", inside, 80) is not None, "and no other port is hidden"
        with hosts.socket("A") as listener, hosts.socket("web") as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            caller.bind(("0.0.0.0", 81))
            listener.bind((str(WIRE["A"]), 9001))
            listener.listen()
            caller.connect((str(WIRE["A"]), 9001))  # the host answers what comes from there
    assert hosts.connects("A", inside, 81, listen=81) is not None


def test_a_datagram_comes_with_the_clients_address_and_its_answer_from_the_hosts(hosts: Hosts) -> None:
    with publishing(hosts, PortMapping("udp", 8093, 83)), hosts.udp("web") as server, hosts.udp("B") as client:
        server.bind(("0.0.0.0", 83))
        client.sendto(b"ask", (str(WIRE["A"]), 8093))
        data, peer = server.recvfrom(9)
        assert (data, peer[0]) == (b"ask", str(WIRE["B"]))
        server.sendto(b"answer", peer)
        assert client.recvfrom(9) == (b"answer", (str(WIRE["A"]), 8093))


@pytest.mark.parametrize("to", BOTH, ids=str)
def test_sctp_comes_to_the_containers_port(hosts: Hosts, to: IPAddress) -> None:
    """The first packet of an association, by hand: this kernel may pass on what it has no sockets for. A kernel that does not check or
    translate SCTP leaves the port or the checksum as it was."""
    family = socket.AF_INET6 if to.version == 6 else socket.AF_INET
    with (
        publishing(hosts, PortMapping("sctp", 8092, 82)),
        hosts.socket("web", family, 2, socket.SOCK_RAW, SCTP) as ear,
        hosts.socket("B", family, kind=socket.SOCK_RAW, protocol=SCTP) as mouth,
    ):
        mouth.sendto(init(7000, 8092), (str(to), 0))
        heard = ear.recv(200)
        packet = heard if to.version == 6 else heard[20:]
        assert struct.unpack_from("!HH", packet) == (7000, 82)
        assert packet == init(7000, 82), "with the checksum of the whole"


SCTP = 132


def init(source: int, to: int) -> bytes:
    """A packet with the chunk INIT (RFC 9260, section 3.3.2)."""
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 1, 65536, 1, 1, 1)
    head = struct.pack("!HHI", source, to, 0)
    return head + struct.pack("<I", crc32c(head + bytes(4) + chunk)) + chunk


def crc32c(data: bytes) -> int:
    """RFC 9260, appendix A."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


# --- flows that were there before


ECHO = PortMapping("udp", 8093, 83)


class Serving:
    """`name` answers datagrams to its port with its name."""

    def __init__(self, hosts: Hosts, name: str, port: int = 83) -> None:
        self.sock, self.name = hosts.udp(name), name
        self.sock.bind(("0.0.0.0", port))
        self.sock.settimeout(0.3)

    def answers(self) -> bool:
        """Whether somebody asked since, who is told then."""
        try:
            _, peer = self.sock.recvfrom(9)
        except TimeoutError:
            return False
        self.sock.sendto(self.name.encode(), peer)
        return True


@contextlib.contextmanager
def asking(hosts: Hosts, where: str = "B", port: int = 7777) -> Iterator[socket.socket]:
    """A client that sends from one port all the time."""
    with hosts.udp(where) as client:
        client.bind(("0.0.0.0", port))
        client.settimeout(0.3)
        yield client


def publish(hosts: Hosts, **ports: tuple[PortMapping, ...]) -> None:
    """The agent's pass of A makes its endpoints publish these, and nothing else."""
    endpoints = {e.id: replace(e, ports=ports.get(e.name, ())) for e in hosts.snapshot.endpoints.values()}
    plan = plan_node(replace(hosts.snapshot, me="A", endpoints=endpoints), Local(fast_path=True))

    async def work(kernel: LinuxKernel) -> None:
        done = KernelWork(kernel)
        assert not (await done.converge(lambda: plan, may_delete=True)).failed
        done.close()

    def inside_a() -> None:
        with hosts.paths["A"].open() as file, inside(file.fileno()):
            asyncio.run(work(LinuxKernel()))

    in_thread(inside_a)


def test_the_next_datagram_goes_to_the_container_that_has_the_port_now(hosts: Hosts) -> None:
    """The host's port is another one than the container's, and the client sends from one port all the time."""
    to = (str(WIRE["A"]), ECHO.host_port)
    first, second = Serving(hosts, "web"), Serving(hosts, "near")
    with first.sock, second.sock, asking(hosts) as client, asking(hosts, port=7778) as bystander:
        publish(hosts, web=(ECHO, PortMapping("udp", 8094, 83)))
        client.sendto(b"1", to)
        assert first.answers() and client.recv(9) == b"web"
        bystander.sendto(b"1", (to[0], 8094))
        assert first.answers() and bystander.recv(9) == b"web"
        kept = hosts.run("A", "conntrack -L -p udp --orig-port-dst 8094 -o id 2>/dev/null")
        publish(hosts, near=(ECHO,), web=(PortMapping("udp", 8094, 83),))
        client.sendto(b"2", to)
        assert second.answers() and client.recv(9) == b"near" and not first.answers()
        assert kept.split("id=")[1] == hosts.run("A", "conntrack -L -p udp --orig-port-dst 8094 -o id 2>/dev/null").split("id=")[1]
        publish(hosts)


def test_who_asked_before_anything_was_published_is_answered_from_then_on(hosts: Hosts) -> None:
    """Its row says that the host itself is meant; one that the host passes on to elsewhere by the same number is another matter."""
    to = (str(WIRE["A"]), ECHO.host_port)
    server = Serving(hosts, "web")
    with server.sock, asking(hosts) as client, asking(hosts, "near", 7779) as passing:
        publish(hosts)
        client.sendto(b"1", to)
        passing.sendto(b"1", (str(WIRE["B"]), ECHO.host_port))
        assert not server.answers()
        rows = lambda: hosts.run("A", f"conntrack -L -p udp --orig-port-dst 8093 --orig-dst {WIRE['B']} -o id 2>/dev/null")  # noqa: E731
        before = rows()
        assert "sport=7779" in before
        publish(hosts, web=(ECHO,))
        client.sendto(b"2", to)
        assert server.answers() and client.recv(9) == b"web"
        assert rows().split("id=")[1] == before.split("id=")[1]
        publish(hosts)
        client.sendto(b"3", to)
        assert not server.answers(), "and no longer once it is published no more"


def test_a_connection_of_a_client_that_may_come_no_more_ends_and_that_of_others_goes_on(hosts: Hosts) -> None:
    open_, narrow = PortMapping("tcp", 8095, 85), PortMapping("tcp", 8095, 85, sources=networks("10.28.1.3"))
    with hosts.socket("web") as listener, hosts.socket("B") as gone, hosts.socket("near") as stays:
        listener.bind(("0.0.0.0", 85))
        listener.listen()
        publish(hosts, web=(open_,))
        pairs = []
        for client in (gone, stays):
            client.connect((str(WIRE["A"]), 8095))
            pairs.append(listener.accept()[0])
        publish(hosts, web=(narrow,))
        for pair, client in zip(pairs, (gone, stays), strict=True):
            pair.settimeout(0.5)
            if client is stays:
                pair.sendall(b"x")
                assert client.recv(1) == b"x"
            client.sendall(b"y")
        assert pairs[1].recv(1) == b"y"
        with pytest.raises(TimeoutError):
            pairs[0].recv(1)
        for pair in pairs:
            pair.close()
        publish(hosts)
