# SPDX-License-Identifier: Apache-2.0
"""Engine client, watcher, networks and collector against a fake engine's API."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path

import msgspec
import pytest
from tests.support.docker import Conditions, FakeEngine, until

from plait.model.cluster import PortMapping
from plait.model.errors import Conflict, EngineUnavailable, NotFound, PlaitError
from plait.runtimes.api import AttachRequest, NetworkRequest
from plait.runtimes.docker.collector import Collector
from plait.runtimes.docker.containers import health_output, seconds
from plait.runtimes.docker.engine import DockerEngine
from plait.runtimes.docker.enginetypes import ContainerDetails, ContainerRow
from plait.runtimes.docker.networks import ORIGIN_LABEL, DockerNetworks
from plait.runtimes.docker.state import NETWORKS, CachedState, memory_state
from plait.runtimes.docker.watcher import DockerWatcher
from plait.runtimes.fake import FakeOperations

A = IPv4Address


@dataclass
class Setup:
    ops: FakeOperations
    fake: FakeEngine
    engine: DockerEngine
    health: Conditions
    networks: DockerNetworks
    state: CachedState
    ready: list[bool]

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[DockerWatcher]:
        collector = Collector(self.ops, self.engine, lambda _: 1e9, lambda _: 1e9)
        watcher = DockerWatcher("A", self.ops, self.engine, self.health, "default", collector.collect, self.networks.mark)
        task = asyncio.create_task(watcher.run())
        try:
            yield watcher
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def attach(self, endpoint: str, name: str = "", network: str = "mesh") -> None:
        await self.ops.attach(AttachRequest(endpoint, network, "docker", "", name))

    @property
    def last(self) -> dict[str, str]:
        return {c.name: c.state for c in self.ops.reports[-1]} if self.ops.reports else {}


@pytest.fixture
async def s(tmp_path: Path) -> AsyncIterator[Setup]:
    ops, fake, health, state, ready = FakeOperations(), FakeEngine(tmp_path / "d.sock"), Conditions(), memory_state(), [True]
    await ops.ensure_network(NetworkRequest("default", IPv4Network("10.28.0.0/16")))
    await ops.ensure_network(NetworkRequest("mesh", IPv4Network("10.29.0.0/16")))
    await fake.start()
    engine = DockerEngine(fake.path, timeout_s=1.0, quick_s=0.1)
    networks = DockerNetworks(ops, state, engine, health, "default", lambda: ready[0])
    yield Setup(ops, fake, engine, health, networks, state, ready)
    await engine.close()
    await fake.stop()


# --- the client


@pytest.mark.parametrize(("theirs", "used"), [("1.41", "/v1.41"), ("1.99", "/v1.48"), ("2.0", "/v1.48"), ("1.9", "/v1.9")])
async def test_the_version_that_both_know_is_used(s: Setup, theirs: str, used: str) -> None:
    s.fake.api = theirs
    await s.engine.containers()
    assert s.engine._api == used


async def test_refusals_have_the_engines_words_and_a_class(s: Setup) -> None:
    for status, kind in ((404, NotFound), (403, Conflict), (409, Conflict), (500, PlaitError)):
        s.fake.refuse["/containers/json"] = (status, "no, because")
        with pytest.raises(kind, match="no, because"):
            await s.engine.containers()


async def test_an_engine_that_is_away_or_silent_is_unavailable(s: Setup) -> None:
    await s.engine.containers()
    s.fake.silent = True
    with pytest.raises(EngineUnavailable):
        await s.engine.containers(quick=True)
    s.fake.silent = False
    with pytest.raises(EngineUnavailable, match="a moment ago"):
        await s.engine.containers(quick=True)
    assert await s.engine.containers() == []
    assert await s.engine.containers(quick=True) == []
    await s.fake.stop()
    with pytest.raises(EngineUnavailable, match="is dockerd running"):
        await s.engine.networks()


async def test_an_inspection_that_is_held_back_does_not_make_the_engine_silent(s: Setup) -> None:
    s.fake.locked = {"x"}
    with pytest.raises(EngineUnavailable):
        await s.engine.container("x")
    assert await s.engine.containers(quick=True) == []


def framed(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


async def test_a_command_in_a_container_gives_the_end_of_both_outputs_and_its_status(s: Setup) -> None:
    s.fake.add_container("web", "running")
    s.fake.command_output = framed(1, b"out\n") + framed(2, b"") + framed(2, b"err\n" * 50_000)
    key = await s.engine.exec_start("web-id", ["sh", "-c", "x y"])
    assert s.fake.commands == [["sh", "-c", "x y"]]
    assert await s.engine.exec_output(key, 6) == (b"r\nerr\n", 200_004)
    s.fake.command_code = 3
    assert await s.engine.exec_code(key) == 3
    s.fake.command_code = None
    assert await s.engine.exec_code(key) is None
    with pytest.raises(NotFound):
        await s.engine.exec_start("nobody", ["x"])
    s.fake.refuse[f"/exec/{key}/start"] = (409, "container is paused")
    with pytest.raises(Conflict, match="paused"):
        await s.engine.exec_output(key, 6)


@pytest.mark.parametrize("cut", [framed(1, b"hello")[:3], framed(1, b"hello")[:10]])
async def test_an_output_that_breaks_off_is_an_answer_or_an_error_never_a_hang(s: Setup, cut: bytes) -> None:
    s.fake.add_container("web", "running")
    s.fake.command_output = cut
    key = await s.engine.exec_start("web-id", ["x"])
    with contextlib.suppress(EngineUnavailable):
        assert await asyncio.wait_for(s.engine.exec_output(key, 100), 5) == (b"he", 2)


async def test_the_health_of_a_container_is_told_with_what_its_check_wrote(s: Setup) -> None:
    row = s.fake.add_container("web", "running", Status="Up 3 seconds (health: starting)")
    state = {"Pid": 1, "Running": True, "Health": {"Status": "starting", "Log": None}}
    s.fake.details["web-id"] = {"State": state}
    s.fake.add_container("plain", "running", Status="Up 3 seconds")

    def health() -> dict[str, tuple[str, str]]:
        return {c.name: (c.health, c.health_output) for c in s.ops.reports[-1]} if s.ops.reports else {}

    async with s.watching():
        await until(lambda: health() == {"web": ("starting", ""), "plain": ("", "")})
        row["Status"] = "Up 9 seconds (unhealthy)"
        state["Health"] = {"Status": "unhealthy", "Log": [{"Output": "old"}, {"Output": "no route\n"}]}
        s.fake.emit("container", "health_status: unhealthy", "web-id")
        await until(lambda: health()["web"] == ("unhealthy", "no route"))
        row["Status"] = "Up 12 seconds (healthy)"
        state["Health"] = {"Status": "healthy", "Log": [{"Output": ""}]}
        s.fake.emit("container", "health_status: healthy", "web-id")
        await until(lambda: health()["web"] == ("healthy", ""))


def test_an_inspection_of_before_does_not_speak_for_the_present_state() -> None:
    row = ContainerRow("x", state="running", status="Up 9 seconds (unhealthy)")
    for status, said in (("healthy", ""), ("unhealthy", "pong")):
        details = msgspec.convert({"Id": "x", "State": {"Health": {"Status": status, "Log": [{"Output": "pong"}]}}}, ContainerDetails)
        assert health_output(row, details) == said
    assert health_output(row, None) == ""


def test_times_of_the_engine() -> None:
    assert seconds("2026-11-23T05:00:00.123456789Z") == pytest.approx(1795410000.123456)
    assert seconds("0001-01-01T00:00:00Z") == seconds("") == seconds("x") == 0.0


# --- the watcher


async def test_the_full_list_is_reported_with_all_that_is_known(s: Setup) -> None:
    await s.attach("e1", "web")
    await s.ops.publish("e1", [PortMapping("tcp", 8080, 80)])
    s.fake.add_container("web", "running", endpoint="e1", address="10.29.0.2", Labels={"a": "b"})
    published = [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 81, "Type": "tcp"}, {"IP": "::", "PrivatePort": 80, "PublicPort": 81}]
    published.append({"PrivatePort": 443, "Type": "tcp"})
    s.fake.add_container("plain", "running", network="bridge", address="10.28.0.2", Ports=published)
    own = s.fake.add_container("local", "running", network="somebodys", address="172.20.0.2", Names=["/web/db", "/local"])
    own["NetworkSettings"]["Networks"]["somebodys"]["GlobalIPv6Address"] = "fd00::2"
    s.fake.containers[1]["NetworkSettings"]["Networks"]["bridge"]["GlobalIPv6Address"] = "fd01::2"
    s.fake.add_container("off", "exited", network="bridge")
    async with s.watching() as watcher:
        await until(lambda: watcher.state["reachable"])
        web, plain, local, off = s.ops.reports[0]
    assert (web.name, web.labels, web.addresses, web.pid) == ("web", {"a": "b"}, {"mesh": A("10.29.0.2")}, 4711)
    assert web.ports == (PortMapping("tcp", 8080, 80),)
    assert web.started == pytest.approx(1795410000.123456)
    assert plain.addresses == {"default": A("10.28.0.2")}
    assert plain.ports == (PortMapping("tcp", 81, 80),)
    assert (local.name, local.addresses, local.elsewhere) == ("local", {}, (A("172.20.0.2"), IPv6Address("fd00::2")))
    assert plain.elsewhere == (IPv6Address("fd01::2"),), "plait's part of that bridge is IPv4"
    assert (off.state, off.addresses, off.pid) == ("exited", {}, 0)
    assert watcher.state == {"runtime": "docker", "reachable": True, "version": "20.10.24", "containers": 3, "error": ""}


async def test_a_death_is_reported_at_once(s: Setup) -> None:
    row = s.fake.add_container("web", "running")
    async with s.watching():
        await until(lambda: s.last == {"web": "running"} and s.fake.listeners)
        row["State"] = "exited"
        s.fake.emit("container", "die", "web-id")
        await until(lambda: s.last == {"web": "exited"}, 0.8)


async def test_an_inspection_that_is_held_back_does_not_hold_up_a_death(s: Setup) -> None:
    s.fake.add_container("slow", "running")
    row = s.fake.add_container("web", "running")
    s.fake.locked = {"slow-id"}
    async with s.watching():
        await until(lambda: len(s.last) == 2 and s.fake.listeners)
        row["State"] = "exited"
        s.fake.emit("container", "die", "web-id")
        await until(lambda: s.last["web"] == "exited", 0.8)  # less than an inspection is waited for


async def test_an_engine_that_goes_away_keeps_its_containers_and_raises_a_condition(s: Setup) -> None:
    s.fake.add_container("web", "running")
    async with s.watching() as watcher:
        await until(lambda: s.last == {"web": "running"} and s.fake.listeners)
        s.fake.emit("container", "update", "web-id", nano=1795410000_000000007)
        await until(lambda: watcher._since != "")
        reports = len(s.ops.reports)
        await s.fake.stop()
        await until(lambda: ("engine-unreachable", "docker") in s.health.active)
        assert watcher.state["reachable"] is False
        assert len(s.ops.reports) - reports <= 1
        assert s.last == {"web": "running"}
        s.fake.containers.clear()
        await s.fake.start()
        await until(lambda: s.last == {} and not s.health.active)
    assert s.fake.since == ["", "1795410000.000000007"]


async def test_restarting_asks_for_the_pid_again(s: Setup) -> None:
    s.fake.add_container("web", "running")
    async with s.watching():
        await until(lambda: s.ops.reports and s.ops.reports[-1][0].pid and s.fake.listeners)
        for action in ("exec_start: sh", "health_status: healthy"):
            s.fake.emit("container", action, "web-id")
        s.fake.emit("container", "restart", "web-id")
        await until(lambda: s.fake.asked.count("GET /containers/web-id/json") == 2)


# --- the collector


async def test_endpoints_that_the_engine_lacks_are_detached(s: Setup) -> None:
    s.fake.add_network("mesh", "10.29.0.0/16", Containers={"ep-starting": {"Name": "c", "EndpointID": "starting"}})
    for endpoint in ("gone", "starting", "there"):
        await s.attach(endpoint, "c")
    await s.ops.reserve("mesh", "docker:02:00:00:00:00:09")
    await s.ops.reserve("mesh", "docker:aux:10.29.0.77", A("10.29.0.77"))
    s.fake.add_container("c", "running", endpoint="there")
    async with s.watching():
        await until(lambda: "gone" not in s.ops.attached)
    assert set(s.ops.attached) == {"starting", "there"}
    assert set(s.ops.held("docker:").values()) == {"docker:aux:10.29.0.77"}


async def test_young_ones_are_left_alone_and_so_is_everything_when_the_engine_fails(s: Setup) -> None:
    await s.attach("young")
    await s.attach("old")
    s.fake.add_network("mesh", "10.29.0.0/16")
    collector = Collector(s.ops, s.engine, lambda key: 5.0 if key == "young" else 1e9, lambda _: 1e9)
    s.fake.refuse["/networks"] = (500, "broken")
    with pytest.raises(PlaitError):
        await collector.collect([], {})
    assert set(s.ops.attached) == {"young", "old"}
    s.fake.refuse.clear()
    await collector.collect([], {})
    assert set(s.ops.attached) == {"young"}


async def test_one_that_joins_while_the_engine_is_asked_stays(s: Setup) -> None:
    await s.attach("e1")
    s.fake.add_network("mesh", "10.29.0.0/16")
    ages = iter([1e9, 0.0])
    await Collector(s.ops, s.engine, lambda _: next(ages), lambda _: 1e9).collect([], {})
    assert set(s.ops.attached) == {"e1"}


async def test_an_endpoint_without_a_name_gets_it_from_the_list(s: Setup) -> None:
    await s.attach("e1")
    s.fake.add_container("web", "running", endpoint="e1", Labels={"a": "b"})
    async with s.watching():
        await until(lambda: s.ops.attached["e1"].name == "web")
        assert (s.ops.attached["e1"].container, s.ops.attached["e1"].labels) == ("web-id", {"a": "b"})
        s.fake.containers[0]["Names"] = ["/shop"]
        await until(lambda: s.fake.listeners)
        s.fake.emit("container", "rename", "web-id")
        await until(lambda: s.ops.attached["e1"].name == "shop")
    assert s.ops.calls.count("attach") == 3


async def test_aliases_are_learnt_from_the_inspection(s: Setup) -> None:
    await s.attach("e1", "web")
    row = s.fake.add_container("web", "running", endpoint="e1")
    s.fake.inspected["web-id"] = {"mesh": row["NetworkSettings"]["Networks"]["mesh"] | {"Aliases": ["shop", "web-id", "front"]}}
    async with s.watching():
        await until(lambda: s.ops.attached["e1"].aliases == ("front", "shop"))
        s.fake.emit("container", "update", "web-id")
        await until(lambda: len(s.ops.reports) >= 2)
    assert s.ops.calls.count("attach") == 2


# --- networks


async def test_networks_of_the_cluster_appear_in_the_engine_and_go(s: Setup) -> None:
    await s.networks.sync()
    assert [n["Name"] for n in s.fake.networks.values()] == ["mesh"]
    assert s.fake.networks["mesh-id"]["Options"] == {"plait.net": "mesh"}
    before = list(s.fake.asked)
    await s.networks.sync()
    assert s.fake.asked == [*before, "GET /networks"], "a second pass changes nothing"
    await s.ops.remove_network("mesh")
    await s.networks.sync()
    assert s.fake.networks == {}
    assert s.state.all(NETWORKS) == {}


async def test_nothing_is_removed_before_the_view_is_current(s: Setup) -> None:
    await s.networks.sync()
    await s.ops.remove_network("mesh")
    s.ready[0] = False
    await s.networks.sync()
    assert s.fake.networks


async def test_a_network_made_through_docker_becomes_the_clusters(s: Setup) -> None:
    s.fake.add_network("blue", "10.40.0.0/16", gateway="10.40.0.9", Internal=True, Labels={"x": "y"})
    await s.networks.sync()
    made = s.ops.networks()["blue"]
    assert (made.subnet, made.gateway, made.internal) == (IPv4Network("10.40.0.0/16"), A("10.40.0.9"), True)
    assert made.labels == {"x": "y", ORIGIN_LABEL: "docker"}
    await s.ops.remove_network("blue")
    await s.networks.sync()
    assert "blue-id" not in s.fake.networks, "what the cluster removed is not adopted again"


async def test_one_that_cannot_be_is_removed_again_and_said(s: Setup) -> None:
    s.fake.add_network("mesh2", "10.29.128.0/17")
    await s.networks.sync()
    assert [n["Name"] for n in s.fake.networks.values()] == ["mesh"]
    assert "overlaps" in s.health.active["engine-network", "mesh2"]
    await s.networks.sync()
    assert s.health.active == {}


async def test_a_removed_network_in_use_is_a_condition(s: Setup) -> None:
    await s.networks.sync()
    await s.ops.remove_network("mesh")
    s.fake.refuse["/networks/mesh-id"] = (403, "network mesh has active endpoints")
    await s.networks.sync()
    assert "containers of this host use it" in s.health.active["engine-network", "mesh"]
    s.fake.refuse.clear()
    await s.networks.sync()
    assert (s.health.active, s.fake.networks) == ({}, {})


async def test_a_name_that_another_driver_has_is_a_condition(s: Setup) -> None:
    s.fake.refuse["/networks/create"] = (409, "network with name mesh already exists")
    await s.networks.sync()
    assert "already exists" in s.health.active["engine-network", "mesh"]


async def test_a_docker_network_with_another_pool_is_replaced(s: Setup) -> None:
    s.fake.add_network("mesh", "10.77.0.0/16", Options={"plait.net": "mesh"})
    await s.networks.sync()
    assert s.fake.networks["mesh-id"]["IPAM"]["Config"][0]["Subnet"] == "10.29.0.0/16"


async def test_replacing_a_docker_network_does_not_take_it_from_the_cluster(s: Setup) -> None:
    await s.ops.ensure_network(NetworkRequest("made", IPv4Network("10.40.0.0/16"), labels={ORIGIN_LABEL: "docker"}))
    s.fake.add_network("made", "10.77.0.0/16")
    await s.networks.remember("made-id", "made")
    s.fake.on_delete = s.networks.deleted
    await s.networks.sync()
    assert "made" in s.ops.networks()
    assert s.fake.networks["made-id"]["IPAM"]["Config"][0]["Subnet"] == "10.40.0.0/16"


async def test_who_removes_a_network_while_it_is_being_shown_is_heard(s: Setup) -> None:
    """The engine lists a network before it has answered the request to make it: `docker network rm` can come in between."""
    await s.ops.ensure_network(NetworkRequest("made", IPv4Network("10.40.0.0/16"), labels={ORIGIN_LABEL: "docker"}))

    async def user_removes(key: str) -> None:
        if key == "made-id":
            await s.networks.remember(key, "made")  # as CreateNetwork does
            await s.networks.deleted(key)
            del s.fake.networks[key]

    s.fake.on_create = user_removes
    await s.networks.sync()
    assert "made" not in s.ops.networks()
    await s.networks.sync()
    assert "made-id" not in s.fake.networks


async def test_a_network_that_the_engine_is_about_to_delete_is_not_made_again(s: Setup) -> None:
    """The engine stops listing a network before it tells the driver (seen): a pass may come in between."""
    await s.ops.ensure_network(NetworkRequest("made", IPv4Network("10.40.0.0/16"), labels={ORIGIN_LABEL: "docker"}))
    await s.networks.sync()
    del s.fake.networks["made-id"]
    await s.networks.sync()
    assert "made-id" not in s.fake.networks
    await s.networks.deleted("made-id")
    assert "made" not in s.ops.networks()


async def test_a_network_that_the_engine_lost_is_made_again_a_moment_later(s: Setup) -> None:
    await s.networks.sync()
    s.fake.networks.clear()
    task = asyncio.create_task(s.networks.run())
    await until(lambda: "mesh-id" in s.fake.networks)
    task.cancel()


async def test_a_range_is_the_networks_on_every_host(s: Setup) -> None:
    s.fake.add_network("blue", "10.40.0.0/16", config={"IPRange": "10.40.4.0/24"})
    await s.ops.ensure_network(NetworkRequest("red", IPv4Network("10.41.0.0/16"), ip_range=IPv4Network("10.41.8.0/24")))
    await s.networks.sync()
    assert s.ops.networks()["blue"].ip_range == IPv4Network("10.40.4.0/24")
    assert s.fake.networks["red-id"]["IPAM"]["Config"][0]["IPRange"] == "10.41.8.0/24"
    assert "IPRange" not in s.fake.networks["mesh-id"]["IPAM"]["Config"][0]


async def test_the_loop_survives_an_absent_engine(s: Setup) -> None:
    await s.fake.stop()
    task = asyncio.create_task(s.networks.run())
    await asyncio.sleep(0.1)
    assert not task.done()
    await s.fake.start()
    s.networks.mark()
    await until(lambda: s.fake.networks)
    task.cancel()


async def test_documents_survive_and_unchanged_ones_are_not_written() -> None:
    disk: dict[tuple[str, str], bytes] = {}
    writes: list[str] = []

    async def write(kind: str, key: str, body: bytes | None) -> None:
        writes.append(key)
        if body is None:
            disk.pop((kind, key), None)
        else:
            disk[kind, key] = body

    def load(kind: str) -> dict[str, bytes]:
        return {key: body for (k, key), body in disk.items() if k == kind}

    state = CachedState(load, write)
    for _ in range(2):
        await state.put("k", "a", {"name": "x"})
    await state.put("k", "b", {"name": "y"})
    await state.delete("k", "b")
    await state.delete("k", "b")
    assert writes == ["a", "b", "b"]
    again = CachedState(load, write)
    assert again.all("k") == {"a": {"name": "x"}}
    assert again.get("k", "b") is None


# --- what containers say of their services, and the end of those whose engine is away


async def test_variables_that_describe_services_and_exposed_ports_are_read_and_no_others(s: Setup) -> None:
    s.fake.add_container("web", "running", HostConfig={"NetworkMode": "host"})
    env = ["SERVICE_NAME=shop", "SERVICE_80_TAGS=a=b", "PASSWORD=secret", "SERVICE_EMPTY="]
    s.fake.details["web-id"] = {"Config": {"Env": env, "ExposedPorts": {"443/tcp": {}, "53/udp": {}, "8000-8010/tcp": {}, "1/x": {}}}}
    async with s.watching():
        await until(lambda: bool(s.ops.reports) and s.ops.reports[-1][0].known)
        (container,) = s.ops.reports[-1]
        assert container.env == {"SERVICE_80_TAGS": "a=b", "SERVICE_EMPTY": "", "SERVICE_NAME": "shop"}
        assert container.exposed == ((53, "udp"), (443, "tcp")) and container.host_network


@pytest.mark.parametrize(("action", "before", "after"), [("pause", "running", "paused"), ("unpause", "paused", "running")])
async def test_a_state_that_the_list_shows_after_its_event_is_seen(s: Setup, action: str, before: str, after: str) -> None:
    row = s.fake.add_container("web", before)
    async with s.watching():
        await until(lambda: s.last == {"web": before})
        s.fake.emit("container", action, "web-id", 1)
        await asyncio.sleep(0.05)
        row["State"] = after
        await until(lambda: s.last == {"web": after})


async def test_a_container_whose_inspection_is_held_back_is_not_known_until_it_comes(s: Setup) -> None:
    s.fake.add_container("web", "running")
    s.fake.locked = {"web-id"}
    async with s.watching():
        await until(lambda: s.last == {"web": "running"})
        assert not s.ops.reports[-1][0].known


async def test_a_container_that_ends_while_its_engine_is_away_is_reported(s: Setup) -> None:
    first, second = [await asyncio.create_subprocess_exec("sleep", "60") for _ in range(2)]
    try:
        for name, process in (("web", first), ("db", second)):
            s.fake.add_container(name, "running")
            s.fake.details[f"{name}-id"] = {"State": {"Pid": process.pid, "Running": True}}
        async with s.watching() as watcher:
            await until(lambda: len(s.ops.reports[-1:]) == 1 and all(c.pid for c in s.ops.reports[-1]))
            await s.fake.stop()
            await until(lambda: not watcher.state["reachable"])
            assert s.last == {"web": "running", "db": "running"}, "silence means nothing"
            first.kill()
            await until(lambda: s.last == {"web": "exited", "db": "running"})
            assert [c.pid for c in s.ops.reports[-1]] == [0, second.pid]
    finally:
        for process in (first, second):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
