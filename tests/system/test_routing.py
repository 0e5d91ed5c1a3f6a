# SPDX-License-Identifier: Apache-2.0
"""Blocks announced to and routes learned from routers that know nothing of plait, by BGP and OSPF, with real packets of both
families: the files of examples/routing, which docs/routing.md explains."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_network
from pathlib import Path

import pytest
from tests.support.outside import answering, asked
from tests.support.sandboxes import address, inside, pings, shown

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
FILES = Path(__file__).parents[2] / "examples/routing"
OUTSIDE = {"ipv4": "10.200.0.1", "ipv6": "2001:db8:200::1"}
"""Each router has them, as tenants may have the same addresses behind theirs."""
BEHIND = {"10.200.0.0/16", "2001:db8:200::/48"}
FIELD = {"ipv4": "addresses", "ipv6": "addresses6"}
"""Of `plait ps`."""
families = pytest.mark.parametrize("family", ["ipv4", "ipv6"])
FILE = "/etc/plait/routing.toml"


def bird(lab: Lab, router: str, *words: str) -> str:
    """What the router's own BIRD says."""
    return lab.run(router, "birdc", "-s", "/run/bird.ctl", *words).stdout


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(toml=(FILES / "lab.toml").read_text())
    for name, number in (("red", 40), ("blue", 41)):
        made.run("A", "plait", "network", "create", name, "--subnet", f"10.{number}.0.0/16", "--subnet6", f"fd00:{number}::/64")
        for host in "AB":
            made.run(host, "plait", "run", "--name", f"{name}-{host}", "--network", name)
    with ExitStack() as servers:
        for router in ("R1", "R2"):
            for outside in OUTSIDE.values():
                made.run(router, "ip", "addr", "add", outside, "dev", "lo")
            made.run(router, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
            servers.enter_context(answering(made, router, router))
            made.run(router, "tee", "/run/bird.conf", text=(FILES / f"{router}.conf").read_text())
            made.run(router, "bird", "-c", "/run/bird.conf", "-s", "/run/bird.ctl", "-P", "/run/bird.pid")
        for host in "AB":
            made.run(host, "tee", FILE, text=(FILES / "routing.toml").read_text())
        for host in "AB":
            until("all sessions are up", lambda host=host: all(row["learned"] for row in sessions(made, host)), 30)
        yield made


def sessions(lab: Lab, host: str) -> list[dict[str, object]]:
    return list(shown(lab, host, "routing")["sessions"]) or [{"learned": 0}]


def seen(lab: Lab, host: str, sandbox: str, family: str = "ipv4") -> str:
    """Which router answers the sandbox, and by which address it sees it; "" if none does."""
    return asked(lab, host, OUTSIDE[family], "plait", "exec", sandbox, "--")


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


@families
def test_each_tenant_goes_by_its_own_table_under_its_own_address(lab: Lab, family: str) -> None:
    for host in "AB":
        red, blue = (address(lab, f"{name}-{host}", host=host, family=FIELD[family]) for name in ("red", "blue"))
        assert seen(lab, host, f"red-{host}", family) in {f"R1 {red}", f"R2 {red}"}, "BGP"
        assert seen(lab, host, f"blue-{host}", family) == f"R2 {blue}", "OSPF"


def test_routers_know_every_hosts_blocks_of_their_tenants_alone(lab: Lab) -> None:
    known = {router: lab.run(router, "ip", "route").stdout + lab.run(router, "ip", "-6", "route").stdout for router in ("R1", "R2")}
    for host, six in (("A", "2001:2::1"), ("B", "2001:2::2")):
        mine = shown(lab, host, "routing")["announced"]["red"]
        assert {ip_network(prefix).version for prefix in mine} == {4, 6}
        assert all(f"{prefix} via {six if ':' in prefix else lab.address(host)}" in known["R1"] for prefix in mine)
    assert not re.search(r"10\.(41|28)\.|fd00:41:", known["R1"])
    assert "10.41." in known["R2"] and "fd00:41:" in known["R2"]


@families
def test_the_outside_may_begin_to_talk_to_containers_of_the_tenant_and_to_no_others(lab: Lab, family: str) -> None:
    def reaches(router: str, host: str, name: str) -> bool:
        to = address(lab, name, host=host, family=FIELD[family])
        by = lab.address(host) if family == "ipv4" else {"A": "2001:2::1", "B": "2001:2::2"}[host]
        lab.run(router, "ip", "route", "replace", to, "via", by)
        done = lab.run(router, "ping", "-c1", "-W1", "-I", OUTSIDE[family], to, check=False)
        lab.run(router, "ip", "route", "del", to, "via", by)
        return done.returncode == 0

    lab.run("A", "plait", "network", "create", f"plain-{family}", "--ipv6")
    lab.run("A", "plait", "run", "--name", f"plain-{family}", "--network", f"plain-{family}")
    assert reaches("R1", "A", "red-A") and reaches("R2", "B", "blue-B")
    assert not reaches("R1", "A", f"plain-{family}"), "it is in no table"
    assert not pings(lab, "A", f"plain-{family}", OUTSIDE[family]), "nor has it the routes of one"
    blue, red = address(lab, "blue-A", family=FIELD[family]), address(lab, "red-B", host="B", family=FIELD[family])
    assert inside(lab, "A", "red-A", "ping", "-c1", "-W1", blue).returncode, "tenants do not meet"
    assert pings(lab, "A", "red-A", red), "and are one network over hosts as ever"


@families
def test_services_of_the_tenant_are_announced_while_they_lead_somewhere(lab: Lab, family: str) -> None:
    """Their containers see the client by its own address on the host that has them, by that host's on others."""
    made = "shop", "--network", "red", "--port", "80", "--selector", "app=shop", "--json"
    view = json.loads(lab.run("A", "plait", "service", "create", *made).stdout)
    shop, hosts = view["address"], {host: lab.address(host) for host in "AB"}
    overlay = next(row["tunnel"] for row in shown(lab, "A", "nodes") if row["name"] == "B")
    if family == "ipv6":
        shop, hosts = view["address6"], {"A": "2001:2::1", "B": "2001:2::2"}
        pool = "fd55:aa3d:5f3e::/112"
        known = lambda: re.findall(r"src (\S+)", lab.run("B", "ip", "-6", "route", "show", pool).stdout)  # noqa: E731
        until("the other host knows the service", lambda: bool(known()), 5)
        overlay = known()[0]
    lab.run("A", "plait", "run", "--name", "shop-A", "--network", "red", "--label", "app=shop")
    both = {*hosts.values()}
    with answering(lab, "A", "shop", "plait", "exec", "shop-A", "--"):
        until("both hosts announce it", lambda: ways(lab, "R1", shop) == both, 10)
        for host, client in (("A", OUTSIDE[family]), ("B", overlay)):
            lab.run("R1", "ip", "route", "replace", shop, "via", hosts[host], "src", OUTSIDE[family], "metric", "1")
            assert asked(lab, "R1", shop) == f"shop {client}"
        lab.run("R1", "ip", "route", "del", shop, "metric", "1")
        lab.run("A", "plait", "service", "set", "shop", "--local-first")
        until("only where it is", lambda: ways(lab, "R1", shop) == {hosts["A"]}, 10)
        assert any(prefix.startswith(f"{shop}/") for prefix in shown(lab, "A", "routing")["announced"]["red"])
    lab.run("A", "plait", "rm", "shop-A")
    until("nobody announces it", lambda: not ways(lab, "R1", shop), 10)
    lab.run("A", "plait", "service", "rm", "shop")


def ways(lab: Lab, router: str, to: str) -> set[str]:
    """By which hosts the router's BIRD has heard of a single address."""
    return set(re.findall(r"via (\S+) on", bird(lab, router, "show", "route", "where", f"net = {to}/{128 if ':' in to else 32}")))


WRONG = {
    "ipv4": ("10.40.0.0/15", {"0.0.0.0/0", "198.18.0.2/32", "10.27.0.1/32", "10.40.0.0/16"}, "192.0.2.0/24"),
    "ipv6": ("fd00:40::/47", {"::/0", "2001:2::2/128", "fd00:41::/80", "fd00:40::/64"}, "2001:db8:9::/48"),
}
"""What holds our own addresses among others, and displaces nothing; what nobody may announce; what nobody asked for."""


@families
def test_wrong_announcements_are_refused_and_named(lab: Lab, family: str) -> None:
    """Also where `import` names what they lie in."""
    wide, some, unasked = WRONG[family]
    own = address(lab, "red-B", host="B", family=FIELD[family])
    one = str(ip_network(own))
    wrong = {one, *some}
    routes = " ".join(f"route {prefix} blackhole;" for prefix in (*sorted(wrong), wide, unasked))
    good, more = (FILES / "routing.toml").read_text(), '"10.0.0.0/8", "198.18.0.0/15", "fd00::/8", "2001:2::/32", "10.200.0.0/16"'
    lab.run("A", "tee", FILE, text=good.replace('"10.200.0.0/16"', more, 1))
    with configured(lab, "R1", f"protocol static wrong {{ {family}; {routes} }}"):
        until("the rest is learned", lambda: learned(lab) == {*BEHIND, wide}, 10)
        until("it is named", lambda: "routing-wrong" in conditions(lab, "A"), 5)
        until("the rest is refused", lambda: set(refused(lab)) == {*wrong, unasked}, 5)
        assert {row["origin"] for row in refused(lab).values()} == {"AS 65000"}
        assert {prefix for prefix, row in refused(lab).items() if row["wrong"]} == wrong
        text = conditions(lab, "A")["routing-wrong"]
        assert f"{one} (addresses of plait's network red)" in text and "the default route" in text
        assert {"ipv4": "198.18.0.2/32 (the host of node B)", "ipv6": "2001:2::2/128 (this host's own link eth0)"}[family] in text
        assert pings(lab, "A", "red-A", own)
        with configured(lab, "R2", f"protocol static wrong {{ {family}; route {one} blackhole; }}"):
            peers = lambda: {row["peer"] for row in shown(lab, "A", "routing")["refused"] if row["wrong"]}  # noqa: E731
            until("OSPF is judged too", lambda: "area 0.0.0.0 on eth0" in peers(), 10)
            assert pings(lab, "B", "blue-B", address(lab, "blue-A", family=FIELD[family]))
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
    assert len(sessions(lab, "B")) == 6 and seen(lab, "B", "red-B")
    lab.run("B", "tee", FILE, text=good.split("[[ospf]]")[0])
    until("the area is left", lambda: len(sessions(lab, "B")) == 4, 5)
    until("its routes too", lambda: not any(seen(lab, "B", "blue-B", family) for family in OUTSIDE), 10)
    assert seen(lab, "B", "red-B") and "routing-refused" not in conditions(lab, "B")
    lab.run("B", "tee", FILE, text=good)


def test_a_neighbor_by_its_link_local_address(lab: Lab) -> None:
    """The session carries both families, and what is learned of IPv6 has that address as its next hop."""
    near, here = (re.search(r"fe80:\S+(?=/)", lab.run(one, "ip", "-6", "addr", "show", "dev", "eth0").stdout)[0] for one in ("R2", "B"))
    channels = "ipv4 { import all; export where source = RTS_STATIC; }; ipv6 { import all; export where source = RTS_STATIC; };"
    more = f'protocol bgp near {{ local as 65000; neighbor {here} as 65010; interface "eth0"; connect delay time 1; {channels} }}'
    good = (FILES / "routing.toml").read_text()
    text = good.replace("2001:2::4", f"{near}%eth0").replace("198.18.0.3", "198.18.0.77").replace("bfd = true\n", "")
    with configured(lab, "R2", more):
        lab.run("B", "tee", FILE, text=text)
        until("both are learned", lambda: [row["learned"] for row in sessions(lab, "B") if row["peer"] == f"{near}%eth0"] == [1, 1], 15)
        ways = {row["prefix"]: row["via"] for row in shown(lab, "B", "routing")["learned"] if row["table"] == "red"}
        assert ways == {"10.200.0.0/16": "198.18.0.4", "2001:db8:200::/48": near}
        until("they are used", lambda: all(seen(lab, "B", "red-B", family).startswith("R2 ") for family in OUTSIDE), 5)
        lab.run("B", "tee", FILE, text=good)
        until("all is as before", lambda: len(sessions(lab, "B")) == 6 and all(row["learned"] for row in sessions(lab, "B")), 20)


@families
def test_a_lost_link_costs_about_a_second(lab: Lab, family: str) -> None:
    """And nothing leaks by another way while no router is there."""
    until("one is used", lambda: bool(seen(lab, "A", "red-A", family)), 20)
    used = seen(lab, "A", "red-A", family).split()[0]
    lab.cut("A", used)
    began = time.monotonic()
    until("the other router is used", lambda: seen(lab, "A", "red-A", family) not in ("", used), 8)
    print(f"converged {time.monotonic() - began:.2f} s after the link was lost (BFD 3 x 300 ms)")
    until("it is named", lambda: "no routes are exchanged" in conditions(lab, "A").get("routing-down", ""), 3)
    lab.cut("A", "R1" if used == "R2" else "R2")
    default, by = {"ipv4": ("0.0.0.0/0", lab.address("B")), "ipv6": ("::/0", "2001:2::2")}[family]
    lab.run("A", "ip", "route", "add", default, "via", by)
    until("no way is left", lambda: nowhere(inside(lab, "A", "red-A", "ping", "-c1", "-W1", OUTSIDE[family]).stdout), 8)
    lab.run("A", "ip", "route", "del", default, "via", by)
    lab.heal()
    until("all is well", lambda: bool(seen(lab, "A", "red-A", family)) and "routing-down" not in conditions(lab, "A"), 20)


def nowhere(said: str) -> bool:
    """Whether the host told the ping that it has no route."""
    return "Unreachable" in said or "No route" in said


def test_neither_the_daemons_nor_the_agents_death_costs_a_packet(lab: Lab) -> None:
    pid = lab.run("A", "cat", "/run/plait/bird.pid").stdout
    known = bird(lab, "R1", "show", "protocols", "host_a")
    with ExitStack() as pinging:
        steady = [
            pinging.enter_context(lab.popen("R1", *words(lab, family), stdout=subprocess.PIPE, text=True)) for family in ("ipv4", "ipv6")
        ]
        lab.kill_agent("A")
        lab.start_agent("A")
        assert lab.run("A", "cat", "/run/plait/bird.pid").stdout == pid and bird(lab, "R1", "show", "protocols", "host_a") == known
        lab.run("A", "kill", "-9", pid.strip())
        until("another one runs", lambda: lab.run("A", "cat", "/run/plait/bird.pid").stdout not in ("", pid), 5)
        until("its sessions are up", lambda: all(row["learned"] for row in sessions(lab, "A")[:4]), 10)
        for each in steady:
            assert each.poll() is None, "that took longer than the pings go on"
            sent, received = map(int, re.findall(r"(\d+) (?:packets transmitted|received)", each.communicate(timeout=15)[0]))
            assert sent == received > 50
    assert lab.run("A", "plait", "plan", "--diff").stdout == ""


def words(lab: Lab, family: str) -> tuple[str, ...]:
    """Eight seconds of pings of a router's to a container."""
    return ("ping", "-q", "-i0.1", "-w8", "-I", OUTSIDE[family], address(lab, "red-A", family=FIELD[family]))


def test_down_takes_everything_back(lab: Lab) -> None:
    pid = lab.run("B", "cat", "/run/plait/bird.pid").stdout.strip()
    assert "stopped BIRD" in lab.run("B", "plait", "down").stdout
    assert lab.run("B", "kill", "-0", pid, check=False).returncode
    for version in ("-4", "-6"):
        assert "112" not in lab.run("B", "ip", version, "rule").stdout
        for protocol in ("bird", "112"):
            assert not lab.run("B", "ip", version, "route", "show", "table", "all", "proto", protocol).stdout
    known = lambda: lab.run("R1", "ip", "route").stdout + lab.run("R1", "ip", "-6", "route").stdout  # noqa: E731
    until("the routers know it", lambda: f"via {lab.address('B')}" not in known() and "via 2001:2::2" not in known(), 10)
