# SPDX-License-Identifier: Apache-2.0
"""Links on a link of the host: what the real kernel makes of their messages, and what it tells of them afterwards."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest
from tests.support.kernel import sh

from plait.kernel.linux import LinuxKernel, create_netns, delete_netns, inspect_sandbox, tell_neighbours
from plait.kernel.linux import link as links
from plait.kernel.linux.child import create_child, create_vlan
from plait.kernel.linux.netns import in_thread, unshare_net
from plait.model.hostlinks import ChildLink, VlanLink
from plait.model.inside import Inside6
from plait.model.objects import Op

pytestmark = pytest.mark.root
MAC = "02:00:00:00:00:07"
SIX = Inside6(IPv6Address("fd00:7::7"), IPv6Address("fd00:7::fe"), IPv6Network("fd00:7::/64"), default=True, on_link=True)


@pytest.fixture
def netns(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "ns"
    create_netns(path)
    yield str(path)
    delete_netns(path)


def child(netns: str, mode: str = "bridge", name: str = "pl-e1", mac: str = MAC) -> ChildLink:
    address, everything = IPv4Interface("192.0.2.7/24"), IPv4Network("0.0.0.0/0")
    return ChildLink(name, "eth1", "macvlan", mode, netns, mac, "eth7", address, IPv4Address("192.0.2.1"), (everything,))


def with_parent(body: Callable[[LinuxKernel], None]) -> None:
    """In a namespace of its own with a link eth1, whose other end is `far`."""

    def work() -> None:
        unshare_net()
        sh("ip link add eth1 type veth peer name far && ip link set eth1 up && ip link set far up")
        kernel = LinuxKernel()
        try:
            if "macvlan" not in kernel.capabilities():
                pytest.skip("this kernel has no macvlan")
            body(kernel)
        finally:
            kernel.close()

    in_thread(work)


def attributes(data: bytes) -> dict[int, bytes]:
    """As netlink(7) lays them out, read without plait's own parser."""
    found, at = {}, 0
    while at < len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


@pytest.mark.parametrize(
    ("kind", "mode", "data"),
    [
        ("macvlan", "private", struct.pack("=HHI", 8, 1, 1)),
        ("macvlan", "vepa", struct.pack("=HHI", 8, 1, 2)),
        ("macvlan", "bridge", struct.pack("=HHI", 8, 1, 4)),
        ("macvlan", "passthru", struct.pack("=HHI", 8, 1, 8)),
        ("ipvlan", "l2", struct.pack("=HHHxx", 6, 1, 0)),
        ("ipvlan", "l3", struct.pack("=HHHxx", 6, 1, 1)),
        ("ipvlan", "l3s", struct.pack("=HHHxx", 6, 1, 2)),
    ],
)
def test_the_bytes_of_a_child_are_those_that_if_link_h_lays_down(kind: str, mode: str, data: bytes) -> None:
    link = replace(child("/run/ns", mode), kind=kind, mac=MAC if kind == "macvlan" else "")
    message = create_child(link, 77, 5, 9)
    assert (message.type, message.flags) == (16, 0x200 | 0x400), "RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL"
    assert struct.unpack_from("=BxHiII", message.body) == (0, 0, 77, 0, 0), "not up"
    found = attributes(message.body[16:])
    assert (found[3], found[5], found[28]) == (b"eth7\0", struct.pack("=I", 5), struct.pack("=I", 9))
    assert found.get(1) == (bytes.fromhex("020000000007") if kind == "macvlan" else None)
    assert attributes(found[18]) == {1: kind.encode() + b"\0", 2: data}
    assert attributes(create_child(link, 77, 5, None).body[16:])[3] == b"pl-e1\0"


def test_the_bytes_of_a_tagged_link_are_those_that_if_link_h_lays_down() -> None:
    message = create_vlan(VlanLink("pl-v1", "eth1", 42), 5)
    assert struct.unpack_from("=BxHiII", message.body) == (0, 0, 0, 1, 1), "up"
    found = attributes(message.body[16:])
    assert (found[3], found[5]) == (b"pl-v1\0", struct.pack("=I", 5))
    assert attributes(found[18]) == {1: b"vlan\0", 2: struct.pack("=HHHxx", 6, 1, 42)}


def test_a_tagged_link_is_read_back_as_it_was_written() -> None:
    """As a kernel with 802.1Q tells it: index 9, up, lying on link 5, VLAN 42."""
    written = create_vlan(VlanLink("pl-v1", "eth1", 42), 5).body
    found = links.decode_link(struct.pack("=BxHiII", 0, 1, 9, 1, 0) + written[16:])
    assert (found.index, found.parent, found.link) == (9, 5, VlanLink("pl-v1", "", 42))


def test_an_ipvlan_link_is_read_back_as_it_was_written() -> None:
    written = create_child(replace(child(""), kind="ipvlan", mode="l3s", mac=""), 9, 5, None).body
    found = links.decode_link(written)
    assert (found.index, found.parent) == (9, 5) and isinstance(found.link, ChildLink)
    assert (found.link.kind, found.link.mode) == ("ipvlan", "l3s")


@pytest.mark.parametrize("mode", ["bridge", "private", "vepa", "passthru"])
def test_a_child_lies_in_its_namespace_alone_and_is_found_there(netns: str, mode: str) -> None:
    link = child(netns, mode)

    def body(kernel: LinuxKernel) -> None:
        assert kernel.owned([link.key]) == {}
        assert not kernel.apply([Op("put", link)]).failed
        state = inspect_sandbox(netns)
        eth = state.links["eth7"]
        assert (eth.mac, eth.up, eth.addresses, state.gateways) == (MAC, True, {link.address}, {link.gateway})
        assert kernel.owned([link.key]) == {link.key: link} and kernel.owned() == {}, "only who asks is told"
        assert "pl-" not in sh("ip link")
        if mode == "passthru":
            assert MAC in sh("ip link show eth1")
        assert not kernel.apply([Op("del", None, link)]).failed
        assert kernel.owned([link.key]) == {} and set(inspect_sandbox(netns).links) == {"lo"}
        assert not kernel.apply([Op("del", None, link)]).failed, "absent is fine"

    with_parent(body)


@pytest.mark.parametrize("straight", [False, True])
def test_ipv6_is_there_at_once_with_the_prefix_and_the_routers_way_and_the_kernel_adds_nothing(netns: str, straight: bool) -> None:
    """By default, as the kernel has it, the link would hear the router's advertisements, and search for duplicates for a second."""
    link = replace(child(netns), inside6=SIX, gateway=None if straight else child(netns).gateway)

    def inner(command: str) -> str:
        return sh(f"nsenter --net={netns} {command}")

    def body(kernel: LinuxKernel) -> None:
        assert not kernel.apply([Op("put", link)]).failed and kernel.owned([link.key]) == {link.key: link}
        said = inner("ip -6 addr show dev eth7")
        assert "fd00:7::7/64" in said and "tentative" not in said and said.count("inet6") == 2, said
        ways = [line.split(" metric")[0] for line in inner("ip -6 route show dev eth7 proto static").splitlines()]
        assert sorted(line.strip().removesuffix(" proto static") for line in ways) == (
            ["default", "fd00:7::/64"] if straight else ["default via fd00:7::fe", "fd00:7::/64", "fd00:7::fe"]
        )
        values = inner("sysctl -n net.ipv6.conf.eth7.accept_ra net.ipv6.conf.eth7.autoconf net.ipv6.conf.eth7.disable_ipv6")
        assert values.split() == ["0", "0", "0"]
        sh("ip addr add fd00:7::fe/64 dev far nodad")
        assert sh("ping -6 -c1 -W2 fd00:7::7")
        assert inner("ping -6 -c1 -W2 fd00:7::fe")

    with_parent(body)


def test_ipv6_opens_a_link_that_its_sandbox_had_it_off_for(netns: str) -> None:
    sh(f"nsenter --net={netns} sysctl -qw net.ipv6.conf.default.disable_ipv6=1")
    link = replace(child(netns), inside6=SIX)

    def body(kernel: LinuxKernel) -> None:
        assert not kernel.apply([Op("put", link)]).failed
        assert "fd00:7::7/64" in sh(f"nsenter --net={netns} ip -6 addr show dev eth7")

    with_parent(body)


def test_a_router_may_have_a_link_local_address_alone(netns: str) -> None:
    link = replace(child(netns), inside6=replace(SIX, gateway=IPv6Address("fe80::1")))

    def body(kernel: LinuxKernel) -> None:
        assert not kernel.apply([Op("put", link)]).failed
        sh("ip addr add fe80::1/64 dev far nodad && ip addr add 2001:db8:9::9/128 dev far nodad && ip route add fd00:7::/64 dev far")
        assert sh(f"nsenter --net={netns} ping -6 -c1 -W2 2001:db8:9::9"), "it leads on"

    with_parent(body)


def test_a_child_for_an_engine_waits_in_the_hosts_namespace_and_is_found_wherever_it_is_moved(netns: str) -> None:
    link = child("")

    def body(kernel: LinuxKernel) -> None:
        home = f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"
        assert not kernel.apply([Op("put", link)]).failed
        assert kernel.owned() == {link.key: link}
        sh(f"ip link set pl-e1 netns {netns} name eth0")
        there = replace(link, netns=netns)
        assert kernel.owned([link.key, there.key]) == {there.key: there}
        sh(f"nsenter --net={netns} ip link set eth0 netns {home} name pl-e1")
        assert kernel.owned([there.key]) == {link.key: link}, "the engine has given it back"
        assert not kernel.apply([Op("del", None, link)]).failed and kernel.owned() == {}

    with_parent(body)


def test_what_differs_is_made_anew_and_what_went_with_its_parent_too(netns: str) -> None:
    link = child(netns)

    def body(kernel: LinuxKernel) -> None:
        assert not kernel.apply([Op("put", link)]).failed
        private = replace(link, mode="private")
        assert not kernel.apply([Op("put", private, link)]).failed and kernel.owned([link.key]) == {link.key: private}
        sh("ip link set eth1 name eth9")
        assert kernel.owned([link.key]) == {link.key: replace(private, parent="eth9")}
        sh("ip link del eth9")
        assert kernel.owned([link.key]) == {} and set(inspect_sandbox(netns).links) == {"lo"}
        (error,) = kernel.apply([Op("put", link)]).failed.values()
        assert "no link named eth1" in str(error)
        sh("ip link add eth1 type veth peer name far && ip link set eth1 up")
        assert not kernel.apply([Op("put", link)]).failed and inspect_sandbox(netns).gateways == {link.gateway}

    with_parent(body)


def test_a_half_made_child_is_replaced_and_a_strangers_link_is_not(netns: str) -> None:
    """The agent was killed between the request that makes the link and the one that names it."""
    link = child(netns)

    def body(kernel: LinuxKernel) -> None:
        sh(f"ip link add link eth1 name eth7 netns {netns} address {MAC} type macvlan mode bridge")
        assert kernel.owned([link.key]) == {}, "nothing says that it is ours"
        assert not kernel.apply([Op("put", link)]).failed and kernel.owned([link.key]) == {link.key: link}
        assert not kernel.apply([Op("del", None, link)]).failed
        sh(f"ip link add link eth1 name eth7 netns {netns} address 02:00:00:00:00:08 type macvlan mode bridge")
        (error,) = kernel.apply([Op("put", link)]).failed.values()
        assert error.errno == 17 and set(inspect_sandbox(netns).links) == {"lo", "eth7"}
        assert not kernel.apply([Op("del", None, link)]).failed and set(inspect_sandbox(netns).links) == {"lo", "eth7"}

    with_parent(body)


def test_nothing_is_left_of_one_that_could_not_be_set_up(netns: str) -> None:
    link = child(netns)
    assert link.address is not None
    wrong = replace(link, gateway=link.address.network.broadcast_address)  # no way leads by way of everybody

    def body(kernel: LinuxKernel) -> None:
        (error,) = kernel.apply([Op("put", wrong)]).failed.values()
        assert "macvlan of eth1" in str(error)
        assert set(inspect_sandbox(netns).links) == {"lo"}
        missing = replace(link, netns=netns + "-gone")
        (error,) = kernel.apply([Op("put", missing)]).failed.values()
        assert error.errno == 2
        assert not kernel.apply([Op("del", None, missing)]).failed and kernel.owned([missing.key]) == {}

    with_parent(body)


def test_a_parent_that_is_whole_given_away_is_refused_to_a_second_one(netns: str) -> None:
    first, second = child(netns, "passthru"), replace(child("", "passthru"), name="pl-e2", mac="02:00:00:00:00:09")

    def body(kernel: LinuxKernel) -> None:
        assert not kernel.apply([Op("put", first)]).failed
        (error,) = kernel.apply([Op("put", second)]).failed.values()
        assert error.key == "child pl-e2 " and "macvlan of eth1" in str(error)
        assert kernel.owned([first.key]) == {first.key: first}

    with_parent(body)


@pytest.mark.parametrize("kind", ["ipvlan", "vlan"])
def test_what_this_kernel_lacks_is_told_by_the_probe_and_by_a_refusal(kind: str) -> None:
    def body(kernel: LinuxKernel) -> None:
        put = VlanLink("pl-v1", "eth1", 42) if kind == "vlan" else replace(child(""), kind="ipvlan", mode="l2", mac="")
        failed = kernel.apply([Op("put", put)]).failed
        assert (not failed) == (kind in kernel.capabilities())
        if not failed:
            assert kernel.owned()[put.key] == put

    with_parent(body)


def test_a_neighbour_that_knows_the_address_by_another_mac_learns_the_new_one_at_once(netns: str) -> None:
    link = child(netns)
    assert link.address is not None
    wanted = link.address.ip

    def body(kernel: LinuxKernel) -> None:
        assert not tell_neighbours(netns, link.name, MAC, wanted), "there is no link yet"
        assert not kernel.apply([Op("put", link)]).failed
        sh("ip addr add 192.0.2.1/24 dev far && ip neigh add 192.0.2.7 lladdr 02:00:00:00:00:99 dev far nud reachable")
        assert tell_neighbours(netns, "pl-e9", MAC, wanted) and MAC in sh("ip neigh show 192.0.2.7"), "found by its MAC"
        sh("ip neigh replace 192.0.2.7 lladdr 02:00:00:00:00:99 dev far nud reachable")
        assert tell_neighbours(netns, link.name, "", wanted) and MAC in sh("ip neigh show 192.0.2.7"), "or by its alias"
        sh(f"nsenter --net={netns} ip link set eth7 down")
        assert not tell_neighbours(netns, link.name, MAC, wanted)
        with pytest.raises(FileNotFoundError):
            tell_neighbours(netns + "-gone", link.name, MAC, wanted)

    with_parent(body)


def test_the_same_by_ipv6(netns: str) -> None:
    link = replace(child(netns), inside6=SIX)

    def body(kernel: LinuxKernel) -> None:
        assert not kernel.apply([Op("put", link)]).failed
        sh("ip addr add fd00:7::fe/64 dev far nodad && ip neigh add fd00:7::7 lladdr 02:00:00:00:00:99 dev far nud reachable")
        assert tell_neighbours(netns, link.name, MAC, SIX.address) and MAC in sh("ip neigh show fd00:7::7")

    with_parent(body)
