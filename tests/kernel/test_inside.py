# SPDX-License-Identifier: Apache-2.0
"""What is read of a sandbox's namespace, beside what was made there."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path

import pytest

from plait.kernel.linux import LinuxKernel, create_netns, delete_netns, inspect_sandbox
from plait.kernel.linux.netns import in_thread, unshare_net
from plait.model.objects import EndpointLink, Inside6, Op

pytestmark = pytest.mark.root


@pytest.fixture
def netns(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "ns"
    create_netns(path)
    yield str(path)
    delete_netns(path)


def test_an_empty_namespace_has_a_loopback_and_no_way_out(netns: str) -> None:
    state = inspect_sandbox(netns)
    assert set(state.links) == {"lo"} and not state.links["lo"].up and not state.gateways


def test_an_endpoint_is_found_as_it_was_made(netns: str) -> None:
    address, gateway, mac = IPv4Interface("10.28.0.2/32"), IPv4Address("10.28.0.1"), "02:00:00:00:00:07"
    through = (IPv4Network("0.0.0.0/0"),)
    link = EndpointLink("pl-e1", 1450, mac=mac, netns=netns, ifname="eth7", address=address, gateway=gateway, through=through)

    def make() -> None:
        unshare_net()
        kernel = LinuxKernel()
        assert not kernel.apply([Op("put", link)]).failed
        state = inspect_sandbox(netns)
        eth = state.links["eth7"]
        assert (eth.mac, eth.up, eth.addresses) == (mac, True, {address}) and state.gateways == {gateway}
        subprocess.run(["nsenter", f"--net={netns}", "ip", "route", "replace", "default", "dev", "eth7"], check=True)
        assert IPv4Address(0) in inspect_sandbox(netns).gateways, "a default route without a next hop is one too"
        subprocess.run(["nsenter", f"--net={netns}", "ip", "link", "set", "eth7", "down"], check=True)
        state = inspect_sandbox(netns)
        assert not state.links["eth7"].up and not state.gateways
        kernel.close()

    in_thread(make)


@pytest.mark.parametrize("on_link", [False, True])
def test_and_so_is_ipv6(netns: str, on_link: bool) -> None:
    six = Inside6(IPv6Address("fd00:28::2"), IPv6Address("fd00:28::1"), IPv6Network("fd00:28::/64"), True, on_link)
    link = EndpointLink("pl-e1", 1450, mac="02:00:00:00:00:07", netns=netns, ifname="eth7", inside6=six)

    def make() -> None:
        unshare_net()
        kernel = LinuxKernel()
        assert not kernel.apply([Op("put", link)]).failed
        state = inspect_sandbox(netns)
        prefix = 64 if on_link else 128
        assert state.links["eth7"].addresses == {IPv6Interface(f"fd00:28::2/{prefix}")} and state.gateways6 == {six.gateway}
        near = subprocess.run(["nsenter", f"--net={netns}", "ip", "-6", "route", "get", "fd00:28::9"], check=True, capture_output=True)
        assert (b" via fd00:28::1 " in near.stdout) == (not on_link)
        subprocess.run(["nsenter", f"--net={netns}", "ip", "-6", "route", "del", "default"], check=True)
        assert not inspect_sandbox(netns).gateways6
        kernel.close()

    in_thread(make)


def test_no_namespace_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        inspect_sandbox(str(tmp_path / "nothing"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        inspect_sandbox(str(tmp_path / "file"))
