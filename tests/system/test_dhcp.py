# SPDX-License-Identifier: Apache-2.0
"""Containers on a link of their hosts with addresses of a real DHCP server there, dnsmasq on D: leased, renewed, rebound with another
server, kept over kills, given back, lost."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.dnsmasq import Dnsmasq, serve

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
HOSTS = """
[[host]]
name = "A"
[[host]]
name = "B"
[[host]]
name = "D"
agent = false
"""
CONFIG = '[ipam]\ndhcp_timeout = "3s"\n'
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
SOON = ("--dhcp-option=option:T1,2", "--dhcp-option=option:T2,4")
"""What makes a client renew after some seconds, and rebind two later. dnsmasq adds up to a few to the first."""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab(toml=HOSTS)
    for host in "AB":
        config = made.path(host, "/etc/plait/plait.toml")
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text((config.read_text() if config.exists() else "") + CONFIG)
        made.kill_agent(host)
        made.start_agent(host)
    return made


@pytest.fixture
def router(lab: Lab) -> str:
    return lab.address("D")


@pytest.fixture
def server(lab: Lab, tmp_path: Path, router: str) -> Iterator[Dnsmasq]:
    """With the network `lan`, which is made of what it says; no container is left when the test ends."""
    lab.run("D", "sh", "-c", "rm -f /run/dnsmasq-*")
    routes = f"--dhcp-option=121,10.9.0.0/16,{router},0.0.0.0/0,{router}"
    made = serve(lab, "D", tmp_path, *SOON, f"--dhcp-option=option:router,{router}", routes, "--dhcp-option=option:mtu,1400")
    if "lan" not in networks(lab, "A"):
        lab.run("A", "plait", "network", "create", "lan", "--backend", "macvlan", "-o", "parent=eth0", "--ipam", "dhcp")
        until("B knows it", lambda: "lan" in networks(lab, "B"), 5)
    yield made
    for row in json.loads(lab.run("A", "plait", "ps", "--json").stdout):
        lab.run(row["node"], "plait", "rm", row["name"])
    made.stop()


def networks(lab: Lab, host: str) -> set[str]:
    return {row["name"] for row in json.loads(lab.run(host, "plait", "network", "ls", "--json").stdout)}


def run(lab: Lab, host: str, name: str) -> str:
    """A container on lan; its address."""
    lab.run(host, "plait", "run", "--name", name, "--network", "lan")
    rows = json.loads(inside(lab, host, name, "ip", "-j", "-4", "addr", "show", "eth0").stdout)
    return str(rows[0]["addr_info"][0]["local"])


def inside(lab: Lab, host: str, name: str, *command: str) -> subprocess.CompletedProcess[str]:
    return lab.run(host, "plait", "exec", name, "--", *command, check=False)


def pings(lab: Lab, host: str, name: str, to: str) -> bool:
    return inside(lab, host, name, "ping", "-c1", "-W1", to).returncode == 0


def conditions(lab: Lab, host: str) -> str:
    return lab.run(host, "plait", "status", check=False).stdout


def mac(lab: Lab, host: str, name: str) -> str:
    return str(json.loads(inside(lab, host, name, "ip", "-j", "link", "show", "eth0").stdout)[0]["address"])


def test_containers_of_two_hosts_have_what_the_server_says(lab: Lab, server: Dnsmasq, router: str) -> None:
    view = json.loads(lab.run("B", "plait", "network", "inspect", "lan", "--json").stdout)
    assert (view["subnet"], view["gateway"]) == ("198.18.0.0/24", router), "learnt from the server"
    a1, b1 = run(lab, "A", "a1"), run(lab, "B", "b1")
    assert server.rows() == {a1: "a1", b1: "b1"} and {a1, b1} < {f"198.18.0.{n}" for n in range(100, 121)}
    assert server.count("DHCPACK", f"{a1} {mac(lab, 'A', 'a1')}") == 1, "the server knows the container's own MAC"
    link = json.loads(inside(lab, "A", "a1", "ip", "-j", "addr", "show", "eth0").stdout)[0]
    assert (link["mtu"], link["addr_info"][0]["prefixlen"]) == (1400, 24)
    routes = {row["dst"]: row.get("gateway") for row in json.loads(inside(lab, "A", "a1", "ip", "-j", "route").stdout)}
    assert routes == {"default": router, "10.9.0.0/16": router, "198.18.0.0/24": None}
    until("by name", lambda: pings(lab, "A", "a1", "b1"), 5)
    assert pings(lab, "B", "b1", a1) and pings(lab, "A", "a1", router)
    assert lab.run("A", "plait", "plan", "--diff").stdout == "" and "no differences" in lab.run("A", "plait", "ipam", "check").stdout


def test_it_gives_back_and_has_the_same_again(lab: Lab, server: Dnsmasq) -> None:
    a1, a2 = run(lab, "A", "a1"), run(lab, "A", "a2")
    lab.run("A", "plait", "rm", "a1")
    until("it is given back", lambda: server.rows() == {a2: "a2"}, 3)
    assert server.count("DHCPRELEASE", a1) == 1
    assert run(lab, "A", "a1") == a1


def test_a_killed_agent_goes_on_with_the_same_lease(lab: Lab, server: Dnsmasq) -> None:
    a1 = run(lab, "A", "a1")
    steady = lab.popen("A", "plait", "exec", "a1", "--", "ping", "-i0.05", "-w3", lab.address("B"), stdout=subprocess.PIPE, text=True)
    assert steady.stdout is not None and "bytes of data" in steady.stdout.readline()
    lab.kill_agent("A")
    lab.start_agent("A")
    until("the server was asked", lambda: server.count("DHCPACK", a1) >= 2, 5)
    assert server.rows() == {a1: "a1"} and len(server.clients()) == 1 and server.count("DHCPNAK") == 0
    said = steady.communicate(timeout=20)[0]
    assert " 0% packet loss" in said, said
    assert pings(lab, "A", "a1", lab.address("D")) and server.count("DHCPDISCOVER", mac(lab, "A", "a1")) == 1


def test_it_is_renewed_and_another_server_takes_over_from_a_dead_one(lab: Lab, server: Dnsmasq, tmp_path: Path) -> None:
    a1 = run(lab, "A", "a1")
    until("it is renewed", lambda: server.count("DHCPREQUEST", a1) >= 2, 10)
    assert server.count("DHCPACK", a1) >= 2 and server.count("DHCPDISCOVER", mac(lab, "A", "a1")) == 1
    server.stop()
    until("it is said", lambda: f"has prolonged the lease of {a1}" in conditions(lab, "A"), 60)
    lab.run("D", "ip", "addr", "add", "198.18.0.77/24", "dev", "eth0")
    other = serve(lab, "D", tmp_path, *SOON, "--listen-address=198.18.0.77", name="other", first="198.18.0.100")
    until("it is bound again", lambda: "lease-late" not in conditions(lab, "A"), 60)
    assert other.rows() == {a1: "a1"} and pings(lab, "A", "a1", lab.address("B"))
    other.stop()


def test_what_the_server_takes_back_is_not_used(lab: Lab, server: Dnsmasq, tmp_path: Path) -> None:
    a1 = run(lab, "A", "a1")
    server.stop()
    lab.run("D", "rm", server.leases)
    narrowed = serve(lab, "D", tmp_path, *SOON, first="198.18.0.120")
    until("another one", lambda: inside(lab, "A", "a1", "ip", "-4", "addr", "show", "eth0").stdout.count("198.18.0.120") == 1, 15)
    assert a1 not in inside(lab, "A", "a1", "ip", "-4", "addr").stdout and narrowed.count("DHCPNAK", a1) == 1
    until("by name too", lambda: inside(lab, "A", "a1", "dig", "+short", "+time=1", "a1").stdout.strip() == "198.18.0.120", 5)
    lab.run("B", "plait", "run", "--name", "none", "--network", "lan", check=False)
    narrowed.stop()
    refused = lab.run("B", "plait", "run", "--name", "b9", "--network", "lan", check=False)
    assert refused.returncode != 0 and "asking DHCP for an address for b9 on network lan: no server answered on link eth0" in refused.stderr
    assert "b9" not in lab.run("B", "plait", "ps").stdout and "b9" not in lab.run("B", "ls", "/run/plait/netns").stdout


def test_nothing_is_left(lab: Lab, server: Dnsmasq) -> None:
    for name in ("a1", "a2"):
        run(lab, "A", name)
    for name in ("a1", "a2"):
        lab.run("A", "plait", "rm", name)
    until("all is given back", lambda: server.rows() == {}, 3)
    assert "pl-e" not in lab.run("A", "ip", "-o", "link").stdout and lab.run("A", "plait", "plan", "--diff").stdout == ""
    assert "eth0" not in "".join(lab.run("A", "cat", "/proc/net/packet").stdout.splitlines()[1:]), "no socket is open"


def host_lease(lab: Lab, host: str) -> str:
    """What a host has leased for the network `shared`, "" for nothing."""
    rows = json.loads(lab.run(host, "plait", "ipam", "--json").stdout)["addresses"]
    return next((row["address"] for row in rows if row["network"] == "shared" and row["name"] == host), "")


def seen_by_router(lab: Lab, host: str, name: str, router: str) -> str:
    """The address that D sees a container by."""
    heard = lab.popen("D", "tcpdump", "-n", "-l", "-c1", "-i", "eth0", "udp", "dst", "port", "9", stdout=-1, stderr=-1, text=True)
    assert heard.stderr is not None
    until("it listens", lambda: "listening" in heard.stderr.readline(), 5)
    until("it is sent", lambda: inside(lab, host, name, "bash", "-c", f"echo > /dev/udp/{router}/9").returncode == 0, 5)
    return heard.communicate(timeout=10)[0].split()[2].rpartition(".")[0]


def test_containers_share_the_lease_of_their_host(lab: Lab, server: Dnsmasq, router: str) -> None:
    lab.run("A", "plait", "network", "create", "shared", "--subnet", "10.44.0.0/24", "-o", "lease=eth0")
    for host in "AB":
        until("each host has one", lambda host=host: host_lease(lab, host) in server.rows(), 5)
    at = host_lease(lab, "A")
    assert server.rows() == {at: "a", host_lease(lab, "B"): "b"} and at != host_lease(lab, "B")
    for name, port in (("s1", "8081:80"), ("s2", "8082:80")):
        lab.run("A", "plait", "run", "--name", name, "--network", "shared", "-p", port)
        assert seen_by_router(lab, "A", name, router) == at, "both are seen by the one address"
    lab.run("B", "plait", "run", "--name", "s3", "--network", "shared")
    assert seen_by_router(lab, "B", "s3", router) == host_lease(lab, "B") and pings(lab, "B", "s3", "s1")
    web = lab.popen(
        "A", "plait", "exec", "s2", "--", "python3", "-m", "http.server", "80", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until("its port is published there", lambda: lab.run("D", "curl", "-sf", "-m1", f"http://{at}:8082/", check=False).returncode == 0, 10)
    lab.kill_agent("A")
    lab.start_agent("A")
    until("the server was asked", lambda: server.count("DHCPACK", at) >= 2, 5)
    assert host_lease(lab, "A") == at and lab.run("A", "plait", "plan", "--diff").stdout == ""
    assert lab.run("D", "curl", "-sf", "-m1", f"http://{at}:8082/", check=False).returncode == 0 and len(server.clients()) == 2
    web.kill()
    web.wait()
    assert "no differences" in lab.run("A", "plait", "ipam", "check").stdout
    lab.run("A", "plait", "network", "set", "shared", "-o", "lease=")
    until("given back", lambda: server.rows() == {}, 5)
    until("gone", lambda: f"{at}/32" not in lab.run("A", "ip", "addr").stdout, 5)
    assert seen_by_router(lab, "A", "s1", router) == lab.address("A")
    for host, name in (("A", "s1"), ("A", "s2"), ("B", "s3")):
        lab.run(host, "plait", "rm", name)
    lab.run("A", "plait", "network", "rm", "shared")


def test_both_families_come_from_the_server(lab: Lab, server: Dnsmasq, tmp_path: Path) -> None:
    server.stop()
    lab.run("A", "plait", "network", "rm", "lan")
    lab.run("D", "ip", "addr", "replace", "fd99::1/64", "dev", "eth0", "nodad")
    both = serve(lab, "D", tmp_path, "--enable-ra", "--dhcp-range=fd99::100,fd99::1ff,64,120")
    lab.run("A", "plait", "network", "create", "six", "--backend", "macvlan", "-o", "parent=eth0", "--ipam", "dhcp", "--ipv6")
    until("B knows it", lambda: "six" in networks(lab, "B"), 5)
    for host, name in (("A", "x1"), ("B", "x2")):
        lab.run(host, "plait", "run", "--name", name, "--network", "six")
    rows = {row["name"]: row["addresses6"]["six"] for row in json.loads(lab.run("A", "plait", "ps", "--json").stdout) if row["node"] == "A"}
    at = rows["x1"]
    assert at in both.rows6() and len(both.rows6()) == 2 and at.startswith("fd99::1")
    until("by name", lambda: inside(lab, "A", "x1", "ping", "-6", "-c1", "-W1", "x2").returncode == 0, 10)
    until("from outside", lambda: lab.run("D", "ping", "-6", "-c1", "-W1", at, check=False).returncode == 0, 5)
    assert inside(lab, "B", "x2", "dig", "+short", "+time=1", "x1", "AAAA").stdout.strip() == at
    assert "default via fe80::" in inside(lab, "A", "x1", "ip", "-6", "route").stdout, "learnt from the router"
    lab.kill_agent("A")
    lab.start_agent("A")
    until("the server was asked", lambda: both.count("DHCPREPLY", at) >= 2, 5)
    assert len(both.rows6()) == 2 and at in both.rows6() and inside(lab, "A", "x1", "ping", "-6", "-c1", "-W1", "fd99::1").returncode == 0
    assert lab.run("A", "plait", "plan", "--diff").stdout == "" and "no differences" in lab.run("A", "plait", "ipam", "check").stdout
    for host, name in (("A", "x1"), ("B", "x2")):
        lab.run(host, "plait", "rm", name)
    until("given back", lambda: both.rows() == {} and both.rows6() == [], 5)
    lab.run("A", "plait", "network", "rm", "six")
    both.stop()


def test_a_host_that_leaves_gives_back_what_it_had(lab: Lab, server: Dnsmasq) -> None:
    """The last one: B is no host of the cluster any more."""
    a1, b1 = run(lab, "A", "a1"), run(lab, "B", "b1")
    assert set(server.rows()) == {a1, b1}
    assert "gave back 1 leases" in lab.run("B", "plait", "down", "--purge").stdout
    until("B's is given back, A's is not", lambda: server.rows() == {a1: "a1"}, 3)
