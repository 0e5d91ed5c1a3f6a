# SPDX-License-Identifier: Apache-2.0
"""Networks of the model sandbox with real packets: one bridge a host, nothing between hosts, ports kept apart when asked for."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.support.sandboxes import address, inside, pings

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
HEAR = """
import socket, struct
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("", 7002))
sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack("4s4s", socket.inet_aton("239.1.2.3"), bytes(4)))
print("ready", flush=True)
sock.settimeout(3)
try:
    print(sock.recv(99).decode())
except TimeoutError:
    print("nothing")
"""
SAY = "import socket;s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.setsockopt(0,33,4);s.sendto(b'hello',('239.1.2.3',7002))"


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(hosts=2)
    made.run("A", "plait", "network", "create", "here", "--model", "sandbox", "--subnet", "10.66.0.0/24", "--subnet6", "fd00:66::/64")
    for host, name in (("A", "a1"), ("A", "a2"), ("B", "b1")):
        made.run(host, "plait", "run", "--name", name, "--network", "here", *(("-p", "8080:80") if name == "a1" else ()))
    yield made


def bridge(lab: Lab) -> dict[str, Any]:
    found = json.loads(lab.run("A", "ip", "-j", "link", "show", "type", "bridge").stdout)
    return dict(next(link for link in found if link["ifname"].startswith("pl-b")))


def test_a_strict_host_is_loose_on_the_bridge_so_that_answers_may_take_another_way(lab: Lab) -> None:
    """a1 gets a link of its own to another part of the host, and answers by that what came over the bridge, as it may."""
    conf = "/proc/sys/net/ipv4/conf"
    lab.run("A", "plait", "network", "set", "here", "-o", "spoofing=allow")
    lab.run("A", "sh", "-c", f"echo 1 >{conf}/all/rp_filter; echo 1 >{conf}/default/rp_filter")
    dev = bridge(lab)["ifname"]
    until("it is loose", lambda: lab.run("A", "cat", f"{conf}/{dev}/rp_filter").stdout.strip() == "2", 15)
    at = address(lab, "a1")
    lab.run("A", "ip", "link", "add", "side", "type", "veth", "peer", "name", "side1")
    for command in ("link set side1 netns /run/plait/netns/a1", "addr add 192.0.2.1/32 dev side", "link set side up"):
        lab.run("A", "ip", *command.split())
    lab.run("A", "sh", "-c", f"echo 0 >{conf}/side/rp_filter")
    try:
        lab.run("A", "ip", "route", "add", "192.0.2.2/32", "dev", "side")
        assert inside(lab, "A", "a1", "ip", "link", "set", "side1", "up").returncode == 0
        assert inside(lab, "A", "a1", "ip", "addr", "add", "192.0.2.2/32", "dev", "side1").returncode == 0
        ask = ("ping", "-c1", "-W1", "-I", "192.0.2.2", "192.0.2.1")
        assert inside(lab, "A", "a1", *ask).returncode == 0, f"{at} sends by the bridge what the host answers by the other link"
    finally:
        lab.run("A", "plait", "network", "set", "here", "-o", "spoofing=drop")
        lab.run("A", "sh", "-c", f"ip link del side; echo 0 >{conf}/all/rp_filter; echo 0 >{conf}/default/rp_filter")


def hears(lab: Lab, host: str, name: str) -> str:
    """What a container receives of a group that a1 sends to."""
    process = lab.popen(host, "plait", "exec", name, "--", "python3", "-c", HEAR, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    inside(lab, "A", "a1", "python3", "-c", SAY)
    return process.communicate(timeout=10)[0].strip()


def test_containers_of_one_host_are_on_one_bridge_and_on_no_other_hosts(lab: Lab) -> None:
    row = next(r for r in json.loads(lab.run("B", "plait", "network", "ls", "--json").stdout) if r["name"] == "here")
    assert (row["model"], row["backend"]) == ("sandbox", "bridge")
    a2, b1 = address(lab, "a2"), address(lab, "b1")
    assert pings(lab, "A", "a1", a2) and not pings(lab, "A", "a1", b1)
    own = json.loads(inside(lab, "A", "a2", "ip", "-j", "link", "show", "eth0").stdout)[0]["address"]
    assert own in inside(lab, "A", "a1", "ip", "neigh", "show", a2).stdout, "no router in between"
    assert hears(lab, "A", "a2") == "hello" and hears(lab, "B", "b1") == "nothing"


def test_the_host_the_outside_and_published_ports_work_as_ever(lab: Lab) -> None:
    assert lab.run("A", "ping", "-c1", "-W1", address(lab, "a1"), check=False).returncode == 0
    assert pings(lab, "A", "a1", lab.address("B")), "out by NAT"
    assert inside(lab, "A", "a1", "dig", "+short", "+time=1", "@10.66.0.1", "a2").stdout.strip() == address(lab, "a2")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = lab.popen("A", "plait", "exec", "a1", "--", "python3", "-m", "http.server", "80", **quiet)
    fetch = ("curl", "-sS", "-m", "2", "-o", "/dev/null", "-w", "%{http_code}")
    try:
        until("it listens", lambda: lab.run("A", *fetch, "http://127.0.0.1:8080/", check=False).stdout == "200", 5)
        assert lab.run("B", *fetch, f"http://{lab.address('A')}:8080/", check=False).stdout == "200"
        assert inside(lab, "A", "a1", *fetch, f"http://{lab.address('A')}:8080/").stdout == "200", "to itself"
        assert inside(lab, "A", "a2", *fetch, f"http://{lab.address('A')}:8080/").stdout == "200"
    finally:
        server.kill()
        server.wait()


def test_so_it_is_with_ipv6(lab: Lab) -> None:
    a1, a2, b1 = (address(lab, name, family="addresses6") for name in ("a1", "a2", "b1"))
    assert pings(lab, "A", "a1", a2) and not pings(lab, "A", "a1", b1)
    assert "dev eth0 lladdr" in inside(lab, "A", "a1", "ip", "-6", "neigh", "show", a2).stdout, "no router in between"
    assert lab.run("A", "ping", "-c1", "-W1", a1, check=False).returncode == 0, "the host"
    assert inside(lab, "A", "a1", "dig", "+short", "+time=1", "@fd00:66::1", "AAAA", "a2").stdout.strip() == a2
    for number, host in enumerate("AB", 1):
        lab.run(host, "ip", "addr", "add", f"fd99::{number}/64", "dev", "eth0", "nodad")
    assert pings(lab, "A", "a1", "fd99::2"), "out by NAT"
    server = lab.popen("A", "plait", "exec", "a1", "--", "python3", "-m", "http.server", "80", "--bind", "::", stderr=subprocess.DEVNULL)
    fetch = ("curl", "-sS", "-m", "2", "-o", "/dev/null", "-w", "%{http_code}", "http://[fd99::1]:8080/")
    try:
        until("its published port answers", lambda: lab.run("B", *fetch, check=False).stdout == "200", 5)
        assert inside(lab, "A", "a2", *fetch).stdout == "200"
    finally:
        server.kill()
        server.wait()


def test_isolated_ports_reach_the_outside_and_not_each_other(lab: Lab) -> None:
    a2, six = address(lab, "a2"), address(lab, "a2", family="addresses6")
    lab.run("B", "plait", "network", "set", "here", "-o", "isolated=true")
    until("they are apart", lambda: not pings(lab, "A", "a1", a2), 5)
    assert not pings(lab, "A", "a1", six)
    assert pings(lab, "A", "a1", lab.address("B")) and hears(lab, "A", "a2") == "nothing"
    assert lab.run("A", "plait", "plan", "--diff").stdout == ""
    lab.run("B", "plait", "network", "set", "here", "-o", "isolated=false")
    until("and together", lambda: pings(lab, "A", "a1", a2), 5)


def test_a_bridge_that_somebody_deletes_is_put_back_and_one_that_nobody_needs_goes(lab: Lab) -> None:
    a2 = address(lab, "a2")
    lab.run("A", "ip", "link", "del", bridge(lab)["ifname"])
    until("it is back", lambda: pings(lab, "A", "a1", a2) and pings(lab, "A", "a1", lab.address("B")), 10)
    lab.run("A", "plait", "network", "create", "more", "--backend", "bridge", "--subnet", "10.67.0.0/24")
    lab.run("A", "plait", "run", "--name", "first", "--network", "more")
    assert pings(lab, "A", "first", lab.address("B")), "in its first moment"
    lab.run("A", "plait", "rm", "first")
    lab.run("A", "plait", "network", "rm", "more")
    until("one bridge is left", lambda: lab.run("A", "ip", "-br", "link").stdout.count("pl-b") == 1, 5)
