# SPDX-License-Identifier: Apache-2.0
"""CNI on networks with IPv6, and the capability `ipRanges`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from tests.support.cluster import FakeNode, nodes
from tests.support.cniagent import CniAgent
from tests.support.dhcp import FakeServer

from plait.agent.keys import alive_key
from plait.model.cluster import Endpoint, Network
from plait.model.inside import InsideLink, SandboxState
from plait.model.leases import Leased, Way
from plait.runtimes.api import NetworkRequest
from plait.runtimes.cni.results import add_result, dns_of
from plait.store.api import Put
from plait.store.memory import MemoryStore

A, N, A6, N6 = IPv4Address, IPv4Network, IPv6Address, IPv6Network
BOTH = NetworkRequest("both", N("10.50.0.0/16"), subnet6=N6("fd00:50::/64"))


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[tuple[CniAgent, FakeNode]]:
    """The agent of A, and node B, of a cluster with the network `both`."""
    async with nodes(MemoryStore(), tmp_path, "A", "B") as (a, b):
        await a.ops.ensure_network(BOTH)
        await a.store.txn([], [Put(alive_key(name), b"1") for name in "AB"])
        for node in (a, b):
            await node.until(lambda node=node: "both" in node.view.snapshot.networks and node.view.snapshot.alive == {"A", "B"})
        await b.addresses.maintain()
        await a.converge()
        agent = CniAgent(a, tmp_path)
        await agent.start()
        yield agent, b
        await agent.stop()


@pytest.fixture
def agent(two: tuple[CniAgent, FakeNode]) -> CniAgent:
    return two[0]


async def added(agent: CniAgent, container: str = "c1", network: str = "both", **config: Any) -> tuple[str, Any]:
    netns = agent.netns(container)
    status, result = await agent.call("ADD", container, netns, config={"name": network} | config)
    assert status == 200, result
    return netns, result


def ips(result: Any) -> list[str]:
    return [row["address"] for row in result["ips"]]


def ranges(*sets: str) -> dict[str, Any]:
    """`FIRST-LAST` or a network, several of one set with a space between -> what a runtime sends."""
    return {"runtimeConfig": {"ipRanges": [[_range(text) for text in one.split()] for one in sets]}}


def _range(text: str) -> dict[str, str]:
    first, dash, last = text.partition("-")
    subnet = "fd00:50::/64" if ":" in text else "10.50.0.0/16"
    return {"subnet": subnet, "rangeStart": first, "rangeEnd": last} if dash else {"subnet": text}


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
async def test_the_result_has_both_families(agent: CniAgent, version: str) -> None:
    _, result = await added(agent, cniVersion=version)
    families = [{"version": "4"}, {"version": "6"}] if version.startswith("0") else [{}, {}]
    assert result["ips"] == [
        {"address": "10.50.0.2/32", "gateway": "10.50.0.1", "interface": 1, **families[0]},
        {"address": "fd00:50::2/128", "gateway": "fd00:50::1", "interface": 1, **families[1]},
    ]
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.50.0.1"}, {"dst": "::/0", "gw": "fd00:50::1"}]
    box = next(iter(agent.node.view.snapshot.containers.values()))
    assert (box.addresses, box.addresses6) == ({"both": A("10.50.0.2")}, {"both": A6("fd00:50::2")})


async def test_where_there_is_no_way_out_there_is_no_gateway_and_on_a_bridge_the_prefix(agent: CniAgent) -> None:
    await agent.node.ops.ensure_network(NetworkRequest("shut", N("10.51.0.0/16"), subnet6=N6("fd00:51::/64"), internal=True))
    _, result = await added(agent, network="shut")
    assert result["routes"] == [] and [sorted(row) for row in result["ips"]] == [["address", "interface"]] * 2
    bridge = {"backend": "bridge"}
    await agent.node.ops.ensure_network(NetworkRequest("here", N("10.52.0.0/24"), subnet6=N6("fd00:52::/64"), options=bridge))
    assert ips((await added(agent, "c2", "here"))[1]) == ["10.52.0.2/24", "fd00:52::2/64"]


async def test_check_looks_at_both(agent: CniAgent) -> None:
    netns, result = await added(agent)
    assert await agent.call("CHECK", netns=netns, name="both", prevResult=result) == (200, None)
    other = json.loads(json.dumps(result))
    other["ips"][1]["address"] = "fd00:50::99/128"
    _, error = await agent.call("CHECK", netns=netns, name="both", prevResult=other)
    assert error["code"] == 104 and "it has no address fd00:50::99" in error["msg"] and "the agent gave it fd00:50::2" in error["msg"]
    agent.routeless6.add(netns)
    _, error = await agent.call("CHECK", netns=netns, name="both", prevResult=result)
    assert error["code"] == 104 and error["msg"].endswith("not as it was made: the IPv6 default route is gone")
    agent.routeless6.clear()
    del agent.node.kernel.objects["route", "fd00:50::2/128", "0"]
    _, error = await agent.call("CHECK", netns=netns, name="both", prevResult=result)
    assert "the kernel lacks route fd00:50::2/128" in error["msg"]


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ({"runtimeConfig": {"ips": ["10.50.0.9", "fd00:50::9/64"]}}, ["10.50.0.9/32", "fd00:50::9/128"]),
        ({"runtimeConfig": {"ips": ["fd00:50::9"]}}, ["10.50.0.9/32", "fd00:50::9/128"]),
        ({"runtimeConfig": {"ips": ["fd00:50::7", "10.50.0.9"]}}, ["10.50.0.9/32", "fd00:50::7/128"]),
        ({"args": {"cni": {"ips": ["10.50.0.9", "fd00:50::7"]}}}, ["10.50.0.9/32", "fd00:50::7/128"]),
    ],
)
async def test_an_address_of_each_family_can_be_asked_for(agent: CniAgent, asked: dict[str, Any], given: list[str]) -> None:
    netns, result = await added(agent, **asked)
    assert ips(result) == given
    assert await agent.call("ADD", "c1", netns, config={"name": "both"} | asked) == (200, result), "again is the same"
    status, error = await agent.call("ADD", "c2", agent.netns("c2"), config={"name": "both", **asked})
    assert (status, error["code"]) == (500, 100)
    assert await agent.call("DEL", name="both") == (200, None)
    assert not [r for r in agent.node.addresses.reservations() if r.live and r.network == "both"]


async def test_several_in_cni_args_are_joined_by_commas(agent: CniAgent) -> None:
    status, result = await agent.call("ADD", netns=agent.netns("n"), args="IP=10.50.0.9,fd00:50::7", name="both")
    assert status == 200 and ips(result) == ["10.50.0.9/32", "fd00:50::7/128"]


# --- ipRanges


@pytest.mark.parametrize(
    ("sets", "given"),
    [
        (("10.50.0.64-10.50.0.65",), ["10.50.0.64/32", "fd00:50::40/128"]),
        (("10.50.0.0/29",), ["10.50.0.2/32", "fd00:50::2/128"]),
        (("fd00:50::64-fd00:50::65",), ["10.50.0.100/32", "fd00:50::64/128"]),
        (("10.50.0.64-10.50.0.99", "fd00:50::50-fd00:50::ffff"), ["10.50.0.80/32", "fd00:50::50/128"]),
        (("fd00:50::7-fd00:50::8", "10.50.0.64-10.50.0.99"), ["10.50.0.64/32", "fd00:50::7/128"]),
        (("10.50.0.0/32 10.50.0.200-10.50.0.201",), ["10.50.0.200/32", "fd00:50::c8/128"]),
    ],
)
async def test_the_address_is_from_the_ranges(agent: CniAgent, sets: tuple[str, ...], given: list[str]) -> None:
    asked = ranges(*sets)
    netns, result = await added(agent, **asked)
    assert ips(result) == given
    assert await agent.call("CHECK", netns=netns, config={"name": "both", "prevResult": result} | asked) == (200, None)
    assert await agent.call("ADD", "c1", netns, config={"name": "both"} | asked) == (200, result)
    assert await agent.call("DEL", name="both") == (200, None)
    assert not [r for r in agent.node.addresses.reservations() if r.live and r.network == "both"]


async def test_a_range_of_another_hosts_block_is_served_too(two: tuple[CniAgent, FakeNode]) -> None:
    agent, b = two
    block = next(block for block in b.view.snapshot.blocks.values() if block.network == "both" and block.node == "B")
    first, last = block.cidr[8], block.cidr[9]
    _, result = await added(agent, **ranges(f"{first}-{last}"))
    assert ips(result)[0] == f"{first}/32"


async def test_a_range_that_is_full_names_who_has_it(agent: CniAgent) -> None:
    asked = ranges("10.50.0.64-10.50.0.65")
    for name in ("c1", "c2"):
        await added(agent, name, **asked)
    status, error = await agent.call("ADD", "c3", agent.netns("c3"), config={"name": "both"} | asked)
    assert (status, error["code"]) == (500, 101)
    assert "range 'ipRanges' (10.50.0.64/31) of network 'both' has no address left" in error["msg"]
    assert "c1 on A (10.50.0.64)" in error["msg"] and "ranges.toml" not in error["msg"]
    assert await agent.call("DEL", "c1", name="both") == (200, None)
    assert ips((await added(agent, "c3", **asked))[1])[0] == "10.50.0.64/32"


@pytest.mark.parametrize(
    ("sets", "extra", "code", "text"),
    [
        ([[]], {}, 7, "a set holds ranges of one family"),
        ([[{"subnet": "10.50.0.0/24"}, {"subnet": "fd00:50::/120"}]], {}, 7, "a set holds ranges of one family"),
        ([[{"subnet": "10.50.0.0/24"}], [{"subnet": "10.50.1.0/24"}]], {}, 2, "one IPv4 address"),
        ([[{"subnet": "10.50.0.0/24", "rangeStart": "10.50.1.9"}]], {}, 7, "10.50.1.9 to 10.50.0.255 is no part of 10.50.0.0/24"),
        ([[{"subnet": "10.50.0.0/24", "rangeStart": "10.50.0.9", "rangeEnd": "10.50.0.8"}]], {}, 7, "is no part"),
        ([[{"subnet": "10.50.0.0/24", "rangeEnd": "fd00:50::9"}]], {}, 7, "is no part"),
        ([[{"subnet": "10.50.0.0/24", "gateway": "10.50.0.9"}]], {}, 7, "the gateway of network 'both' is 10.50.0.1, not 10.50.0.9"),
        ([[{"subnet": "fd00:51::/64"}]], {}, 7, "no part of network 'both' (fd00:50::/64)"),
        ([[{"subnet": "fd00:50::1:0/112"}]], {}, 7, "no addresses beyond fd00:50::ffff"),
        ([[{"subnet": "10.50.0.0/24"}]], {"ips": ["10.50.1.9"]}, 7, "ips asks for 10.50.1.9"),
        ([[{"subnet": "fd00:50::/120"}]], {"ips": ["10.50.1.9", "fd00:50::109"]}, 7, "ips asks for 10.50.1.9"),
    ],
)
async def test_ranges_that_cannot_be_served_are_named(agent: CniAgent, sets: Any, extra: dict[str, Any], code: int, text: str) -> None:
    runtime = {"ipRanges": sets} | extra
    status, error = await agent.call("ADD", netns=agent.netns("n"), config={"name": "both", "runtimeConfig": runtime})
    assert (status, error["code"]) == (500, code) and text in error["msg"]
    assert not agent.node.ops.endpoints("cni") and not [r for r in agent.node.addresses.reservations() if r.network == "both"]


async def test_one_that_is_asked_for_within_the_ranges_is_given(agent: CniAgent) -> None:
    runtime = {"ips": ["10.50.0.70"]} | ranges("10.50.0.64/27", "fd00:50::/64")["runtimeConfig"]
    assert ips((await added(agent, runtimeConfig=runtime))[1]) == ["10.50.0.70/32", "fd00:50::46/128"]


# --- behind another plug-in


async def test_a_result_of_others_keeps_both(agent: CniAgent) -> None:
    netns = agent.netns("n")
    interfaces = [{"name": "eth0", "mac": "02:00:00:00:00:05", "sandbox": netns}]
    rows = [{"address": "fd88::5/64", "interface": 0}, {"address": "10.88.0.5/16", "interface": 0}]
    previous = {"cniVersion": "1.0.0", "interfaces": interfaces, "ips": rows}
    held = frozenset({IPv6Interface("fd88::5/64")})
    agent.foreign[netns] = SandboxState({"eth0": InsideLink("02:00:00:00:00:05", True, held)})
    chained = {"name": "chain", "prevResult": previous}
    assert await agent.call("ADD", netns=netns, config=chained) == (200, previous)
    box = next(iter(agent.node.view.snapshot.containers.values()))
    assert (box.addresses, box.addresses6) == ({"chain": A("10.88.0.5")}, {"chain": A6("fd88::5")})
    _, error = await agent.call("CHECK", netns=netns, config=chained)
    assert "it has no address 10.88.0.5" in error["msg"] and "fd88" not in error["msg"]


async def test_one_with_ipv6_alone_joins_too(agent: CniAgent) -> None:
    netns = agent.netns("n")
    interfaces = [{"name": "eth0", "sandbox": netns}]
    previous = {"cniVersion": "1.0.0", "interfaces": interfaces, "ips": [{"address": "fd88::5/64", "interface": 0}]}
    assert await agent.call("ADD", netns=netns, config={"name": "chain", "prevResult": previous}) == (200, previous)
    assert next(iter(agent.node.view.snapshot.containers.values())).addresses6 == {"chain": A6("fd88::5")}


async def test_check_asks_for_no_ipv6_default_route_where_routers_of_the_link_say_it(agent: CniAgent) -> None:
    agent.node.dhcp[:] = [FakeServer()]
    options = {"backend": "macvlan", "parent": "lo", "ipam": "dhcp"}
    await agent.node.ops.ensure_network(NetworkRequest("leased", options=options, ipv6=True))
    netns, result = await added(agent, "c3", "leased")
    assert ips(result) == ["198.18.0.10/24", "fd00::10/128"]
    agent.routeless6.add(netns)
    assert await agent.call("CHECK", "c3", netns=netns, name="leased", prevResult=result) == (200, None)


@pytest.mark.parametrize("mode", ["", "l2", "l3"])
def test_on_a_link_of_the_host_a_result_has_the_links_prefix_and_router(mode: str) -> None:
    options = {"parent": "eth0"} | ({"mode": mode} if mode else {})
    backend = "ipvlan" if mode else "macvlan"
    network = Network("lan", IPv4Network("198.18.0.0/24"), IPv4Address("198.18.0.254"), 24, backend, options=options)
    network = replace(network, subnet6=IPv6Network("fd00:18::/64"), gateway6=IPv6Address("fe80::1"))
    endpoint = Endpoint("e", "lan", "A", IPv4Address("198.18.0.10"), "", "pl-e1", "cni", address6=IPv6Address("fd00:18::a"))
    result = add_result("1.0.0", endpoint, network, 1500, dns_of("", "plait", None, None))
    hop = {} if mode == "l3" else {"gateway": "fe80::1"}
    assert result["ips"][1] == {"address": "fd00:18::a/64", "interface": 0, **hop}
    assert result["routes"][1] == {"dst": "::/0"} | ({"gw": "fe80::1"} if hop else {})


def test_a_result_says_what_came_with_a_lease() -> None:
    network = Network(
        "lan", IPv4Network("198.18.0.0/24"), IPv4Address("198.18.0.254"), 24, "macvlan", options={"parent": "eth0", "ipam": "dhcp"}
    )
    ways = (Way(IPv4Network("10.9.0.0/16"), IPv4Address("198.18.0.7")), Way(IPv4Network("0.0.0.0/0"), IPv4Address("198.18.0.1")))
    leased = Leased(25, ways, (IPv4Address("198.18.0.53"),), "example.org")
    endpoint = Endpoint(
        "e", "lan", "A", IPv4Address("198.18.0.10"), "02:00:00:00:00:01", "pl-e1", "cni", address6=IPv6Address("fd00::10"), leased=leased
    )
    result = add_result("1.0.0", endpoint, network, 1500, dns_of("", "plait", None, leased))
    assert result["ips"] == [
        {"address": "198.18.0.10/25", "interface": 0, "gateway": "198.18.0.1"},
        {"address": "fd00::10/128", "interface": 0},
    ]
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "198.18.0.1"}, {"dst": "10.9.0.0/16", "gw": "198.18.0.7"}]
    assert result["dns"] == {"nameservers": ["198.18.0.53"], "search": ["example.org"]}
    bare = add_result(
        "1.0.0", replace(endpoint, leased=Leased(24), address6=None), network, 1500, dns_of("10.28.0.1", "plait", None, leased)
    )
    assert bare["routes"] == [] and bare["ips"] == [{"address": "198.18.0.10/24", "interface": 0}]
    assert bare["dns"] == {"nameservers": ["10.28.0.1"], "search": ["plait"]}
