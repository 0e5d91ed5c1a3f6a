# SPDX-License-Identifier: Apache-2.0
"""The netlink core before the real kernel: what is refused, what is looked up, what the kernel can do."""

from __future__ import annotations

import errno
import subprocess
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

import pytest
from tests.support.kernel import in_namespace, own_namespace, sh

from plait.kernel.linux import LinuxKernel, create_netns, delete_netns
from plait.kernel.linux import link as links
from plait.kernel.linux.netns import in_thread, inside
from plait.kernel.linux.probe import probe_capabilities
from plait.model.objects import BridgeLink, EndpointLink, Op, Route

pytestmark = pytest.mark.root
GATEWAY = BridgeLink("pl-gw", "02:00:00:00:00:aa")


def subnets(count: int) -> list[IPv4Network]:
    return [IPv4Network((0x0A400000 + (n << 8), 24)) for n in range(count)]


def test_thousands_of_refusals_in_one_batch_are_all_heard() -> None:
    """Each takes room in the socket's buffer before the first is read."""

    def body(kernel: LinuxKernel) -> None:
        bad = [Route(subnet, "pl-gw", via=IPv4Address("192.0.2.1")) for subnet in subnets(3000)]
        good = Route(IPv4Network("10.1.0.0/16"), "pl-gw", scope="link")
        result = kernel.apply([Op("put", GATEWAY), *(Op("put", route) for route in bad), Op("put", good)])
        assert set(result.failed) == {route.key for route in bad} and result.done == (GATEWAY.key, good.key)
        error = result.failed[bad[0].key]
        assert error.errno == errno.ENETUNREACH and "gateway" in str(error), "the kernel's own words are passed on"

    in_namespace(body)


def test_a_listing_is_whole_while_others_change_the_tables() -> None:
    def body(kernel: LinuxKernel) -> None:
        routes = [Route(subnet, "pl-gw", scope="link") for subnet in subnets(2000)]
        kernel.apply([Op("put", obj) for obj in (GATEWAY, *routes)])
        lines = "".join(f"link add b{n} type bridge\nlink del b{n}\n" for n in range(100))
        with subprocess.Popen(["ip", "-batch", "-"], stdin=subprocess.PIPE, text=True) as other:
            assert other.stdin is not None
            other.stdin.write(lines)
            other.stdin.close()
            while other.poll() is None:
                assert len(kernel.owned()) == 2001

    in_namespace(body)


def test_the_underlay_of_an_address_is_its_link_and_mtu() -> None:
    def body(kernel: LinuxKernel) -> None:
        sh("ip link set eth0 mtu 1400")
        assert kernel.underlay(IPv4Address("198.18.0.1")) == ("eth0", 1400)
        with pytest.raises(OSError, match=r"198\.18\.0\.9"):
            kernel.underlay(IPv4Address("198.18.0.9"))

    in_namespace(body)


def test_the_probe_finds_what_this_kernel_has_and_leaves_nothing() -> None:
    def work() -> None:
        own_namespace()
        before = sh("ip link; nft list ruleset")
        assert probe_capabilities() - {"ipvlan", "vlan"} == {
            "macvlan",
            "vxlan",
            "bridge",
            "veth",
            "nft",
            "fwd",
            "counting",
            "guard",
            "metered",
            "egress",
            "ingress",
            "draw",
            "shortcut",
            "xdp",
            "tbf",
            "ifb",
            "redirect",
            "htb",
            "ipv6",
            "via6",
            "wireguard",
        }
        assert sh("ip link; nft list ruleset") == before

    in_thread(work)


def test_an_endpoint_that_fails_inside_leaves_nothing_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sandbox"
    link = EndpointLink("pl-e2", 1450, mac="02:00:00:00:00:0b", netns=str(path), address=IPv4Interface("10.28.1.7/32"))
    plumbing = links.inside_messages
    monkeypatch.setattr(links, "inside_messages", lambda *of: [*plumbing(*of), links.delete_link(999_999)])

    def body(kernel: LinuxKernel) -> None:
        result = kernel.apply([Op("put", link)])
        assert str(path) in str(result.failed[link.key])
        assert kernel.owned() == {}

    create_netns(path)
    try:
        in_namespace(body)
    finally:
        delete_netns(path)


def test_a_thread_comes_back_from_the_namespace_it_looked_into(tmp_path: Path) -> None:
    path = tmp_path / "sandbox"
    create_netns(path)

    def work() -> None:
        own_namespace()
        home = Path("/proc/thread-self/ns/net").stat().st_ino
        with path.open() as file:
            with inside(file.fileno()):
                assert Path("/proc/thread-self/ns/net").stat().st_ino == path.stat().st_ino
            with pytest.raises(ZeroDivisionError), inside(file.fileno()):
                raise ZeroDivisionError
        assert Path("/proc/thread-self/ns/net").stat().st_ino == home

    try:
        in_thread(work)
    finally:
        delete_netns(path)
