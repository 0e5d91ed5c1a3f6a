# SPDX-License-Identifier: Apache-2.0
"""A service on networks of each kind: by its virtual address, by the port of every host, by one of its own containers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
from tests.support.sandboxes import address
from tests.support.servers import NETWORKS, connects, create_networks, create_service, serve, serving, vip

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    """On each network a server on A and on B, and a client on every host."""
    made: Lab = make_lab(hosts=3)
    with serving() as servers:
        create_networks(made, *"BC")
        for number, network in enumerate(NETWORKS):
            of_it = "--network", network
            servers += [serve(made, host, f"{network}-{host}", *of_it, "--label", f"app={network}") for host in "AB"]
            for host in "ABC":
                made.run(host, "plait", "run", "--name", f"{network}-client-{host}", *of_it)
            create_service(made, network, 9000 + number)
        for host in "ABC":
            listed = partial(made.run, host, "nft", "list map inet plait vips")
            until(f"{host} has all", lambda ask=listed: ask().stdout.count("goto") == len(NETWORKS), 10)
        yield made


@pytest.mark.parametrize("network", NETWORKS)
def test_its_virtual_address_leads_to_all_and_shows_the_client(lab: Lab, network: str) -> None:
    for host in "ABC":
        client = f"{network}-client-{host}"
        rows = connects(lab, host, vip(lab, network), 20, sandbox=client)
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
        rows = connects(lab, host, vip(lab, network), 20, sandbox=f"{network}-{host}")
        assert {row[1] for row in rows} == {f"{network}-{one}" for one in "AB"}
