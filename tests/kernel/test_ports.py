# SPDX-License-Identifier: Apache-2.0
"""Published ports in the kernel: for whom they are, and whom they are the only way for. Two hosts with the plans of their nodes."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from tests.kernel import test_dual
from tests.kernel.test_datapath import WIRE, Hosts

from plait.model.addr import EitherNetwork, IPAddress
from plait.model.cluster import PortMapping

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
