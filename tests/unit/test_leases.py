# SPDX-License-Identifier: Apache-2.0
"""Containers with addresses of a DHCP server: what an attach takes, what a detach gives back, what is left after a kill, and what becomes
of a container whose lease becomes another one or ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path

import pytest
from tests.support.cluster import FakeNode, nodes
from tests.support.dhcp import ROUTER, SERVER_MAC, FakeServer, routes

from plait.agent.dhcp import give_back
from plait.agent.leaserecords import LeaseRecord, client_id, forgettable, host_name
from plait.dhcp.client import Lease
from plait.dhcp.message import Kind, Option, decode
from plait.model.cluster import Container, Network
from plait.model.errors import ConfigError, Conflict, LeaseFailed, NotFound, NotSupported
from plait.model.hostlinks import ChildLink
from plait.model.leases import Leased
from plait.runtimes.api import AttachRequest, NetworkRequest
from plait.store.memory import MemoryStore

A = IPv4Address
TEN, ELEVEN = A("198.18.0.10"), A("198.18.0.11")
LAN = NetworkRequest("lan", options={"backend": "macvlan", "parent": "lo", "ipam": "dhcp"})


class Clock:
    """The agent's, which goes on only when a test says so, however slow the machine is."""

    ahead = 1e6

    def __call__(self) -> float:
        return self.ahead


@pytest.fixture
async def a(tmp_path: Path) -> AsyncIterator[FakeNode]:
    async with nodes(MemoryStore(), tmp_path, "A") as (a,):
        await a.converge()
        await serve(a, FakeServer())
        await a.ops.ensure_network(LAN)
        yield a


async def serve(a: FakeNode, *servers: FakeServer) -> None:
    """From now on these are on the link."""
    a.dhcp[:] = servers


async def again(a: FakeNode) -> None:
    """Kill the agent and start it as one is started."""
    await a.stop()
    await a.start()
    await a.following.recover()
    await a.ops.recover()


def asked(name: str = "web", **more: object) -> AttachRequest:
    return replace(AttachRequest(f"e-{name}", "lan", "sandbox", name, name, netns=f"/run/ns/{name}"), **more)


def child(a: FakeNode) -> ChildLink:
    (found,) = (obj for obj in a.kernel.objects.values() if isinstance(obj, ChildLink))
    return found


def said(a: FakeNode) -> list[Kind]:
    return [one.message.kind for one in a.wires.sent]


async def later(a: FakeNode, seconds: float, clock: Clock) -> None:
    clock.ahead += seconds
    a.leases._wake.set()
    await a.until(lambda: all(held.client.due > clock() for held in a.leases._held.values()))
    await asyncio.sleep(0.02)  # what was said is answered


@pytest.fixture
async def clocked(a: FakeNode) -> Clock:
    """Of the node; `later` lets time pass."""
    clock = a.dhcp_clock = Clock()
    await again(a)
    return clock


async def test_a_network_learns_its_subnet_and_router_without_taking_an_address(a: FakeNode) -> None:
    network = a.view.snapshot.networks["lan"]
    assert (network.subnet, network.gateway, network.by_dhcp) == (IPv4Network("198.18.0.0/24"), ROUTER, True)
    assert a.dhcp[0].leases == {} and said(a) == [Kind.DISCOVER]
    assert await a.ops.ensure_network(LAN) == network and said(a) == [Kind.DISCOVER], "it is known"


async def test_an_attach_takes_address_mask_routes_and_mtu_from_the_lease(a: FakeNode) -> None:
    a.dhcp[0].more = routes(("10.9.0.0/16", "198.18.0.7"), ("0.0.0.0/0", "198.18.0.254")) | {Option.MTU: b"\x05\x78"}
    endpoint = await a.ops.attach(asked())
    assert endpoint.address == TEN and list(a.dhcp[0].leases.values()) == [TEN]
    link = child(a)
    assert (link.address, link.mac, link.mtu, link.gateway) == (IPv4Interface("198.18.0.10/24"), endpoint.mac, 1400, None)
    assert [(str(way.to), str(way.via)) for way in link.ways] == [("10.9.0.0/16", "198.18.0.7"), ("0.0.0.0/0", "198.18.0.254")]
    heard = a.dhcp[0].heard[-1]
    assert heard.mac.hex(":") == endpoint.mac and heard.text(Option.HOST_NAME) == "web"
    assert heard.options[Option.CLIENT] == client_id("A", "lan", "web"), "the same after every restart, whatever the MAC"
    assert await a.converge() == 0 and not a.view.snapshot.blocks.keys() & {("lan", b) for _, b in a.view.snapshot.blocks}
    assert await a.ops.attach(asked()) == endpoint and said(a).count(Kind.REQUEST) == 1
    await a.ops.detach(endpoint.id)
    assert a.dhcp[0].leases == {} and a.ops.held("") == {} and said(a)[-1] is Kind.RELEASE


async def test_a_second_network_of_a_container_gets_no_default_route(a: FakeNode) -> None:
    a.dhcp[0].more = routes(("10.9.0.0/16", "198.18.0.7"), ("0.0.0.0/0", "198.18.0.254"))
    await a.ops.attach(asked(default_route=False))
    assert [str(way.to) for way in child(a).ways] == ["10.9.0.0/16"]


async def test_a_name_gets_its_address_again_and_two_of_one_name_two(a: FakeNode) -> None:
    await a.ops.attach(asked("first"))
    second = await a.ops.attach(asked("second"))
    await a.ops.detach(second.id)
    await a.ops.detach("e-first")
    assert (await a.ops.attach(asked("second", endpoint="e-other"))).address == second.address == ELEVEN
    twin = await a.ops.attach(asked("second", endpoint="e-twin", netns="/run/ns/twin"))
    assert twin.address != ELEVEN and len(a.dhcp[0].leases) == 2


async def test_no_server_is_an_error_in_time_that_says_what_was_tried_and_leaves_nothing(a: FakeNode) -> None:
    a.dhcp[0].silent = True
    with pytest.raises(LeaseFailed, match=r"for web on network lan: no server answered on link lo within 0\.2 s, with the MAC"):
        await a.ops.attach(asked())
    assert a.leases.all() == [] and a.view.snapshot.endpoints == {} and a.kernel.objects and not a.leases._held
    a.dhcp[0].silent, a.dhcp[0].refuses = False, True
    with pytest.raises(LeaseFailed, match="servers answered, but none gave an address that is free"):
        await a.ops.attach(asked())
    a.dhcp[0].refuses = False
    assert (await a.ops.attach(asked())).address == TEN


async def test_an_address_that_somebody_has_is_declined(a: FakeNode) -> None:
    a.dhcp_timeout_s = 5
    await again(a)
    a.wires.taken[TEN] = "02:00:00:00:00:99"
    assert (await a.ops.attach(asked())).address == ELEVEN
    assert a.dhcp[0].declined == {TEN} and Kind.DECLINE in said(a)


async def test_an_address_that_is_asked_for_is_given_or_refused(a: FakeNode) -> None:
    wanted = A("198.18.0.77")
    assert (await a.ops.attach(asked(address=wanted))).address == wanted
    with pytest.raises(Conflict, match=r"address 198.18.0.77 of network 'lan' cannot be had: the DHCP server 198.18.0.254 on lo gives"):
        await a.ops.attach(asked("other", address=wanted))
    assert list(a.dhcp[0].leases.values()) == [wanted], "what was given instead is given back"


async def test_an_address_of_another_subnet_is_no_address_of_the_network(a: FakeNode) -> None:
    a.dhcp[0].leases[client_id("A", "lan", "web")] = A("10.1.1.1")
    with pytest.raises(Conflict, match=r"gives 10.1.1.1, which is no address of network lan \(198.18.0.0/24\)"):
        await a.ops.attach(asked())
    assert a.dhcp[0].leases == {}


async def test_killed_and_started_again_it_has_the_same_address_and_the_server_one_lease(a: FakeNode) -> None:
    endpoint = await a.ops.attach(asked())
    await again(a)
    await a.until(lambda: said(a) == [Kind.REQUEST])
    assert a.view.snapshot.endpoints[endpoint.id].address == TEN and list(a.dhcp[0].leases.values()) == [TEN]
    assert await a.converge() == 0
    await a.ops.detach(endpoint.id)
    assert a.dhcp[0].leases == {}


async def test_killed_between_lease_and_endpoint_the_lease_is_given_back(a: FakeNode) -> None:
    await a.leases.obtain("lo", "lan", "sandbox.A.lost", "02:00:00:00:00:07", "lost")
    await again(a)
    assert a.dhcp[0].leases == {} and a.leases.all() == []


async def test_what_docker_asked_for_first_is_the_endpoints_when_it_joins(a: FakeNode) -> None:
    mac = "02:42:00:00:00:07"
    address = (await a.ops.reserve("lan", f"docker:{mac}", None, "web", {}, mac)).ip
    await again(a)
    assert a.ops.held("docker:") == {("lan", TEN): f"docker:{mac}"}, "dockerd will say whether it still needs it"
    await a.ops.attach(asked(runtime="docker", address=address, mac=mac, netns=""))
    assert list(a.dhcp[0].leases.values()) == [address] and a.dhcp[0].heard[-1].mac.hex(":") == mac
    assert a.ops.held("docker:") == {} and list(a.ops.held("").values()) == ["e-web"]
    await a.ops.detach("e-web")
    assert a.dhcp[0].leases == {}


async def test_leases_are_renewed_and_another_server_takes_over(a: FakeNode, clocked: Clock) -> None:
    await a.ops.attach(asked())
    before = a.leases.of("e-web")
    await later(a, 61, clocked)
    after = a.leases.of("e-web")
    assert before is not None and after is not None and after.ends > before.ends + 60
    second = FakeServer(address=A("198.18.0.253"), leases=a.dhcp[0].leases)
    a.dhcp[:] = [second]
    await later(a, 106, clocked)
    assert (found := a.leases.of("e-web")) is not None and (found.server, found.address) == (second.address, TEN)
    assert a.health.active() == [] and a.readdressed == []


async def test_without_a_server_it_is_said_in_time_and_then_the_address_is_gone(a: FakeNode, clocked: Clock) -> None:
    await a.ops.attach(asked())
    a.dhcp[0].silent = True
    await later(a, 61, clocked)
    await later(a, 45, clocked)
    assert a.health.active() == [], "one try is none"
    await later(a, 9, clocked)
    assert "no DHCP server on lo has prolonged the lease of 198.18.0.10, it ends at" in str(a.health.active())
    await later(a, 11, clocked)
    await a.until(lambda: bool(a.readdressed))
    assert (a.readdressed[-1].address, a.readdressed[-1].ways, a.readdressed[-1].netns) == (None, (), "/run/ns/web")
    assert "web of network lan has lost its address 198.18.0.10" in str(a.health.active()) and "prolonged" not in str(a.health.active())
    endpoint = a.view.snapshot.endpoints["e-web"]
    assert endpoint.present == () and endpoint.leased is not None and endpoint.leased.lost
    await again(a)
    assert a.view.snapshot.endpoints["e-web"].present == (), "that is known after a restart too"
    a.dhcp[0].silent = False
    await later(a, 64, clocked)
    await a.until(lambda: a.view.snapshot.endpoints["e-web"].present == (TEN,))
    assert a.health.active() == [] and a.readdressed[-1].address == IPv4Interface("198.18.0.10/24")


async def test_a_refused_container_gets_another_address_and_docker_is_said_to_show_the_old_one(a: FakeNode, clocked: Clock) -> None:
    await a.ops.attach(asked(runtime="docker", netns="", container="c1"))
    told = Container("c1", "web", "A", "docker", addresses={"lan": TEN})
    await a.ops.report("docker", [told])
    a.dhcp[0].leases = {b"somebody": TEN}
    await later(a, 61, clocked)
    await a.until(lambda: a.view.snapshot.endpoints["e-web"].address == ELEVEN)
    await a.until(lambda: "web of network lan has 198.18.0.11 now, but docker shows 198.18.0.10" in str(a.health.active()))
    for _ in range(2):  # also when the engine says it once more
        assert a.view.snapshot.containers["A", "c1"].addresses == {"lan": ELEVEN}
        await a.ops.report("docker", [told])
    await again(a)
    assert a.view.snapshot.endpoints["e-web"].address == ELEVEN and list(a.dhcp[0].leases.values()) == [TEN, ELEVEN]


async def test_a_network_with_ipv6_gives_both_and_takes_both_back(a: FakeNode, clocked: Clock) -> None:
    await a.ops.remove_network("lan")
    await a.ops.ensure_network(replace(LAN, name="two", ipv6=True))
    network = a.view.snapshot.networks["two"]
    assert network.by_dhcp6 and network.subnet6 is None
    endpoint = await a.ops.attach(asked(network="two"))
    six = IPv6Address("fd00::10")
    assert (endpoint.address, endpoint.address6) == (TEN, six) and child(a).address6 == IPv6Interface("fd00::10/128")
    assert await a.ops.attach(asked(network="two")) == endpoint and await a.converge() == 0
    other = await a.ops.attach(asked("eng", network="two", runtime="docker", netns=""))
    assert other.address6 is None, "what is inside is the engine's"
    await again(a)
    assert a.view.snapshot.endpoints["e-web"].address6 == six
    a.dhcp[0].leases6 = {b"somebody": six}
    await later(a, 61, clocked)
    await a.until(lambda: a.view.snapshot.endpoints["e-web"].address6 == IPv6Address("fd00::11"))
    assert a.readdressed[-1].address6 == IPv6Interface("fd00::11/128") and a.readdressed[-1].address == IPv4Interface("198.18.0.10/24")
    await a.ops.detach("e-web")
    assert list(a.dhcp[0].leases6) == [b"somebody"] and list(a.dhcp[0].leases.values()) == [other.address]


async def test_an_ipv6_address_that_somebody_has_is_declined_too(a: FakeNode) -> None:
    a.dhcp_timeout_s = 5
    await again(a)
    await a.ops.remove_network("lan")
    await a.ops.ensure_network(replace(LAN, name="two", ipv6=True))
    a.wires.taken[IPv6Address("fd00::10")] = "02:00:00:00:00:99"
    assert (await a.ops.attach(asked(network="two"))).address6 == IPv6Address("fd00::11")
    assert a.dhcp[0].declined6 == {IPv6Address("fd00::10")}


DUAL = replace(LAN, name="two", ipv6=True, subnet6=IPv6Network("fd00::/64"))
MAC = "02:00:00:00:00:07"


async def test_an_engine_is_given_both_before_it_attaches_and_both_go_with_its_container(a: FakeNode) -> None:
    await a.ops.remove_network("lan")
    network = await a.ops.ensure_network(DUAL)
    assert (network.by_dhcp6, network.subnet6, network.gateway6) == (True, IPv6Network("fd00::/64"), None)
    four = (await a.ops.reserve("two", f"docker:{MAC}", None, "web", None, MAC)).ip
    six = await a.ops.reserve6("two", f"docker:{MAC}", mac=MAC)
    assert await a.ops.reserve6("two", f"docker:{MAC}", mac=MAC) == six == IPv6Address("fd00::10")
    (duid,) = a.dhcp[0].leases6
    assert client_id("A", "two", "web")[-8:] == duid[-8:], "the server knows it by the name, as by IPv4"
    endpoint = await a.ops.attach(asked(network="two", runtime="docker", netns="", address=four, address6=six, mac=MAC))
    assert (endpoint.address, endpoint.address6) == (four, six) and list(a.dhcp[0].leases6) == [duid]
    assert child(a).inside6 is None and child(a).address6 == IPv6Interface("fd00::10/128")
    assert await a.converge() == 0
    await again(a)
    assert await a.ops.attach(asked(network="two", runtime="docker", netns="", mac=MAC)) == endpoint
    await a.ops.detach("e-web")
    assert not a.dhcp[0].leases and not a.dhcp[0].leases6


async def test_a_container_that_does_not_start_gives_both_back(a: FakeNode) -> None:
    await a.ops.remove_network("lan")
    await a.ops.ensure_network(DUAL)
    four = (await a.ops.reserve("two", f"docker:{MAC}", None, "web", None, MAC)).ip
    await a.ops.reserve6("two", f"docker:{MAC}", mac=MAC)
    await a.ops.release("two", four)
    assert not a.dhcp[0].leases and not a.dhcp[0].leases6


async def test_an_engine_that_shows_another_ipv6_address_is_told_of(a: FakeNode, clocked: Clock) -> None:
    await a.ops.remove_network("lan")
    await a.ops.ensure_network(DUAL)
    four = (await a.ops.reserve("two", f"docker:{MAC}", None, "web", None, MAC)).ip
    six = await a.ops.reserve6("two", f"docker:{MAC}", mac=MAC)
    await a.ops.attach(asked(network="two", runtime="docker", netns="", address=four, address6=six, mac=MAC))
    a.dhcp[0].leases6 = {b"somebody": six}
    await later(a, 61, clocked)
    await a.until(lambda: "web of network two has fd00::11 now, but docker shows fd00::10" in str(a.health.active()))


async def test_without_a_server_of_ipv6_nothing_is_left_of_an_attach(a: FakeNode) -> None:
    await a.ops.remove_network("lan")
    await a.ops.ensure_network(replace(LAN, name="two", ipv6=True))
    a.dhcp[0].silent6 = True
    with pytest.raises(LeaseFailed, match="no server answered"):
        await a.ops.attach(asked(network="two"))
    assert a.dhcp[0].leases == {} and not a.leases._held and a.view.snapshot.endpoints == {}


class Line:
    """A wire that only takes."""

    def __init__(self, link: str) -> None:
        if link != "lo":
            raise OSError(19, "No such device")

    def send(self, frame: bytes) -> None:
        SENT.append(frame)

    def fileno(self) -> int:
        return -1

    def frames(self) -> list[tuple[bytes, bool]]:
        return []

    def close(self) -> None:
        """Nothing is open."""


SENT: list[bytes] = []


async def test_a_node_that_leaves_gives_back_what_its_journal_has(a: FakeNode) -> None:
    endpoint = await a.ops.attach(asked())
    await a.ops.attach(asked("gone"))
    await a.ops.detach("e-gone")
    lease = a.leases.of("e-web")
    assert lease is not None
    assert give_back(a.journal, Line, lease.ends + 1) == 0, "it has ended"
    assert give_back(a.journal, Line, lease.since) == 1
    (frame,) = SENT
    assert frame[:12].hex(":") == f"{SERVER_MAC}:{endpoint.mac}" and frame[26:30] == TEN.packed
    said = decode(frame[42:])
    assert (said.kind, said.ciaddr, said.address(Option.SERVER)) == (Kind.RELEASE, TEN, ROUTER)


@pytest.mark.parametrize("answers", [True, False])
async def test_a_link_that_is_asked_what_it_has_is_asked_again_before_it_is_given_up(a: FakeNode, answers: bool) -> None:
    a.dhcp_timeout_s, clock = 5.0 if answers else 2.0, Clock()
    a.dhcp_clock = clock
    await a.ops.remove_network("lan")
    await again(a)
    server = a.dhcp[0]
    server.silent = True
    before = len(server.heard)
    making = asyncio.create_task(a.ops.ensure_network(LAN))
    for asked_times in (1, 2):
        await a.until(lambda asked_times=asked_times: len(server.heard) == before + asked_times)
        server.silent = not (answers and asked_times == 2)
        clock.ahead += 5
        a.leases._wake.set()
    if answers:
        assert (await making).subnet == IPv4Network("198.18.0.0/24")
    else:
        with pytest.raises(LeaseFailed, match="asking DHCP for an address: no server answered on link lo"):
            await making


async def test_what_cannot_be_is_refused(a: FakeNode) -> None:
    def of(name: str, **options: str) -> NetworkRequest:
        return replace(LAN, name=name, options={**LAN.options, **options})

    for request, what in (
        (of("x", ipam="static"), "pool .plait gives the addresses., or dhcp"),
        (of("x", backend="ipvlan"), "means nothing to backend ipvlan"),
        (of("x", backend="vlan", vlan="4", switch="openvswitch"), "not possible on a port of a switch"),
        (replace(of("x", parent="eth7"), gateway6=IPv6Address("fd00::1")), "is what routers of the link say"),
        (of("x", ipam6="dhcp", ipam="pool"), "dhcp, with ipam=dhcp"),
        (of("x", parent="eth7"), "is not given, and this host has no link eth7"),
        (replace(of("x"), subnet=IPv4Network("198.18.0.0/24"), ip_range=IPv4Network("198.18.0.128/25")), "the DHCP server's matter"),
    ):
        with pytest.raises(ConfigError, match=what):
            await a.ops.ensure_network(request)
    with pytest.raises(Conflict, match="ipam dhcp"):
        await a.ops.ensure_network(replace(of("lan"), options={**LAN.options, "ipam": "pool"}))
    with pytest.raises(ConfigError, match="would change what containers of lan have"):
        await a.ops.change_network("lan", {"ipam6": "dhcp"})
    for options in ({"ipam": "pool"}, {"parent": "eth7"}):
        with pytest.raises(ConfigError, match="would take the addresses of lan from elsewhere"):
            await a.ops.change_network("lan", options)
    a.dhcp[0].silent = True
    with pytest.raises(LeaseFailed, match="asking DHCP for an address: no server answered on link lo"):
        await a.ops.ensure_network(of("x"))
    made = await a.ops.ensure_network(replace(of("away", parent="eth7"), subnet=IPv4Network("10.7.0.0/24")))
    with pytest.raises(NotFound, match="this host has no link eth7"):
        await a.ops.reserve(made.name, "docker:02:42:00:00:00:09", None, "", {}, "02:42:00:00:00:09")
    with pytest.raises(NotSupported, match="wants to know a MAC"):
        await a.ops.reserve("lan", "somebody")


def test_names_are_what_a_server_may_put_into_a_zone() -> None:
    assert [host_name(name) for name in ("web", "Web_1", "-a.b-", "ü", "x" * 80)] == ["web", "web-1", "a-b", "", "x" * 63]


def test_memories_are_bounded() -> None:
    def record(n: int, owner: str) -> LeaseRecord:
        lease = Lease(A(n), ROUTER, "", float(n), 60, 30.0, 50.0, Leased(24))
        return LeaseRecord(owner, "lan", "lo", str(n), "", str(n), lease)

    records = [record(n, "") for n in range(300)] + [record(n, "e") for n in range(300, 900)]
    assert sorted(int(one.name) for one in forgettable(records)) == list(range(300 - 256))


def test_networks_of_other_backends_know_nothing_of_it() -> None:
    assert not Network("x", IPv4Network("10.0.0.0/24"), A("10.0.0.1"), 26).by_dhcp
