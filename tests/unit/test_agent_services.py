# SPDX-License-Identifier: Apache-2.0
"""The agent's part of `plait service`: what gets into the store, who has which address, what it tells."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path

import pytest
from tests.support.cluster import FakeNode, nodes
from tests.support.consulapi import Cuttable

from plait.agent.health import Health
from plait.agent.services import Services
from plait.model.cluster import HostRange, HostRanges, PortMapping
from plait.model.errors import ConfigError, Conflict, KernelError, NotFound, PoolExhausted
from plait.model.objects import NftSet
from plait.model.service import VIP_POOL, ServiceChange, ServicePort, ServiceRequest, parse_service_ports
from plait.runtimes.api import AttachRequest, NetworkRequest

A = IPv4Address
WEB = ServiceRequest("web", (ServicePort("tcp", 80, 8080),), {"app": "web"})


@pytest.fixture
async def store() -> AsyncIterator[Cuttable]:
    store = Cuttable()
    yield store
    await store.close()


def services_of(node: FakeNode, health: Health | None = None) -> Services:
    return Services(node.view, node.store, health or Health(lambda: 0.0), node.view.caught_up, node.full_pass)


async def attach(node: FakeNode, name: str, *ports: PortMapping, **labels: str) -> str:
    words = {key.replace("_", "."): value for key, value in labels.items()}
    request = AttachRequest(f"{node.name}.{name}", "default", "sandbox", name, name, labels=words, ports=ports)
    return str((await node.ops.attach(request)).address)


def elements(node: FakeNode, name: str, kind: str = "map") -> frozenset[str]:
    found = node.kernel.objects.get(("nft", kind, name))
    return found.elements if isinstance(found, NftSet) else frozenset()


async def test_a_service_leads_to_its_containers_from_when_each_is_attached(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        first = await attach(a, "first", app="web")
        view = await services_of(a).create(WEB)
        place = f"{view['address']} . tcp . 80"
        assert elements(a, "vips") == {f"{place} : goto vip_random1"}
        assert elements(a, "vip_slot0") == {f"{place} : {first} . 8080"}
        second = await attach(a, "second", app="web")
        assert elements(a, "vips") == {f"{place} : goto vip_random2"}, "an attach returns when it is in force"
        leads = {row.partition(" : ")[2] for slot in (0, 1) for row in elements(a, f"vip_slot{slot}")}
        assert leads == {f"{first} . 8080", f"{second} . 8080"}
        shown = services_of(a).show("default/web")
        assert shown["dns"] == "web.default.svc.cluster.local" and [one["state"] for one in shown["containers"]] == ["ready", "ready"]
        assert [(row["ready"], row["backends"]) for row in services_of(a).rows()] == [(2, 2)]
        await a.ops.detach("A.second")
        assert elements(a, "vip_ends", "set") == {f"{first} . tcp . 8080"}


async def test_addresses_are_nobodys_twice_and_the_same_again(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        many = [(services_of(node), replace(WEB, name=f"s{n}")) for n in range(10) for node in (a, b)]
        done = await asyncio.gather(*(one.create(wanted) for one, wanted in many), return_exceptions=True)
        made = [one for one in done if not isinstance(one, BaseException)]
        assert len(made) == 10 and len({one["address"] for one in made}) == 10
        assert all(isinstance(one, Conflict) for one in done if isinstance(one, BaseException))
        await a.until(lambda: len(a.view.snapshot.services) == 10)
        before = services_of(a).show("s3")["address"]
        await services_of(a).remove("s3")
        assert (await services_of(a).create(replace(WEB, name="s3")))["address"] == before
        assert len((await store.list("vips/")).items) == 10


async def test_an_address_that_is_asked_for_must_be_free(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        services = services_of(a)
        assert (await services.create(replace(WEB, address=A("10.27.1.1"))))["address"] == "10.27.1.1"
        with pytest.raises(Conflict, match=r"10\.27\.1\.1 is that of service default/web"):
            await services.create(replace(WEB, name="other", address=A("10.27.1.1")))
        with pytest.raises(ConfigError, match=r"is not in 10\.27\.0\.0/16"):
            await services.create(replace(WEB, name="other", address=A("192.0.2.1")))
        a.view.put(HostRanges("A", (HostRange(IPv4Network("10.27.2.0/24"), "route"),)))
        with pytest.raises(Conflict, match=r"lies in 10\.27\.2\.0/24"):
            await services.create(replace(WEB, name="other", address=A("10.27.2.1")))
        a.view.put(HostRanges("A", (HostRange(VIP_POOL, "route"),)))
        with pytest.raises(PoolExhausted, match="no virtual address is left"):
            await services.create(replace(WEB, name="other"))


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        (replace(WEB, name="Web"), ConfigError, "is no name"),
        (replace(WEB, namespace="a.b"), ConfigError, "namespace"),
        (replace(WEB, selector={}), ConfigError, "KEY=VALUE"),
        (replace(WEB, network="none"), NotFound, "no network 'none'"),
        (WEB, Conflict, "already"),
        (replace(WEB, name="other", ports=(ServicePort("tcp", 80, 80, 8080),)), Conflict, "published by container box on A"),
        (replace(WEB, name="other", ports=(ServicePort("tcp", 80, 80, 8443),)), Conflict, "published by service default/web"),
    ],
)
async def test_what_cannot_be_is_refused_and_changes_nothing(
    store: Cuttable, tmp_path: Path, wrong: ServiceRequest, error: type[Exception], text: str
) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await attach(a, "box", PortMapping("tcp", 8080, 80))
        await services_of(a).create(replace(WEB, ports=(ServicePort("tcp", 80, 80, 8443),)))
        before = (await store.list("vips/")).items
        with pytest.raises(error, match=text):
            await services_of(a).create(wrong)
        assert (await store.list("vips/")).items == before


async def test_a_change_keeps_the_address_and_drains_by_name(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        services = services_of(a)
        near = await attach(a, "near", app="web")
        other = await attach(a, "other", app="web")
        made = await services.create(WEB)
        view = await services.change("web", ServiceChange(drain=("near",), affinity=True))
        assert view["address"] == made["address"] and view["affinity"]
        assert {one["name"]: one["state"] for one in view["containers"]} == {"near": "draining", "other": "ready"}
        assert f"{near} . tcp . 8080" in elements(a, "vip_ends", "set"), "what it has lives on"
        assert {row.partition(" : ")[2] for row in elements(a, "vip_slot5")} == {f"{other} . 8080"}
        with pytest.raises(NotFound, match="has no container 'nobody': it has A/near, A/other"):
            await services.change("web", ServiceChange(drain=("nobody",)))
        await a.ops.detach("A.near")
        view = await services.change("web", ServiceChange(undrain=("A/near",), ports=(ServicePort("udp", 53, 53),)))
        assert view["ports"] == ["53/udp"] and not a.view.snapshot.services["default", "web"].drained
        assert await services.change("web", ServiceChange()) == view
        with pytest.raises(NotFound, match="plait service ls"):
            await services.change("nothing", ServiceChange())


async def test_a_headless_one_has_no_address_and_leaves_the_choice_to_clients(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        services = services_of(a)
        await attach(a, "near", app="web")
        view = await services.create(replace(WEB, headless=True))
        assert view["address"] == "" and view["ready"] == 1 and not (await store.list("vips/")).items
        assert ("nft", "map", "vips") not in a.kernel.objects
        for more in ({"affinity": True}, {"address": A("10.27.0.9")}, {"ports": (ServicePort("tcp", 80, 80, 8080),)}):
            with pytest.raises(ConfigError, match="leaves the choice to the client"):
                await services.create(replace(WEB, name="other", headless=True, **more))  # type: ignore[arg-type]
        await services.remove("web")
        assert not services.rows()


async def test_a_kernel_that_refuses_is_told_of(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        a.kernel.fail_next(("nft", "map", "vips"))
        with pytest.raises(KernelError):
            await services_of(a).create(WEB)
        assert [row["name"] for row in services_of(a).rows()] == ["web"], "it is the cluster's will all the same"


async def test_a_name_in_two_namespaces_must_be_said_whole(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        services = services_of(a)
        await services.create(WEB)
        await services.create(replace(WEB, namespace="lab"))
        with pytest.raises(Conflict, match="default/web, lab/web; say which"):
            services.show("web")
        await services.remove("lab/web")
        assert services.show("web")["namespace"] == "default"


async def test_a_label_makes_the_service_and_a_wrong_one_is_a_condition(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        health = Health(lambda: 0.0)
        services = services_of(a, health)
        running = asyncio.create_task(services.run())
        try:
            await attach(a, "one", plait_vip="shop", plait_vip_ports="http=80:8080, 53/udp")
            await attach(a, "two", plait_vip="bad")
            await attach(a, "three", plait_vip="worse", plait_vip_ports="x")
            await a.until(lambda: bool(a.view.snapshot.services) and len(health.active()) == 2)
            view = services.show("shop")
            assert view["selector"] == {"plait.vip": "shop"} and view["ports"] == ["http=80:8080/tcp", "53/udp"]
            assert view["ready"] == 1 and len(a.view.snapshot.services) == 1
            await a.ops.detach("A.two")
            await a.ops.detach("A.three")
            await a.until(lambda: not health.active())
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running


@pytest.mark.parametrize(
    ("ports", "published", "text"),
    [
        (["x"], [], "is not"),
        (["80/icmp"], [], "is not"),
        (["0"], [], "is not"),
        (["70000"], [], "is not"),
        (["80:1:2"], [], "is not"),
        (["80", "80:81"], [], "twice"),
        ([], [], "missing"),
        (["80"], ["8080:81"], "leads to no port"),
        (["80"], ["8080:80/udp"], "leads to no port"),
        (["BAD=80"], [], "is no name"),
    ],
)
def test_ports_are_read_or_refused(ports: list[str], published: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parse_service_ports(ports, published)
    assert parse_service_ports(["a=80:8080", "53/udp"], ["9090:80", "53/udp"]) == (
        ServicePort("tcp", 80, 8080, 9090, "a"),
        ServicePort("udp", 53, 53, 53),
    )


async def test_on_a_network_with_ipv6_it_has_the_address_that_goes_with_the_other_one(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await a.ops.ensure_network(NetworkRequest("six", subnet6=IPv6Network("fd00:29::/64")))
        made = await a.ops.attach(AttachRequest("A.one", "six", "sandbox", "one", "one", labels={"app": "web"}))
        view = await services_of(a).create(replace(WEB, network="six", address=A("10.27.3.4")))
        assert view["address6"] == "fd55:aa3d:5f3e::304" and view["containers"][0]["address6"] == str(made.address6)
        assert elements(a, "vips6") == {"fd55:aa3d:5f3e::304 . tcp . 80 : goto vip6_random1"}
        assert elements(a, "vip6_slot0") == {f"fd55:aa3d:5f3e::304 . tcp . 80 : {made.address6} . 8080"}
        bare = await services_of(a).create(replace(WEB, name="bare"))
        assert bare["address6"] == "" and len(elements(a, "vips6")) == 1 and len(elements(a, "vips")) == 2
