# SPDX-License-Identifier: Apache-2.0
"""The two hosts of `test_datapath`, whose first network is one of layer 2: what frames do."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from tests.kernel.test_datapath import BY_NAME, NETWORKS, WAYS, WIRE, Hosts, two_hosts

pytestmark = pytest.mark.root
FLAT = replace(NETWORKS[0], options={"layer2": "true"}, vni=2)
_TYPE = 0x88B5
"""An EtherType for experiments (IEEE 802)."""


@pytest.fixture(scope="module", params=WAYS)
def hosts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with two_hosts(tmp_path_factory.mktemp("frames"), request.param, FLAT) as made:
        yield made


@contextlib.contextmanager
def counted(hosts: Hosts, where: str, table: str, hook: str, what: str) -> Iterator[Callable[[], int]]:
    """How many packets that are `what` come by this hook of a host."""
    hosts.run(where, f"nft 'add table {table} spy; add chain {table} spy seen {{ type filter hook {hook}; }}'")
    try:
        hosts.run(where, f"nft 'add rule {table} spy seen {what} counter'")

        def seen() -> int:
            found = re.search(r"counter packets (\d+)", hosts.run(where, f"nft list table {table} spy"))
            assert found is not None
            return int(found[1])

        yield seen
    finally:
        hosts.run(where, f"nft delete table {table} spy")


def frame_socket(hosts: Hosts, where: str) -> socket.socket:
    """What sends and hears frames of `_TYPE` in a container."""
    sock = hosts.socket(where, socket.AF_PACKET, 0.5, socket.SOCK_RAW, socket.htons(_TYPE))
    sock.bind(("eth0", _TYPE))
    return sock


def framed(sender: str, to: str, content: bytes) -> bytes:
    macs = (bytes.fromhex(BY_NAME[name].mac.replace(":", "")) for name in (to, sender))
    return b"".join(macs) + _TYPE.to_bytes(2, "big") + content.ljust(50, b"\0")


@pytest.mark.parametrize(("client", "server"), [("web", "far"), ("far", "web"), ("near", "far"), ("near", "web")])
def test_frames_go_past_the_bridges(hosts: Hosts, client: str, server: str) -> None:
    to = BY_NAME[server]
    assert hosts.pings(client, to.address), "asks the bridge who has it"
    with contextlib.ExitStack() as stack:
        found = {BY_NAME[client].node, to.node}
        seen = [stack.enter_context(counted(hosts, host, "bridge", "forward priority 0", f"ip daddr {to.address}")) for host in found]
        assert hosts.connects(client, to.address, 7000, server, 7000, size=100_000) == BY_NAME[client].address
        assert (sum(count() for count in seen) == 0) is hosts.fast


def test_the_shortcut_leaves_the_tunnel_device_out_too(hosts: Hosts) -> None:
    far = BY_NAME["far"]
    assert hosts.pings("web", far.address)
    with counted(hosts, "B", "inet", "prerouting priority -400", f"udp dport {FLAT.port}") as seen:
        assert hosts.connects("web", far.address, 7000, "far", 7000, size=100_000) == BY_NAME["web"].address
        assert (seen() == 0) is bool(hosts.shortcut)
    assert BY_NAME["web"].mac in hosts.run("far", "ip neigh show dev eth0"), "and knows the sender by its own MAC"


@pytest.mark.parametrize(("sender", "to"), [("near", "far"), ("far", "near"), ("near", "web")])
def test_whatever_they_carry(hosts: Hosts, sender: str, to: str) -> None:
    with frame_socket(hosts, sender) as mouth, frame_socket(hosts, to) as ear:
        mouth.send(framed(sender, to, b"neither IP nor ARP"))
        assert ear.recv(2000) == framed(sender, to, b"neither IP nor ARP")


@pytest.mark.parametrize("client", ["near", "far", "B"])
def test_published_ports_lead_where_they_led(hosts: Hosts, client: str) -> None:
    """Also for who is on the link of the server: its answers come back under the address that was asked."""
    seen = hosts.connects(client, WIRE["A"], 8080)
    assert seen == (WIRE["B"] if client in ("B", "far") else BY_NAME[client].address)


def test_a_server_of_a_published_port_is_reached_by_its_own_address(hosts: Hosts) -> None:
    for client in ("near", "far"):
        assert hosts.connects(client, BY_NAME["web"].address, 80) == BY_NAME[client].address


def test_networks_are_kept_apart(hosts: Hosts) -> None:
    for client, to in (("web", "foreign"), ("foreign", "web"), ("stranger", "far"), ("far", "vault")):
        assert hosts.connects(client, BY_NAME[to].address, 80, to) is None


def test_what_comes_out_of_the_tunnel_never_goes_back(hosts: Hosts) -> None:
    """B believes that `far` lies on A, A that it lies on B: a frame would go round for ever."""
    far = replace(hosts.snapshot.endpoints["far"], node="A", netns="")
    try:
        hosts.converge("B", replace(hosts.snapshot, endpoints={**hosts.snapshot.endpoints, "far": far}))
        spied = "prerouting priority -400", f"udp dport {FLAT.port}"
        with counted(hosts, "A", "inet", *spied) as back, frame_socket(hosts, "near") as mouth:
            with counted(hosts, "B", "inet", *spied) as came:
                mouth.send(framed("near", "far", b"round and round"))
                hosts.pings("A", WIRE["B"])
                assert came() == 1
            assert back() == 0
    finally:
        hosts.converge("B")


def test_ports_that_are_isolated_stay_so(hosts: Hosts) -> None:
    apart = replace(FLAT, options={**FLAT.options, "isolated": "true"})
    try:
        for host in "AB":
            hosts.converge(host, replace(hosts.snapshot, networks={**hosts.snapshot.networks, "default": apart}))
        for client, to in (("web", "near"), ("web", "far"), ("far", "web")):
            assert hosts.connects(client, BY_NAME[to].address, 7000, to, 7000) is None
    finally:
        for host in "AB":
            hosts.converge(host)
    assert hosts.connects("web", BY_NAME["far"].address, 7000, "far", 7000) == BY_NAME["web"].address
