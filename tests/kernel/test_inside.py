# SPDX-License-Identifier: Apache-2.0
"""What is read of a sandbox's namespace, beside what was made there."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

import pytest

from plait.kernel.linux import LinuxKernel, create_netns, delete_netns, inspect_sandbox
from plait.kernel.linux.netns import in_thread, unshare_net
from plait.model.objects import EndpointLink, Op

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


def test_no_namespace_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        inspect_sandbox(str(tmp_path / "nothing"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        inspect_sandbox(str(tmp_path / "file"))
