# SPDX-License-Identifier: Apache-2.0
"""Services with a virtual address on three hosts: who is reached, by which name, and when no more."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from tests.support.sandboxes import address, shown
from tests.support.servers import CLIENT, connects, serve, serving

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.timeout(180)]
HOLDER = """
import socket, sys
held = {}
while len(held) < int(sys.argv[3]):
    sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)
    held.setdefault(sock.makefile().readline().split()[0], sock)
print("held", flush=True)
for line in sys.stdin:
    for name, sock in sorted(held.items()):
        try:
            sock.sendall(line.encode())
            print(name, "lives" if sock.recv(99) == line.encode() else "ended", flush=True)
        except OSError as error:
            print(name, type(error).__name__, flush=True)
"""
"""Holds a connection to each of so many backends, and says at every line it reads which of them still answer."""
DOMAIN = "default.svc.cluster.local"
SHOPS = ("shop-A", "shop-B", "shop-C")


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    """On every host a server and a client."""
    made: Lab = make_lab(hosts=3)
    with serving() as servers:
        for host in "ABC":
            made.run(host, "plait", "run", "--name", f"client-{host}")
            servers.append(start(made, host, f"shop-{host}"))
        yield made


@pytest.fixture(autouse=True)
def no_services(lab: Lab) -> Iterator[None]:
    """None is left in any kernel either: the next service of the same name has the same address."""
    yield
    for row in shown(lab, "A", "service", "ls"):
        lab.run("A", "plait", "service", "rm", f"{row['namespace']}/{row['name']}")
    for host in "ABC":
        until(f"{host} has none", lambda h=host: "elements" not in lab.run(h, "nft", "list map inet plait vips", check=False).stdout, 10)


def start(lab: Lab, host: str, name: str) -> subprocess.Popen[str]:
    return serve(lab, host, name, "--label", "app=shop")


def create(lab: Lab, *words: str) -> str:
    """Made on A, and in force everywhere; its address."""
    vip = lab.run("A", "plait", "service", "create", "shop", "--port", "80:8080", "--selector", "app=shop", *words).stdout.strip()
    for host in "BC":
        until(f"{host} has it", lambda h=host: vip in lab.run(h, "nft", "list map inet plait vips", check=False).stdout, 10)
    return vip


def answered(lab: Lab, host: str, to: str, many: int = 60) -> Counter[str]:
    return Counter(row[1] for row in connects(lab, host, to, many, sandbox=f"client-{host}"))


@contextmanager
def holding(lab: Lab, host: str, vip: str, many: int) -> Iterator[Callable[[], dict[str, str]]]:
    """So many connections of the host's client, which it has from then on; what becomes of each, by who has it, when it sends something."""
    words = sys.executable, "-c", HOLDER, vip, "80", str(many)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with lab.popen(host, "plait", "exec", f"client-{host}", "--", *words, text=True, **pipes) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == "held\n"

        def said() -> dict[str, str]:
            holder.stdin.write("hello\n")
            holder.stdin.flush()
            return dict(holder.stdout.readline().split() for _ in range(many))

        yield said
        holder.stdin.close()
        holder.wait(5)


def test_everybody_reaches_all_of_them_by_its_name_and_is_seen_by_its_own_address(lab: Lab) -> None:
    vip = create(lab)
    assert vip.startswith("10.27.")
    for host in "ABC":
        client = address(lab, f"client-{host}")
        until(f"{host} knows the name", lambda h=host: dug(lab, h, f"shop.{DOMAIN}") == [vip], 10)
        rows = connects(lab, host, f"shop.{DOMAIN}", 90, sandbox=f"client-{host}")
        assert {row[2] for row in rows} == {client}
        counts = Counter(row[1] for row in rows)
        assert set(counts) == set(SHOPS) and min(counts.values()) >= 12, counts
    assert {row[1] for row in connects(lab, "B", vip, 30)} == set(SHOPS), "hosts as well"
    assert {row[1] for row in connects(lab, "A", vip, 30, sandbox="shop-A")} == set(SHOPS), "and itself"
    assert dug(lab, "C", f"shop.{DOMAIN}", "SRV") == [f"0 1 80 shop.{DOMAIN}."]
    assert dug(lab, "C", "shop.virtual.consul") == [vip]
    assert dug(lab, "C", "-x", vip) == [f"shop.{DOMAIN}."]
    assert connects(lab, "A", vip, port=81, sandbox="client-A")[0][1] == "[Errno 111] Connection refused"


def dug(lab: Lab, host: str, *words: str) -> list[str]:
    return lab.run(host, "dig", "+short", "+time=1", "+tries=1", "@127.0.0.1", *words, check=False).stdout.split("\n")[:-1]


def test_one_that_is_killed_gets_nothing_after_a_second_and_what_it_had_is_reset(lab: Lab) -> None:
    """The others keep what they have."""
    with start(lab, "B", "victim") as victim:
        vip = create(lab)
        with holding(lab, "A", vip, 4) as held:
            asked = sys.executable, "-c", CLIENT, vip, "80", "400", "0.01"
            asking = lab.popen("C", "plait", "exec", "client-C", "--", *asked, text=True, stdout=subprocess.PIPE)
            time.sleep(1)
            killed = time.time()
            lab.run("B", "plait", "rm", "victim")
            rows = [json.loads(line) for line in asking.communicate(timeout=30)[0].splitlines()]
            said = held()
        victim.kill()
    assert {row[1] for row in rows if row[0] < killed - 0.1} == {*SHOPS, "victim"}
    late = Counter(row[1] for row in rows if row[0] > killed + 1)
    assert set(late) == set(SHOPS), late
    assert said.pop("victim") in ("ended", "ConnectionResetError", "BrokenPipeError"), "by itself or by who sees it gone: not silent"
    assert said == dict.fromkeys(SHOPS, "lives")


def test_what_a_host_has_is_reset_when_it_is_gone_and_lives_on_when_its_agent_alone_is(lab: Lab) -> None:
    with holding(lab, "B", create(lab), 3) as held:
        lab.kill_agent("C")
        try:
            until("its agent is missed", lambda: state(lab, "B", "shop-C") == "away", 15)
            time.sleep(4)
            assert held() == dict.fromkeys(SHOPS, "lives")
            lab.cut("A", "C")
            lab.cut("B", "C")
            began, lives = time.monotonic(), dict.fromkeys(("shop-A", "shop-B"), "lives")
            time.sleep(4)
            assert held() == lives | {"shop-C": "ConnectionResetError"}, time.monotonic() - began
        finally:
            lab.heal()
            lab.start_agent("C")
    until("it is back", lambda: state(lab, "B", "shop-C") == "ready", 15)


def state(lab: Lab, host: str, name: str) -> str:
    return next(one["state"] for one in shown(lab, host, "service", "show", "shop")["containers"] if one["name"] == name)


def test_its_manner_is_changed_while_it_is_used(lab: Lab) -> None:
    vip = create(lab, "--local-first")
    for host in "ABC":
        assert set(answered(lab, host, vip, 20)) == {f"shop-{host}"}
    lab.run("A", "plait", "service", "set", "shop", "--no-local-first", "--affinity")
    until("each client keeps to one", lambda: all(len(answered(lab, host, vip, 20)) == 1 for host in "ABC"), 10)
    lab.run("B", "plait", "service", "set", "shop", "--no-affinity", "--drain", "shop-C")
    until("one drains", lambda: set(answered(lab, "A", vip)) == {"shop-A", "shop-B"}, 10)
    states = {one["name"]: one["state"] for one in shown(lab, "C", "service", "show", "shop")["containers"]}
    assert states == {"shop-A": "ready", "shop-B": "ready", "shop-C": "draining"}
    lab.run("B", "plait", "service", "set", "shop", "--undrain", "C/shop-C")
    until("it does not any more", lambda: "shop-C" in answered(lab, "A", vip), 10)


def test_on_other_hosts_an_event_is_written_ahead_of_the_pass(lab: Lab) -> None:
    """A pass that writes something is in the log; while one is under way as the event comes, the event is its own."""
    vip, log = create(lab), lab.state.disks / "B" / "agent.log"
    until("all are behind it", lambda: set(answered(lab, "B", vip)) == set(SHOPS), 10)
    time.sleep(1)
    before = log.read_text().count("pass_applied")
    for number in range(6):
        word, there = (("--drain", 2), ("--undrain", 3))[number % 2]
        lab.run("A", "plait", "service", "set", "shop", word, "C/shop-C")
        until(f"it is so after {word}", lambda n=there: len(set(answered(lab, "B", vip, 40))) == n, 10)
        time.sleep(0.5)
    assert log.read_text().count("pass_applied") - before <= 3, "of six events"


def test_a_failing_check_takes_one_out_until_it_passes(lab: Lab) -> None:
    vip = create(lab)
    body = {"Name": "shop", "ID": "shop-A", "Address": address(lab, "shop-A"), "Port": 8080, "Check": {"TTL": "60s", "Status": "passing"}}
    lab.run("A", "curl", "-sS", "--fail", "-X", "PUT", "-d", json.dumps(body), "http://127.0.0.1:8500/v1/agent/service/register")
    assert set(answered(lab, "C", vip)) == set(SHOPS)
    for verb, there in (("fail", False), ("pass", True)):
        lab.run("A", "curl", "-sS", "--fail", "-X", "PUT", f"http://127.0.0.1:8500/v1/agent/check/{verb}/service:shop-A")
        until(f"after {verb}", lambda t=there: ("shop-A" in answered(lab, "C", vip)) == t, 10)
    lab.run("A", "curl", "-sS", "--fail", "-X", "PUT", "http://127.0.0.1:8500/v1/agent/service/deregister/shop-A")


def test_a_port_of_every_host_and_a_label(lab: Lab) -> None:
    """By the port of a host with a container of it the client's own address is seen."""
    create(lab, "--publish", "9090:80")
    for host, other in (("A", "B"), ("B", "C"), ("C", "A")):
        rows = connects(lab, host, lab.address(other), 5, 9090)
        assert [row[1:] for row in rows] == [[f"shop-{other}", lab.address(host)]] * 5
    lab.run("B", "plait", "run", "--name", "late", "--label", "plait.vip=auto", "--label", "plait.vip.ports=80:8080")
    until(
        "the label's service is there",
        lambda: [row["ready"] for row in shown(lab, "A", "service", "ls") if row["name"] == "auto"] == [1],
        10,
    )
    lab.run("B", "plait", "rm", "late")
