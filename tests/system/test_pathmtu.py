# SPDX-License-Identifier: Apache-2.0
"""A link between two routers, which no host sees, gets narrower and wider under running agents: what both ends send follows it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.support import sandboxes

from plait.lab import inside
from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]
FOLLOWED_S = 15
"""Scenario P17 asks for 5 s; the rest is room for a loaded machine."""
OVERHEAD = 50
ROADS = """
[[switch]]
name = "left"
mtu = 9000
[[switch]]
name = "between"
mtu = 9000
[[switch]]
name = "right"
mtu = 9000
[[router]]
name = "R1"
switches = ["left", "between"]
[[router]]
name = "R2"
switches = ["between", "right"]
[[host]]
name = "A"
[[host]]
name = "C"
[[host]]
name = "B"
switch = "right"
"""
RECEIVE = """
import socket
with socket.create_server(("", 7000)) as server:
    print("ready", flush=True)
    with server.accept()[0] as sock:
        sock.settimeout(20)
        got = 0
        while data := sock.recv(1 << 16):
            got += len(data)
        sock.sendall(str(got).encode())
"""
SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000), 5) as sock:
    sock.settimeout(20)
    sock.sendall(bytes(1 << 20))
    sock.shutdown(socket.SHUT_WR)
    print(sock.recv(64).decode())
"""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(toml=ROADS)
    narrow(made, 1500)
    for host in "AB":
        made.run(host, "plait", "run", "--name", f"in-{host}")
    yield made


def on(lab: Lab, router: str, *command: str) -> None:
    subprocess.run(inside.net_argv(lab.state.holders[router], list(command)), check=True, capture_output=True, timeout=10)


def narrow(lab: Lab, mtu: int) -> None:
    """The link between the routers carries so many bytes from now on, both ways."""
    on(lab, "R1", "ip", "link", "set", "eth1", "mtu", str(mtu))
    on(lab, "R2", "ip", "link", "set", "eth0", "mtu", str(mtu))


@contextmanager
def black_hole(lab: Lab) -> Iterator[None]:
    """Routers that tell nobody, and that lose fragments: small works, large hangs."""
    rules = "table ip hole { chain out { type filter hook output priority 0; icmp code 4 icmp type 3 drop; }; "
    rules += "chain through { type filter hook prerouting priority -450; ip frag-off & 16383 != 0 drop; }; }"
    for router in ("R1", "R2"):
        on(lab, router, "nft", rules)
    try:
        yield
    finally:
        for router in ("R1", "R2"):
            on(lab, router, "nft", "delete table ip hole")


def way(lab: Lab, host: str, to: str) -> dict[str, Any]:
    return next(row for row in sandboxes.shown(lab, host, "status")["paths"] if row["node"] == to)


def followed(lab: Lab, mtu: int) -> None:
    for host, to in ("AB", "BA"):
        until(f"{host} knows {mtu}", lambda: way(lab, host, to)["mtu"] == mtu - OVERHEAD, FOLLOWED_S)  # noqa: B023
    assert way(lab, "A", "C")["mtu"] == 9000 - OVERHEAD, "on one link nothing changed"


def address(lab: Lab, host: str) -> str:
    return sandboxes.address(lab, f"in-{host}", "default", host=host)


def pings(lab: Lab, host: str, to: str, *options: str) -> bool:
    return sandboxes.pings(lab, host, f"in-{host}", address(lab, to), *options, wait_s=2)


def moves_a_megabyte(lab: Lab, host: str, to: str) -> bool:
    """TCP from a container on `host` to one on `to`."""
    receiver = lab.popen(to, "plait", "exec", f"in-{to}", "--", sys.executable, "-c", RECEIVE, stdout=subprocess.PIPE, text=True)
    try:
        assert receiver.stdout is not None and receiver.stdout.readline() == "ready\n"
        done = lab.run(host, "plait", "exec", f"in-{host}", "--", sys.executable, "-c", SEND, address(lab, to), timeout_s=40, check=False)
        return done.stdout == f"{1 << 20}\n"
    finally:
        receiver.kill()
        receiver.communicate()


def works(lab: Lab) -> None:
    for host, to in ("AB", "BA"):
        assert moves_a_megabyte(lab, host, to) and pings(lab, host, to, "-s", "10000"), f"from {host} to {to}"


def narrowed(lab: Lab, host: str) -> set[int]:
    """The MTUs on routes inside the container on `host`. Only ways to the other side of the routers may have any."""
    far = {"A": "B", "B": "AC"}[host]
    rows = json.loads(lab.run(host, "plait", "network", "inspect", "default", "--json").stdout)["held"]
    blocks = {row["cidr"] for row in rows if row["node"] in far}
    lines = lab.run(host, "plait", "exec", f"in-{host}", "--", "ip", "route").stdout.splitlines()
    found = {line.split()[0]: int(line.split(" mtu ")[1].split()[0]) for line in lines if " mtu " in line}
    assert found.keys() <= blocks and (not found or found.keys() == blocks)
    return set(found.values())


def forget(lab: Lab) -> None:
    """Containers keep what they were told of a way for ten minutes, as any host does."""
    for host in "AB":
        lab.run(host, "plait", "exec", f"in-{host}", "--", "ip", "route", "flush", "cache")


def test_the_way_is_probed_and_followed_in_both_directions(lab: Lab) -> None:
    for mtu in (1500, 1300, 9000, 1404):
        narrow(lab, mtu)
        followed(lab, mtu)
        works(lab)
        forget(lab)
        fits = mtu - OVERHEAD - 28
        for host, to in ("AB", "BA"):
            until("its containers know", lambda: narrowed(lab, host) == ({mtu - OVERHEAD} if mtu < 9000 else set()), 5)  # noqa: B023
            until("the largest packet passes", lambda: pings(lab, host, to, "-M", "do", "-s", str(fits)), 5)  # noqa: B023
            assert not pings(lab, host, to, "-M", "do", "-s", str(fits + 1)), "and no larger one"


def test_a_way_that_swallows_what_is_too_large_is_found(lab: Lab) -> None:
    narrow(lab, 9000)
    followed(lab, 9000)
    forget(lab)
    with black_hole(lab):
        narrow(lab, 1399)
        assert not pings(lab, "A", "B", "-s", "2000"), "small works, large hangs"
        followed(lab, 1399)
        works(lab)
        narrow(lab, 9000)
        followed(lab, 9000)


def test_what_was_found_outlives_the_agent_and_is_said_to_be_old(lab: Lab) -> None:
    narrow(lab, 1400)
    followed(lab, 1400)
    lab.kill_agent("A")
    lab.run("B", "sysctl", "-qw", "net.ipv4.icmp_echo_ignore_all=1")
    try:
        lab.start_agent("A")
        until("A has asked", lambda: way(lab, "A", "C")["probed"], 10)
        assert (way(lab, "A", "B")["mtu"], way(lab, "A", "B")["probed"]) == (1400 - OVERHEAD, False)
        assert "B (vxlan, mtu 1350 not probed)" in lab.run("A", "plait", "status", check=False).stdout
    finally:
        lab.run("B", "sysctl", "-qw", "net.ipv4.icmp_echo_ignore_all=0")
    until("B answers", lambda: way(lab, "A", "B")["probed"], 10)
