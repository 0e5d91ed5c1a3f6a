# SPDX-License-Identifier: Apache-2.0
"""Encrypted networks across address translation: A has an address that everybody reaches, B and C are each behind a router of their own
that hides them, and have not been told so. B and C reach each other through A."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.support import sandboxes
from tests.support.wireguard import needs_wireguard_go

from plait.lab import inside
from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(180), needs_wireguard_go]
HOMES = """
[[switch]]
name = "net"
[[switch]]
name = "left"
[[switch]]
name = "right"
[[router]]
name = "R1"
switches = ["left", "net"]
[[router]]
name = "R2"
switches = ["right", "net"]
[[host]]
name = "A"
switch = "net"
[[host]]
name = "B"
switch = "left"
[[host]]
name = "C"
switch = "right"
"""
HIDES = """
table ip nat {
  chain out { type nat hook postrouting priority srcnat; oifname "eth1" masquerade; }
}
table ip guard {
  chain through { type filter hook forward priority filter; policy drop; iifname "eth0" accept; ct state established accept; }
}
"""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab(toml=HOMES)
    for router in ("R1", "R2"):
        subprocess.run(inside.net_argv(made.state.holders[router], ["nft", "-f", "-"]), input=HIDES, text=True, check=True, timeout=10)
    assert made.run("A", "ping", "-c1", "-W1", made.address("B"), check=False).returncode != 0, "nobody begins to talk to B"
    until("B and C are back in the cluster", lambda: "3 of 3 alive" in made.run("A", "plait", "status", check=False).stdout, 40)
    made.run("A", "plait", "network", "create", "secret", "--backend", "wireguard")
    for host in "ABC":
        until(f"{host} has the network", lambda host=host: "secret" in made.run(host, "plait", "network", "ls").stdout, 10)
        made.run(host, "plait", "run", "--name", f"in-{host}", "--network", "secret")
    return made


def addresses(lab: Lab) -> dict[str, str]:
    return {row["node"]: row["addresses"]["secret"] for row in sandboxes.shown(lab, "A", "ps")}


def path(lab: Lab, host: str, node: str) -> dict[str, Any]:
    return next(row for row in sandboxes.shown(lab, host, "status")["paths"] if row["node"] == node and row["encrypted"])


def pings(lab: Lab, host: str, to: str) -> bool:
    return sandboxes.pings(lab, host, f"in-{host}", to)


def test_those_behind_a_router_are_reached_and_where_they_were_heard_from_is_kept(lab: Lab) -> None:
    until("all know of all", lambda: len(addresses(lab)) == 3, 10)
    to = addresses(lab)
    for one, other in (("A", "B"), ("A", "C"), ("B", "A"), ("C", "A")):
        until(f"{one} reaches {other}", lambda one=one, other=other: pings(lab, one, to[other]), 40)
    keys = {row["node"]: row["key"] for row in json.loads(lab.run("A", "plait", "keys", "ls", "--json").stdout)}
    router = subprocess.run(
        inside.net_argv(lab.state.holders["R1"], ["ip", "-4", "-o", "addr", "show", "eth1"]), capture_output=True, text=True, check=True
    ).stdout.split()[3]

    def heard_from() -> str:
        endpoints = dict(line.split() for line in lab.run("A", "wg", "show", "pl-wg", "endpoints").stdout.splitlines())
        return endpoints[keys["B"]].rpartition(":")[0]

    until("A keeps where it heard B from", lambda: heard_from() == router.partition("/")[0], 20)
    until("B keeps its way open", lambda: "25" in lab.run("B", "wg", "show", "pl-wg", "persistent-keepalive").stdout.split(), 20)
    until("A has heard of all", lambda: plain(lab), 20)
    for _ in range(5):
        assert plain(lab), "the plan does not fight the device"
        time.sleep(0.3)


def plain(lab: Lab) -> bool:
    return lab.run("A", "plait", "plan", "--diff").stdout.strip() == ""


def test_two_behind_routers_reach_each_other_through_the_third_and_status_says_so(lab: Lab) -> None:
    to = addresses(lab)
    until("B reaches C", lambda: pings(lab, "B", to["C"]), 40)
    until("C reaches B", lambda: pings(lab, "C", to["B"]), 10)
    until("proved", lambda: path(lab, "B", "C")["encrypted"] == "proved", 20)
    until("both say by whom", lambda: path(lab, "B", "C")["relay"] == path(lab, "C", "B")["relay"] == "A", 20)
    assert path(lab, "A", "B")["relay"] == ""
    rows = json.loads(lab.run("B", "plait", "paths", "--json").stdout)
    assert [(row["kind"], row["relay"]) for row in rows if row["node"] == "C" and "secret" in row["networks"]] == [("relay", "A")]
    assert "by way of A" in lab.run("B", "plait", "status", check=False).stdout


def test_keys_are_rotated_there_too(lab: Lab) -> None:
    to = addresses(lab)
    until("B reaches C", lambda: pings(lab, "B", to["C"]), 40)
    for node in ("A", "B"):
        lab.run("A", "plait", "keys", "rotate", node, timeout_s=100)
    assert pings(lab, "B", to["C"]) and pings(lab, "C", to["A"]) and pings(lab, "A", to["B"])
    assert "key_rotation_alone" not in (lab.state.disks / "A" / "agent.log").read_text()
