# SPDX-License-Identifier: Apache-2.0
"""Limits on real hosts: said by commands, labels, engines and networks, over restarts of everything, and with traffic through them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.mesh import docker, networks

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """A with an engine and two sandboxes, B with one."""
    made = make_lab(hosts=2, engines=True)
    for host, name in (("A", "web"), ("A", "near"), ("B", "far")):
        made.run(host, "plait", "run", "--name", name)
    return made


def rows(lab: Lab, container: str = "") -> list[dict[str, Any]]:
    found = json.loads(lab.run("A", "plait", "limit", "ls", "--json").stdout)
    return [row for row in found if container in ("", row["container"])]


def said(lab: Lab, container: str) -> set[tuple[str, int, str, str, bool]]:
    return {(row["direction"], row["rate"], row["manner"], row["by"], row["held"]) for row in rows(lab, container)}


def buckets(lab: Lab) -> int:
    return lab.run("A", "tc", "qdisc", "show").stdout.count("qdisc tbf 70:")


def at_rest(lab: Lab, wanted: int, what: str = "the kernel is as planned") -> None:
    """So many buckets are there, and a pass would find nothing to do."""
    until(what, lambda: buckets(lab) == wanted and lab.run("A", "plait", "plan", "--diff").stdout == "", 10)


def refused(lab: Lab, *words: str) -> str:
    done = lab.run("A", "plait", *words, check=False)
    assert done.returncode in (1, 2), done.stdout
    return str(done.stderr)


def seconds(lab: Lab, host: str, client: str, server: str, server_host: str, size: int, network: str = "default") -> float:
    """How long it takes to send so many bytes from one sandbox to another by TCP."""
    take = "import socket as s; l=s.create_server(('', 9100)); c,_=l.accept()\nwhile c.recv(1<<16): pass\nc.sendall(b'x')"
    give = "import socket as s,sys; c=s.create_connection((sys.argv[1], 9100), 30); c.sendall(bytes(int(sys.argv[2]))); c.shutdown(1)"
    give += "; c.recv(1)"
    address = json.loads(lab.run("A", "plait", "ps", "--json").stdout)
    to = next(row["addresses"][network] for row in address if row["name"] == server)
    taker = lab.popen(server_host, "plait", "exec", server, "--", "python3", "-c", take)
    try:
        until("it listens", lambda: ":9100" in lab.run(server_host, "plait", "exec", server, "--", "ss", "-Hltn").stdout, 10)
        started = time.monotonic()
        lab.run(host, "plait", "exec", client, "--", "python3", "-c", give, to, str(size))
        return time.monotonic() - started
    finally:
        taker.wait(30)


def test_a_limit_that_is_set_holds_on_every_way_until_it_is_taken_back(lab: Lab) -> None:
    assert rows(lab) == [] and buckets(lab) == 0
    lab.run("A", "plait", "limit", "set", "web", "--in", "8M", "--out", "8M", "--drop")
    assert said(lab, "web") == {(word, 8 * MEGABYTE, "drop", "command", True) for word in ("in", "out")}
    at_rest(lab, 2)
    for host, client, server, where in (
        ("A", "near", "web", "A"),
        ("B", "far", "web", "A"),
        ("A", "web", "near", "A"),
        ("A", "web", "far", "B"),
    ):
        assert seconds(lab, host, client, server, where, 2 * MEGABYTE) > 1.5, (
            f"{client} to {server}: two seconds at 8 Mbit/s, less a bucket"
        )
    lab.run("A", "plait", "limit", "set", "web", "--in", "none")
    assert said(lab, "web") == {("in", 0, "shape", "command", True), ("out", 8 * MEGABYTE, "drop", "command", True)}
    lab.run("A", "plait", "limit", "rm", "web")
    assert rows(lab) == []
    at_rest(lab, 0)
    assert "clsact" not in lab.run("A", "tc", "qdisc", "show").stdout and "pl-i" not in lab.run("A", "ip", "-br", "link").stdout


def test_it_outlives_agent_and_container_and_who_deletes_it(lab: Lab) -> None:
    lab.run("A", "plait", "run", "--name", "job", "--limit-out", "5M")
    assert said(lab, "job") == {("out", 5 * MEGABYTE, "shape", "container", True)}
    lab.run("A", "plait", "limit", "set", "job", "--in", "10M")
    both = {("in", 10 * MEGABYTE, "shape", "command", True), ("out", 5 * MEGABYTE, "shape", "container", True)}
    lab.kill_agent("A")
    assert buckets(lab) == 2, "they do not need the agent"
    lab.start_agent("A")
    assert said(lab, "job") == both
    at_rest(lab, 2)
    device = next(line.split()[4] for line in lab.run("A", "tc", "qdisc", "show").stdout.splitlines() if "tbf" in line and "pl-e" in line)
    for gone in (
        f"tc qdisc del dev {device} root",
        f"nft flush chain netdev plait {device}",
        f"ip link del {device.replace('pl-e', 'pl-i')}",
    ):
        lab.run("A", *gone.split())
        at_rest(lab, 2, f"put back after {gone}")
    lab.run("A", "plait", "rm", "job")
    assert buckets(lab) == 0
    assert [(row["direction"], row["running"]) for row in rows(lab, "job")] == [("in", False)]
    lab.run("A", "plait", "run", "--name", "job")
    assert said(lab, "job") == {("in", 10 * MEGABYTE, "shape", "command", True)}
    lab.run("A", "plait", "rm", "job")
    lab.run("A", "plait", "limit", "rm", "job")
    assert rows(lab) == []


def test_what_cannot_be_meant_is_refused(lab: Lab) -> None:
    assert "in: 'fast' is no rate; write 512kbit, 10M or 1G" in refused(lab, "limit", "set", "web", "--in", "fast")
    assert "10Mbit for bits" in refused(lab, "limit", "set", "web", "--in", "10mbps")
    assert "it runs on B" in refused(lab, "limit", "set", "far", "--in", "10M")
    assert "this host has no container 'nobody'" in refused(lab, "limit", "set", "nobody", "--in", "10M")
    assert "nothing was set" in refused(lab, "limit", "rm", "web")
    assert "plait.limit.out: '0' is not possible" in refused(lab, "run", "--name", "none", "--limit-out", "0")
    assert "limit-in: 'x' is no rate" in refused(lab, "network", "set", "default", "--limit-in", "x")
    assert rows(lab) == []
    at_rest(lab, 0)


def test_a_network_limits_each_of_its_containers_on_every_host(lab: Lab) -> None:
    lab.run("B", "plait", "network", "set", "default", "--limit-in", "20M")
    until("on both hosts", lambda: buckets(lab) == 2 and "tbf 70:" in lab.run("B", "tc", "qdisc", "show").stdout, 10)
    assert said(lab, "web") == said(lab, "near") == {("in", 20 * MEGABYTE, "shape", "network", True)}
    lab.run("A", "plait", "network", "set", "default", "--limit-in", "none")
    until("on neither", lambda: buckets(lab) == 0 and "tbf 70:" not in lab.run("B", "tc", "qdisc", "show").stdout, 10)


def test_numbers_a_second_are_said_like_rates_and_what_is_too_much_is_told(lab: Lab) -> None:
    lab.run("A", "plait", "run", "--name", "shop", "--label", "plait.limit.connections-in=10", "--label", "plait.limit.packets-out=50k")
    lab.run("A", "plait", "limit", "set", "shop", "--packets-in", "20", "--connections-out", "5")
    lab.run("A", "plait", "network", "set", "default", "-o", "limit-connections-in=99", "-o", "limit-packets-out=none")
    numbers = {(row["what"], row["direction"]): (row["rate"], row["by"], row["held"]) for row in rows(lab, "shop")}
    assert numbers == {
        ("packets", "in"): (20, "command", True),
        ("packets", "out"): (50_000, "container", True),
        ("connections", "in"): (10, "container", True),
        ("connections", "out"): (5, "command", True),
    }
    assert said(lab, "near") == {("in", 99, "drop", "network", True)}
    address = next(row["addresses"]["default"] for row in json.loads(lab.run("A", "plait", "ps", "--json").stdout) if row["name"] == "shop")
    pinged = lab.run("B", "plait", "exec", "far", "--", "ping", "-q", "-c", "100", "-i", "0.002", "-W", "1", address, check=False).stdout
    lost = next(row["dropped"] for row in rows(lab, "shop") if (row["what"], row["direction"]) == ("packets", "in"))
    assert "100 packets transmitted" in pinged and 60 <= lost <= 90, f"a burst of ten, and 20 a second: {pinged}"
    lab.kill_agent("A")
    lab.start_agent("A")
    assert {(row["what"], row["direction"]): (row["rate"], row["by"], row["held"]) for row in rows(lab, "shop")} == numbers
    until("a pass finds nothing to do", lambda: lab.run("A", "plait", "plan", "--diff").stdout == "", 10)
    assert "packets-in: 'many' is no number a second" in refused(lab, "limit", "set", "shop", "--packets-in", "many")
    lab.run("A", "plait", "limit", "rm", "shop")
    lab.run("A", "plait", "rm", "shop")
    lab.run("A", "plait", "network", "set", "default", "-o", "limit-connections-in=none")
    at_rest(lab, 0)
    assert "connections_in" not in lab.run("A", "nft", "list", "ruleset").stdout and rows(lab) == []


def test_a_published_port_is_limited_while_the_container_is_not(lab: Lab) -> None:
    lab.run("A", "plait", "run", "--name", "shop", "-p", "8090:80", "--label", "plait.ports.limit.connections-in=5")
    serve = "import socket as s\nl=s.create_server(('', 80), backlog=99)\nwhile 1: l.accept()[0].close()"
    server = lab.popen("A", "plait", "exec", "shop", "--", "python3", "-c", serve)
    addresses = {row["name"]: row["addresses"] for row in json.loads(lab.run("A", "plait", "ps", "--json").stdout)}
    begin = """import socket, sys, time
at = sys.argv[1], int(sys.argv[2])
callers = [socket.socket() for _ in range(30)]
for caller in callers:
    caller.setblocking(False)
    caller.connect_ex(at)
time.sleep(0.5)
print(sum(caller.connect_ex(at) in (0, 106) for caller in callers))
"""

    def made(host: str, port: int) -> int:
        return int(lab.run("B", "python3", "-c", begin, host, str(port)).stdout)

    try:
        until("it listens", lambda: ":80 " in lab.run("A", "plait", "exec", "shop", "--", "ss", "-Hltn").stdout, 10)
        assert made(addresses["shop"]["default"], 80) == 30, "by its own address it is free"
        assert 5 <= made(lab.address("A"), 8090) <= 8
        (row,) = rows(lab, "shop")
        assert (row["port"], row["what"], row["rate"], row["by"]) == ("80/tcp", "connections", 5, "container") and row["dropped"] >= 22
        lab.run("A", "plait", "limit", "set", "shop", "--port", "80", "--connections-in", "none", "--in", "10M")
        assert made(lab.address("A"), 8090) == 30
        assert [(r["what"], r["rate"], r["by"]) for r in rows(lab, "shop")] == [
            ("rate", 10_000_000, "command"),
            ("connections", 0, "command"),
        ]
        assert "does not publish its port 81/tcp: it publishes 0.0.0.0:8090->80/tcp" in refused(
            lab, "limit", "set", "shop", "--port", "81", "--in", "1M"
        )
        lab.run("A", "plait", "limit", "rm", "shop", "--port", "80")
        assert [r["rate"] for r in rows(lab, "shop")] == [5]
    finally:
        lab.run("A", "plait", "rm", "shop")
        server.wait(10)
    at_rest(lab, 0)
    assert "port_" not in lab.run("A", "nft", "list", "table", "inet", "plait").stdout


_EAR = """import socket, time
ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
ear.bind(("", 53))
ear.recv(100)
ear.settimeout(3)
began = time.monotonic()
try:
    for got in range(1, 41):
        ear.recv(2000)
        last = time.monotonic() - began
except TimeoutError:
    got -= 1
print(got, last)
"""
_MOUTH = """import socket, sys
mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
mouth.connect((sys.argv[1], int(sys.argv[2])))
for size in (1, *[1000] * 40):
    mouth.send(bytes(size))
"""


def test_what_comes_by_a_published_port_waits_and_what_else_comes_does_not(lab: Lab) -> None:
    lab.run("A", "plait", "run", "--name", "shop", "-p", "5300:53/udp")
    address = {row["name"]: row["addresses"] for row in json.loads(lab.run("A", "plait", "ps", "--json").stdout)}["shop"]["default"]

    def served(host: str, port: int) -> tuple[int, float]:
        """How many of 40 datagrams of 1000 bytes, sent at once from B, come to `shop`, and after how long the last one."""
        ear = lab.popen("A", "plait", "exec", "shop", "--", "python3", "-c", _EAR, stdout=subprocess.PIPE, text=True)
        until("it listens", lambda: ":53 " in lab.run("A", "plait", "exec", "shop", "--", "ss", "-Hlun").stdout, 10)
        lab.run("B", "python3", "-c", _MOUTH, host, str(port))
        got, took = ear.communicate(timeout=20)[0].split()
        return int(got), float(took)

    try:
        lab.run("A", "plait", "limit", "set", "shop", "--port", "53/udp", "--in", "160K", "--shape")
        assert said(lab, "shop") == {("in", 160_000, "shape", "command", True)}
        got, took = served(lab.address("A"), 5300)
        assert got == 40 and took > 0.8, "40 KB at 20 KB a second, less a bucket: late, and nothing is lost"
        got, took = served(address, 53)
        assert got == 40 and took < 0.5, "the container's own address is free"
        lab.run("A", "plait", "limit", "set", "shop", "--port", "53/udp", "--in", "160M", "--shape")
        got, took = served(lab.address("A"), 5300)
        assert got == 40 and took < 0.5, "changed while it runs"
        assert "of a published port --burst" in refused(lab, "limit", "set", "shop", "--port", "53/udp", "--in", "1M", "--burst", "64k")
    finally:
        lab.run("A", "plait", "limit", "rm", "shop", check=False)
        lab.run("A", "plait", "rm", "shop")
    at_rest(lab, 0)
    assert "htb 71:" not in lab.run("A", "tc", "qdisc", "show").stdout


@pytest.mark.parametrize("options", [("-o", "layer2=true"), ("--backend", "bridge"), ("--backend", "hybrid")], ids=lambda o: o[1])
def test_a_limit_holds_in_networks_of_other_kinds(lab: Lab, options: tuple[str, ...]) -> None:
    """Ports of a bridge; with layer 2 neighbours on two hosts, whose questions by ARP the host answers; plain routes."""
    there = "A" if "bridge" in options else "B"
    lab.run("A", "plait", "network", "create", "kind", *options)
    until("both hosts have it", lambda: "kind" in lab.run("B", "plait", "network", "ls").stdout, 10)
    lab.run("A", "plait", "run", "--name", "one", "--network", "kind", "--limit-in", "8M", "--limit-out", "8M")
    lab.run(there, "plait", "run", "--name", "two", "--network", "kind")
    until("both are known", lambda: {"one", "two"} <= {row["name"] for row in json.loads(lab.run("A", "plait", "ps", "--json").stdout)}, 10)
    at_rest(lab, 2)
    assert seconds(lab, "A", "one", "two", there, 2 * MEGABYTE, "kind") > 1.5
    assert seconds(lab, there, "two", "one", "A", 2 * MEGABYTE, "kind") > 1.5
    lab.run("A", "plait", "rm", "one")
    lab.run(there, "plait", "rm", "two")
    until("nobody is left in it", lambda: lab.run("A", "plait", "network", "rm", "kind", check=False).returncode == 0, 10)
    assert buckets(lab) == 0


def test_docker_asks_by_labels_options_and_networks(lab: Lab) -> None:
    docker(lab, "A", "network", "create", "-d", "plait", "--ipam-driver", "plait", "-o", "limit-out=30M", "slow")
    until("both engines have it", lambda: "slow" in networks(lab, "B"), 10)
    docker(lab, "A", "run", "-d", "--name", "shop", "--network", "slow", "--label", "plait.limit.in=10M", "nginx")
    wanted = {("in", 10 * MEGABYTE, "shape", "container", True), ("out", 30 * MEGABYTE, "shape", "network", True)}
    assert said(lab, "shop") == wanted
    docker(lab, "A", "restart", "-t", "1", "shop")
    assert said(lab, "shop") == wanted
    at_rest(lab, 2)
    lab.run("A", "plait", "limit", "set", "shop", "--in", "15M")
    docker(lab, "A", "restart", "-t", "1", "shop")
    assert ("in", 15 * MEGABYTE, "shape", "command", True) in said(lab, "shop")
    docker(lab, "A", "create", "--name", "odd", "--label", "plait.limit.in=fast", "--network", "slow", "nginx")
    done = lab.run("A", "docker", "start", "odd", check=False)
    assert done.returncode and "is no rate; write 512kbit" in done.stderr
    docker(lab, "A", "create", "--name", "opted", "nginx")
    docker(lab, "A", "network", "connect", "--driver-opt", "plait.limit.out=7M", "slow", "opted")
    docker(lab, "A", "start", "opted")
    until("its name is known", lambda: ("out", 7 * MEGABYTE, "shape", "container", True) in said(lab, "opted"), 10)
    docker(lab, "A", "rm", "-f", "shop", "odd", "opted")
    at_rest(lab, 0, "nothing of them is left")
    lab.run("A", "plait", "limit", "rm", "shop")


def test_a_label_where_nothing_limits_is_named(lab: Lab) -> None:
    def void() -> list[str]:
        conditions = json.loads(lab.run("A", "plait", "status", "--json", check=False).stdout)["conditions"]
        return [row["subject"] for row in conditions if row["code"] == "limit-void"]

    docker(lab, "A", "run", "-d", "--name", "plain", "--label", "plait.limit.in=10M", "nginx")
    until("it is named", lambda: void() == ["plain"], 10)
    docker(lab, "A", "rm", "-f", "plain")
    until("it is well again", lambda: void() == [], 10)
