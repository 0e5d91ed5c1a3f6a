# SPDX-License-Identifier: Apache-2.0
"""Containers on a link of their hosts with real packets: D has no agent and is the router of the link that A and B are on; a second link,
eth1, joins A and B alone, and comes and goes."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator

import pytest
from tests.support.sandboxes import address, inside, pings

from plait.lab.inside import net_argv
from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]
HOSTS = """
[[host]]
name = "A"
[[host]]
name = "B"
[[host]]
name = "D"
agent = false
"""
BEYOND = "203.0.113.7"


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(toml=HOSTS)
    made.run("D", "ip", "addr", "add", f"{BEYOND}/32", "dev", "lo")
    on_eth0 = ("-o", "parent=eth0", "--subnet", "198.18.0.0/24", "--gateway", made.address("D"), "--ip-range", "198.18.0.128/25")
    made.run("A", "plait", "network", "create", "lan", "--model", "sandbox", "--backend", "macvlan", *on_eth0)
    for host, name in (("A", "a1"), ("A", "a2"), ("B", "b1")):
        made.run(host, "plait", "run", "--name", name, "--network", "lan")
    yield made


@pytest.fixture
def eth1(lab: Lab) -> Iterator[Callable[[], None]]:
    """Makes the second link; it is gone when the test ends."""

    def make() -> None:
        holders = lab.state.holders
        there = ("name", "eth1", "netns", str(holders["B"].pid))
        subprocess.run(net_argv(holders["A"], ["ip", "link", "add", "eth1", "type", "veth", "peer", *there]), check=True)
        for host in "AB":
            lab.run(host, "ip", "link", "set", "eth1", "up")

    yield make
    for name in ("eth1", "eth9"):
        lab.run("A", "ip", "link", "del", name, check=False)


def link(lab: Lab, host: str, name: str) -> dict[str, object]:
    return dict(json.loads(inside(lab, host, name, "ip", "-d", "-j", "link", "show", "eth0").stdout)[0])


def neighbour(lab: Lab, host: str, to: str) -> str:
    """The MAC by which a host without plait knows an address."""
    rows = json.loads(lab.run(host, "ip", "-j", "neigh", "show", to).stdout)
    return str(next((row.get("lladdr") for row in rows), ""))


def conditions(lab: Lab, host: str) -> str:
    return lab.run(host, "plait", "status", check=False).stdout


def leftovers(lab: Lab, host: str) -> str:
    """What of children, and of namespaces for them, is on a host."""
    links = lab.run(host, "ip", "-d", "-o", "link").stdout
    return "\n".join(line for line in links.splitlines() if "macvlan" in line or "pl-e" in line or "pl-v" in line)


def test_containers_of_both_hosts_are_neighbours_on_the_link_with_macs_of_their_own(lab: Lab) -> None:
    a1, a2, b1 = (address(lab, name) for name in ("a1", "a2", "b1"))
    assert pings(lab, "A", "a1", a2) and pings(lab, "A", "a1", b1) and pings(lab, "B", "b1", a2)
    macs = {str(link(lab, host, name)["address"]) for host, name in (("A", "a1"), ("A", "a2"), ("B", "b1"))}
    assert len(macs) == 3 and str(link(lab, "B", "b1")["address"]) in inside(lab, "A", "a1", "ip", "neigh", "show", b1).stdout
    for host, name, at in (("A", "a1", a1), ("B", "b1", b1)):
        assert lab.run("D", "ping", "-c1", "-W1", at, check=False).returncode == 0
        assert neighbour(lab, "D", at) == link(lab, host, name)["address"], "a machine without plait knows the container itself"


def test_its_router_leads_on_and_the_host_neither_translates_nor_knows_them(lab: Lab) -> None:
    a1 = address(lab, "a1")
    heard = lab.popen("D", "tcpdump", "-n", "-l", "-c1", "-i", "eth0", "icmp", "and", "dst", BEYOND, stdout=-1, stderr=-1, text=True)
    assert heard.stderr is not None
    until("it listens", lambda: "listening" in heard.stderr.readline(), 5)
    until("it goes by the router", lambda: pings(lab, "A", "a1", BEYOND), 5)
    assert a1 in heard.communicate(timeout=10)[0]
    assert a1 not in lab.run("A", "ip", "route").stdout
    named = set(re.findall(r"198\.18\.[\d./-]+", lab.run("A", "nft", "list", "ruleset", "inet").stdout))
    assert named <= {lab.address(host) for host in "AB"}, "nothing of the link's range but hosts themselves, besides what judges them"
    assert lab.run("A", "ping", "-c1", "-W1", a1, check=False).returncode != 0, "a host does not reach its own: that is how macvlan is"
    assert lab.run("B", "ping", "-c1", "-W1", a1, check=False).returncode == 0
    assert lab.run("A", "ping", "-c1", "-W1", lab.address("B"), check=False).returncode == 0, "its own traffic is as it was"


def test_names_are_answered_inside_to_who_asks_there_alone(lab: Lab) -> None:
    lab.run("B", "plait", "run", "--name", "elsewhere")
    for ask in (("dig", "+short", "+time=1"), ("dig", "+tcp", "+short", "+time=1")):
        assert inside(lab, "A", "a1", *ask, "b1").stdout.strip() == address(lab, "b1")
        assert inside(lab, "B", "b1", *ask, "a1.plait").stdout.strip() == address(lab, "a1")
        assert inside(lab, "A", "a1", *ask, "elsewhere").stdout.strip() == "", "they share no network"
    server = inside(lab, "A", "a1", "cat", "/etc/resolv.conf").stdout.split()[1]
    lab.run("D", "ip", "route", "add", server, "via", address(lab, "a1"))
    answer = lab.run("D", "dig", "+time=1", "+tries=1", f"@{server}", "b1.plait", check=False)
    lab.run("D", "ip", "route", "del", server)
    assert answer.returncode != 0, "nobody on the link is answered"
    lab.run("B", "plait", "rm", "elsewhere")


def test_private_keeps_those_of_one_host_apart_and_not_from_others(lab: Lab) -> None:
    a2, b1 = address(lab, "a2"), address(lab, "b1")
    lab.run("B", "plait", "network", "set", "lan", "-o", "mode=private")
    until("they are apart", lambda: not pings(lab, "A", "a1", a2), 5)
    until("the rest is as before", lambda: pings(lab, "A", "a1", b1) and pings(lab, "A", "a1", BEYOND), 5)
    assert lab.run("A", "plait", "plan", "--diff").stdout == "" and inside(lab, "A", "a1", "dig", "+short", "b1").stdout
    lab.run("B", "plait", "network", "set", "lan", "-o", "mode=bridge")
    until("and together", lambda: pings(lab, "A", "a1", a2), 5)


def test_what_cannot_be_is_refused_with_words_and_leaves_nothing(lab: Lab) -> None:
    before = lab.run("A", "ls", "/run/plait/netns").stdout
    port = lab.run("A", "plait", "run", "--name", "p", "--network", "lan", "-p", "80:80", check=False)
    assert port.returncode != 0 and "publishing ports of a container of network lan" in port.stderr
    where = ("-o", "parent=eth0", "--subnet", "10.99.0.0/24")
    for backend, more in (("ipvlan", ()), ("vlan", ("-o", "vlan=42"))):
        made = lab.run("A", "plait", "network", "create", "no", "--backend", backend, *where, *more, check=False)
        if made.returncode == 0:  # this kernel has it
            lab.run("A", "plait", "network", "rm", "no")
        else:
            assert f"this host's kernel has no {backend}" in made.stderr
    inner = lab.run("A", "plait", "network", "create", "no", "--backend", "macvlan", *where, "--internal", check=False)
    assert inner.returncode != 0 and "cannot be promised on a link of the host" in inner.stderr
    assert lab.run("A", "ls", "/run/plait/netns").stdout == before and leftovers(lab, "A") == ""


def test_an_agent_that_is_killed_and_started_again_keeps_them(lab: Lab) -> None:
    before, b1 = link(lab, "A", "a1"), address(lab, "b1")
    steady = lab.popen("A", "plait", "exec", "a1", "--", "ping", "-i0.05", "-w6", b1, stdout=subprocess.PIPE, text=True)
    assert steady.stdout is not None and "bytes of data" in steady.stdout.readline()
    lab.kill_agent("A")
    lab.start_agent("A")
    said = steady.communicate(timeout=20)[0]
    assert " 0% packet loss" in said, said
    after = link(lab, "A", "a1")
    assert (after["ifindex"], after["address"]) == (before["ifindex"], before["address"])
    assert lab.run("A", "plait", "plan", "--diff").stdout == ""
    assert inside(lab, "A", "a1", "dig", "+short", "+time=1", "b1").stdout.strip() == b1


def test_killed_in_the_middle_of_attaches_nothing_leaks(lab: Lab) -> None:
    for after_s in ("0.05", "0.15", "0.3"):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        runs = [lab.popen("A", "plait", "run", "--name", f"k{n}", "--network", "lan", **quiet) for n in range(6)]
        lab.run("A", "sleep", after_s)
        lab.kill_agent("A")
        for run in runs:
            run.wait(timeout=30)
        lab.start_agent("A")
        rows = json.loads(lab.run("A", "plait", "ps", "--json").stdout)
        living = sorted(row["name"] for row in rows if row["node"] == "A" and row["name"].startswith("k"))
        for name in living:
            assert pings(lab, "A", name, lab.address("D"))
            lab.run("A", "plait", "rm", name)
        assert sorted(lab.run("A", "ls", "/run/plait/netns").stdout.split()) == ["a1", "a2"]
        assert leftovers(lab, "A") == ""
    held = lab.run("A", "plait", "ipam", "check", check=False)
    assert held.returncode == 0, held.stdout


def test_a_link_that_goes_is_named_and_containers_are_back_with_it(lab: Lab, eth1: Callable[[], None]) -> None:
    where = ("-o", "parent=eth1", "--subnet", "10.77.0.0/24")
    lab.run("A", "plait", "network", "create", "second", "--backend", "macvlan", *where)
    refused = lab.run("A", "plait", "run", "--name", "s1", "--network", "second", check=False)
    assert refused.returncode != 0 and "this host has no link eth1" in refused.stderr
    eth1()
    for host, name in (("A", "s1"), ("B", "s2")):
        lab.run(host, "plait", "run", "--name", name, "--network", "second")
    s2 = address(lab, "s2")
    assert pings(lab, "A", "s1", s2)
    lab.run("A", "ip", "link", "del", "eth1")
    until("it is told", lambda: "network second: this host has no link eth1" in conditions(lab, "A"), 5)
    assert lab.run("A", "plait", "status", check=False).returncode != 0 and not pings(lab, "A", "s1", s2)
    eth1()
    until("they are back", lambda: pings(lab, "A", "s1", s2), 10)
    until("nothing is wrong", lambda: "no link" not in conditions(lab, "A"), 5)
    assert inside(lab, "A", "s1", "dig", "+short", "+time=1", "s2").stdout.strip() == s2
    lab.run("A", "ip", "link", "set", "eth1", "name", "eth9")
    until("that too", lambda: "network second: this host has no link eth1" in conditions(lab, "A"), 5)
    lab.run("A", "ip", "link", "set", "eth9", "name", "eth1")
    until("and its end", lambda: "no link" not in conditions(lab, "A") and pings(lab, "A", "s1", s2), 5)
    for host, name in (("A", "s1"), ("B", "s2")):
        lab.run(host, "plait", "rm", name)
    lab.run("A", "plait", "network", "rm", "second")


def test_a_whole_link_is_one_containers(lab: Lab, eth1: Callable[[], None]) -> None:
    eth1()
    where = ("-o", "parent=eth1", "-o", "mode=passthru", "--subnet", "10.78.0.0/24")
    lab.run("A", "plait", "network", "create", "whole", "--backend", "macvlan", *where)
    lab.run("A", "plait", "run", "--name", "w1", "--network", "whole")
    lab.run("B", "ip", "addr", "add", "10.78.0.99/24", "dev", "eth1")
    assert lab.run("B", "ping", "-c1", "-W1", address(lab, "w1"), check=False).returncode == 0
    assert neighbour(lab, "B", address(lab, "w1")) == link(lab, "A", "w1")["address"]
    second = lab.run("A", "plait", "run", "--name", "w2", "--network", "whole", check=False)
    assert second.returncode != 0 and "macvlan of eth1" in second.stderr
    lab.run("A", "plait", "rm", "w1")
    lab.run("A", "plait", "network", "rm", "whole")


def test_nothing_is_left_of_what_is_removed(lab: Lab) -> None:
    """The last one: it removes all there is."""
    at = address(lab, "a1")
    lab.run("A", "plait", "run", "--name", "short", "--network", "lan", "--", "true")
    for host, name in (("A", "a1"), ("A", "a2"), ("B", "b1")):
        lab.run(host, "plait", "rm", name)
    assert lab.run("D", "ping", "-c1", "-W1", at, check=False).returncode != 0
    assert leftovers(lab, "A") == "" and lab.run("A", "ls", "/run/plait/netns").stdout == ""
    children = lab.run("A", "ip", "-d", "-j", "link", "show", "eth0").stdout
    assert json.loads(children)[0]["promiscuity"] == 0
    lab.run("A", "plait", "network", "rm", "lan")
    assert "lan" not in {row["name"] for row in json.loads(lab.run("A", "plait", "network", "ls", "--json").stdout)}
    assert lab.run("A", "plait", "plan", "--diff").stdout == ""
