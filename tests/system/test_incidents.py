# SPDX-License-Identifier: Apache-2.0
"""Incidents that took other networks down, on four hosts with real packets: afterwards every pair answers, and no row is stale."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import pytest
from tests.support.matrix import unreached

from plait.client.admin import AdminClient
from plait.lab.agents import SOCKET
from plait.lab.lab import Lab
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
