# SPDX-License-Identifier: Apache-2.0
"""Containers in VLANs with real tagged frames: each host runs Open vSwitch with its datapath in user space, whose bridge br0 has the link
eth1 between them as its trunk."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator

import pytest
from tests.support.sandboxes import address, inside, pings, shown

from plait.lab.inside import net_argv
from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(180),
    pytest.mark.skipif(shutil.which("ovs-vswitchd") is None, reason="there is no Open vSwitch here"),
]
SWITCH = """
set -e
mkdir -p /run/openvswitch /run/ovs && cd /run/ovs
ovsdb-tool create conf.db /usr/share/openvswitch/vswitch.ovsschema
ovsdb-server --remote=punix:/var/run/openvswitch/db.sock --pidfile --detach --no-chdir --log-file=/run/ovs/db.log conf.db
ovs-vsctl --no-wait init
ovs-vswitchd --pidfile --detach --no-chdir --log-file=/run/ovs/switch.log
ovs-vsctl add-br br0 -- set Bridge br0 datapath_type=netdev
ovs-vsctl add-port br0 eth1
ip link set br0 up
"""
WHERE = ("--model", "sandbox", "--backend", "vlan", "-o", "switch=openvswitch", "-o", "parent=br0")


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(hosts=2)
    holders = made.state.holders
    there = ("name", "eth1", "netns", str(holders["B"].pid))
    subprocess.run(net_argv(holders["A"], ["ip", "link", "add", "eth1", "type", "veth", "peer", *there]), check=True)
    for host in "AB":
        made.run(host, "ip", "link", "set", "eth1", "up")
        made.run(host, "sh", "-c", SWITCH)
    for vlan in ("42", "43"):
        subnet = ("--subnet", f"10.{vlan}.0.0/24", "--gateway", f"10.{vlan}.0.254", "--subnet6", f"fd00:{vlan}::/64")
        made.run("A", "plait", "network", "create", f"v{vlan}", *WHERE, "-o", f"vlan={vlan}", *subnet)
        for host in "AB":
            made.run(host, "plait", "run", "--name", f"{host.lower()}{vlan}", "--network", f"v{vlan}")
    yield made


def ports(lab: Lab, host: str) -> list[str]:
    found = lab.run(host, "ovs-vsctl", "list-ports", "br0").stdout.split()
    return [name for name in found if name.startswith("pl-e")]


def test_those_of_one_vlan_reach_each_other_over_tagged_frames(lab: Lab) -> None:
    b42 = address(lab, "b42")
    until("the ports work", lambda: pings(lab, "A", "a42", b42), 10)
    heard = lab.popen("B", "tcpdump", "-n", "-e", "-l", "-c2", "-i", "eth1", "vlan", "42", "and", "icmp", stdout=-1, stderr=-1, text=True)
    assert heard.stderr is not None
    until("it listens", lambda: "listening" in heard.stderr.readline(), 5)
    assert pings(lab, "A", "a42", b42)
    frames = heard.communicate(timeout=10)[0]
    mac = json.loads(inside(lab, "A", "a42", "ip", "-j", "link", "show", "eth0").stdout)[0]["address"]
    assert frames.count("ethertype 802.1Q (0x8100), length 102: vlan 42") == 2 and mac in frames, frames


def test_the_same_by_ipv6_whose_neighbours_ask_within_the_vlan(lab: Lab) -> None:
    b42 = address(lab, "b42", family="addresses6")
    until("the ports work", lambda: pings(lab, "A", "a42", b42, "-6"), 10)
    inside(lab, "A", "a42", "ip", "-6", "neigh", "flush", "dev", "eth0")
    listen = ("tcpdump", "-n", "-e", "-l", "-c1", "-i", "eth1", "vlan", "42", "and", "icmp6", "and", "ip6[40]", "==", "135")
    heard = lab.popen("B", *listen, stdout=-1, stderr=-1, text=True)
    assert heard.stderr is not None
    until("it listens", lambda: "listening" in heard.stderr.readline(), 5)
    assert pings(lab, "A", "a42", b42, "-6") and pings(lab, "A", "a42", "b42", "-6")
    assert "ethertype 802.1Q (0x8100)" in (said := heard.communicate(timeout=10)[0]) and "vlan 42" in said, said
    other = address(lab, "b43", family="addresses6")
    assert not pings(lab, "A", "a42", other, "-6") and pings(lab, "A", "a43", other, "-6")
    assert "fd00:42:" not in lab.run("A", "ip", "-6", "route").stdout


def test_those_of_two_vlans_do_not_reach_each_other_even_with_the_same_addresses(lab: Lab) -> None:
    until("each its own", lambda: pings(lab, "A", "a43", address(lab, "b43")) and pings(lab, "A", "a42", address(lab, "b42")), 10)
    lab.run("A", "nsenter", "--net=/run/plait/netns/a43", "ip", "addr", "add", "10.42.0.200/24", "dev", "eth0")
    for host, name in (("A", "a42"), ("B", "b42")):
        assert not pings(lab, host, name, "10.42.0.200")
    lab.run("A", "nsenter", "--net=/run/plait/netns/a43", "ip", "addr", "del", "10.42.0.200/24", "dev", "eth0")


def test_streams_pass_whole_and_names_are_answered(lab: Lab) -> None:
    """A switch in user space passes on what it reads: a checksum left to a card would never be computed."""
    b42 = address(lab, "b42")
    assert inside(lab, "A", "a42", "dig", "+short", "+time=1", "b42").stdout.strip() == b42
    assert inside(lab, "A", "a42", "dig", "+short", "+time=1", "b43").stdout.strip() == "", "they share no network"
    serve = "import socket;s=socket.create_server(('',7003));print('on',flush=True);c=s.accept()[0];print(len(c.makefile('rb').read()))"
    server = lab.popen("B", "plait", "exec", "b42", "--", "python3", "-c", serve, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None and server.stdout.readline() == "on\n"
    send = f"import socket;s=socket.create_connection(('{b42}',7003),5);s.sendall(bytes(1000000));s.close()"
    assert inside(lab, "A", "a42", "python3", "-c", send).returncode == 0
    assert server.communicate(timeout=20)[0] == "1000000\n"


def test_the_host_is_nobody_there_and_publishes_nothing(lab: Lab) -> None:
    lab.run("A", "ip", "addr", "add", "10.42.0.99/32", "dev", "lo")
    assert not pings(lab, "A", "a42", "10.42.0.99") and not pings(lab, "A", "a42", "10.42.0.254")
    lab.run("A", "ip", "addr", "del", "10.42.0.99/32", "dev", "lo")
    port = lab.run("A", "plait", "run", "--name", "p", "--network", "v42", "-p", "80:80", check=False)
    assert port.returncode != 0 and "publishing ports of a container of network v42" in port.stderr
    assert "10.42." not in lab.run("A", "nft", "list", "ruleset").stdout + lab.run("A", "ip", "route").stdout


def test_an_agent_that_is_killed_keeps_them_and_puts_back_what_is_gone(lab: Lab) -> None:
    before, b42 = sorted(ports(lab, "A")), address(lab, "b42")
    assert len(before) == 2
    lab.kill_agent("A")
    ping = ("nsenter", "--net=/run/plait/netns/a42", "ping", "-c1", "-W1", b42)
    assert lab.run("A", *ping, check=False).returncode == 0
    lab.run("A", "ovs-vsctl", "del-port", before[0])
    lab.run("A", "ip", "link", "del", before[1])
    lab.start_agent("A")
    until("both are back", lambda: sorted(ports(lab, "A")) == before and pings(lab, "A", "a42", b42), 10)
    until("the other too", lambda: pings(lab, "A", "a43", address(lab, "b43")), 10)
    assert lab.run("A", "plait", "plan", "--diff").stdout == ""


def test_who_forges_is_dropped_before_the_switch_sees_it_and_named(lab: Lab) -> None:
    """Under another address, and under another MAC."""
    b42 = address(lab, "b42")
    until("the ports work", lambda: pings(lab, "A", "a42", b42), 10)
    mac = json.loads(inside(lab, "A", "a42", "ip", "-j", "link", "show", "eth0").stdout)[0]["address"]
    listen = ("tcpdump", "-n", "-e", "-l", "-i", "eth1", "vlan", "42", "and", "(host 10.42.0.99 or ether src 02:66:66:66:66:66)")
    heard = lab.popen("A", "timeout", "6", *listen, stdout=-1, stderr=-1, text=True)
    assert heard.stderr is not None
    until("it listens", lambda: "listening" in heard.stderr.readline(), 5)
    inside(lab, "A", "a42", "ip", "addr", "add", "10.42.0.99/32", "dev", "eth0")
    assert not pings(lab, "A", "a42", b42, "-I", "10.42.0.99")
    inside(lab, "A", "a42", "ip", "addr", "del", "10.42.0.99/32", "dev", "eth0")
    inside(lab, "A", "a42", "ip", "link", "set", "eth0", "address", "02:66:66:66:66:66")
    assert not pings(lab, "A", "a42", b42)
    inside(lab, "A", "a42", "ip", "link", "set", "eth0", "address", mac)
    until("what is its own passes", lambda: pings(lab, "A", "a42", b42), 10)
    found = {c["subject"]: c["text"] for c in shown(lab, "A", "status")["conditions"] if c["code"] == "spoofed-packets"}
    assert heard.communicate(timeout=10)[0].strip() == "", "nothing of it was on the wire"
    assert found.keys() == {"v42/a42"} and address(lab, "a42") in found["v42/a42"]


def test_a_network_of_ports_may_be_let_forge(lab: Lab) -> None:
    def guarded() -> int:
        return sum("xdp" in lab.run("A", "ip", "link", "show", name).stdout for name in ports(lab, "A"))

    assert guarded() == len(ports(lab, "A")) == 2
    lab.run("A", "plait", "network", "set", "v43", "-o", "spoofing=allow")
    until("its port has no guard", lambda: guarded() == 1, 10)
    lab.run("A", "plait", "network", "set", "v43", "-o", "spoofing=drop")
    until("it has one", lambda: guarded() == 2, 10)


def test_a_bridge_that_is_missing_is_named(lab: Lab) -> None:
    lab.run("A", "plait", "network", "set", "v43", "-o", "parent=br7")
    until("it is told", lambda: "network v43: this host has no link br7" in lab.run("A", "plait", "status", check=False).stdout, 5)
    refused = lab.run("A", "plait", "run", "--name", "x", "--network", "v43", check=False)
    assert refused.returncode != 0 and "this host has no link br7" in refused.stderr
    lab.run("A", "plait", "network", "set", "v43", "-o", "parent=br0")
    until("they are back", lambda: pings(lab, "A", "a43", address(lab, "b43")), 10)


def test_nothing_is_left_of_what_is_removed(lab: Lab) -> None:
    """The last one: it removes all there is."""
    for vlan in ("42", "43"):
        for host in "AB":
            lab.run(host, "plait", "rm", f"{host.lower()}{vlan}")
        lab.run("A", "plait", "network", "rm", f"v{vlan}")
    for host in "AB":
        assert lab.run(host, "ovs-vsctl", "list-ports", "br0").stdout.split() == ["eth1"]
        assert "pl-e" not in lab.run(host, "ip", "link").stdout
        assert lab.run(host, "plait", "plan", "--diff").stdout == ""
