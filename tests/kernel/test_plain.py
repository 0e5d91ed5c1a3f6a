# SPDX-License-Identifier: Apache-2.0
"""The two hosts of `test_datapath`, whose network has plain routes between them: what packets do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.kernel.test_datapath import BY_NAME, NETWORKS, WAYS, Hosts, counted, delivers_nothing_from_another_network, two_hosts

pytestmark = pytest.mark.root
BACKENDS = ("direct", "hybrid")


@pytest.fixture(scope="module", params=[(backend, way) for backend in BACKENDS for way in WAYS], ids="-".join)
def hosts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    backend, way = request.param
    with two_hosts(tmp_path_factory.mktemp("plain"), way, *(replace(n, backend=backend) for n in NETWORKS), linked=True) as made:
        yield made


@pytest.mark.parametrize(("client", "server"), [("web", "far"), ("far", "web"), ("near", "web"), ("stranger", "foreign")])
def test_the_fast_path_leaves_the_stack_of_the_hosts_out(hosts: Hosts, client: str, server: str) -> None:
    """Whole: of the host that sends, and of the one that receives where nobody else's rules see what it receives."""
    to, near = BY_NAME[server].address, BY_NAME[client].node == BY_NAME[server].node
    hosts.pings(client, to)
    with counted(hosts, to) as seen:
        assert hosts.connects(client, to, 7000, server, 7000, size=100_000) == BY_NAME[client].address
        assert (seen() == 0) == (hosts.fast and (near or bool(hosts.shortcut)))


def test_nothing_of_it_is_wrapped(hosts: Hosts) -> None:
    hosts.run("B", "nft 'add table inet spy; add chain inet spy seen { type filter hook input priority -400; }'")
    try:
        hosts.run("B", "nft 'add rule inet spy seen udp dport 4789 counter'")
        assert hosts.connects("web", BY_NAME["far"].address, 7000, "far", 7000) is not None
        seen = re.search(r"counter packets (\d+)", hosts.run("B", "nft list table inet spy"))
        assert seen is not None and seen[1] == "0"
    finally:
        hosts.run("B", "nft delete table inet spy")


@pytest.mark.parametrize(("client", "to"), [("web", "foreign"), ("foreign", "web"), ("web", "vault"), ("vault", "far")])
def test_networks_are_kept_apart(hosts: Hosts, client: str, to: str) -> None:
    assert hosts.connects(client, BY_NAME[to].address, 80, to) is None


def test_what_the_link_delivers_is_of_one_network(hosts: Hosts) -> None:
    delivers_nothing_from_another_network(hosts, "wire")


def test_a_peer_that_is_not_on_the_link_any_more_is_reached_through_the_tunnel(hosts: Hosts) -> None:
    """The next hop goes from one map to the other; a network of plain routes alone has no other way."""
    apart, tunnelled = replace(hosts.snapshot, reach={}), hosts.snapshot.networks["default"].backend == "hybrid"
    try:
        for host in "AB":
            hosts.converge(host, apart)
        seen = hosts.connects("web", BY_NAME["far"].address, 7000, "far", 7000)
        assert seen == (BY_NAME["web"].address if tunnelled else None)
    finally:
        for host in "AB":
            hosts.converge(host)
    assert hosts.connects("web", BY_NAME["far"].address, 7000, "far", 7000) == BY_NAME["web"].address
