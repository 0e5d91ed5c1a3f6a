# SPDX-License-Identifier: Apache-2.0
"""Ports of Open vSwitch's bridges in a real database, without the program that would make them true."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.kernel import sh

from plait.kernel.linux import LinuxKernel, create_netns, delete_netns, ethtool, openvswitch
from plait.kernel.linux.inside import opened
from plait.kernel.linux.netns import in_thread, inside, unshare_net
from plait.model.hostlinks import SwitchPort
from plait.model.objects import EndpointLink, Op

pytestmark = [pytest.mark.root, pytest.mark.skipif(shutil.which("ovsdb-server") is None, reason="there is no Open vSwitch here")]
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
PORT = SwitchPort("br0", "pl-e1", 42, "", "pl-p1")


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Asks `ovs-vsctl`, whose bridges are `br0` and `br1`."""
    files, sock = tmp_path / "conf.db", tmp_path / "db.sock"
    subprocess.run(["ovsdb-tool", "create", files, SCHEMA], check=True)
    server = subprocess.Popen(["ovsdb-server", f"--remote=punix:{sock}", f"--unixctl={tmp_path / 'ctl'}", files], stderr=subprocess.DEVNULL)
    monkeypatch.setattr(openvswitch, "SOCKET", sock)

    def ask(*words: str) -> str:
        command = ["ovs-vsctl", f"--db=unix:{sock}", "--no-wait", "--retry", "--timeout=5", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        ask("init")
        for bridge in ("br0", "br1"):
            ask("add-br", bridge)
        yield ask
    finally:
        server.terminate()
        server.wait()


def in_a_namespace(body: Callable[[LinuxKernel], None]) -> None:
    def work() -> None:
        unshare_net()
        kernel = LinuxKernel()
        try:
            body(kernel)
        finally:
            kernel.close()

    in_thread(work)


def offload(netns: str, dev: str) -> bool:
    """Whether `dev` leaves its checksums to others."""
    if not netns:
        return ethtool.tx_checksum(dev)
    with opened(netns) as (fd, _), inside(fd):
        return ethtool.tx_checksum(dev)


def test_a_port_is_made_changed_and_removed_and_no_other_is_touched(database: Callable[..., str]) -> None:
    database("add-port", "br0", "theirs", "tag=7")
    link = EndpointLink("pl-e1", 1500, answers=False, peer="pl-p1", mac="02:00:00:00:00:07")

    def body(kernel: LinuxKernel) -> None:
        assert not kernel.apply([Op("put", link), Op("put", PORT)]).failed
        assert kernel.owned() == {link.key: link, PORT.key: PORT}
        assert (database("iface-to-br", "pl-e1"), database("get", "Port", "pl-e1", "tag")) == ("br0", "42")
        other = replace(PORT, bridge="br1", tag=43)
        assert not kernel.apply([Op("put", other, PORT)]).failed and kernel.owned()[PORT.key] == other
        assert (database("list-ports", "br0"), database("list-ports", "br1")) == ("theirs", "pl-e1")
        assert not kernel.apply([Op("put", other)]).failed and database("list-ports", "br1") == "pl-e1"
        assert not kernel.apply([Op("del", None, other)]).failed and kernel.owned() == {link.key: link}
        assert database("list-ports", "br1") == "" and database("--columns=name", "--bare", "list", "Interface").count("pl-e1") == 0
        assert not kernel.apply([Op("del", None, other)]).failed, "absent is fine"
        assert database("get", "Port", "theirs", "tag") == "7"

    in_a_namespace(body)


def test_a_port_whose_link_has_gone_is_another_than_wanted(database: Callable[..., str]) -> None:
    """Made anew with its link, for the new one's checksums must be switched as the old one's were; removed where nobody wants it."""
    link = EndpointLink("pl-e1", 1500, answers=False, peer="pl-p1", mac="02:00:00:00:00:07")

    def body(kernel: LinuxKernel) -> None:
        assert not kernel.apply([Op("put", link), Op("put", PORT)]).failed
        sh("ip link del pl-e1")
        held = kernel.owned()
        assert held == {PORT.key: replace(PORT, bridge="")}
        assert not kernel.apply([Op("del", None, held[PORT.key])]).failed and database("list-ports", "br0") == ""

    in_a_namespace(body)


@pytest.mark.parametrize("where", ["inside", "waiting"])
@pytest.mark.parametrize("datapath", ["netdev", "system"])
def test_the_containers_end_computes_checksums_where_the_datapath_does_not(
    database: Callable[..., str], tmp_path: Path, where: str, datapath: str
) -> None:
    database("set", "Bridge", "br0", f"datapath_type={datapath}")
    netns = tmp_path / "ns"
    create_netns(netns)
    plumbed = where == "inside"
    link = EndpointLink("pl-e1", 1500, answers=False, peer="pl-p1", mac="02:00:00:00:00:07", netns=str(netns) if plumbed else "")
    port = replace(PORT, netns=link.netns, inside="eth0" if plumbed else "pl-p1")

    def body(kernel: LinuxKernel) -> None:
        assert not kernel.apply([Op("put", link), Op("put", port)]).failed
        assert offload(link.netns, port.inside) == (datapath == "system")
        if plumbed and datapath == "netdev":
            gone = replace(port, netns=f"{netns}-gone")
            (error,) = kernel.apply([Op("put", gone)]).failed.values()
            assert error.errno == 2
        elif not plumbed:
            sh("ip link set pl-p1 name eth5")
            assert not kernel.apply([Op("put", port)]).failed, "an engine has taken it away"

    try:
        in_a_namespace(body)
    finally:
        delete_netns(netns)


def test_this_host_is_nobody_on_a_link_that_is_a_switchs_port() -> None:
    link = EndpointLink("pl-e1", 1500, answers=False, peer="pl-p1", mac="02:00:00:00:00:07")

    def body(kernel: LinuxKernel) -> None:
        assert not kernel.apply([Op("put", link)]).failed and kernel.owned() == {link.key: link}
        sh("ip link set lo up && ip link set pl-p1 up && ip addr add 192.0.2.1/32 dev lo && ip addr add 192.0.2.2/24 dev pl-p1")
        assert sh("cat /proc/sys/net/ipv4/conf/pl-e1/arp_ignore").strip() == "8" and "inet6" not in sh("ip addr show pl-e1")
        answering = replace(link, answers=True)
        assert not kernel.apply([Op("put", answering, link)]).failed and kernel.owned() == {link.key: answering}
        assert not kernel.apply([Op("put", link, answering)]).failed and kernel.owned() == {link.key: link}

    in_a_namespace(body)


def test_what_open_vswitch_refuses_or_lacks_is_said(database: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(kernel: LinuxKernel, port: SwitchPort) -> str:
        (error,) = kernel.apply([Op("put", port)]).failed.values()
        return str(error)

    def body(kernel: LinuxKernel) -> None:
        assert "Open vSwitch has no bridge br9" in refusal(kernel, replace(PORT, bridge="br9"))
        assert "Open vSwitch's database: constraint violation" in refusal(kernel, replace(PORT, tag=9999))
        assert database("list-ports", "br0") == ""
        monkeypatch.setattr(openvswitch, "SOCKET", tmp_path / "nowhere")
        assert "this host runs no Open vSwitch" in refusal(kernel, PORT)
        assert kernel.owned() == {} and not kernel.apply([Op("del", None, PORT)]).failed
        (tmp_path / "dead").touch()
        monkeypatch.setattr(openvswitch, "SOCKET", tmp_path / "dead")
        assert "Open vSwitch's database does not answer on" in refusal(kernel, PORT)
        assert kernel.owned() == {}, "everything else is read all the same"

    in_a_namespace(body)
