# SPDX-License-Identifier: Apache-2.0
"""CNI as runtimes see it: results of every version, the rules of repeated calls, errors with their codes, and what a crash leaves."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from tests.support.cluster import nodes
from tests.support.cniagent import CniAgent

from plait.agent.journal import Write
from plait.model.errors import Conflict, KernelError
from plait.model.inside import InsideLink, SandboxState
from plait.model.limits import Limit, Limits
from plait.model.tc import Tbf
from plait.runtimes.api import NetworkRequest
from plait.runtimes.cni import host
from plait.shaping import ifb_name
from plait.store.memory import MemoryStore


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[CniAgent]:
    async with nodes(MemoryStore(), tmp_path, "A") as (a,):
        await a.converge()
        agent = CniAgent(a, tmp_path)
        await agent.start()
        yield agent
        await agent.stop()


def endpoints(agent: CniAgent) -> dict[str, Any]:
    return dict(agent.node.ops.endpoints("cni"))


def containers(agent: CniAgent) -> dict[str, Any]:
    return {c.name: c for c in agent.node.view.snapshot.containers.values()}


async def added(agent: CniAgent, container: str = "c1", name: str = "web", **extra: Any) -> tuple[str, Any]:
    """Namespace and result of an ADD that succeeds."""
    netns = agent.netns(container)
    status, result = await agent.call("ADD", container, netns, args=f"IgnoreUnknown=1;K8S_POD_NAME={name}", **extra)
    assert status == 200, result
    return netns, result


# --- results


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
async def test_the_result_has_the_format_of_the_version(agent: CniAgent, version: str) -> None:
    netns, result = await added(agent, cniVersion=version)
    endpoint = next(iter(endpoints(agent).values()))
    mtu = {"mtu": 1450} if version == "1.1.0" else {}
    family = {"version": "4"} if version.startswith("0") else {}
    assert result == {
        "cniVersion": version,
        "interfaces": [{"name": endpoint.dev, **mtu}, {"name": "eth0", "mac": endpoint.mac, "sandbox": netns, **mtu}],
        "ips": [{"address": "10.28.0.2/32", "gateway": "10.28.0.1", "interface": 1, **family}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.28.0.1"}],
        "dns": {"nameservers": ["10.28.0.1"], "search": ["plait"]},
    }


async def test_where_the_network_is_a_bridge_the_address_has_its_prefix(agent: CniAgent) -> None:
    await agent.node.ops.ensure_network(NetworkRequest("here", IPv4Network("10.40.0.0/24"), options={"backend": "bridge"}))
    _, result = await added(agent, network="here")
    assert result["ips"] == [{"address": "10.40.0.2/24", "gateway": "10.40.0.1", "interface": 1}]
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.40.0.1"}]


@pytest.mark.parametrize("version", ["0.3.1", "1.1.0"])
@pytest.mark.parametrize("mode", ["", "l2", "l3"])
async def test_on_a_link_of_the_host_there_is_the_containers_side_alone(agent: CniAgent, version: str, mode: str) -> None:
    options = {"parent": "lo", "backend": "ipvlan", "mode": mode} if mode else {"parent": "lo", "backend": "macvlan"}
    await agent.node.ops.ensure_network(NetworkRequest("lan", IPv4Network("10.40.0.0/24"), options=options))
    netns, result = await added(agent, network="lan", cniVersion=version)
    (endpoint,) = endpoints(agent).values()
    assert bool(endpoint.mac) == (not mode)
    assert result["interfaces"] == [{"name": "eth0", "mac": endpoint.mac, "sandbox": netns}]
    hop = {} if mode == "l3" else {"gateway": "10.40.0.1"}
    family = {"version": "4"} if version == "0.3.1" else {}
    assert result["ips"] == [{"address": "10.40.0.2/24", "interface": 0, **hop, **family}]
    assert result["routes"] == [{"dst": "0.0.0.0/0", **({"gw": "10.40.0.1"} if hop else {})}]


async def test_the_container_is_known_by_its_name_and_keeps_its_address(agent: CniAgent) -> None:
    netns, first = await added(agent)
    assert containers(agent)["web"].addresses == {"default": IPv4Address("10.28.0.2")}
    await agent.call("DEL", netns=netns)
    assert not containers(agent) and not endpoints(agent)
    await added(agent, "other", "db")
    _, again = await added(agent, "c2")
    assert again["ips"] == first["ips"]


async def test_what_a_runtime_asks_for_is_done(agent: CniAgent) -> None:
    runtime = {
        "portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 0, "containerPort": 81, "protocol": "tcp"},
            {"hostPort": 5353, "containerPort": 53, "protocol": "UDP", "hostIP": "127.0.0.1"},
        ],
        "aliases": {"default": ["www", "www"], "other": ["not-here"]},
        "mac": "02:AA:00:00:00:07",
        "dns": {"servers": ["192.0.2.53"], "searches": ["example.org"], "options": ["ndots:2"]},
    }
    labels = {"cni": {"labels": [{"key": "app", "value": "shop"}]}}
    _, result = await added(agent, runtimeConfig=runtime)
    endpoint = next(iter(endpoints(agent).values()))
    assert [(p.proto, str(p.host_ip), p.host_port, p.container_port) for p in endpoint.ports] == [
        ("tcp", "0.0.0.0", 8080, 80),
        ("udp", "127.0.0.1", 5353, 53),
    ]
    assert endpoint.aliases == ("www",) and endpoint.mac == "02:aa:00:00:00:07"
    assert result["dns"] == {"nameservers": ["192.0.2.53"], "search": ["example.org"], "options": ["ndots:2"]}
    status, _ = await agent.call("ADD", "c2", agent.netns("c2"), config={"args": labels})
    assert status == 200 and containers(agent)["c2"].labels == {"app": "shop"}


@pytest.mark.parametrize(
    ("args", "extra"),
    [
        ("IP=10.28.0.77", {}),
        ("", {"runtimeConfig": {"ips": ["10.28.0.77/16"]}}),
        ("", {"args": {"cni": {"ips": ["10.28.0.77"]}}}),
    ],
)
async def test_an_address_is_asked_for_in_three_ways(agent: CniAgent, args: str, extra: dict[str, Any]) -> None:
    status, result = await agent.call("ADD", netns=agent.netns("n"), args=args, config=extra)
    assert status == 200 and result["ips"][0]["address"] == "10.28.0.77/32"


ANY = (1 << 31) - 1


@pytest.mark.parametrize(
    ("bandwidth", "limits"),
    [
        ({"ingressRate": 10_000_000, "ingressBurst": 800_000}, Limits(Limit(10_000_000, 100_000))),
        ({"egressRate": 10_000_000, "egressBurst": ANY}, Limits(outgoing=Limit(10_000_000))),
        ({"ingressRate": 1_000_000, "egressRate": 2_000_000}, Limits(Limit(1_000_000), Limit(2_000_000))),
        ({"ingressRate": 0, "ingressBurst": 0}, None),
        ({}, None),
    ],
)
async def test_bandwidth_is_of_bits_and_seen_from_the_container(agent: CniAgent, bandwidth: dict[str, int], limits: Limits | None) -> None:
    await added(agent, runtimeConfig={"bandwidth": bandwidth})
    (endpoint,) = endpoints(agent).values()
    assert endpoint.limits == limits
    held = {obj.dev for obj in agent.node.kernel.objects.values() if isinstance(obj, Tbf)}
    into, out = (
        ({endpoint.dev} if limits and limits.incoming else set()),
        ({ifb_name(endpoint.dev)} if limits and limits.outgoing else set()),
    )
    assert held == into | out
    assert await agent.node.converge() == 0


async def test_the_second_network_leaves_the_default_route_to_the_first(agent: CniAgent) -> None:
    await agent.node.ops.ensure_network(NetworkRequest("red", IPv4Network("10.40.0.0/16")))
    await agent.node.ops.ensure_network(NetworkRequest("blue", IPv4Network("10.41.0.0/16"), internal=True))
    netns, first = await added(agent)
    _, second = await agent.call("ADD", netns=netns, ifname="eth1", name="red")
    _, third = await agent.call("ADD", "c3", agent.netns("n3"), name="blue")
    assert [bool(result["routes"]) for result in (first, second, third)] == [True, False, False]
    assert "gateway" not in third["ips"][0]
    status, result = await agent.call("ADD", "c4", agent.netns("n4"), isDefaultGateway=False)
    assert status == 200 and not result["routes"]


async def test_a_container_on_two_networks_publishes_its_ports_once(agent: CniAgent) -> None:
    """Podman asks for them on each network."""
    await agent.node.ops.ensure_network(NetworkRequest("red", IPv4Network("10.40.0.0/16")))
    ports = {"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}}
    netns, _ = await added(agent, config=ports)
    assert (await agent.call("ADD", netns=netns, ifname="eth1", config=ports | {"name": "red"}))[0] == 200
    assert {e.network: len(e.ports) for e in endpoints(agent).values()} == {"default": 1, "red": 0}


async def test_a_configuration_may_have_another_name_than_the_network(agent: CniAgent) -> None:
    status, result = await agent.call("ADD", netns=agent.netns("n"), config={"name": "front", "network": "default"})
    assert status == 200 and result["ips"][0]["address"].startswith("10.28.")


# --- repeated calls


async def test_add_again_gives_the_same_or_an_error(agent: CniAgent) -> None:
    netns, first = await added(agent)
    again = await agent.call("ADD", netns=netns, args="IgnoreUnknown=1;K8S_POD_NAME=web")
    assert again == (200, first)
    status, error = await agent.call("ADD", netns=netns, args="IgnoreUnknown=1;K8S_POD_NAME=other")
    assert (status, error["code"]) == (500, 100) and "DEL comes before another ADD" in error["msg"]
    assert len(endpoints(agent)) == 1


async def test_add_after_a_lost_del_takes_the_place_of_what_is_gone(agent: CniAgent) -> None:
    netns, first = await added(agent)
    Path(netns).unlink()
    status, result = await agent.call("ADD", netns=agent.netns("fresh"), args="IgnoreUnknown=1;K8S_POD_NAME=web")
    assert status == 200 and result["ips"] == first["ips"] and len(endpoints(agent)) == 1


@pytest.mark.parametrize("netns", ["kept", "gone", ""])
async def test_del_may_come_as_often_as_it_likes(agent: CniAgent, netns: str) -> None:
    path, result = await added(agent)
    if netns == "gone":
        Path(path).unlink()
    for _ in range(2):
        assert await agent.call("DEL", netns=path if netns else "", prevResult=result) == (200, None)
    assert await agent.call("DEL", "never-seen") == (200, None)
    assert not endpoints(agent) and not agent.node.journal.load("cni")
    assert not [key for key in agent.node.kernel.objects if "pl-e" in " ".join(key)]


async def test_del_goes_for_networks_that_are_gone(agent: CniAgent) -> None:
    await agent.node.ops.ensure_network(NetworkRequest("red", IPv4Network("10.40.0.0/16")))
    await added(agent, name="web", config={"name": "red"})
    await agent.node.ops.remove_network("red", force=True)
    assert await agent.call("DEL", name="red") == (200, None)
    assert not endpoints(agent)


# --- errors


@pytest.mark.parametrize(
    ("verb", "change", "code", "text"),
    [
        ("ADD", {"config": b"{"}, 6, "cannot be read"),
        ("ADD", {"config": {"runtimeConfig": {"portMappings": 7}}}, 6, "portMappings"),
        ("ADD", {"config": {"cniVersion": "0.2.0"}}, 1, "0.2.0"),
        ("ADD", {"config": {"cniVersion": "9.9.9"}}, 1, "9.9.9"),
        ("CHECK", {"config": {"cniVersion": "0.3.1"}}, 1, "CHECK came with CNI 0.4.0"),
        ("GC", {}, 1, "GC came with CNI 1.1.0"),
        ("STATUS", {}, 1, "STATUS came with CNI 1.1.0"),
        ("FETCH", {}, 4, "FETCH"),
        ("ADD", {"container": ""}, 4, "CNI_CONTAINERID"),
        ("ADD", {"container": "../x"}, 4, "CNI_CONTAINERID"),
        ("ADD", {"netns": ""}, 4, "CNI_NETNS"),
        ("ADD", {"netns": "/nowhere"}, 4, "/nowhere"),
        ("ADD", {"ifname": "a/b"}, 4, "CNI_IFNAME"),
        ("ADD", {"ifname": "a-name-of-16-byt"}, 4, "CNI_IFNAME"),
        ("ADD", {"config": {"name": ""}}, 7, "name"),
        ("ADD", {"config": {"name": "red"}}, 7, "plait network create red"),
        ("ADD", {"config": {"runtimeConfig": {"bandwidth": {"ingressRate": 1}}}}, 7, "bandwidth: ingressRate 1 with ingressBurst 0"),
        ("ADD", {"config": {"runtimeConfig": {"bandwidth": {"egressBurst": 8}}}}, 7, "bandwidth: egressRate 0 with egressBurst 8"),
        ("ADD", {"config": {"runtimeConfig": {"bandwidth": {"egressRate": "fast"}}}}, 6, "egressRate"),
        (
            "ADD",
            {"config": {"runtimeConfig": {"ipRanges": [[{"subnet": "10.0.0.0/8"}]]}}},
            7,
            "no part of network 'default' (10.28.0.0/16)",
        ),
        ("ADD", {"config": {"runtimeConfig": {"ipRanges": [[{"range": "10.0.0.0/8"}]]}}}, 6, "subnet"),
        ("ADD", {"config": {"runtimeConfig": {"ipRanges": [[{"subnet": "10.28.0.1/16"}]]}}}, 7, "host bits"),
        ("ADD", {"config": {"runtimeConfig": {"ipRanges": [[{"subnet": "fd00::/64"}]]}}}, 2, "has no IPv6"),
        ("ADD", {"config": {"runtimeConfig": {"ips": ["fd00::5"]}}}, 2, "has no IPv6"),
        ("ADD", {"config": {"runtimeConfig": {"ips": ["10.28.0.5", "10.28.0.6"]}}}, 2, "one address of each family"),
        ("ADD", {"args": "IP=10.28.0"}, 7, "10.28.0"),
        ("ADD", {"args": "MAC=02:xx"}, 7, "02:xx"),
        ("ADD", {"config": {"runtimeConfig": {"portMappings": [{"hostPort": 70000, "containerPort": 80}]}}}, 7, "70000"),
        ("ADD", {"config": {"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 80, "protocol": "icmp"}]}}}, 7, "icmp"),
        ("ADD", {"config": {"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 8, "hostIP": "::1"}]}}}, 2, "::1"),
        ("ADD", {"config": {"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 8, "hostIP": "x"}]}}}, 7, "no address"),
        ("CHECK", {}, 3, "no attachment"),
    ],
)
async def test_errors_have_the_code_of_the_specification(agent: CniAgent, verb: str, change: dict[str, Any], code: int, text: str) -> None:
    status, error = await agent.call(verb, **({"netns": agent.netns("n")} | change))
    assert (status, error["code"]) == (500, code) and text in error["msg"] and error["msg"].startswith("plait: ")
    assert error["cniVersion"] in ("0.3.1", "1.0.0", "1.1.0")
    assert not endpoints(agent) and not agent.node.journal.load("cni")


async def test_what_others_hold_is_refused_with_plaits_own_codes(agent: CniAgent) -> None:
    ports = {"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}}
    await added(agent, config=ports)
    status, error = await agent.call("ADD", "c2", agent.netns("n2"), config=ports)
    assert (status, error["code"]) == (500, 102) and "web" in error["msg"]
    await agent.node.ops.ensure_network(NetworkRequest("tiny", IPv4Network("10.50.0.0/29")))
    answers = [await agent.call("ADD", f"t{n}", agent.netns(f"t{n}"), name="tiny") for n in range(8)]
    assert {error["code"] for status, error in answers if status == 500} == {101}
    status, error = await agent.call("ADD", "c3", agent.netns("n3"), args="IP=10.28.0.2")
    assert (status, error["code"]) == (500, 100)
    assert {e.container for e in endpoints(agent).values() if e.network == "default"} == {"c1"}


async def test_an_interface_that_is_there_is_not_overwritten(agent: CniAgent) -> None:
    netns = agent.netns("n")
    agent.foreign[netns] = SandboxState({"eth0": InsideLink("02:00:00:00:00:01", True)})
    status, error = await agent.call("ADD", netns=netns)
    assert (status, error["code"]) == (500, 100) and "has an interface eth0 already" in error["msg"]


@pytest.mark.parametrize("error", [KernelError("put", "link", 17), TimeoutError(), Conflict("x"), RuntimeError("a fault")])
async def test_an_add_that_fails_leaves_nothing(agent: CniAgent, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails() -> None:
        raise error

    monkeypatch.setattr(agent.node.ops, "_names_settled", fails)
    status, answer = await agent.call("ADD", netns=agent.netns("n"))
    assert status == 500
    assert answer["code"] == {KernelError: 103, TimeoutError: 11, Conflict: 100, RuntimeError: 199}[type(error)]
    assert not endpoints(agent) and not agent.node.journal.load("cni") and not agent.node.journal.load("endpoint")
    assert not agent.node.ops.held("cni.")


async def test_an_agent_that_starts_is_waited_for(agent: CniAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "READY_S", 0.1)
    agent.waiting = "a block of addresses"
    status, error = await agent.call("ADD", netns=agent.netns("n"))
    assert (status, error["code"]) == (500, 11) and "a block of addresses" in error["msg"]
    assert await agent.call("DEL") == (200, None)


async def test_nothing_but_the_plug_ins_calls_is_answered(agent: CniAgent) -> None:
    assert (await agent.send({}, b"{}"))[1]["code"] == 6
    assert agent.runtime.server.rejected(404, "x").status == 404


# --- CHECK


async def test_check_agrees_with_what_was_made(agent: CniAgent) -> None:
    netns, result = await added(agent, runtimeConfig={"portMappings": [{"hostPort": 8080, "containerPort": 80}]})
    assert await agent.call("CHECK", netns=netns, prevResult=result) == (200, None)


async def test_check_needs_the_result_of_before(agent: CniAgent) -> None:
    netns, result = await added(agent)
    for previous in (None, {"interfaces": []}, {"interfaces": 7}, {**result, "ips": [{"address": "nonsense"}]}):
        status, error = await agent.call("CHECK", netns=netns, prevResult=previous)
        assert (status, error["code"]) == (500, 7)


async def test_check_names_what_is_not_as_it_was(agent: CniAgent) -> None:
    netns, result = await added(agent)
    other = json.loads(json.dumps(result))
    other["ips"][0]["address"], other["interfaces"][1]["mac"] = "10.28.0.99/16", "02:00:00:00:00:99"
    status, error = await agent.call("CHECK", netns=netns, prevResult=other)
    assert (status, error["code"]) == (500, 104)
    for text in ("it has no address 10.28.0.99", "not 02:00:00:00:00:99", "the agent gave it 10.28.0.2", "the agent gave it the MAC"):
        assert text in error["msg"]


async def test_check_looks_into_the_namespace_and_at_the_host(agent: CniAgent) -> None:
    netns, result = await added(agent)
    agent.gone.add("eth0")
    _, error = await agent.call("CHECK", netns=netns, prevResult=result)
    assert "no interface eth0" in error["msg"] and "default route is gone" in error["msg"]
    agent.gone.clear()
    endpoint = next(iter(endpoints(agent).values()))
    del agent.node.kernel.objects["route", "10.28.0.2/32", "0"]
    _, error = await agent.call("CHECK", netns=netns, prevResult=result)
    assert error["code"] == 104 and "the kernel lacks route 10.28.0.2/32" in error["msg"] and endpoint.dev


# --- GC and STATUS


async def test_gc_takes_what_the_runtime_does_not_count_as_valid(agent: CniAgent) -> None:
    await agent.node.ops.ensure_network(NetworkRequest("red", IPv4Network("10.40.0.0/16")))
    for container, network in (("keep", "default"), ("drop", "default"), ("elsewhere", "red")):
        assert (await agent.call("ADD", container, agent.netns(container), name=network))[0] == 200
    valid = [{"containerID": "keep", "ifname": "eth0"}, {"containerID": "unknown", "ifname": "eth0"}]
    collect = {"cniVersion": "1.1.0", "cni.dev/valid-attachments": valid}
    assert await agent.call("GC", "", config=collect) == (200, None)
    assert {e.container for e in endpoints(agent).values()} == {"keep", "elsewhere"}


async def test_gc_goes_on_after_a_failure(agent: CniAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    for container in ("a", "b", "c"):
        await agent.call("ADD", container, agent.netns(container))
    detach = agent.node.ops.detach

    async def once(endpoint: str) -> None:
        if endpoint == "cni.default.b.eth0":
            raise Conflict("held by somebody")
        await detach(endpoint)

    monkeypatch.setattr(agent.node.ops, "detach", once)
    status, error = await agent.call("GC", "", config={"cniVersion": "1.1.0"})
    assert status == 500 and "held by somebody" in error["details"]
    assert {e.container for e in endpoints(agent).values()} == {"b"}


async def test_status_says_whether_an_add_would_be_served(agent: CniAgent) -> None:
    version = {"cniVersion": "1.1.0"}
    assert await agent.call("STATUS", "", config=version) == (200, None)
    assert (await agent.call("STATUS", "", config=version | {"name": "red"}))[1]["code"] == 50
    agent.waiting = "DNS"
    assert (await agent.call("STATUS", "", config=version))[1]["code"] == 50
    agent.trouble = "the kernel refused a link"
    status, error = await agent.call("STATUS", "", config=version)
    assert (status, error["code"]) == (500, 51) and "the kernel refused a link" in error["msg"]


# --- behind another plug-in


def _previous(netns: str) -> dict[str, Any]:
    interfaces = [{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "mac": "02:00:00:00:00:05", "sandbox": netns}]
    return {"cniVersion": "1.0.0", "interfaces": interfaces, "ips": [{"address": "10.88.0.5/16", "interface": 2}], "dns": {}, "extra": [1]}


async def test_behind_another_plug_in_the_container_joins_the_directory(agent: CniAgent) -> None:
    netns = agent.netns("n")
    previous = _previous(netns)
    agent.foreign[netns] = SandboxState({"eth0": InsideLink("02:00:00:00:00:05", True, frozenset({IPv4Interface("10.88.0.5/16")}))})
    labels = {"cni": {"labels": [{"key": "plait.service", "value": "shop"}]}}
    chained = {"name": "chain", "prevResult": previous, "args": labels}
    assert await agent.call("ADD", netns=netns, args="K8S_POD_NAME=web;IP=10.88.0.5", config=chained) == (200, previous)
    web = containers(agent)["web"]
    assert web.addresses == {"chain": IPv4Address("10.88.0.5")} and web.labels == {"plait.service": "shop"}
    assert not endpoints(agent)
    assert await agent.call("CHECK", netns=netns, config=chained) == (200, None)
    agent.foreign.clear()
    assert (await agent.call("CHECK", netns=netns, config=chained))[1]["code"] == 104
    assert await agent.call("DEL", netns=netns, config=chained) == (200, None)
    assert not containers(agent)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80}]}}, 2),
        ({"runtimeConfig": {"ips": ["10.88.0.6"]}}, 2),
        ({"runtimeConfig": {"bandwidth": {"egressRate": 10_000_000}}}, 2),
        ({"runtimeConfig": {"ipRanges": [[{"subnet": "10.88.0.0/16"}]]}}, 2),
        ({"prevResult": {"interfaces": []}}, 7),
    ],
)
async def test_behind_another_plug_in_nothing_is_promised_that_is_not_done(agent: CniAgent, change: dict[str, Any], code: int) -> None:
    netns = agent.netns("n")
    status, error = await agent.call("ADD", netns=netns, config={"prevResult": _previous(netns)} | change)
    assert (status, error["code"]) == (500, code) and not containers(agent)


# --- what crashes leave


async def test_attachments_outlive_the_agent_and_go_with_their_namespace(agent: CniAgent) -> None:
    kept, _ = await added(agent, "kept", "kept")
    gone, _ = await added(agent, "gone", "gone")
    await agent.stop()
    Path(gone).unlink()
    await agent.node.stop()
    await agent.node.start()
    await agent.start()
    assert {e.container for e in endpoints(agent).values()} == {"kept"} == set(containers(agent))
    assert await agent.node.attach("next") == IPv4Address("10.28.0.4"), "the address is free, if the last to be taken"
    Path(kept).unlink()
    for attachments in agent.runtime._kinds:
        await attachments.reap()
    assert not endpoints(agent) and not agent.node.journal.load("cni")


async def test_nothing_is_made_where_a_namespace_was(agent: CniAgent) -> None:
    """Another process may have the path by now: /proc/PID/ns/net."""
    netns, _ = await added(agent)
    assert agent.runtime.vanished() == set()
    Path(agent.netns("other")).rename(netns)
    assert agent.runtime.vanished() == {"cni.default.c1.eth0"}


async def test_a_new_namespace_in_the_place_of_the_old_one_is_another(agent: CniAgent) -> None:
    netns, _ = await added(agent)
    other = agent.netns("other")
    Path(other).rename(netns)
    for attachments in agent.runtime._kinds:
        await attachments.reap()
    assert not endpoints(agent)


@pytest.mark.parametrize("kind", ["cni", "endpoint"])
async def test_a_crash_in_the_middle_of_an_add_leaves_nothing(agent: CniAgent, kind: str) -> None:
    """The journal has the attachment and not yet the endpoint, or (a DEL in the middle) the other way round."""
    await added(agent)
    await agent.stop()
    await agent.node.journal.write([Write(kind, "cni.default.c1.eth0", None)])
    await agent.node.stop()
    await agent.node.start()
    await agent.node.ops.recover()
    await agent.start()
    await agent.node.converge()
    assert not endpoints(agent) and not agent.node.journal.load("cni") and not agent.node.ops.held("cni.")
    assert not [key for key in agent.node.kernel.objects if "pl-e" in " ".join(key)]


# --- what was left while the agent was away


def _del(container: str) -> tuple[dict[str, str], bytes]:
    return {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": container, "CNI_IFNAME": "eth0"}, b'{"cniVersion": "1.0.0", "name": "default"}'


async def test_removals_that_were_left_are_carried_out_at_start(agent: CniAgent) -> None:
    await added(agent)
    await agent.stop()
    left = agent.leave("1", *_del("c1"))
    hidden = agent.leave(".2", *_del("c1"))
    junk = agent.leave("3", {}, b"")
    await agent.start()
    assert not endpoints(agent) and not left.exists() and not junk.exists() and hidden.exists()


async def test_removals_that_were_left_come_before_the_next_call(agent: CniAgent) -> None:
    netns, _ = await added(agent)
    agent.leave("1", *_del("c1"))
    Path(netns).unlink()
    status, _ = await agent.call("ADD", netns=agent.netns("fresh"), args="K8S_POD_NAME=again")
    await agent.runtime.server.drain()
    assert status == 200 and [e.name for e in endpoints(agent).values()] == ["again"]


async def test_a_removal_that_fails_for_now_stays(agent: CniAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    await added(agent)
    left = agent.leave("1", *_del("c1"))
    with monkeypatch.context() as patch:

        async def fails(endpoint: str) -> None:
            raise Conflict("not now")

        patch.setattr(agent.node.ops, "detach", fails)
        await agent.runtime.server.drain()
        assert left.exists()
        status, error = await agent.call("ADD", netns=agent.netns("fresh"))
        assert (status, error["code"]) == (500, 11), "it would be taken down by what was left before"
    await agent.runtime.server.drain()
    assert not left.exists() and not endpoints(agent)
