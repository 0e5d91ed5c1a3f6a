# SPDX-License-Identifier: Apache-2.0
"""netavark's plug-in protocol, by the documents that Podman and netavark send (plugin-API.md, API version 1.0.0); the test is netavark."""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from tests.support.cluster import nodes
from tests.support.cniagent import CniAgent

from plait.model.inside import InsideLink, SandboxState
from plait.runtimes.api import NetworkRequest
from plait.store.memory import MemoryStore

ID = "2f259bab93aaaaa2542ba43ef33eb990d0999ee1b9924b557b7be53c0b7a1bb9"
NETWORK: dict[str, Any] = {
    "name": "mesh",
    "id": ID,
    "driver": "plait",
    "network_interface": "podman1",
    "created": "2026-11-30T12:00:00.123456789+01:00",
    "subnets": None,
    "routes": None,
    "ipv6_enabled": False,
    "internal": False,
    "dns_enabled": True,
    "network_dns_servers": None,
    "ipam_options": {"driver": "host-local"},
    "options": None,
}
EXEC: dict[str, Any] = {
    "container_id": "752947ff91f961eb3cb47ffe9315016979f3ffbec09e4d96a4fae3fb03391697",
    "container_name": "testctr",
    "port_mappings": [
        {"container_port": 80, "host_ip": "127.0.0.1", "host_port": 8080, "protocol": "tcp", "range": 2},
        {"container_port": 53, "host_ip": "", "host_port": 5353, "protocol": "tcp,udp", "range": 1},
    ],
    "network": NETWORK,
    "network_options": {
        "aliases": ["752947ff91f9", "www"],
        "interface_name": "eth0",
        "static_ips": None,
        "static_mac": None,
    },
}


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[CniAgent]:
    async with nodes(MemoryStore(), tmp_path, "A") as (a,):
        agent = CniAgent(a, tmp_path)
        await agent.start()
        yield agent
        await agent.stop()


@pytest.fixture
async def mesh(agent: CniAgent) -> CniAgent:
    await agent.node.ops.ensure_network(NetworkRequest("mesh", IPv4Network("10.40.0.0/16")))
    return agent


def changed(document: dict[str, Any], **fields: Any) -> dict[str, Any]:
    found = copy.deepcopy(document)
    for name, value in fields.items():
        target, _, key = name.rpartition("__")
        (found[target] if target else found)[key] = value
    return found


# --- create


async def test_create_makes_the_clusters_network_and_completes_podmans(agent: CniAgent) -> None:
    status, answer = await agent.netavark("create", NETWORK)
    made = agent.node.ops.networks()["mesh"]
    assert status == 200 and answer == NETWORK | {
        "subnets": [{"subnet": str(made.subnet), "gateway": str(made.gateway)}],
        "ipam_options": {"driver": "plait"},
    }, "everything else stays as it came"
    assert await agent.netavark("create", NETWORK) == (200, answer), "another host of the cluster asks for the same"


async def test_create_takes_a_subnet_and_an_internal_network(agent: CniAgent) -> None:
    wanted = changed(NETWORK, internal=True, subnets=[{"subnet": "10.60.0.0/16", "gateway": "10.60.0.9", "lease_range": None}])
    status, answer = await agent.netavark("create", wanted)
    made = agent.node.ops.networks()["mesh"]
    assert status == 200 and (made.subnet, made.gateway, made.internal) == (IPv4Network("10.60.0.0/16"), IPv4Address("10.60.0.9"), True)
    assert answer["internal"] and answer["subnets"] == [{"subnet": "10.60.0.0/16", "gateway": "10.60.0.9"}]


async def test_create_joins_a_network_of_another_name(mesh: CniAgent) -> None:
    status, answer = await mesh.netavark("create", changed(NETWORK, name="front", options={"plait.net": "mesh"}))
    assert status == 200 and (answer["name"], answer["subnets"][0]["subnet"]) == ("front", "10.40.0.0/16")
    assert "front" not in mesh.node.ops.networks()


async def test_create_takes_limits_for_all_of_its_containers(agent: CniAgent) -> None:
    options = {"limit-in": "10M", "limit-manner": "drop", "plait.backend": "vxlan"}
    status, _ = await agent.netavark("create", changed(NETWORK, name="slow", options=options))
    made = agent.node.ops.networks()["slow"]
    assert (status, made.backend, made.options) == (200, "vxlan", {"backend": "vxlan", "limit-in": "10M", "limit-manner": "drop"})


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"options": {"mtu": "9000"}}, "'mtu' is no option"),
        ({"options": {"limit-out": "fast"}}, "limit-out: 'fast' is no rate"),
        ({"options": {"plait.backend": "carrier-pigeon"}}, "carrier-pigeon"),
        ({"subnets": [{"subnet": "fd00:60::/64"}, {"subnet": "fd00:61::/64"}]}, "one --subnet of each family"),
        ({"subnets": [{"subnet": "fd00:60::/80"}]}, "fd00:60::/80"),
        ({"routes": [{"destination": "10.0.0.0/8", "gateway": "10.1.1.1"}]}, "without --route"),
        ({"subnets": [{"subnet": "10.60.0.0/16"}, {"subnet": "10.61.0.0/16"}]}, "one --subnet"),
        ({"subnets": [{"subnet": "10.60.0.0/33"}]}, "10.60.0.0/33"),
        ({"subnets": [{"subnet": "10.60.0.0/16", "gateway": "x"}]}, "--gateway"),
        ({"subnets": [{"subnet": "10.60.0.0/16", "lease_range": {"start_ip": "10.60.1.1"}}]}, "--ip-range"),
        ({"subnets": [{"subnet": "10.28.0.0/16"}]}, "10.28.0.0/16"),
        ({"subnets": 7}, "subnets"),
    ],
)
async def test_create_refuses_what_would_not_be_kept(agent: CniAgent, fields: dict[str, Any], text: str) -> None:
    status, answer = await agent.netavark("create", changed(NETWORK, **fields))
    assert status == 500 and set(answer) == {"error"} and answer["error"].startswith("plait: ") and text in answer["error"]
    assert set(agent.node.ops.networks()) == {"default"}


# --- setup and teardown


async def test_setup_attaches_and_answers_with_a_status_block(mesh: CniAgent) -> None:
    status, answer = await mesh.netavark("setup", EXEC, mesh.netns("n"))
    endpoint = next(iter(mesh.node.ops.endpoints("netavark").values()))
    assert status == 200 and answer == {
        "dns_search_domains": ["plait"],
        "dns_server_ips": ["10.40.0.1"],
        "interfaces": {"eth0": {"mac_address": endpoint.mac, "subnets": [{"gateway": "10.40.0.1", "ipnet": f"{endpoint.address}/32"}]}},
    }
    assert (endpoint.name, endpoint.aliases) == ("testctr", ("752947ff91f9", "www"))
    assert [(p.proto, str(p.host_ip), p.host_port, p.container_port) for p in endpoint.ports] == [
        ("tcp", "127.0.0.1", 8080, 80),
        ("tcp", "127.0.0.1", 8081, 81),
        ("tcp", "0.0.0.0", 5353, 53),
        ("udp", "0.0.0.0", 5353, 53),
    ]
    assert [c.name for c in mesh.node.view.snapshot.containers.values()] == ["testctr"]


async def test_setup_gives_the_address_and_mac_that_are_asked_for(mesh: CniAgent) -> None:
    wanted = changed(EXEC, network_options__static_ips=["10.40.0.50"], network_options__static_mac="AA:BB:CC:DD:AA:00", port_mappings=None)
    status, answer = await mesh.netavark("setup", wanted, mesh.netns("n"))
    assert status == 200 and answer["interfaces"]["eth0"]["mac_address"] == "aa:bb:cc:dd:aa:00"
    assert answer["interfaces"]["eth0"]["subnets"][0]["ipnet"] == "10.40.0.50/32"


async def test_where_the_network_is_a_bridge_the_address_has_its_prefix(agent: CniAgent) -> None:
    await agent.node.ops.ensure_network(NetworkRequest("mesh", IPv4Network("10.40.0.0/16"), options={"model": "sandbox"}))
    status, answer = await agent.netavark("setup", EXEC, agent.netns("n"))
    (endpoint,) = agent.node.ops.endpoints("netavark").values()
    assert status == 200
    assert answer["interfaces"]["eth0"]["subnets"] == [{"gateway": "10.40.0.1", "ipnet": f"{endpoint.address}/16"}]


async def test_teardown_is_the_reverse_and_may_be_repeated(mesh: CniAgent) -> None:
    path = mesh.netns("n")
    await mesh.netavark("setup", EXEC, path)
    Path(path).unlink()
    for _ in range(2):
        assert await mesh.netavark("teardown", EXEC, path) == (200, None)
    assert not mesh.node.ops.endpoints("netavark") and not mesh.node.view.snapshot.containers
    assert not mesh.node.journal.load("netavark")


async def test_a_teardown_that_was_left_is_carried_out(mesh: CniAgent) -> None:
    path = mesh.netns("n")
    await mesh.netavark("setup", EXEC, path)
    await mesh.stop()
    mesh.leave("1", {"NETAVARK_COMMAND": "teardown", "NETAVARK_NETNS": path}, json.dumps(EXEC).encode())
    await mesh.start()
    assert not mesh.node.ops.endpoints("netavark")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"network_options__static_ips": ["10.40.0.50", "10.40.0.51"]}, "one address"),
        ({"network_options__static_ips": ["x"]}, "--ip"),
        ({"network_options__static_ips": ["fd00:40::5"]}, "has no IPv6"),
        ({"network__name": "nowhere"}, "plait network create nowhere"),
        ({"container_id": 7}, "container_id"),
        ({"network_options__static_mac": "02:xx"}, "02:xx"),
    ],
)
async def test_setup_refuses_and_leaves_nothing(mesh: CniAgent, fields: dict[str, Any], text: str) -> None:
    status, answer = await mesh.netavark("setup", changed(EXEC, **fields), mesh.netns("n"))
    assert status == 500 and set(answer) == {"error"} and text in answer["error"]
    assert not mesh.node.ops.endpoints("netavark") and not mesh.node.journal.load("netavark")


async def test_setup_needs_a_namespace_without_that_interface(mesh: CniAgent) -> None:
    assert "no network namespace" in (await mesh.netavark("setup", EXEC, "/nowhere"))[1]["error"]
    path = mesh.netns("n")
    mesh.foreign[path] = SandboxState({"eth0": InsideLink("02:00:00:00:00:01", True)})
    assert "has an interface eth0 already" in (await mesh.netavark("setup", EXEC, path))[1]["error"]


async def test_an_unknown_command_is_refused(mesh: CniAgent) -> None:
    assert "is unknown" in (await mesh.netavark("destroy", EXEC))[1]["error"]


# --- IPv6


async def test_a_network_and_a_container_have_both_families(agent: CniAgent) -> None:
    wanted = changed(NETWORK, name="both", ipv6_enabled=True, subnets=[{"subnet": "fd00:60::/64"}, {"subnet": "10.60.0.0/16"}])
    status, answer = await agent.netavark("create", wanted)
    assert status == 200 and answer["ipv6_enabled"] is True
    assert answer["subnets"] == [
        {"subnet": "10.60.0.0/16", "gateway": "10.60.0.1"},
        {"subnet": "fd00:60::/64", "gateway": "fd00:60::1"},
    ]
    asked = changed(EXEC, network__name="both", network_options__static_ips=["fd00:60::9", "10.60.0.9"], port_mappings=None)
    asked["network"]["options"] = None
    status, answer = await agent.netavark("setup", asked, agent.netns("n"))
    assert status == 200, answer
    assert answer["interfaces"]["eth0"]["subnets"] == [
        {"ipnet": "10.60.0.9/32", "gateway": "10.60.0.1"},
        {"ipnet": "fd00:60::9/128", "gateway": "fd00:60::1"},
    ]


async def test_one_that_asks_for_ipv6_alone_gets_a_subnet_of_each(agent: CniAgent) -> None:
    status, answer = await agent.netavark("create", changed(NETWORK, name="drawn", ipv6_enabled=True))
    assert status == 200 and [":" in row["subnet"] for row in answer["subnets"]] == [False, True]


async def test_on_a_link_of_the_host_both_families_have_the_links_prefix_and_router(agent: CniAgent) -> None:
    lan = NetworkRequest("lan", IPv4Network("10.70.0.0/24"), options={"backend": "macvlan", "parent": "lo"})
    await agent.node.ops.ensure_network(replace(lan, subnet6=IPv6Network("fd00:70::/64"), gateway6=IPv6Address("fe80::1")))
    status, answer = await agent.netavark("create", changed(NETWORK, name="lan"))
    assert status == 200 and answer["subnets"][1] == {"subnet": "fd00:70::/64"}, "Podman takes no gateway of another subnet"
    asked = changed(EXEC, network__name="lan", port_mappings=None)
    asked["network"]["options"] = None
    status, answer = await agent.netavark("setup", asked, agent.netns("n"))
    assert status == 200, answer
    assert answer["interfaces"]["eth0"]["subnets"] == [
        {"ipnet": "10.70.0.2/24", "gateway": "10.70.0.1"},
        {"ipnet": "fd00:70::2/64", "gateway": "fe80::1"},
    ]
