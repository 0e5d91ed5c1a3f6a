# SPDX-License-Identifier: Apache-2.0
"""IPv6 of containers on a link of their hosts, with real packets: D has no agent and is the router of the link that A and B are on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address

import pytest
from tests.support.sandboxes import address, inside, pings

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
ROUTER, BEYOND = "fd00:18::1", "2001:db8::7"
PEOPLE = (("A", "a1"), ("A", "a2"), ("B", "b1"))


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(toml=HOSTS)
    made.run("D", "ip", "addr", "add", f"{ROUTER}/64", "dev", "eth0", "nodad")
    made.run("D", "ip", "addr", "add", f"{BEYOND}/128", "dev", "lo")
    four = ("--subnet", "198.18.0.0/24", "--gateway", made.address("D"), "--ip-range", "198.18.0.128/25")
    six = ("--subnet6", "fd00:18::/64", "--gateway6", ROUTER)
    made.run("A", "plait", "network", "create", "lan", "--backend", "macvlan", "-o", "parent=eth0", *four, *six)
    for host, name in PEOPLE:
        made.run(host, "plait", "run", "--name", name, "--network", "lan")
    yield made


def six(lab: Lab, name: str) -> str:
    return address(lab, name, family="addresses6")


def pings6(lab: Lab, host: str, name: str, to: str) -> bool:
    return pings(lab, host, name, to, "-6")


def mac(lab: Lab, host: str, name: str) -> str:
    return str(json.loads(inside(lab, host, name, "ip", "-j", "link", "show", "eth0").stdout)[0]["address"])


def neighbour(lab: Lab, to: str) -> str:
    """The MAC by which the router, a machine without plait, knows an address."""
    rows = json.loads(lab.run("D", "ip", "-j", "neigh", "show", to).stdout)
    return str(next((row.get("lladdr") for row in rows), ""))


def all_reach_each_other(lab: Lab) -> bool:
    others = [(host, name, six(lab, other)) for host, name in PEOPLE for _, other in PEOPLE if other != name]
    return all(pings6(lab, host, name, to) for host, name, to in [*others, ("A", "a1", BEYOND), ("B", "b1", ROUTER)])


def test_containers_of_both_hosts_are_neighbours_by_ipv6_with_their_own_macs(lab: Lab) -> None:
    until("they reach each other and the router", lambda: all_reach_each_other(lab), 5)
    a1, b1 = six(lab, "a1"), six(lab, "b1")
    offsets = [int(address(lab, name).split(".")[3]) for _, name in PEOPLE]
    assert [IPv6Address(six(lab, name)) for _, name in PEOPLE] == [IPv6Address("fd00:18::") + offset for offset in offsets]
    assert mac(lab, "B", "b1") in inside(lab, "A", "a1", "ip", "neigh", "show", b1).stdout
    assert lab.run("D", "ping", "-6", "-c1", "-W1", a1, check=False).returncode == 0
    assert neighbour(lab, a1) == mac(lab, "A", "a1"), "a machine without plait knows the container itself"


def test_names_have_both_families(lab: Lab) -> None:
    for host, name, other in (("A", "a1", "b1"), ("B", "b1", "a2")):
        answer = inside(lab, host, name, "dig", "+short", "+time=1", f"{other}.plait", "AAAA").stdout.strip()
        assert answer == six(lab, other)
        assert pings6(lab, host, name, other)
    assert inside(lab, "A", "a1", "dig", "+short", "+time=1", "-x", six(lab, "b1")).stdout.strip() == "b1.plait."


def test_inside_is_what_the_network_says_and_on_the_host_there_is_nothing(lab: Lab) -> None:
    said = inside(lab, "A", "a1", "ip", "-6", "addr", "show", "dev", "eth0").stdout
    assert f"{six(lab, 'a1')}/64" in said and "tentative" not in said and said.count("inet6") == 2, said
    routes = json.loads(inside(lab, "A", "a1", "ip", "-6", "-j", "route").stdout)
    assert [row.get("gateway") for row in routes if row["dst"] == "default"] == [ROUTER]
    assert lab.run("A", "plait", "status", check=False).returncode == 0
    assert ROUTER not in lab.run("A", "ss", "-Hlun").stdout, "no host answers DNS in the router's place"
    for shown in (lab.run("A", "ip", "-6", "route").stdout, lab.run("A", "nft", "list", "ruleset", "inet").stdout):
        assert "fd00:18:" not in shown, "but to judge what is forged"
    assert lab.run("A", "sysctl", "-n", "net.ipv6.conf.all.forwarding").stdout.strip() == "0", "the host is no router of it"


def test_an_address_that_another_machine_has_is_found_and_named(lab: Lab) -> None:
    """What containers of other hosts have is known anyway; that of a machine without plait is asked for on the link."""
    before = lab.run("A", "ls", "/run/plait/netns").stdout
    d = json.loads(lab.run("D", "ip", "-j", "link", "show", "eth0").stdout)[0]["address"]
    for taken, option in (("fd00:18::c8", "--ip6"), ("198.18.0.200", "--ip")):
        bits = ("/64", "nodad") if ":" in taken else ("/24",)
        lab.run("D", "ip", "addr", "add", f"{taken}{bits[0]}", "dev", "eth0", *bits[1:])
        try:
            refused = lab.run("A", "plait", "run", "--name", "twice", "--network", "lan", option, taken, check=False)
        finally:
            lab.run("D", "ip", "addr", "del", f"{taken}{bits[0]}", "dev", "eth0")
        assert refused.returncode != 0 and f"address {taken} of network 'lan' cannot be used" in refused.stderr, refused.stderr
        assert f"the machine with the MAC {d} on link eth0 has it" in refused.stderr
    assert lab.run("A", "ls", "/run/plait/netns").stdout == before
    lab.run("A", "plait", "run", "--name", "twice", "--network", "lan", "--ip6", "fd00:18::c8")
    assert (address(lab, "twice"), six(lab, "twice")) == ("198.18.0.200", "fd00:18::c8")
    assert lab.run("D", "ping", "-6", "-c1", "-W1", "fd00:18::c8", check=False).returncode == 0
    first = neighbour(lab, "fd00:18::c8")
    lab.run("A", "plait", "rm", "twice")
    lab.run("A", "plait", "run", "--name", "next", "--network", "lan", "--ip6", "fd00:18::c8")
    until("the router is told of the next one", lambda: neighbour(lab, "fd00:18::c8") == mac(lab, "A", "next") != first, 3)
    lab.run("A", "plait", "rm", "next")


def test_an_agent_that_is_killed_and_started_again_keeps_them(lab: Lab) -> None:
    before, b1 = inside(lab, "A", "a1", "ip", "-j", "-6", "addr", "show", "eth0").stdout, six(lab, "b1")
    steady = lab.popen("A", "plait", "exec", "a1", "--", "ping", "-6", "-i0.05", "-w6", b1, stdout=subprocess.PIPE, text=True)
    assert steady.stdout is not None and "bytes" in steady.stdout.readline()
    lab.kill_agent("A")
    lab.start_agent("A")
    said = steady.communicate(timeout=20)[0]
    assert " 0% packet loss" in said, said
    assert inside(lab, "A", "a1", "ip", "-j", "-6", "addr", "show", "eth0").stdout == before
    assert lab.run("A", "plait", "plan", "--diff").stdout == ""


def test_a_link_that_is_made_anew_has_both_families_again(lab: Lab) -> None:
    lab.run("A", "plait", "network", "set", "lan", "-o", "mode=private")
    until("those of one host are apart", lambda: not pings6(lab, "A", "a1", six(lab, "a2")), 5)
    until("and reach the others", lambda: pings6(lab, "A", "a1", six(lab, "b1")) and pings6(lab, "A", "a2", BEYOND), 5)
    lab.run("A", "plait", "network", "set", "lan", "-o", "mode=bridge")
    until("all together", lambda: all_reach_each_other(lab), 10)


def test_they_come_back_after_a_reboot_and_after_down(lab: Lab) -> None:
    """A bare sandbox ends with its host, or when plait does there; who comes next of its name has the address again."""
    was, a1 = six(lab, "b1"), six(lab, "a1")
    lab.reboot("B")
    lab.run("B", "plait", "run", "--name", "b1", "--network", "lan")
    assert six(lab, "b1") == was
    until("they reach each other", lambda: all_reach_each_other(lab), 10)
    lab.run("A", "plait", "down")
    assert "macvlan" not in lab.run("A", "ip", "-d", "link").stdout
    assert lab.run("D", "ping", "-6", "-c1", "-W1", a1, check=False).returncode != 0
    lab.start_agent("A")
    for name in ("a1", "a2"):
        lab.run("A", "plait", "run", "--name", name, "--network", "lan")
    assert six(lab, "a1") == a1
    until("they are back", lambda: all_reach_each_other(lab), 10)


def test_a_subnet_that_nobody_named_is_a_unique_local_one_beside_the_links_own(lab: Lab) -> None:
    where = ("--backend", "macvlan", "-o", "parent=eth0", "--subnet", "10.66.0.0/24")
    made = json.loads(lab.run("A", "plait", "network", "create", "drawn", *where, "--ipv6", "--json").stdout)
    assert made["subnet6"].startswith("fd")
    for host, name in (("A", "d1"), ("B", "d2")):
        lab.run(host, "plait", "run", "--name", name, "--network", "drawn")
    until("by name", lambda: pings6(lab, "A", "d1", "d2"), 5)
    for host, name in (("A", "d1"), ("B", "d2")):
        lab.run(host, "plait", "rm", name)
    lab.run("A", "plait", "network", "rm", "drawn")


def test_nothing_is_left_of_what_is_removed(lab: Lab) -> None:
    """The last one: it removes all there is."""
    for host, name in PEOPLE:
        lab.run(host, "plait", "rm", name)
    lab.run("A", "plait", "network", "rm", "lan")
    for host in "AB":
        assert "macvlan" not in lab.run(host, "ip", "-d", "link").stdout
        assert lab.run(host, "plait", "plan", "--diff").stdout == ""
