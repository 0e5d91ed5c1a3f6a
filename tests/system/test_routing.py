# SPDX-License-Identifier: Apache-2.0
"""Blocks announced to and routes learned from routers that know nothing of plait, by BGP and OSPF, with real packets: the files of
examples/routing, which docs/routing.md explains."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.support.outside import answering, asked
from tests.support.sandboxes import address, inside, pings, shown

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
FILES = Path(__file__).parents[2] / "examples/routing"
OUTSIDE = "10.200.0.1"
"""Each router has it, as tenants may have the same addresses behind theirs."""
FILE = "/etc/plait/routing.toml"


def bird(lab: Lab, router: str, *words: str) -> str:
    """What the router's own BIRD says."""
    return lab.run(router, "birdc", "-s", "/run/bird.ctl", *words).stdout


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(toml=(FILES / "lab.toml").read_text())
    for name, subnet in (("red", "10.40.0.0/16"), ("blue", "10.41.0.0/16")):
        made.run("A", "plait", "network", "create", name, "--subnet", subnet)
        for host in "AB":
            made.run(host, "plait", "run", "--name", f"{name}-{host}", "--network", name)
    with ExitStack() as servers:
        for router in ("R1", "R2"):
            made.run(router, "ip", "addr", "add", f"{OUTSIDE}/32", "dev", "lo")
            made.run(router, "sysctl", "-qw", "net.ipv4.ip_forward=1")
            servers.enter_context(answering(made, router, router))
            made.run(router, "tee", "/run/bird.conf", text=(FILES / f"{router}.conf").read_text())
            made.run(router, "bird", "-c", "/run/bird.conf", "-s", "/run/bird.ctl", "-P", "/run/bird.pid")
        for host in "AB":
            made.run(host, "tee", FILE, text=(FILES / "routing.toml").read_text())
        for host in "AB":
            until("BIRD is there", lambda host=host: made.run(host, "plait", "routing", check=False).returncode == 0, 10)
            until("all sessions are up", lambda host=host: all(row["learned"] for row in sessions(made, host)), 30)
        yield made


def sessions(lab: Lab, host: str) -> list[dict[str, object]]:
    return list(shown(lab, host, "routing")["sessions"]) or [{"learned": 0}]


def seen(lab: Lab, host: str, sandbox: str) -> str:
    """Which router answers the sandbox, and by which address it sees it; "" if none does."""
    return asked(lab, host, OUTSIDE, "plait", "exec", sandbox, "--")


def conditions(lab: Lab, host: str) -> dict[str, str]:
    return {row["code"]: row["text"] for row in shown(lab, host, "status")["conditions"]}


@contextmanager
def configured(lab: Lab, router: str, more: str) -> Iterator[None]:
    """The router says `more`, until this ends."""
    before = lab.run(router, "cat", "/run/bird.conf").stdout
    lab.run(router, "tee", "/run/bird.conf", text=f"{before}\n{more}\n")
    bird(lab, router, "configure")
    try:
        yield
    finally:
        lab.run(router, "tee", "/run/bird.conf", text=before)
        bird(lab, router, "configure")


def test_each_tenant_goes_by_its_own_table_under_its_own_address(lab: Lab) -> None:
    for host in "AB":
        assert seen(lab, host, f"red-{host}") in {f"{r} {address(lab, f'red-{host}', host=host)}" for r in ("R1", "R2")}, "BGP"
        assert seen(lab, host, f"blue-{host}") == f"R2 {address(lab, f'blue-{host}', host=host)}", "OSPF"


def test_routers_know_every_hosts_blocks_of_their_tenants_alone(lab: Lab) -> None:
    known = lab.run("R1", "ip", "route").stdout
    for host in "AB":
        mine = shown(lab, host, "routing")["announced"]
        assert mine["red"] and all(f"{prefix} via {lab.address(host)}" in known for prefix in mine["red"])
    assert "10.41." not in known and "10.28." not in known
    assert "10.41." in lab.run("R2", "ip", "route").stdout


def test_the_outside_may_begin_to_talk_to_containers_of_the_tenant_and_to_no_others(lab: Lab) -> None:
    def reaches(router: str, host: str, name: str, gateway: str) -> bool:
        to = address(lab, name, host=host)
        lab.run(router, "ip", "route", "replace", f"{to}/32", "via", lab.address(gateway))
        done = lab.run(router, "ping", "-c1", "-W1", "-I", OUTSIDE, to, check=False)
        lab.run(router, "ip", "route", "del", f"{to}/32")
        return done.returncode == 0

    lab.run("A", "plait", "run", "--name", "plain-A")
    assert reaches("R1", "A", "red-A", "A") and reaches("R2", "B", "blue-B", "B")
    assert not reaches("R1", "A", "plain-A", "A"), "the network default is in no table"
    assert not pings(lab, "A", "plain-A", OUTSIDE), "nor has it the routes of one"
    assert inside(lab, "A", "red-A", "ping", "-c1", "-W1", address(lab, "blue-A")).returncode, "tenants do not meet"
    assert pings(lab, "A", "red-A", address(lab, "red-B", host="B")), "and are one network over hosts as ever"


def test_services_of_the_tenant_are_announced_while_they_lead_somewhere(lab: Lab) -> None:
    """Their containers see the client by its own address on the host that has them, by that host's on others."""
    shop = lab.run("A", "plait", "service", "create", "shop", "--network", "red", "--port", "80", "--selector", "app=shop").stdout.strip()
    lab.run("A", "plait", "run", "--name", "shop-A", "--network", "red", "--label", "app=shop")
    both, route = {lab.address(host) for host in "AB"}, f"{shop}/32"
    with answering(lab, "A", "shop", "plait", "exec", "shop-A", "--"):
        until("both hosts announce it", lambda: ways(lab, "R1", shop) == both, 10)
        overlay = next(row["tunnel"] for row in shown(lab, "A", "nodes") if row["name"] == "B")
        for host, client in (("A", OUTSIDE), ("B", overlay)):
            lab.run("R1", "ip", "route", "replace", route, "via", lab.address(host), "src", OUTSIDE)
            assert asked(lab, "R1", shop) == f"shop {client}"
        lab.run("R1", "ip", "route", "del", route)
        lab.run("A", "plait", "service", "set", "shop", "--local-first")
        until("only where it is", lambda: ways(lab, "R1", shop) == {lab.address("A")}, 10)
        assert shop in shown(lab, "A", "routing")["announced"]["red"][0]
    lab.run("A", "plait", "rm", "shop-A")
    until("nobody announces it", lambda: not ways(lab, "R1", shop), 10)
    lab.run("A", "plait", "service", "rm", "shop")


def ways(lab: Lab, router: str, to: str) -> set[str]:
    """By which hosts the router's BIRD has heard of a single address."""
    return set(re.findall(r"via (\S+) on", bird(lab, router, "show", "route", "where", f"net = {to}/32")))


def test_wrong_announcements_are_refused_and_named(lab: Lab) -> None:
    """Also where `import` names what they lie in. What only holds our own addresses among others displaces nothing."""
    own, wide = address(lab, "red-B", host="B"), "10.40.0.0/15"
    wrong = {f"{own}/32", "0.0.0.0/0", "198.18.0.2/32", "10.27.0.1/32", "10.40.0.0/16"}
    routes = " ".join(f"route {prefix} blackhole;" for prefix in (*sorted(wrong), wide, "192.0.2.0/24"))
    good = (FILES / "routing.toml").read_text()
    lab.run("A", "tee", FILE, text=good.replace('"10.200.0.0/16"', '"10.0.0.0/8", "198.18.0.0/15"', 1))
    with configured(lab, "R1", f"protocol static wrong {{ ipv4; {routes} }}"):
        until("the rest is learned", lambda: learned(lab) == {"10.200.0.0/16", wide}, 10)
        until("it is named", lambda: "routing-wrong" in conditions(lab, "A"), 5)
        until("the rest is refused", lambda: set(refused(lab)) == {*wrong, "192.0.2.0/24"}, 5)
        assert {row["origin"] for row in refused(lab).values()} == {"AS 65000"}
        assert {prefix for prefix, row in refused(lab).items() if row["wrong"]} == wrong
        text = conditions(lab, "A")["routing-wrong"]
        assert f"{own}/32 (addresses of plait's network red)" in text and "the default route" in text and "node B" in text
        assert pings(lab, "A", "red-A", own)
        with configured(lab, "R2", f"protocol static wrong {{ ipv4; route {own}/32 blackhole; }}"):
            peers = lambda: {row["peer"] for row in shown(lab, "A", "routing")["refused"] if row["wrong"]}  # noqa: E731
            until("OSPF is judged too", lambda: "area 0.0.0.0 on eth0" in peers(), 10)
            assert pings(lab, "B", "blue-B", address(lab, "blue-A"))
    lab.run("A", "tee", FILE, text=good)
    until("all is well", lambda: "routing-wrong" not in conditions(lab, "A"), 10)


def refused(lab: Lab) -> dict[str, dict[str, object]]:
    return {row["prefix"]: row for row in shown(lab, "A", "routing")["refused"]}


def learned(lab: Lab) -> set[str]:
    return {row["prefix"] for row in shown(lab, "A", "routing")["learned"]}


def test_a_wrong_file_and_a_removed_entry(lab: Lab) -> None:
    good = (FILES / "routing.toml").read_text()
    lab.run("B", "tee", FILE, text=good.replace("as = 65000", "as = 0", 1))
    until("it is refused", lambda: "bgp 1: as" in conditions(lab, "B").get("routing-refused", ""), 5)
    assert len(sessions(lab, "B")) == 3 and seen(lab, "B", "red-B")
    lab.run("B", "tee", FILE, text=good.split("[[ospf]]")[0])
    until("the area is left", lambda: len(sessions(lab, "B")) == 2, 5)
    until("its routes too", lambda: not seen(lab, "B", "blue-B"), 10)
    assert seen(lab, "B", "red-B") and "routing-refused" not in conditions(lab, "B")
    lab.run("B", "tee", FILE, text=good)


def test_a_lost_link_costs_about_a_second(lab: Lab) -> None:
    """And nothing leaks by another way while no router is there."""
    until("one is used", lambda: bool(seen(lab, "A", "red-A")), 5)
    used = seen(lab, "A", "red-A").split()[0]
    lab.cut("A", used)
    began = time.monotonic()
    until("the other router is used", lambda: seen(lab, "A", "red-A") not in ("", used), 8)
    print(f"converged {time.monotonic() - began:.2f} s after the link was lost (BFD 3 x 300 ms)")
    until("it is named", lambda: "no routes are exchanged" in conditions(lab, "A").get("routing-down", ""), 3)
    lab.cut("A", "R1" if used == "R2" else "R2")
    lab.run("A", "ip", "route", "add", "default", "via", lab.address("B"))
    until("no way is left", lambda: "Unreachable" in inside(lab, "A", "red-A", "ping", "-c1", "-W1", OUTSIDE).stdout, 8)
    lab.run("A", "ip", "route", "del", "default")
    lab.heal()
    until("all is well", lambda: bool(seen(lab, "A", "red-A")) and "routing-down" not in conditions(lab, "A"), 20)


def test_neither_the_daemons_nor_the_agents_death_costs_a_packet(lab: Lab) -> None:
    pid = lab.run("A", "cat", "/run/plait/bird.pid").stdout
    known = bird(lab, "R1", "show", "protocols", "host_a")
    words = ("ping", "-q", "-i0.1", "-w8", "-I", OUTSIDE, address(lab, "red-A"))
    with lab.popen("R1", *words, stdout=subprocess.PIPE, text=True) as steady:
        lab.kill_agent("A")
        lab.start_agent("A")
        assert lab.run("A", "cat", "/run/plait/bird.pid").stdout == pid and bird(lab, "R1", "show", "protocols", "host_a") == known
        lab.run("A", "kill", "-9", pid.strip())
        until("another one runs", lambda: lab.run("A", "cat", "/run/plait/bird.pid").stdout not in ("", pid), 5)
        until("its sessions are up", lambda: all(row["learned"] for row in sessions(lab, "A")[:2]), 10)
        assert steady.poll() is None, "that took longer than the pings go on"
        sent, received = map(int, re.findall(r"(\d+) (?:packets transmitted|received)", steady.communicate(timeout=15)[0]))
    assert sent == received > 50
    assert lab.run("A", "plait", "plan", "--diff").stdout == ""


def test_down_takes_everything_back(lab: Lab) -> None:
    pid = lab.run("B", "cat", "/run/plait/bird.pid").stdout.strip()
    assert "stopped BIRD" in lab.run("B", "plait", "down").stdout
    assert lab.run("B", "kill", "-0", pid, check=False).returncode
    left = lab.run("B", "ip", "rule").stdout + lab.run("B", "ip", "route", "show", "table", "all").stdout
    assert "112" not in left and "bird" not in left
    until("the routers know it", lambda: lab.address("B") not in lab.run("R1", "ip", "route").stdout, 10)
