# SPDX-License-Identifier: Apache-2.0
"""Hosts that get another address, and hosts that are copies of others: who follows whom, and who is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest
from tests.support import sandboxes

from plait.client.admin import AdminClient
from plait.lab import inside
from plait.lab.agents import SOCKET, log_of
from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
HOSTS = "ABC"
TOML = "".join(f'[[host]]\nname = "{name}"\n' for name in HOSTS) + '[[host]]\nname = "D"\nagent = false\n'


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """Three hosts whose addresses nothing pins, each with a sandbox; D has no agent yet."""
    lab = make_lab(toml=TOML)
    for host in reversed(HOSTS):
        config = lab.path(host, "/etc/plait/plait.toml")
        config.write_text("".join(line for line in config.read_text().splitlines(True) if not line.startswith("address")))
        lab.kill_agent(host)
    for host in HOSTS:
        lab.start_agent(host)
    for host in HOSTS:
        lab.run(host, "plait", "run", "--name", host.lower())
    return lab


@pytest.fixture(autouse=True)
def at_rest(lab: Lab) -> Iterator[None]:
    """Every test ends with every host's tables as they should be and every pair answering."""
    yield
    rests(lab)


def client(lab: Lab, host: str) -> AdminClient:
    return AdminClient(lab.path(host, SOCKET), timeout_s=20)


def address(lab: Lab, host: str) -> str:
    """That of the sandbox on `host`."""
    return sandboxes.address(lab, host.lower(), host=host)


def reaches(lab: Lab, host: str, target: str) -> bool:
    return sandboxes.pings(lab, host, host.lower(), target)


def told(lab: Lab, host: str) -> dict[str, str]:
    """Underlay address of every node, as `host` knows it."""
    return {row["name"]: row["address"] for row in sandboxes.shown(lab, host, "nodes")}


def rests(lab: Lab) -> None:
    """Before long every pair answers, and no table holds a row that it should not."""
    targets = {host: address(lab, host) for host in HOSTS}
    for host in HOSTS:
        for other in HOSTS.replace(host, ""):
            until(f"{host} reaches {other}", lambda host=host, other=other: reaches(lab, host, targets[other]), 15)
    for host in HOSTS:
        until(f"{host} has nothing to write", lambda host=host: client(lab, host).plan(diff=True) == [], 15, every_s=0.2)


def restart(lab: Lab, *hosts: str) -> None:
    for host in hosts:
        lab.kill_agent(host)
    for host in hosts:
        lab.start_agent(host)


def give(lab: Lab, host: str, fresh: str, old: str) -> None:
    """What DHCP does when the lease has become another."""
    lab.run(host, "sh", "-c", f"ip address del {old}/24 dev eth0; ip address add {fresh}/24 dev eth0")


def follow(lab: Lab, host: str, fresh: str) -> None:
    """All hosts know the new address of `host` before long."""
    for other in HOSTS:
        until(f"{other} knows {host} at {fresh}", lambda other=other: told(lab, other)[host] == fresh, 15)


@pytest.mark.parametrize("host", "BA")
def test_a_host_that_gets_another_address_is_followed_and_goes_home_again(lab: Lab, host: str) -> None:
    """A carries the store: B and C know no other way to it than its old address."""
    home, fresh = lab.address(host), "198.18.0.77"
    give(lab, host, fresh, home)
    follow(lab, host, fresh)
    rests(lab)
    links = lab.run(host, "ip", "-d", "link", "show", "pl-x1").stdout
    assert f"local {fresh}" in links, "it sends from there too"
    assert sandboxes.shown(lab, "B", "status")["store"]["address"] == f"{fresh if host == 'A' else lab.address('A')}:7470"
    restart(lab, "C", host)  # who is started now finds the rest too
    follow(lab, host, fresh)
    give(lab, host, home, fresh)
    follow(lab, host, home)


def test_an_address_that_is_pinned_is_not_left_and_its_absence_is_named(lab: Lab) -> None:
    config, home = lab.path("C", "/etc/plait/plait.toml"), lab.address("C")
    before = config.read_text()
    config.write_text(f'[node]\nname = "C"\naddress = "{home}"\n[docker]\nenabled = false\n')
    restart(lab, "C")
    try:
        give(lab, "C", "198.18.0.78", home)
        until("the address is missed", lambda: "address-lost" in lab.run("C", "plait", "status", "--json", check=False).stdout, 10)
        assert "pinned by node.address" in lab.run("C", "plait", "status", check=False).stdout
        assert told(lab, "A")["C"] == home
    finally:
        give(lab, "C", home, "198.18.0.78")
        config.write_text(before)


def test_where_a_firewall_keeps_the_stores_node_from_knocking_the_place_is_told_by_hand(lab: Lab) -> None:
    config, home = lab.path("B", "/etc/plait/plait.toml"), lab.address("A")
    before = config.read_text()
    lab.run("B", "nft", "table inet fw { chain in { type filter hook input priority 0; tcp dport 7470 drop; }; }")
    try:
        give(lab, "A", "198.18.0.81", home)
        said = lambda: lab.run("B", "plait", "status", check=False).stdout  # noqa: E731
        until("B misses the store", lambda: "store-unreachable" in said(), 15, every_s=0.2)
        assert "set node.store in /etc/plait/plait.toml" in said()
        config.write_text(before.replace("[node]\n", '[node]\nstore = "198.18.0.81"\n'))
        restart(lab, "B")
        until("B knows A", lambda: told(lab, "B")["A"] == "198.18.0.81", 10)
    finally:
        lab.run("B", "nft", "delete table inet fw")
        config.write_text(before)
    assert "198.18.0.81:7470" in lab.run("B", "cat", "/var/lib/plait/identity.json").stdout, "it is kept"
    give(lab, "A", home, "198.18.0.81")
    follow(lab, "A", home)


def copy(lab: Lab, source: str) -> str:
    """Make D a copy of `source`, running as it is, and start its agent; its log once that has ended."""
    for folder in ("/etc/plait", "/var/lib/plait"):
        shutil.copytree(lab.path(source, folder), lab.path("D", folder), dirs_exist_ok=True)
    state = lab.state
    log = log_of(state, "D")
    log.unlink(missing_ok=True)
    inside.start_daemon("D", state.holder("D"), "agent", ["plait", "agent"], log)
    until("the copy ends by itself", lambda: inside.daemon_pid(state.holder("D"), "agent") is None, 15)
    return log.read_text()


@pytest.mark.parametrize("source", ["B", "A"])
def test_a_copied_host_is_refused_with_words_and_the_first_one_feels_nothing(lab: Lab, source: str) -> None:
    before = {host: (told(lab, host), lab.run(host, "cat", "/run/plait/agent.lock").stdout) for host in HOSTS}
    blocks = sandboxes.shown(lab, "C", "ipam")
    said = copy(lab, source)
    assert f"this host says that it is node '{source}'" in said and "plait down --purge" in said
    assert (lab.address("B") if source == "B" else lab.address("A")) in said, "it tells where the other one is"
    left = lab.run("D", "plait", "down", "--purge").stdout
    assert source == "A" or "took nothing out of the cluster" in left
    assert {host: (told(lab, host), lab.run(host, "cat", "/run/plait/agent.lock").stdout) for host in HOSTS} == before
    assert sandboxes.shown(lab, "C", "ipam") == blocks
    if source == "B":
        token = lab.run("A", "plait", "token", "create").stdout.split()[-1]
        lab.run("D", "plait", "join", lab.address("A"), "--token", token, "--name", "D", "--address", lab.address("D"))
        lab.start_agent("D")
        until("the copy is a node of its own", lambda: told(lab, "C").get("D") == lab.address("D"), 10)
        lab.run("D", "plait", "down", "--purge")
