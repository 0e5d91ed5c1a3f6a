# SPDX-License-Identifier: Apache-2.0
"""A service on networks of each kind: by its virtual address, by the port of every host, by one of its own containers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
from tests.support.sandboxes import address
from tests.support.servers import DUAL, NETWORKS, connects, create_networks, create_service, serve, serving, vip

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.timeout(180)]


class Family:
    """What the tests ask of a lab by one family of addresses."""

    def __init__(self, lab: Lab, six: bool) -> None:
        self.lab, self.six = lab, six

    def vip(self, network: str) -> str:
        return vip(self.lab, network, "address6" if self.six else "address")

    def sandbox(self, name: str) -> str:
        return address(self.lab, name, family="addresses6" if self.six else "addresses")

    def host(self, name: str) -> str:
        host = self.lab.state.spec.host(name)
        return str(host.second if self.six else host.address)


@pytest.fixture(scope="module", params=[4, 6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest, make_lab: Callable[..., Lab]) -> Iterator[Family]:
    """On each network a server on A and on B, and a client on every host. Of IPv6, all networks have both families."""
    six = request.param == 6
    made: Lab = make_lab(toml=DUAL) if six else make_lab(hosts=3)
    with serving() as servers:
        create_networks(made, *"BC", more=["--ipv6"] if six else [])
        for number, network in enumerate(NETWORKS):
            of_it = "--network", network
            servers += [serve(made, host, f"{network}-{host}", *of_it, "--label", f"app={network}") for host in "AB"]
            for host in "ABC":
                made.run(host, "plait", "run", "--name", f"{network}-client-{host}", *of_it)
            create_service(made, network, 9000 + number)
        for host in "ABC":
            listed = partial(made.run, host, "nft", f"list map inet plait vips{6 if six else ''}")
            until(f"{host} has all", lambda ask=listed: ask().stdout.count("goto") == len(NETWORKS), 10)
        yield Family(made, six)


@pytest.mark.parametrize("network", NETWORKS)
def test_its_virtual_address_leads_to_all_and_shows_the_client(family: Family, network: str) -> None:
    for host in "ABC":
        client = f"{network}-client-{host}"
        rows = connects(family.lab, host, family.vip(network), 20, sandbox=client)
        assert {(row[1], row[2]) for row in rows} == {(f"{network}-{one}", family.sandbox(client)) for one in "AB"}


@pytest.mark.parametrize("network", NETWORKS)
def test_hosts_reach_it_themselves(family: Family, network: str) -> None:
    for host in "AC":
        rows = connects(family.lab, host, family.vip(network), 20)
        assert {row[1] for row in rows} == {f"{network}-{one}" for one in "AB"}


@pytest.mark.parametrize("network", NETWORKS)
def test_the_port_of_a_host_without_a_container_of_it_leads_there_too(family: Family, network: str) -> None:
    """Also back to the host that asks."""
    port = 9000 + list(NETWORKS).index(network)
    for host in "AB":
        rows = connects(family.lab, host, family.host("C"), 20, port)
        assert {row[1] for row in rows} == {f"{network}-{one}" for one in "AB"}


@pytest.mark.parametrize("network", NETWORKS)
def test_one_of_its_containers_reaches_all_of_them_itself_too(family: Family, network: str) -> None:
    for host in "AB":
        rows = connects(family.lab, host, family.vip(network), 20, sandbox=f"{network}-{host}")
        assert {row[1] for row in rows} == {f"{network}-{one}" for one in "AB"}


@pytest.mark.parametrize("network", NETWORKS)
def test_its_name_leads_to_it(family: Family, network: str) -> None:
    asked = "@127.0.0.1", f"{network}.default.svc.cluster.local", "AAAA" if family.six else "A"
    for host in "AC":
        assert family.lab.run(host, "dig", "+short", "+time=1", "+tries=1", *asked).stdout.split() == [family.vip(network)]
