# SPDX-License-Identifier: Apache-2.0
"""Hosts go from the version before to this one, one after another, while packets go every way: none is lost, and whoever is new works with
whoever is old."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.support.previous import form, present, previous_code, use
from tests.support.upgrade import Traffic, client, restart

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]
HOSTS = "ABC"
PAIRS = ("AB", "BC", "CA", "BA", "CB", "AC")


@pytest.mark.parametrize("order", ["ABC", "BCA"], ids=["store first", "store last"])
def test_from_the_version_before_no_packet_is_lost_and_all_work_together(make_lab: Callable[..., Lab], order: str) -> None:
    old = previous_code() / "bin"
    lab = make_lab(hosts=3, agents=False)
    for host in HOSTS:
        use(lab, host, old)
    form(lab, HOSTS)
    versions = {host: lab.run(host, "plait", "version").stdout for host in HOSTS}
    client(lab, "A").create_network("first")
    people(lab, "first")
    traffic = Traffic(lab, [(f"first-{a}", f"first-{b}") for a, b in PAIRS])
    traffic.start()
    for number, host in enumerate(order):
        use(lab, host, present())
        restart(lab, host)
        maker = host if number % 2 else order[-1]  # now an old one makes the network, now a new one
        until(f"{maker} has the store again", lambda host=maker: client(lab, host).status()["store"]["reachable"], 15)
        client(lab, maker).create_network(f"net{number}")
        people(lab, f"net{number}")
        Traffic(lab, [(f"net{number}-{a}", f"net{number}-{b}") for a, b in PAIRS]).reaches()
    assert traffic.lost() == {}
    assert len(versions) == len(HOSTS)


def people(lab: Lab, network: str) -> None:
    """A sandbox on each host, which every host knows by its name."""
    for host in HOSTS:
        until(f"{host} knows {network}", lambda host=host: network in {r["name"] for r in client(lab, host).networks()}, 10)
        client(lab, host).create_sandbox(f"{network}-{host}", network)
    for host in HOSTS:
        for other in HOSTS:
            name = f"{network}-{other}"
            ask = ("dig", "+short", "+tries=1", "+time=1", "@127.0.0.1", name)
            until(f"{host} resolves {name}", lambda h=host, a=ask: lab.run(h, *a, check=False).stdout.startswith("10."), 10)
