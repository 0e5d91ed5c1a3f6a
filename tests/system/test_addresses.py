# SPDX-License-Identifier: Apache-2.0
"""Addresses on three hosts without engines: what is kept for whom, what overlaps, and real packets to addresses that are lent."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest
from tests.support.sandboxes import pings, shown

from plait.lab import process
from plait.lab.lab import Lab

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.timeout(120)]
HOSTS = "ABC"
RANGES = """
[[range]]
name = "databases"
network = "kept"
addresses = ["10.31.0.16/30", "10.31.1.9"]
containers = "db-*"
"""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab(hosts=3)
    plait(made, "A", "network", "create", "kept", "--subnet", "10.31.0.0/16")
    for host in HOSTS:
        process.until(f"{host} has it", lambda host=host: "kept" in plait(made, host, "network", "ls"), 5)
    return made


@pytest.fixture(autouse=True)
def empty_hosts(lab: Lab) -> Iterator[None]:
    yield
    for host in HOSTS:
        lab.path(host, "/etc/plait/ranges.toml").unlink(missing_ok=True)
        names = [row["name"] for row in shown(lab, host, "ps") if row["node"] == host]
        if names:
            plait(lab, host, "rm", *names)


def plait(lab: Lab, host: str, *words: str) -> str:
    return lab.run(host, "plait", *words).stdout


def refused(lab: Lab, host: str, *words: str) -> str:
    """What a command that fails says."""
    done = lab.run(host, "plait", *words, check=False)
    assert done.returncode == 1, done
    return done.stderr


def run(lab: Lab, host: str, name: str, *options: str, network: str = "kept") -> IPv4Address:
    plait(lab, host, "run", "--name", name, "--network", network, *options)
    row = next(row for row in shown(lab, host, "ps") if row["name"] == name and row["node"] == host)
    return IPv4Address(row["addresses"][network])


def conditions(lab: Lab, host: str, code: str) -> list[str]:
    return [row["text"] for row in shown(lab, host, "status")["conditions"] if row["code"] == code]


def test_excluded_addresses_are_given_to_nobody(lab: Lab) -> None:
    plait(lab, "A", "network", "create", "few", "--subnet", "10.32.0.0/28", "--exclude", "10.32.0.2-10.32.0.4", "--exclude", "10.32.0.6/31")
    assert "without 10.32.0.2-10.32.0.4, 10.32.0.6/31" in plait(lab, "A", "network", "inspect", "few")
    for host in "BC":
        process.until(f"{host} has it", lambda host=host: "few" in plait(lab, host, "network", "ls"), 5)
    assert "10.32.0.6 of network 'few' is excluded" in refused(lab, "B", "run", "--name", "x", "--network", "few", "--ip", "10.32.0.6")
    given = "ABBBBCCC"  # a block of one address, of four and of three
    got = {run(lab, host, f"c{n}", network="few") for n, host in enumerate(given)}
    assert got == {IPv4Address(f"10.32.0.{n}") for n in (5, *range(8, 15))}
    for host in HOSTS:
        text = refused(lab, host, "run", "--name", "more", "--network", "few")
        assert (
            "pool 10.32.0.0/28 of network 'few' is exhausted: 8 usable addresses in 4 blocks of /30, held by A: 1 blocks, 1 addre" in text
        )
        assert "in use, B: 1 blocks, 4 addresses in use, C: 1 blocks, 3 addresses in use; remove containers" in text
    (pool,) = [row for row in shown(lab, "C", "ipam")["pools"] if row["network"] == "few"]
    assert (pool["size"], pool["used"], pool["free"], pool["used_by"]) == (8, 8, 0, {"A": 1, "B": 4, "C": 3})
    plait(lab, "C", "rm", "c7")
    assert run(lab, "C", "now", network="few") in IPv4Network("10.32.0.12/30")


def test_a_reserved_address_follows_its_name_and_answers_from_everywhere(lab: Lab) -> None:
    for host in HOSTS:
        run(lab, host, f"asker-{host}")
    plait(lab, "C", "ipam", "reserve", "kept", "db", "10.31.0.20")
    for host, other in (("B", "C"), ("C", "A")):
        db = run(lab, host, "db")
        assert db == IPv4Address("10.31.0.20")
        assert "in use on" in refused(lab, other, "run", "--name", "db", "--network", "kept")
        assert "reserved for 'db'" in refused(lab, host, "run", "--name", "x", "--network", "kept", "--ip", str(db))
        for asking in HOSTS:
            process.until(f"{asking} reaches it on {host}", lambda asking=asking, db=db: pings(lab, asking, f"asker-{asking}", db), 5)
        assert not conditions(lab, host, "block-lost")
        plait(lab, host, "rm", "db")
    plait(lab, "B", "ipam", "unreserve", "kept", "db")
    assert "nothing of network 'kept' is reserved for 'db'" in refused(lab, "A", "ipam", "unreserve", "kept", "db")


def test_members_of_a_range_get_only_that_on_every_host(lab: Lab) -> None:
    for host in "AB":
        lab.path(host, "/etc/plait/ranges.toml").write_text(RANGES)
    process.until(
        "C is named as another", lambda: any(text.startswith("C has no ranges") for text in conditions(lab, "A", "ranges-differ")), 10
    )
    lab.path("C", "/etc/plait/ranges.toml").write_text(RANGES.replace("10.31.0.16/30", "10.31.0.17/30"))
    process.until(
        "the line is named", lambda: any("line 2" in text and "host bits" in text for text in conditions(lab, "C", "ranges-refused")), 10
    )
    lab.path("C", "/etc/plait/ranges.toml").write_text(RANGES)
    process.until(
        "all agree", lambda: not any(conditions(lab, host, code) for host in HOSTS for code in ("ranges-differ", "ranges-refused")), 10
    )
    part = {*IPv4Network("10.31.0.16/30"), IPv4Address("10.31.1.9")}
    given = {}
    for number, host in enumerate((*HOSTS, *"AB")):
        given[f"db-{number}", host] = run(lab, host, f"db-{number}")
        if number in (1, 2):
            assert run(lab, host, f"web-{number}") not in part
    assert set(given.values()) == part
    text = refused(lab, "C", "run", "--name", "db-more", "--network", "kept")
    assert "range 'databases' (10.31.0.16/30, 10.31.1.9) of network 'kept' has no address left" in text and "db-0 on A" in text
    for host in HOSTS:
        asked = ("run", "--name", "stranger", "--network", "kept", "--ip", "10.31.0.17")
        assert "10.31.0.17 of network 'kept' is in range 'databases'" in refused(lab, host, *asked)
    for (name, host), address in given.items():
        assert pings(lab, "C", "web-2", address), (name, host, address)


def test_another_range_is_for_new_containers_and_old_ones_keep_working(lab: Lab) -> None:
    """Scenario 28, while everything runs and after restarts."""
    plait(lab, "A", "network", "create", "moving", "--subnet", "10.34.0.0/16", "--ip-range", "10.34.0.0/18")
    process.until("B has it", lambda: "moving" in plait(lab, "B", "network", "ls"), 5)
    first, second = IPv4Network("10.34.0.0/18"), IPv4Network("10.34.64.0/18")
    old = {host: run(lab, host, f"old{host}", network="moving") for host in "AB"}
    assert all(address in first for address in old.values())
    assert "is no part of the subnet" in refused(lab, "B", "network", "set", "moving", "--ip-range", "10.35.0.0/18")
    said = plait(lab, "B", "network", "set", "moving", "--ip-range", str(second), "--exclude", "10.34.64.0-10.34.64.99")
    assert "addresses from 10.34.64.0/18" in said
    for host in "AB":
        process.until(f"{host} knows", lambda host=host: str(second) in plait(lab, host, "network", "inspect", "moving"), 5)
    for again in (False, True):
        for host in "AB":
            new = run(lab, host, f"new{host}{again:d}", network="moving")
            assert new in second and int(new) - int(second[0]) > 99
        assert pings(lab, "A", "oldA", old["B"]) and pings(lab, "B", "oldB", old["A"])
        assert pings(lab, "A", "new" + f"A{again:d}", old["B"]) and pings(lab, "B", "oldB", new)
        if not again:
            for host in "AB":
                lab.kill_agent(host)
                lab.start_agent(host)


def test_a_pool_over_a_route_of_any_host_is_refused_and_a_later_one_named(lab: Lab) -> None:
    lab.run("B", "ip", "link", "add", "vpn0", "type", "veth", "peer", "name", "vpn1")
    lab.run("B", "ip", "link", "set", "vpn0", "up")
    lab.run("B", "ip", "route", "add", "10.90.0.0/20", "dev", "vpn0")
    words = ("network", "create", "clash", "--subnet", "10.90.0.0/16")
    process.until(
        "A knows", lambda: lab.run("A", "plait", *words, check=False).returncode == 1 or plait(lab, "A", "network", "rm", "clash") == "", 5
    )
    for host in HOSTS:
        assert "overlaps 10.90.0.0/20 (route dev vpn0 on node B)" in refused(lab, host, *words)
    plait(lab, "A", *words, "--force")
    plait(lab, "A", "network", "rm", "clash")
    lab.run("B", "ip", "route", "del", "10.90.0.0/20")
    process.until("it is free again", lambda: lab.run("A", "plait", *words, check=False).returncode == 0, 10)
    lab.run("B", "ip", "route", "add", "10.90.64.0/24", "dev", "vpn0")
    for host in HOSTS:
        process.until(f"{host} names it", lambda host=host: conditions(lab, host, "pool-overlaps") != [], 10)
        assert conditions(lab, host, "pool-overlaps") == ["network clash overlaps 10.90.64.0/24 (route dev vpn0 on node B)"]
    lab.run("B", "ip", "link", "del", "vpn0")
    process.until("all is well", lambda: lab.run("C", "plait", "status", check=False).returncode == 0, 10)
    plait(lab, "A", "network", "rm", "clash")


def test_the_owner_of_everything_goes_and_two_allocate_at_once_and_it_comes_back(lab: Lab) -> None:
    """B holds every block of a pool; its host is cut off for longer than ipam.forget_after."""
    config = lab.path("C", "/etc/plait/plait.toml")
    config.write_text(f'{config.read_text()}\n[ipam]\nforget_after = "10s"\n')
    lab.kill_agent("C")
    lab.start_agent("C")
    plait(lab, "A", "network", "create", "owned", "--subnet", "10.33.0.0/28")
    for host in HOSTS:
        process.until(f"{host} has it", lambda host=host: "owned" in plait(lab, host, "network", "ls"), 5)
    old = {f"c{n}": run(lab, "B", f"c{n}", "--ip", f"10.33.0.{n}", network="owned") for n in (2, 5, 9, 13)}  # one in each block
    for host in "AC":
        text = refused(lab, host, "run", "--name", "early", "--network", "owned")
        assert "13 usable addresses in 4 blocks of /30, held by B: 4 blocks, 4 addresses in use" in text
    lab.cut("A", "B")
    lab.cut("B", "C")
    try:
        process.until("B is forgotten", lambda: [row["name"] for row in shown(lab, "C", "nodes")] == ["A", "C"], 40)
        new = {name: run(lab, host, name, network="owned") for host, name in (("A", "a1"), ("C", "c1"), ("A", "a2"), ("C", "c2"))}
    finally:
        lab.heal()
    process.until("B is back", lambda: [row["name"] for row in shown(lab, "C", "nodes")] == ["A", "B", "C"], 20)
    assert len({*new.values(), *old.values()}) == len(new) + len(old), "nobody has what B's containers had"
    for address in (*old.values(), *new.values()):
        process.until(f"C reaches {address}", lambda address=address: pings(lab, "C", "c1", address), 10)
        process.until(f"B reaches {address}", lambda address=address: pings(lab, "B", "c2", address), 10)
    fresh = run(lab, "B", "fresh", network="owned")
    assert fresh not in {*old.values(), *new.values()}
    rows = json.loads(lab.run("A", "plait", "ipam", "--json").stdout)["addresses"]
    used = [row["address"] for row in rows if row["network"] == "owned" and row["state"] == "used"]
    assert len(used) == len(set(used)) == 9
    assert lab.run("A", "plait", "ipam", "check", check=False).stdout.count("twice") == 0
