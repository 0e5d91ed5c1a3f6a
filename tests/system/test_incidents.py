# SPDX-License-Identifier: Apache-2.0
"""Incidents that took other networks down, on four hosts with real packets: afterwards every pair answers, and no row is stale."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import pytest
from tests.support.matrix import unreached

from plait.client.admin import AdminClient
from plait.lab.agents import SOCKET
from plait.lab.lab import Lab
from plait.lab.process import until
from plait.model.errors import PlaitError

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
HOSTS = "ABCD"
EACH = 50


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(hosts=4)


def client(lab: Lab, host: str) -> AdminClient:
    return AdminClient(lab.path(host, SOCKET), timeout_s=60)


def settled(lab: Lab, hosts: str = HOSTS) -> None:
    """Every host's tables are what they should be: a pass would write nothing."""
    end = time.monotonic() + 30
    for host in hosts:
        while left := client(lab, host).plan(diff=True):
            assert time.monotonic() < end, f"{host} still wants to write {left[:5]}"
            time.sleep(0.1)


def eventually(do: Callable[[], object], within_s: float = 60.0) -> None:
    """Do it again and again while plait refuses it with words."""
    end = time.monotonic() + within_s
    while True:
        try:
            do()
            return
        except PlaitError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def on_all(do: Callable[[str], object]) -> None:
    with ThreadPoolExecutor(len(HOSTS)) as pool:
        list(pool.map(do, HOSTS))


@pytest.mark.alone  # two rows a container of the thousand that the kernel has for the neighbours of all namespaces
def test_two_hundred_addresses_that_all_move_during_partitions_leave_no_stale_row(lab: Lab) -> None:
    """Every container of every host is made anew on the next host under its old address, while one host after another is cut off for a
    few seconds. The blocks move with the addresses; permanent rows of the old place must not outlive that."""
    client(lab, "A").create_network("moves", subnet="10.60.0.0/24")
    blocks = [[f"10.60.0.{64 * number + offset}" for offset in range(2, 2 + EACH)] for number in range(4)]
    place = {host: number for number, host in enumerate(HOSTS)}

    def names(host: str) -> list[str]:
        return [f"m{place[host]}-{offset}" for offset in range(EACH)]

    def make(host: str) -> None:
        eventually(lambda: client(lab, host).network("moves"))
        for name, address in zip(names(host), blocks[place[host]], strict=True):
            eventually(lambda name=name, address=address: client(lab, host).create_sandbox(name, "moves", address))

    def drop(host: str) -> None:
        for name in names(host):
            client(lab, host).remove_sandbox(name)

    def partitions() -> None:
        for host in "BCD":
            for other in HOSTS.replace(host, ""):
                lab.cut(host, other)
            time.sleep(5)
            lab.heal()
            time.sleep(1)

    on_all(make)
    before = {host: names(host) for host in HOSTS}
    assert unreached(lab, before, [address for block in blocks for address in block]) == []
    storm = Thread(target=partitions)
    storm.start()
    try:
        on_all(drop)
        place = {host: (number + 1) % 4 for host, number in place.items()}
        on_all(make)
    finally:
        storm.join()
    settled(lab)
    sandboxes = {host: names(host) for host in HOSTS}
    assert unreached(lab, sandboxes, [address for block in blocks for address in block]) == []
    for host in HOSTS:
        routes = lab.run(host, "ip", "-4", "route", "show", "root", "10.60.0.0/24").stdout
        own = {address for address in blocks[place[host]] if f"{address} dev" in routes}
        assert len(own) == EACH, "each of its own containers by itself"
        assert not [a for number, block in enumerate(blocks) if number != place[host] for a in block if f"{a} dev pl-e" in routes]
    on_all(drop)
    eventually(lambda: client(lab, "A").remove_network("moves"))


# --- harms to hosts, on the same lab: two networks that go different ways, a sandbox on each host in both


@pytest.fixture(scope="module")
def peopled(lab: Lab) -> Lab:
    """A tunnel network and a hybrid one, whose hosts share a link and so send each other plain packets."""
    client(lab, "A").create_network("wrapped", subnet="10.61.0.0/24")
    client(lab, "A").create_network("plain", subnet="10.62.0.0/24", options={"backend": "hybrid"})
    people(lab)
    return lab


def people(lab: Lab) -> None:
    for host in HOSTS:
        for network in ("wrapped", "plain"):
            eventually(lambda host=host, network=network: client(lab, host).create_sandbox(f"{network}-{host}", network))


def addresses(lab: Lab, network: str) -> list[str]:
    return [str(row["addresses"][network]) for row in client(lab, "A").ps() if network in row["addresses"]]


def whole(lab: Lab, within_s: float = 20.0) -> None:
    """Every pair of either network answers, every table is as it should be, and no condition holds."""
    for network in ("wrapped", "plain"):
        sandboxes = {host: [f"{network}-{host}"] for host in HOSTS}
        until("A knows who there is", lambda network=network: len(addresses(lab, network)) == len(HOSTS), 5)
        end = time.monotonic() + within_s
        while silent := unreached(lab, sandboxes, addresses(lab, network)):
            assert time.monotonic() < end, silent
    settled(lab)
    for host in HOSTS:
        until(f"{host} is well", lambda host=host: client(lab, host).status()["conditions"] == [], within_s, every_s=0.2)


HARMS = {
    "uplink flaps": "for n in 1 2 3 4; do ip link set eth0 down; sleep 0.2; ip link set eth0 up; sleep 0.2; done; "
    "ip -br link show eth0 | grep -w UP",
    "uplink renamed": "ip link set eth0 down && ip link set eth0 name ens9 && ip link set ens9 up && ip -br link show ens9 | grep -w UP",
    "uplink called eth0 again": "ip link set ens9 down && ip link set ens9 name eth0 && ip link set eth0 up && ip -br link show eth0",
    "MAC addresses rewritten": "for link in eth0 $(ip -br link | grep -o '^pl-[xgw0-9a-f]*'); do "
    "ip link set $link address 02:$(od -An -N5 -tx1 /dev/urandom | tr ' ' : | cut -c2-) && echo $link; done",
    "address removed and put back": "ip address del $1/24 dev eth0 && sleep 1 && ip address add $1/24 dev eth0 && echo done",
    "strict about sources": "for conf in all default eth0; do echo 1 >/proc/sys/net/ipv4/conf/$conf/rp_filter && echo $conf; done",
}
"""Each prints something only when the harm was done."""


@pytest.mark.parametrize("harm", HARMS)
def test_after_harm_to_all_hosts_at_once_every_pair_answers(peopled: Lab, harm: str) -> None:
    script = HARMS[harm]
    on_all(lambda host: _harmed(peopled, host, script))
    whole(peopled)


def _harmed(lab: Lab, host: str, script: str) -> None:
    said = lab.run(host, "sh", "-c", script, "harm", lab.address(host), timeout_s=60)
    assert said.stdout.strip(), said.stderr


def test_a_ruleset_that_is_flushed_again_and_again_is_whole_a_moment_after_the_last_time(peopled: Lab) -> None:
    target = addresses(peopled, "wrapped")[-1]
    loop = "for n in $(seq 40); do nft flush ruleset; nft list tables | wc -l; sleep 0.05; done"
    flushing = peopled.popen("A", "sh", "-c", loop, stdout=subprocess.PIPE, text=True)
    pings = peopled.run("A", "plait", "exec", "wrapped-A", "--", "ping", "-q", "-i", "0.02", "-c", "150", target).stdout
    said, _ = flushing.communicate(timeout=30)
    assert said.split().count("0") > 20, "the tables were gone"
    assert " 0% packet loss" in pings, pings
    whole(peopled)
    assert "inet plait" in peopled.run("A", "nft", "list", "tables").stdout


def test_a_host_whose_lease_expired_and_returns_is_reached_as_before(peopled: Lab) -> None:
    for other in "ABC":
        peopled.cut("D", other)
    until("D is lost to A", lambda: "D" not in _alive(peopled, "A"), 20, every_s=0.1)
    until("A is lost to D", lambda: client(peopled, "D").status()["store"]["reachable"] is False, 20, every_s=0.1)
    fresh = client(peopled, "D").create_sandbox("meanwhile", "wrapped")["address"]
    peopled.heal()
    until("D is back", lambda: _alive(peopled, "A") == set(HOSTS), 20, every_s=0.1)
    until("what it made meanwhile is reached", lambda: unreached(peopled, {"B": ["wrapped-B"]}, [str(fresh)]) == [], 20)
    client(peopled, "D").remove_sandbox("meanwhile")
    whole(peopled)


def _alive(lab: Lab, host: str) -> set[str]:
    return {row["name"] for row in client(lab, host).nodes() if row["alive"]}


@pytest.mark.parametrize("order", ["CADB"])
def test_all_hosts_lose_power_at_once_and_come_back_in_any_order(peopled: Lab, order: str) -> None:
    before = {network: addresses(peopled, network) for network in ("wrapped", "plain")}
    on_all(lambda host: peopled.reboot(host, start=False))
    for host in order:
        peopled.start_agent(host)
    until("all live", lambda: all(_alive(peopled, host) == set(HOSTS) for host in HOSTS), 20, every_s=0.1)
    settled(peopled)
    for host in HOSTS:
        kept = peopled.run(host, "ip", "-4", "route").stdout.split()
        assert not [a for found in before.values() for a in found if a in kept], "bare sandboxes end with their host, and so do their rows"
    people(peopled)
    whole(peopled)
    assert {network: addresses(peopled, network) for network in before} == before, "under their names they have their addresses again"
