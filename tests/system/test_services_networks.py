# SPDX-License-Identifier: Apache-2.0
"""A service on networks of each kind: by its virtual address, by the port of every host, by one of its own containers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import pytest
from tests.support.sandboxes import address, shown
from tests.support.servers import connects, serve

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.timeout(180)]
NETWORKS = {
    "plain": (),
    "direct": ("--backend", "direct"),
    "hybrid": ("--backend", "hybrid"),
    "secret": ("--backend", "wireguard"),
    "frames": ("-o", "layer2=true"),
    "double": ("--ipv6",),
}


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    """On each network a server on A and on B, and a client on every host."""
    made: Lab = make_lab(hosts=3)
    servers: list[subprocess.Popen[str]] = []
    try:
        for network, options in NETWORKS.items():
            made.run("A", "plait", "network", "create", network, *options)
        for host in "BC":
            until(f"{host} has them", lambda h=host: {row["name"] for row in shown(made, h, "network", "ls")} >= NETWORKS.keys(), 10)
        for number, network in enumerate(NETWORKS):
            of_it = "--network", network
            servers += [serve(made, host, f"{network}-{host}", *of_it, "--label", f"app={network}") for host in "AB"]
            for host in "ABC":
                made.run(host, "plait", "run", "--name", f"{network}-client-{host}", *of_it)
            asked = "--port", "80:8080", "--selector", f"app={network}", "--publish", f"{9000 + number}:80"
            made.run("A", "plait", "service", "create", network, *of_it, *asked)
        for host in "ABC":
            until(
                f"{host} has all", lambda h=host: made.run(h, "nft", "list map inet plait vips").stdout.count("goto") == len(NETWORKS), 10
            )
        yield made
    finally:
        for process in servers:
            process.kill()
            process.wait(5)


def _vip(lab: Lab, network: str) -> str:
    return next(str(row["address"]) for row in shown(lab, "A", "service", "ls") if row["name"] == network)


@pytest.mark.parametrize("network", NETWORKS)
def test_its_virtual_address_leads_to_all_and_shows_the_client(lab: Lab, network: str) -> None:
    for host in "ABC":
        client = f"{network}-client-{host}"
        rows = connects(lab, host, _vip(lab, network), 20, sandbox=client)
        assert {(row[1], row[2]) for row in rows} == {(f"{network}-{one}", address(lab, client)) for one in "AB"}


@pytest.mark.parametrize("network", NETWORKS)
def test_the_port_of_a_host_without_a_container_of_it_leads_there_too(lab: Lab, network: str) -> None:
    """Also back to the host that asks."""
    port = 9000 + list(NETWORKS).index(network)
    for host in "AB":
        rows = connects(lab, host, lab.address("C"), 20, port)
        assert {row[1] for row in rows} == {f"{network}-{one}" for one in "AB"}


@pytest.mark.parametrize("network", NETWORKS)
def test_one_of_its_containers_reaches_all_of_them_itself_too(lab: Lab, network: str) -> None:
    for host in "AB":
        rows = connects(lab, host, _vip(lab, network), 20, sandbox=f"{network}-{host}")
        assert {row[1] for row in rows} == {f"{network}-{one}" for one in "AB"}
