# SPDX-License-Identifier: Apache-2.0
"""Networks on a link of the host: what is refused with words, what a pass makes and leaves, when a link is missing."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path

import pytest
from tests.support.cluster import FakeNode, nodes

from plait.agent.admin import netns_of_containers
from plait.agent.exposures import Exposures
from plait.agent.hostlinks import missing, resolver_of, resolver_places
from plait.ipam import PoolChange
from plait.kernel.dryrun import render
from plait.model.addr import AddressRange, EitherAddress
from plait.model.cluster import Container, HostRange, HostRanges, PortMapping
from plait.model.errors import ConfigError, Conflict, KernelError, NotFound, NotSupported
from plait.model.hostlinks import ChildGuard, ChildLink, PortGuard, SwitchPort, VlanLink
from plait.model.objects import EndpointLink, NftChain, NftSet, Op
from plait.plan.desired import device_name
from plait.plan.exposed import HOST
from plait.reconcile import diff
from plait.runtimes.api import AttachRequest, NetworkRequest
from plait.store.memory import MemoryStore

A, SUBNET = IPv4Address, IPv4Network("198.18.0.0/24")
LAN = {"backend": "macvlan", "parent": "lo"}
PORT = PortMapping("tcp", 8080, 80)


def lan(name: str = "lan", **options: str) -> NetworkRequest:
    return NetworkRequest(name, SUBNET, A("198.18.0.254"), options={**LAN, **options})


def asked(container: str = "web", **more: object) -> AttachRequest:
    return replace(AttachRequest(f"e-{container}", "lan", "sandbox", container, container, netns=f"/run/ns/{container}"), **more)


@pytest.fixture
async def a(tmp_path: Path) -> AsyncIterator[FakeNode]:
    async with nodes(MemoryStore(), tmp_path, "A") as (a,):
        await a.converge()
        yield a


async def without(a: FakeNode, monkeypatch: pytest.MonkeyPatch, *lacking: str) -> None:
    able = a.kernel.capabilities() - set(lacking)
    monkeypatch.setattr(type(a.kernel), "capabilities", lambda _: able)
    await a.stop()
    await a.start()


def children(a: FakeNode) -> list[ChildLink]:
    return [obj for obj in a.kernel.objects.values() if isinstance(obj, ChildLink)]


def hooks(a: FakeNode) -> list[str]:
    """What is judged of the children of the link lo on the host."""
    declared = (obj.hook.split() for obj in a.kernel.objects.values() if isinstance(obj, NftChain) and 'device "lo"' in obj.hook)
    return sorted(words[3] for words in declared)


async def test_an_attach_is_what_the_next_pass_finds_and_what_a_detach_takes_away(a: FakeNode) -> None:
    await a.ops.ensure_network(lan(mode="private"))
    endpoint = await a.ops.attach(asked())
    (child,) = children(a)
    assert (child.name, child.parent, child.kind, child.mode) == (endpoint.dev, "lo", "macvlan", "private")
    assert (child.mac, str(child.address), child.gateway) == (endpoint.mac, f"{endpoint.address}/24", A("198.18.0.254"))
    assert await a.converge() == 0 and hooks(a) == ["egress", "ingress"]
    await a.ops.attach(asked("db"))
    assert await a.converge() == 0
    await a.ops.detach(endpoint.id)
    assert len(children(a)) == 1 and await a.converge() == 0
    await a.ops.detach("e-db")
    assert children(a) == [] == hooks(a) and await a.converge() == 0


async def test_a_restarted_agent_finds_it_and_makes_nothing(a: FakeNode) -> None:
    await a.ops.ensure_network(lan())
    await a.ops.attach(asked())
    await a.stop()
    await a.start()
    assert await a.converge() == 0 and len(children(a)) == 1


async def test_killed_in_the_middle_of_an_attach_nothing_leaks(a: FakeNode) -> None:
    """The endpoint is journalled; the link may be there or not. Its runtime takes it back or detaches it."""
    await a.ops.ensure_network(lan())
    await a.ops.attach(asked())
    for child in children(a):
        a.kernel.trample(child.key, None)
    await a.stop()
    await a.start()
    await a.converge()
    assert len(children(a)) == 1, "known, so made"
    await a.ops.detach("e-web")
    assert children(a) == [] and await a.converge() == 0


async def test_an_engines_link_waits_for_it_and_is_not_made_again_behind_its_back(a: FakeNode) -> None:
    await a.ops.ensure_network(lan())
    endpoint = await a.ops.attach(asked(runtime="docker", netns=""))
    (child,) = children(a)
    assert child.key == ("child", endpoint.dev, "") and await a.converge() == 0
    a.kernel.trample(child.key, None)  # dockerd has moved it; whereto, nobody has said yet
    assert await a.converge() == 0 and children(a) == []
    a.kernel.objects[child.key] = child  # and back, when the container has stopped
    await a.ops.detach(endpoint.id)
    assert children(a) == []
    a.kernel.objects[child.key] = child  # or only after that
    assert await a.converge() == 1 and children(a) == []


def test_a_link_for_an_engine_that_differs_is_made_anew_where_it_is() -> None:
    wanted = ChildLink("pl-e1", "eth1", "macvlan", "bridge")
    held = replace(wanted, mode="vepa")
    assert [op.new for op in diff({wanted.key: wanted}, {held.key: held}, True)] == [wanted]


async def test_a_refused_link_leaves_nothing(a: FakeNode) -> None:
    await a.ops.ensure_network(lan())
    a.kernel.fail_next(("child", device_name("e-web"), "/run/ns/web"))
    with pytest.raises(KernelError):
        await a.ops.attach(asked())
    assert children(a) == [] and a.ops.endpoints("sandbox") == {} and a.ops.idle() == []


async def test_a_vlan_has_one_tagged_link_for_all_its_networks_while_one_is_used(a: FakeNode) -> None:
    options = {"backend": "vlan", "parent": "lo", "vlan": "42"}
    await a.ops.ensure_network(lan(**options))
    await a.ops.ensure_network(NetworkRequest("more", IPv4Network("192.168.9.0/24"), options=options))
    assert await a.converge() == 0, "nobody uses it"
    await a.ops.attach(asked())
    await a.ops.attach(asked("db", network="more"))
    (tagged,) = (obj for obj in a.kernel.objects.values() if isinstance(obj, VlanLink))
    assert (tagged.parent, tagged.vlan) == ("lo", 42) and {child.parent for child in children(a)} == {tagged.name}
    assert await a.converge() == 0
    a.kernel.trample(tagged.key, None)
    assert children(a) == []
    await a.converge()
    assert len(children(a)) == 2 and tagged.key in a.kernel.objects
    await a.ops.detach("e-web")
    await a.ops.detach("e-db")
    await a.converge()
    assert tagged.key not in a.kernel.objects


async def test_a_port_of_open_vswitch_is_a_veth_and_needs_no_8021q(a: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    await without(a, monkeypatch, "vlan", "macvlan")
    await a.ops.ensure_network(lan(backend="vlan", vlan="42", switch="openvswitch"))
    endpoint = await a.ops.attach(asked())
    link, port = a.kernel.objects["link", endpoint.dev], a.kernel.objects["port", endpoint.dev]
    assert isinstance(link, EndpointLink) and isinstance(port, SwitchPort)
    guard = a.kernel.objects["guard", endpoint.dev]
    assert isinstance(guard, PortGuard) and guard.own[0] == endpoint.address and guard.mac == endpoint.mac
    assert not link.answers and (port.bridge, port.tag, port.netns, port.inside) == ("lo", 42, "/run/ns/web", "eth0")
    assert await a.converge() == 0
    a.kernel.trample(link.key, None)
    await a.converge()
    assert {link.key, port.key, guard.key} <= a.kernel.objects.keys()
    with pytest.raises(NotSupported, match="publishing ports"):
        await a.ops.publish(endpoint.id, [PORT])
    await a.ops.detach(endpoint.id)
    assert not {link.key, port.key, guard.key} & a.kernel.objects.keys() and await a.converge() == 0


async def test_dns_is_answered_in_the_namespaces_of_these_alone(a: FakeNode) -> None:
    await a.ops.ensure_network(lan())
    await a.ops.ensure_network(NetworkRequest("quiet", IPv4Network("192.168.9.0/24"), options={**LAN, "dns": "false"}))
    endpoint = await a.ops.attach(asked())
    other = await a.ops.attach(asked("db", runtime="docker", netns=""))
    await a.ops.attach(asked("own", network="quiet"))
    await a.ops.attach(asked("plain", network="default"))
    places = {(f"10.28.0.1@{endpoint.address}@/run/ns/web", 53)}
    assert resolver_places(a.view.snapshot, {}, "10.28.0.1") == places
    known = {other.id: "/proc/7/ns/net", "e-plain": "/proc/8/ns/net"}
    assert resolver_places(a.view.snapshot, known, "10.28.0.1") == places | {(f"10.28.0.1@{other.address}@/proc/7/ns/net", 53)}
    assert resolver_places(a.view.snapshot, {}, "") == set(), "before there is an address to answer at"
    networks = a.view.snapshot.networks
    assert [resolver_of(networks[name], "10.28.0.1") for name in ("lan", "quiet", "default")] == ["10.28.0.1", "", "10.28.0.1"]


async def test_an_engines_link_is_looked_for_in_its_container_once_that_has_it(a: FakeNode) -> None:
    """While a running container is being connected, its link waits for the engine in the host's namespace."""
    await a.ops.ensure_network(lan())
    endpoint = await a.ops.attach(asked(runtime="docker", netns=""))
    running = Container("web", "web", "A", "docker", pid=os.getpid(), addresses={"default": A("10.28.0.9")})
    known = {endpoint.id: endpoint}
    a.view.report("docker", [running])
    assert netns_of_containers(a.view, known) == {}
    a.view.report("docker", [replace(running, addresses={"lan": endpoint.address})])
    assert netns_of_containers(a.view, known) == {endpoint.id: f"/proc/{os.getpid()}/ns/net"}
    a.view.report("docker", [replace(running, addresses={"lan": endpoint.address}, pid=0)])
    assert netns_of_containers(a.view, known) == {}


async def test_ports_cannot_be_published(a: FakeNode) -> None:
    await a.ops.ensure_network(lan())
    with pytest.raises(NotSupported, match=r"network lan: it is on the link lo .* the host cannot reach it"):
        await a.ops.attach(asked(ports=(PORT,)))
    assert a.ops.endpoints("sandbox") == {} and a.ops.idle() == []
    await a.ops.attach(asked())
    with pytest.raises(NotSupported, match="publishing ports"):
        await a.ops.publish("e-web", [PORT])
    assert await a.ops.publish("e-web", []) == ()


async def test_ports_of_other_networks_bring_no_rule_about_it(a: FakeNode) -> None:
    await a.ops.ensure_network(lan())
    await a.converge()
    await a.ops.attach(asked(network="default", ports=(PORT,)))
    assert not [obj for obj in a.kernel.objects.values() if str(SUBNET) in str(obj)] and await a.converge() == 0


async def test_it_is_not_exposed_to_a_host_that_could_not_reach_it(a: FakeNode) -> None:
    await a.ops.ensure_network(lan())
    with pytest.raises(NotSupported, match="exposing network lan to this host: its containers are on the link lo"):
        await Exposures("A", a.ops).expose("lan")
    assert a.ops.endpoints(HOST) == {} and a.ops.idle() == []


@pytest.mark.parametrize(("backend", "words"), [("ipvlan", "no ipvlan: .*modprobe ipvlan"), ("vlan", "no vlan: .*modprobe 8021q")])
async def test_what_the_kernel_lacks_is_refused_when_it_is_asked_for(
    a: FakeNode, monkeypatch: pytest.MonkeyPatch, backend: str, words: str
) -> None:
    options = {"backend": backend} | ({"vlan": "42"} if backend == "vlan" else {})
    await a.ops.ensure_network(lan(**options))  # by a host that has it
    await without(a, monkeypatch, "ipvlan", "vlan")
    with pytest.raises(NotSupported, match=words):
        await a.ops.attach(asked())
    assert a.ops.endpoints("sandbox") == {} and children(a) == []
    with pytest.raises(NotSupported, match=words):
        await a.ops.ensure_network(replace(lan("other", **options), subnet=IPv4Network("192.168.9.0/24")))


async def test_a_mac_can_be_chosen_where_containers_have_their_own(a: FakeNode) -> None:
    await a.ops.ensure_network(lan(backend="ipvlan"))
    with pytest.raises(NotSupported, match="have the MAC of their link: leave out 02:"):
        await a.ops.attach(asked(mac="02:00:00:00:00:09"))
    assert (await a.ops.attach(asked())).mac == ""
    await a.ops.detach("e-web")
    await a.ops.remove_network("lan")
    await a.ops.ensure_network(lan())
    assert (await a.ops.attach(asked(mac="02:00:00:00:00:09"))).mac == "02:00:00:00:00:09"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"subnet": None}, "subnet: .* is not given, but it is that of the link"),
        ({"internal": True}, "internal: .* cannot be promised on a link of the host"),
        ({"subnet6": IPv6Network("fd00:7::/65")}, "use a prefix length of 64 or less"),
        ({"gateway6": IPv6Address("ff02::2")}, "is not a host address of fd"),
    ],
)
async def test_what_such_a_network_cannot_be_is_refused(a: FakeNode, more: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        await a.ops.ensure_network(replace(lan(), **more))


async def test_it_may_be_the_hosts_own_subnet_whose_addresses_are_left_out(a: FakeNode) -> None:
    a.view.put(HostRanges("A", (HostRange(SUBNET, "address 198.18.0.1 of eth0"),)))
    network = await a.ops.ensure_network(lan())
    assert [str(part) for part in network.excluded] == ["198.18.0.1"], "the node's own address"
    with pytest.raises(ConfigError, match=r"overlaps 198\.18\.0\.0/24"):
        await a.ops.ensure_network(NetworkRequest("routed", IPv4Network("198.18.0.0/25")))
    given = [(await a.ops.attach(asked(f"c{number}"))).address for number in range(4)]
    assert A("198.18.0.1") not in given and A("198.18.0.254") not in given


DUAL = {"subnet6": IPv6Network("fd00:7::/64"), "gateway6": IPv6Address("fd00:7::1")}


async def test_with_ipv6_an_endpoint_has_the_image_the_prefix_and_the_routers_address(a: FakeNode) -> None:
    network = await a.ops.ensure_network(replace(lan(), **DUAL))
    assert [str(part) for part in network.excluded] == ["198.18.0.1"], "the node's own address; the router's goes with the same"
    endpoint = await a.ops.attach(asked())
    (child,) = children(a)
    assert child.inside6 is not None and endpoint.address6 == IPv6Address("fd00:7::2")
    assert (str(child.inside6.interface), child.inside6.gateway) == ("fd00:7::2/64", IPv6Address("fd00:7::1"))
    assert child.inside6.through == (IPv6Network("::/0"),)
    guards = (ChildGuard, NftChain, NftSet)
    others = [o for o in a.kernel.objects.values() if o is not child and not isinstance(o, guards)]
    assert not [o for o in others if "fd00:7:" in str(o)], "the host knows nothing of it but whom to judge"
    assert a.kernel.objects.get(("sysctl", "ipv6/conf/all/forwarding")) is None, "and is no router for it"
    assert await a.converge() == 0
    second = await a.ops.attach(asked("db", default_route=False))
    assert next(one for one in children(a) if one.name == second.dev).inside6.through == ()


async def test_ipv6_without_a_subnet_is_a_unique_local_one_and_its_router_is_like_that_of_ipv4(a: FakeNode) -> None:
    network = await a.ops.ensure_network(replace(lan(), ipv6=True))
    assert network.subnet6 is not None and network.subnet6.subnet_of(IPv6Network("fd00::/8"))
    assert network.gateway6 == network.subnet6[254]


async def test_what_goes_with_the_addresses_of_router_and_hosts_is_nobodys(a: FakeNode) -> None:
    """The host's own address is of IPv6 there, the router's are of different offsets."""
    me = a.view.snapshot.nodes["A"]
    a.view.put(replace(me, address=IPv6Address("fd00:7::3")))
    network = await a.ops.ensure_network(replace(lan(), **{**DUAL, "gateway6": IPv6Address("fd00:7::2")}))
    assert sorted(str(part) for part in network.excluded) == ["198.18.0.2", "198.18.0.3"]
    changed = await a.ops.change_network("lan", {}, PoolChange(excluded=(AddressRange(A("198.18.0.9"), A("198.18.0.9")),)))
    assert sorted(str(part) for part in changed[0].excluded) == ["198.18.0.2", "198.18.0.3", "198.18.0.9"]
    given = [str((await a.ops.attach(asked(f"c{number}"))).address6) for number in range(3)]
    assert given == ["fd00:7::1", "fd00:7::4", "fd00:7::5"]


@pytest.mark.parametrize("taken", ["198.18.0.2", "fd00:7::2"])
async def test_an_address_that_another_machine_of_the_link_has_is_named_and_not_used(a: FakeNode, taken: str) -> None:
    await a.ops.ensure_network(replace(lan(), **DUAL))
    a.wires.taken = {ip_address(taken): "02:00:00:00:00:99"}
    words = f"address {taken} of network 'lan' .*: the machine with the MAC 02:00:00:00:00:99 on link lo .* --exclude 198.18.0.2"
    with pytest.raises(Conflict, match=words):
        await a.ops.attach(asked())
    assert children(a) == [] and a.ops.endpoints("sandbox") == {} and a.ops.idle() == [] and a.ops.held("") == {}
    a.wires.taken = {}
    endpoint = await a.ops.attach(asked())
    a.wires.taken = {endpoint.address: "02:00:00:00:00:99"}
    assert await a.ops.attach(asked()) == endpoint, "who has it already is not asked about again"


async def test_two_addresses_that_do_not_go_together_are_both_free_again_if_one_is_taken(a: FakeNode) -> None:
    await a.ops.ensure_network(replace(lan(), **DUAL))
    a.wires.taken = {IPv6Address("fd00:7::40"): "02:00:00:00:00:99"}
    with pytest.raises(Conflict, match=r"fd00:7::40 .* --exclude 198\.18\.0\.64"):
        await a.ops.attach(asked(address=A("198.18.0.7"), address6=IPv6Address("fd00:7::40")))
    assert a.ops.held("") == {}


async def test_nobody_is_asked_where_nobody_would_hear_it(a: FakeNode) -> None:
    a.wires.taken = {A("198.18.0.2"): "02:00:00:00:00:99", A("10.28.0.2"): "02:00:00:00:00:99"}
    await a.ops.ensure_network(lan(backend="vlan", vlan="42", switch="openvswitch"))
    assert (await a.ops.attach(asked())).address == A("198.18.0.2"), "a switch's VLAN"
    await a.ops.attach(asked("plain", network="default"))


async def test_the_link_that_is_asked_on_is_made_before(a: FakeNode) -> None:
    await a.ops.ensure_network(lan(backend="vlan", vlan="42"))
    asked_on: list[str] = []
    present = a.wires.is_taken

    async def listening(link: str, mac: str, address: EitherAddress) -> str:
        assert ("link", link) in a.kernel.objects
        asked_on.append(link)
        return await present(link, mac, address)

    a.wires.is_taken = listening
    await a.ops.attach(asked())
    assert len(asked_on) == 1 and asked_on[0].startswith("pl-v")


@pytest.mark.parametrize("mode", ["l2", "l3", "l3s"])
async def test_ipvlan_asks_a_router_in_mode_l2_alone(a: FakeNode, mode: str) -> None:
    await a.ops.ensure_network(replace(lan(backend="ipvlan", mode=mode), **DUAL))
    await a.ops.attach(asked())
    (child,) = children(a)
    lines = render(Op("put", child))
    enter = "nsenter --net=/run/ns/web ip -6 route replace"
    assert f"{enter} fd00:7::/64 dev eth0" in lines
    assert (f"{enter} default via fd00:7::1 dev eth0" if mode == "l2" else f"{enter} default dev eth0") in lines


async def test_a_host_without_ipv6_attaches_by_ipv4_alone(a: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    await a.ops.ensure_network(replace(lan(), **DUAL))
    await a.ops.attach(asked("before"))
    await without(a, monkeypatch, "ipv6")
    endpoint = await a.ops.attach(asked())
    assert endpoint.address6 is None and next(one for one in children(a) if one.name == endpoint.dev).inside6 is None
    for child in children(a):
        a.kernel.trample(child.key, None)
    assert await a.converge() == 2 and [child.inside6 for child in children(a)] == [None, None], "the one of before too"


async def test_the_same_network_twice_is_one_and_another_parent_is_a_conflict(a: FakeNode) -> None:
    made = await a.ops.ensure_network(lan())
    assert await a.ops.ensure_network(lan()) == made
    with pytest.raises(Conflict, match="exists already with parent lo, not eth1"):
        await a.ops.ensure_network(lan(parent="eth1"))
    with pytest.raises(Conflict, match="exists already with mode the default, not vepa"):
        await a.ops.ensure_network(lan(mode="vepa"))


async def test_parent_and_mode_are_changed_while_it_is_used_and_the_kind_is_not(a: FakeNode) -> None:
    await a.ops.ensure_network(lan())
    await a.ops.attach(asked())
    await a.ops.change_network("lan", {"mode": "vepa"})
    await a.converge()
    assert [(child.parent, child.mode) for child in children(a)] == [("lo", "vepa")]
    a.links |= {"eth1"}
    await a.ops.change_network("lan", {"parent": "eth1"})
    await a.converge()
    assert [(child.parent, child.mode) for child in children(a)] == [("eth1", "vepa")]
    for other in ("bridge", "none", "vxlan", "ipvlan"):
        with pytest.raises(ConfigError):
            await a.ops.change_network("lan", {"backend": other})


async def test_a_link_that_is_missing_is_named_and_containers_return_with_it(a: FakeNode) -> None:
    await a.ops.ensure_network(lan(parent="eth7"))
    with pytest.raises(NotFound, match=r"this host has no link eth7; .*plait network set lan -o parent=LINK"):
        await a.ops.attach(asked())
    assert a.ops.endpoints("sandbox") == {} and missing(a.view.snapshot, {"lo"}) == {}, "nobody here needs it"
    await a.ops.change_network("lan", {"parent": "lo"})
    await a.ops.attach(asked())
    (child,) = children(a)
    assert missing(a.view.snapshot, {"lo"}) == {}
    assert missing(a.view.snapshot, {"eth0"}) == {"lan": "network lan: this host has no link lo, which 1 of its containers need"}
    a.kernel.trample(child.key, None)  # its parent has gone, and it with that
    a.links = frozenset({"eth0"})
    await a.converge()
    assert hooks(a) == [] and await a.converge() == 0
    a.links = frozenset({"eth0", "lo"})
    await a.converge()
    assert hooks(a) == ["egress", "ingress"] and children(a) == [child]
