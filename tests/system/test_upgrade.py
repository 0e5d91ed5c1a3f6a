# SPDX-License-Identifier: Apache-2.0
"""Agents are stopped and started again host by host, as an upgrade does, while packets go every way between three hosts: none is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.support.upgrade import Traffic, client, restart

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(120), pytest.mark.alone]
HOSTS = "ABC"
PAIRS = ("AB", "BC", "CA")
NETWORKS = {"wrapped": {}, "mixed": {"backend": "hybrid"}, "sealed": {"backend": "wireguard"}, "bridged": {"model": "sandbox"}}


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """Three hosts, two sandboxes on each in every network."""
    lab = make_lab(hosts=3)
    for name, options in NETWORKS.items():
        client(lab, "A").create_network(name, options=options)
    for host in HOSTS:
        until(f"{host} knows the networks", lambda host=host: {r["name"] for r in client(lab, host).networks()} > NETWORKS.keys(), 10)
        for name in NETWORKS:
            for number in "12":
                client(lab, host).create_sandbox(f"{name}-{host}{number}", name)
    until("A knows them all", lambda: len(client(lab, "A").ps()) == 2 * len(HOSTS) * len(NETWORKS), 10)
    return lab


def test_an_upgrade_host_by_host_loses_no_packet(lab: Lab) -> None:
    ways = [(f"{name}-{a}1", f"{name}-{b}1") for name in ("wrapped", "mixed", "sealed") for a, b in PAIRS]
    ways += [(f"{name}-{host}1", f"{name}-{host}2") for name in ("wrapped", "bridged") for host in HOSTS]
    traffic = Traffic(lab, ways)
    traffic.start()
    for host in "BCA":  # the store's last
        restart(lab, host)
    assert traffic.lost() == {}
