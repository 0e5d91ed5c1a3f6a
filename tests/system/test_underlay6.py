# SPDX-License-Identifier: Apache-2.0
"""Two hosts with nothing but IPv6 between them, a router on the way: sandboxes with both families reach each other all the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from plait.lab import inside
from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]
ROAD = """
[[switch]]
name = "left"
underlay = "ipv6"
[[switch]]
name = "right"
underlay = "ipv6"
[[router]]
name = "R1"
switches = ["left", "right"]
[[host]]
name = "A"
[[host]]
name = "B"
switch = "right"
"""
OVERHEAD = 70
"""Outer IPv6 40, UDP 8, VXLAN 8, inner Ethernet 14 bytes."""
ECHO = """
import asyncio, ipaddress
from plait.agent.echo import Echo
print(asyncio.run(Echo().ask(ipaddress.IPv6Address("2001:2:0:1::1"), 1500)).told)
"""
HEADS = {"4": 28, "6": 48}
"""Of an echo request, by family."""


@pytest.fixture(scope="module")
def two(make_lab: Callable[..., Lab]) -> Lab:
    lab = make_lab(toml=ROAD)
    lab.run("A", "plait", "network", "create", "both", "--ipv6")
    for host, name in (("A", "here"), ("B", "there")):
        until("the network", lambda host=host: "both" in lab.run(host, "plait", "network", "ls").stdout, 5)
        lab.run(host, "plait", "run", "--name", name, "--network", "both")
    until("A knows the other", lambda: reaches(lab, "A", "here", "there"), 5)
    return lab


def asked(lab: Lab, host: str, *words: str) -> Any:
    """What it says, well or not."""
    return json.loads(lab.run(host, "plait", *words, "--json", check=False).stdout)


def reaches(lab: Lab, host: str, sandbox: str, *to: str) -> bool:
    return lab.run(host, "plait", "exec", sandbox, "--", "ping", "-c1", "-W1", *to, check=False).returncode == 0


def narrow(lab: Lab, mtu: int) -> None:
    """The router's leg towards B carries so many bytes from now on."""
    command = inside.net_argv(lab.state.holders["R1"], ["ip", "link", "set", "eth1", "mtu", str(mtu)])
    subprocess.run(command, check=True, capture_output=True, timeout=10)


def way(lab: Lab, host: str) -> dict[str, Any]:
    (path,) = asked(lab, host, "status")["paths"]
    return dict(path)


def test_the_hosts_have_ipv6_alone_and_all_is_well(two: Lab) -> None:
    assert [node["address"] for node in asked(two, "B", "nodes")] == ["2001:2::1", "2001:2:0:1::1"]
    assert "inet " not in two.run("A", "ip", "address", "show", "dev", "eth0").stdout
    for host in "AB":
        until(f"all is well on {host}", lambda host=host: asked(two, host, "status")["well"], 5)
    assert asked(two, "B", "status")["store"]["address"] == "[2001:2::1]:7470"


@pytest.mark.parametrize("family", ["4", "6"])
def test_sandboxes_reach_each_other_with_packets_as_large_as_there_is_room_for(two: Lab, family: str) -> None:
    room = 1500 - OVERHEAD - HEADS[family]
    for host, own, other in (("A", "here", "there"), ("B", "there", "here")):
        assert reaches(two, host, own, f"-{family}", "-M", "do", "-s", str(room), other)
        assert not reaches(two, host, own, f"-{family}", "-M", "do", "-s", str(room + 1), other)


def test_hosts_reach_sandboxes(two: Lab) -> None:
    for row in asked(two, "A", "ps"):
        for address in (row["addresses"]["both"], row["addresses6"]["both"]):
            for host in "AB":
                two.run(host, "ping", "-c1", "-W2", address)


def test_a_narrower_way_is_found_and_told_to_the_sandboxes(two: Lab) -> None:
    narrow(two, 1400)
    try:
        until("A knows", lambda: way(two, "A")["mtu"] == 1400 - OVERHEAD, 15)
        assert way(two, "A")["probed"]
        assert two.run("A", sys.executable, "-c", ECHO).stdout.strip() == "1400", "the router's own word"
        for family in "46":
            assert not reaches(two, "A", "here", f"-{family}", "-M", "do", "-s", str(1400 - OVERHEAD - HEADS[family] + 1), "there")
            assert reaches(two, "A", "here", f"-{family}", "-M", "do", "-s", str(1400 - OVERHEAD - HEADS[family]), "there")
    finally:
        narrow(two, 1500)
        for host in "AB":
            until(f"{host} knows that it is wide again", lambda host=host: way(two, host)["mtu"] == 1500 - OVERHEAD, 20)
        for family in "46":  # what they were told they would believe for ten minutes; their host forgets it at once
            for host, name in (("A", "here"), ("B", "there")):
                two.run(host, "plait", "exec", name, "--", "ip", f"-{family}", "route", "flush", "cache")
    for family in "46":
        assert reaches(two, "A", "here", f"-{family}", "-M", "do", "-s", str(1500 - OVERHEAD - HEADS[family]), "there")


def test_the_catalogue_and_dns_have_the_nodes_by_ipv6(two: Lab) -> None:
    (node,) = [n for n in json.loads(two.run("A", "curl", "-sS", "http://127.0.0.1:8500/v1/catalog/nodes").stdout) if n["Node"] == "B"]
    assert node["Address"] == "2001:2:0:1::1"
    assert node["TaggedAddresses"] == dict.fromkeys(("lan", "lan_ipv6", "wan", "wan_ipv6"), node["Address"])

    def address() -> str:
        return two.run("A", "dig", "+short", "@127.0.0.1", "b.node.consul", "AAAA").stdout.strip()

    until("A names B", lambda: address() == "2001:2:0:1::1", 5)


def test_a_new_agent_finds_the_store_again(two: Lab) -> None:
    two.kill_agent("B")
    two.start_agent("B")
    for host in "AB":
        until(f"{host} is well", lambda host=host: asked(two, host, "status")["well"], 15)
    assert reaches(two, "B", "there", "-6", "here")


@pytest.mark.parametrize(("backend", "room"), [("hybrid", 1500 - OVERHEAD), ("wireguard", 1500 - 80)])
def test_other_backends_go_through_their_tunnels(two: Lab, backend: str, room: int) -> None:
    two.run("A", "plait", "network", "create", backend, "--backend", backend)
    try:
        for host, name in (("A", f"{backend}-a"), ("B", f"{backend}-b")):
            until("the network", lambda host=host: backend in two.run(host, "plait", "network", "ls").stdout, 5)
            two.run(host, "plait", "run", "--name", name, "--network", backend)
        for host, name, other in (("A", f"{backend}-a", f"{backend}-b"), ("B", f"{backend}-b", f"{backend}-a")):
            until("it reaches the other", lambda: reaches(two, host, name, "-M", "do", "-s", str(room - HEADS["4"]), other), 15)  # noqa: B023
            assert not reaches(two, host, name, "-M", "do", "-s", str(room - HEADS["4"] + 1), other)
    finally:
        for host, name in (("A", f"{backend}-a"), ("B", f"{backend}-b")):
            two.run(host, "plait", "rm", name, check=False)
        two.run("A", "plait", "network", "rm", backend)
