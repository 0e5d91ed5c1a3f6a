# SPDX-License-Identifier: Apache-2.0
"""Which frames reach the agent's DHCP client of all that are on a link, and a link inside a sandbox that gets another address in place."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface, ip_address
from pathlib import Path

import pytest
from tests.support.kernel import in_namespace, sh

from plait.agent.dhcpwires import Wires
from plait.dhcp.frames import datagram, datagram6, payload_of, question
from plait.kernel.linux import (
    LinuxKernel,
    PacketSocket,
    create_netns,
    delete_netns,
    link_mac,
    open_arp,
    open_claims,
    open_neighbours,
    readdress,
)
from plait.model.hostlinks import ChildLink
from plait.model.leases import Way
from plait.model.objects import Op

pytestmark = pytest.mark.root
MAC, OTHER = "02:00:00:00:00:01", "02:00:00:00:00:02"
A = IPv4Address


def on_a_wire(body: Callable[[], None]) -> None:
    """Run `body` in a namespace of its own, with a link whose two ends are d0 and d1."""

    def work(_: LinuxKernel) -> None:
        sh("ip link add d0 type veth peer name d1 && ip link set d0 up && ip link set d1 up")
        body()

    in_namespace(work)


def heard(sock: PacketSocket, wanted: int) -> list[bytes]:
    """What has come within a moment, at least as many as are wanted."""
    found: list[bytes] = []
    end = time.monotonic() + 5
    while time.monotonic() < end and len(found) < wanted:
        found += [frame for frame, _ in sock.frames()]
        time.sleep(0.01)
    return found


def test_only_what_is_said_to_clients_is_heard() -> None:
    def body() -> None:
        server, to = (OTHER, A("192.0.2.1")), (MAC, A("192.0.2.7"))
        mine = datagram(b"mine", server, to, (67, 68))
        tagged = mine[:12] + b"\x81\0\0\x2a" + mine[12:]
        foreign = (datagram(b"other", server, to, (67, 69)), datagram6(b"to servers", OTHER), question(OTHER, A("192.0.2.7")), tagged)
        with contextlib.closing(PacketSocket("d0")) as sock, contextlib.closing(PacketSocket("d1")) as far:
            sock.send(mine)  # what leaves is not heard
            for frame in (*foreign, mine):
                far.send(frame)
            (found,) = heard(sock, 1)
            assert found == mine and payload_of(found) == (OTHER, A("192.0.2.1"), b"mine") and sock.frames() == []
            assert heard(far, 1) == [mine]

    on_a_wire(body)


def test_questions_of_each_family_have_sockets_of_their_own() -> None:
    def body() -> None:
        with contextlib.closing(open_arp("d0")) as arp, contextlib.closing(open_neighbours("d0", MAC)) as neighbours:
            asked = question(OTHER, A("192.0.2.7"))
            with contextlib.closing(PacketSocket("d1")) as far:
                far.send(asked)
                assert asked in heard(arp, 1)
                sh("ip addr add fd99::1/64 dev d1 nodad && (ping -6 -c1 -W1 fd99::7 || true)")
                assert any(frame[54] == 135 for frame in heard(neighbours, 1))

    on_a_wire(body)


@pytest.mark.parametrize("mac", [MAC, ""], ids=["own", "of-the-link"])
def test_who_has_an_address_of_either_family_on_the_link_says_so(mac: str) -> None:
    """A whole kernel is at the other end; this one has IPv6 switched off on the link, as many hosts have."""

    def body() -> None:
        sh("sysctl -qw net.ipv6.conf.d0.disable_ipv6=1 && ip addr add 192.0.2.7/24 dev d1 && ip addr add fd99::7/64 dev d1 nodad")
        wires = Wires(PacketSocket, open_arp, open_claims, open_neighbours, lambda: None)
        holder = link_mac("d1")
        for address, said in (("192.0.2.7", holder), ("192.0.2.8", ""), ("fd99::7", holder), ("fd99::8", "")):
            assert asyncio.run(wires.is_taken("d0", mac, ip_address(address))) == said, address
        assert asyncio.run(wires.is_taken("d0", holder, ip_address("fd99::7"))) == "", "that is who asks"
        assert asyncio.run(wires.is_taken("d9", mac, ip_address("fd99::7"))) == "", "there is no such link"

    on_a_wire(body)


def test_a_link_lets_answers_in_that_go_to_everybody_although_it_has_no_ipv6() -> None:
    """A veth takes every frame; hardware takes what is on this list."""

    def body() -> None:
        sh("sysctl -qw net.ipv6.conf.d0.disable_ipv6=1")
        assert "33:33:00:00:00:01" not in sh("ip maddr show dev d0")
        with contextlib.closing(open_claims("d0")):
            assert "33:33:00:00:00:01" in sh("ip maddr show dev d0")
        assert "33:33:00:00:00:01" not in sh("ip maddr show dev d0")

    on_a_wire(body)


def test_a_link_that_is_not_there_is_an_error() -> None:
    def body() -> None:
        for open_it in (PacketSocket, open_arp, open_claims, link_mac):
            with pytest.raises(OSError, match="No such device"):
                open_it("d9")
        assert link_mac("d0") in sh("ip link show d0")

    on_a_wire(body)


def test_a_link_gets_another_address_in_place(tmp_path: Path) -> None:
    """Same link, same MAC; nothing of the former address and its routes stays, and without a lease there is none."""
    path = str(tmp_path / "ns")

    def work(kernel: LinuxKernel) -> None:
        sh("ip link add d0 type veth peer name d1 && ip link set d0 up && ip link set d1 up")
        before = ChildLink(
            "pl-e1", "d0", "macvlan", "bridge", path, MAC, address=IPv4Interface("192.0.2.7/24"), ways=ways("192.0.2.1"), mtu=1400
        )
        assert kernel.apply([Op("put", before)]).failed == {}
        index = inside("ip -o link show eth0").split(":")[0]
        six = IPv6Interface("fd99::7/128")
        after = ChildLink(
            "pl-e1", "d0", "macvlan", "bridge", path, MAC, address=IPv4Interface("198.51.100.9/25"), ways=ways("198.51.100.1"), address6=six
        )
        assert readdress(after)
        assert inside("ip -o link show eth0").split(":")[0] == index and MAC in inside("ip link show eth0")
        said = inside("ip addr show eth0; ip route; ip -6 addr show eth0")
        assert "198.51.100.9/25" in said and "fd99::7/128" in said and "192.0.2" not in said
        assert "default via 198.51.100.1" in said and "203.0.113.0/24 dev eth0" in said
        assert readdress(ChildLink("pl-e1", "d0", "macvlan", "bridge", path, MAC))
        said = inside("ip addr show eth0; ip route; ip -6 addr show eth0")
        assert "inet " not in said and "default via" not in said and "fd99" not in said and "fe80" in said
        assert not readdress(ChildLink("pl-e2", "d0", "macvlan", "bridge", path))

    def inside(command: str) -> str:
        return sh(f"nsenter --net={path} sh -c '{command}'")

    def ways(router: str) -> tuple[Way, ...]:
        return (Way(IPv4Network("0.0.0.0/0"), A(router)), Way(IPv4Network("203.0.113.0/24")))

    create_netns(Path(path))
    try:
        in_namespace(work)
    finally:
        delete_netns(Path(path))
