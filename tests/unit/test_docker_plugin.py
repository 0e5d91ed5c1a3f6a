# SPDX-License-Identifier: Apache-2.0
"""The plug-in over a real Unix socket: dockerd's calls in, operations of a fake agent out."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from tests.support.docker import Conditions, Dockerd, FakeEngine, dockerd, until

from plait.model.cluster import Network, PortMapping
from plait.model.errors import KernelError, PlaitError, StoreUnavailable
from plait.model.limits import Limit, Limits
from plait.plan.desired import device_name, peer_name
from plait.runtimes.api import AttachRequest, NetworkRequest
from plait.runtimes.docker.deferred import DeferredStarts
from plait.runtimes.docker.engine import DockerEngine
from plait.runtimes.docker.enginetypes import EngineNetwork
from plait.runtimes.docker.known import KnownContainers
from plait.runtimes.docker.mounts import rootfs_places
from plait.runtimes.docker.names import WHY_DEFERRED
from plait.runtimes.docker.networks import ORIGIN_LABEL, DockerNetworks
from plait.runtimes.docker.networks import creation as in_engine
from plait.runtimes.docker.plugin import CONTENT_TYPE, DockerPlugin, inherited_socket, listen
from plait.runtimes.docker.state import memory_state
from plait.runtimes.fake import FakeOperations

A = IPv4Address
MAC = "com.docker.network.endpoint.macaddress"
GATEWAY = {"RequestAddressType": "com.docker.network.gateway"}
MESH = "plait:10.29.0.0/16"
SIX = {"AddressSpace": "plait-local", "Pool": "fd00:40::/64", "Gateway": "", "AuxAddresses": {}}


@dataclass
class Setup:
    ops: FakeOperations
    engine: FakeEngine
    plugin: DockerPlugin
    networks: DockerNetworks
    docker: Dockerd
    path: Path
    known: KnownContainers

    async def endpoint(self, name: str, mac: str, state: str = "created", **more: Any) -> str:
        """RequestAddress, CreateEndpoint and Join of container `name`, as dockerd does; the address it got."""
        row = next((r for r in self.engine.containers if r["Names"] == [f"/{name}"]), None) or self.engine.add_container(name, state)
        row["State"] = state
        got = await self.docker.call("IpamDriver.RequestAddress", PoolID=MESH, Address="", Options={MAC: mac})
        key = f"ep{mac.replace(':', '')}"
        face = {"Address": got["Address"], "AddressIPv6": "", "MacAddress": mac}
        assert await self.create(key, face) == {"Interface": {}}
        self.engine.networks["mesh-id"]["Containers"][f"ep-{key}"] = {"Name": name, "EndpointID": key, "MacAddress": mac}
        assert "Err" not in await self.docker.call(
            "NetworkDriver.Join", NetworkID="mesh-id", EndpointID=key, SandboxKey=f"/x/{key}", **more
        )
        row["State"] = "running"
        return str(got["Address"])

    async def create(self, key: str, face: dict[str, str]) -> dict[str, Any]:
        return await self.docker.call("NetworkDriver.CreateEndpoint", NetworkID="mesh-id", EndpointID=key, Interface=face, Options=None)

    async def end(self, name: str, mac: str, address: str) -> None:
        """What dockerd calls when the container stops."""
        ids = {"NetworkID": "mesh-id", "EndpointID": f"ep{mac.replace(':', '')}"}
        for call in ("RevokeExternalConnectivity", "Leave", "DeleteEndpoint"):
            assert await self.docker.call(f"NetworkDriver.{call}", **ids) == {}
        assert await self.docker.call("IpamDriver.ReleaseAddress", PoolID=MESH, Address=address.partition("/")[0]) == {}
        next(r for r in self.engine.containers if r["Names"] == [f"/{name}"])["State"] = "exited"


@pytest.fixture
async def s(tmp_path: Path) -> AsyncIterator[Setup]:
    ops, fake, state = FakeOperations(), FakeEngine(tmp_path / "docker.sock"), memory_state()
    await ops.ensure_network(NetworkRequest("default", IPv4Network("10.28.0.0/16")))
    await ops.ensure_network(NetworkRequest("mesh", IPv4Network("10.29.0.0/16")))
    fake.add_network("mesh", "10.29.0.0/16", Options={"plait.net": "mesh"})
    await fake.start()
    engine = DockerEngine(fake.path, quick_s=0.2)
    networks = DockerNetworks(ops, state, engine, Conditions(), "default", lambda: True)
    await networks.sync()
    ops.calls.clear()
    plugin = DockerPlugin(ops, engine, networks, known := KnownContainers(state))
    path = tmp_path / "plugins" / "plait.sock"
    await plugin.start(path)
    async with dockerd(path) as docker:
        yield Setup(ops, fake, plugin, networks, docker, path, known)
    await plugin.close()
    await engine.close()
    await fake.stop()


# --- the protocol itself


async def test_handshake_and_capabilities(s: Setup) -> None:
    assert await s.docker.call("Plugin.Activate") == {"Implements": ["NetworkDriver", "IpamDriver"]}
    assert await s.docker.call("NetworkDriver.GetCapabilities") == {
        "Scope": "local",
        "ConnectivityScope": "global",
        "GwAllocChecker": True,
    }
    assert (await s.docker.call("IpamDriver.GetCapabilities"))["RequiresMACAddress"] is True
    assert (await s.docker.call("IpamDriver.GetDefaultAddressSpaces"))["LocalDefaultAddressSpace"] == "plait-local"


async def test_body_with_and_without_length_and_the_content_type(s: Setup) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"NetworkID": "n",'
        yield b'"EndpointID": "e"}'

    for body in (b"", chunks()):
        name = "Plugin.Activate" if body == b"" else "NetworkDriver.EndpointOperInfo"
        async with s.docker.session.post(f"http://plugin/{name}", data=body) as answer:
            assert (answer.status, answer.headers["Content-Type"]) == (200, CONTENT_TYPE)


async def test_what_is_not_a_call_is_404_and_other_methods_405(s: Setup) -> None:
    for name in ("NetworkDriver.AllocateNetwork", "x", ""):
        assert (await s.docker.post(name, b"{}"))[0] == 404
    async with s.docker.session.get("http://plugin/Plugin.Activate") as answer:
        assert answer.status == 405


async def test_refusals_use_the_key_of_their_driver(s: Setup) -> None:
    assert "PoolID" in (await s.docker.call("IpamDriver.RequestAddress", PoolID="other"))["Error"]
    assert "is no request" in (await s.docker.call("NetworkDriver.Join", NetworkID=5))["Err"]


async def test_a_repeated_call_that_lost_its_body_is_explained(s: Setup) -> None:
    """Docker 20.10 does so after the connection broke in the middle of a call (seen)."""
    status, answer = await s.docker.post("NetworkDriver.Join", b"")
    assert status == 200
    assert "repeated NetworkDriver.Join without saying for what" in json.loads(answer)["Err"]


async def test_an_unexpected_failure_is_an_answer_not_an_end(s: Setup) -> None:
    s.ops.fail("detach", RuntimeError("boom"))  # type: ignore[arg-type]
    answer = await s.docker.call("NetworkDriver.Leave", NetworkID="n", EndpointID="e")
    assert "failed inside the agent" in answer["Err"]
    assert "boom" not in answer["Err"]
    assert await s.docker.call("NetworkDriver.Leave", NetworkID="n", EndpointID="e") == {}


async def test_a_call_that_takes_too_long_is_answered(s: Setup, tmp_path: Path) -> None:
    async def for_ever(*_: object) -> None:
        await asyncio.sleep(30)

    ops = FakeOperations(plumb=for_ever)
    await ops.ensure_network(NetworkRequest("mesh", IPv4Network("10.29.0.0/16")))
    plugin = DockerPlugin(ops, s.plugin.driver._engine, s.networks, KnownContainers(memory_state()), call_s=0.1)
    await plugin.start(tmp_path / "slow.sock")
    async with dockerd(tmp_path / "slow.sock") as docker:
        ids = {"NetworkID": "mesh-id", "EndpointID": "e1"}
        await docker.call("NetworkDriver.CreateEndpoint", **ids, Interface={"Address": "10.29.0.2/16"})
        assert "Join was not done within 0.1 s" in (await docker.call("NetworkDriver.Join", **ids))["Err"]
    await plugin.close()


async def test_a_body_that_is_too_long_is_refused(s: Setup) -> None:
    async with s.docker.session.post("http://plugin/NetworkDriver.Join", data=io.BytesIO(b"x" * (1 << 20 | 1))) as answer:
        assert answer.status == 413
        assert "1048576 bytes" in json.loads(await answer.read())["Err"]


async def test_the_socket_is_roots_alone_and_goes_with_the_plugin(s: Setup) -> None:
    assert stat.S_IMODE(s.path.stat().st_mode) == 0o600
    await s.plugin.close()
    assert not s.path.exists()
    await s.plugin.close()


async def test_a_left_over_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "p.sock"
    listen(path).close()
    fresh = listen(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    fresh.close()
    with pytest.raises(PlaitError, match="cannot listen on"):
        listen(Path("/proc/nowhere/p.sock"))


def test_the_inherited_socket_is_found_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "p.sock"
    env = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    assert inherited_socket(path, {}, os.getpid()) is None
    assert inherited_socket(path, env | {"LISTEN_PID": "1"}, os.getpid()) is None
    ours, saved = socket.socket(socket.AF_UNIX), os.dup(3)
    try:
        ours.bind(str(path))
        os.dup2(ours.fileno(), 3)
        found = inherited_socket(path, env, os.getpid())
        assert found is not None and found.getsockname() == str(path)
        found.detach()
        assert inherited_socket(tmp_path / "other", env, os.getpid()) is None
    finally:
        os.dup2(saved, 3)
        os.close(saved)
        ours.close()


# --- networks


def creation(pool: str = "10.31.0.0/16", space: str = "plait-local", **options: Any) -> dict[str, Any]:
    data = {"AddressSpace": space, "Pool": pool, "Gateway": "", "AuxAddresses": {}}
    return {"NetworkID": "new-id", "Options": {"com.docker.network.generic": options}, "IPv4Data": [data], "IPv6Data": []}


async def test_an_option_names_the_network_of_the_cluster(s: Setup) -> None:
    assert await s.docker.call("NetworkDriver.CreateNetwork", **creation(**{"plait.net": "blue"})) == {}
    assert s.ops.networks()["blue"].subnet == IPv4Network("10.31.0.0/16")
    assert s.networks.known("new-id") == "blue"
    answer = await s.docker.call("NetworkDriver.CreateNetwork", **creation("10.32.0.0/16", **{"plait.net": "mesh"}))
    assert "--subnet 10.29.0.0/16" in answer["Err"]


@pytest.mark.parametrize("where", ["before it is remembered", "while the engine is asked for its list"])
async def test_a_pass_meanwhile_makes_no_second_network_in_the_engine(s: Setup, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """The engine lists it only after the call."""
    ensure, listing = s.ops.ensure_network, s.networks._engine.networks
    created = asyncio.Event()

    async def ensured(request: NetworkRequest) -> Network:
        made = await ensure(request)
        await s.networks.sync()
        return made

    async def listed() -> list[EngineNetwork]:
        found = await listing()
        await created.wait()
        return found

    if where == "before it is remembered":
        monkeypatch.setattr(s.ops, "ensure_network", ensured)
        await s.docker.call("NetworkDriver.CreateNetwork", **creation(**{"plait.net": "blue"}))
    else:
        monkeypatch.setattr(s.networks._engine, "networks", listed)
        sync = asyncio.create_task(s.networks.sync())
        await asyncio.sleep(0)
        await s.docker.call("NetworkDriver.CreateNetwork", **creation(**{"plait.net": "blue"}))
        created.set()
        await sync
    assert "blue" in s.ops.networks() and [row["Name"] for row in s.engine.networks.values()] == ["mesh"]


async def test_without_it_the_name_is_learnt_later(s: Setup) -> None:
    body = creation()
    body["IPv4Data"][0]["AuxAddresses"] = {"r": "10.31.0.2"}
    assert await s.docker.call("NetworkDriver.CreateNetwork", **body) == {}
    assert "ensure_network" not in s.ops.calls
    s.engine.add_network("blue", "10.31.0.0/16", config={"AuxiliaryAddresses": {"r": "10.31.0.2"}}, Id="new-id")
    got = await s.docker.call("IpamDriver.RequestAddress", PoolID="plait:10.31.0.0/16", Address="", Options={MAC: "02:00:00:00:00:01"})
    assert got["Address"] == "10.31.0.3/32"
    assert s.ops.networks()["blue"].labels == {ORIGIN_LABEL: "docker"}
    assert [str(part) for part in s.ops.networks()["blue"].excluded] == ["10.31.0.2"]
    again = await s.docker.call("IpamDriver.RequestAddress", PoolID="plait:10.31.0.0/16", Address="10.31.0.2", Options=None)
    assert again["Address"] == "10.31.0.2/32" and not [a for a in s.ops.reserved["blue"] if a == A("10.31.0.2")]


async def test_a_pool_over_what_a_host_uses_is_refused_unless_forced_and_never_chosen(s: Setup) -> None:
    s.ops.used += [IPv4Network("10.31.0.0/16"), IPv4Network("10.30.0.0/15")]
    assert "overlaps what a host uses" in (await s.docker.call("NetworkDriver.CreateNetwork", **creation()))["Err"]
    assert await s.docker.call("NetworkDriver.CreateNetwork", **creation(**{"plait.force": "true"})) == {}
    got = await s.docker.call("IpamDriver.RequestPool", AddressSpace="plait-local", Pool="", SubPool="", Options=None, V6=False)
    assert got["Pool"] == "10.32.0.0/16"


async def _asks_for(s: Setup, address: str, mac: str) -> dict[str, Any]:
    return await s.docker.call("IpamDriver.RequestAddress", PoolID=MESH, Address=address, Options={MAC: mac})


async def test_what_is_kept_for_a_container_it_gets_by_ip_too(s: Setup) -> None:
    s.ops.kept[A("10.29.0.50")] = "db"
    for name in ("db", "web"):
        row = s.engine.add_container(name, "running")
        row["NetworkSettings"]["Networks"]["mesh"]["IPAMConfig"] = {"IPv4Address": "10.29.0.50"}
    s.engine.containers[1]["State"] = "created"
    assert "reserved for 'db'" in (await _asks_for(s, "10.29.0.50", "02:00:00:00:00:01"))["Error"]
    s.engine.containers[0]["State"] = "created"
    assert "reserved for 'db'" in (await _asks_for(s, "10.29.0.50", "02:00:00:00:00:02"))["Error"], "it may be either"
    s.engine.locked.add("db-id")  # it is being started
    assert (await _asks_for(s, "10.29.0.50", "02:00:00:00:00:03"))["Address"] == "10.29.0.50/32"


async def test_what_is_kept_for_somebody_waits_for_an_engine_that_starts(s: Setup) -> None:
    s.ops.kept[A("10.29.0.50")] = "db"
    s.engine.silent = True
    assert WHY_DEFERRED in (await _asks_for(s, "10.29.0.50", "02:00:00:00:00:01"))["Error"]
    assert (await _asks_for(s, "10.29.0.51", "02:00:00:00:00:02"))["Address"] == "10.29.0.51/32", "nobody has to know for whom"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (creation(space="LocalDefault"), "add --ipam-driver plait"),
        (creation(space="null"), "add --ipam-driver plait"),
        (creation() | {"IPv4Data": None}, "add --ipam-driver plait"),
        (creation(mtu="9000"), "plait.backend, plait.force, plait.net"),
        (creation() | {"IPv6Data": [{"Pool": "fd00::/64"}]}, "would give the same address on two hosts"),
        (creation() | {"IPv6Data": [SIX | {"Pool": "fd00::/80"}]}, "is too small for a network"),
        (creation() | {"IPv6Data": [SIX | {"Gateway": "fd00:40::5"}]}, "goes with 10.31.0.5, which a container may get"),
        (creation() | {"IPv6Data": [SIX | {"Gateway": "10.0.0.1"}]}, "is no IPv6 address"),
        (creation() | {"IPv6Data": [SIX, SIX]}, "one --subnet of each family"),
        (creation(model="overlay", backend="none"), "cannot promise what overlay does"),
        (creation(model="mesh"), "use one of sandbox, overlay, hybrid"),
        (creation("10.29.128.0/17"), "overlaps 10.29.0.0/16 of network 'mesh'"),
        (creation("8.8.0.0/16"), "not a private"),
        (creation("10.31.0.1/16"), "host bits"),
        (creation() | {"IPv4Data": creation()["IPv4Data"] * 2}, "one --subnet"),
        (creation() | {"Options": {"com.docker.network.generic": [1]}}, "mapping of texts"),
    ],
)
async def test_networks_that_cannot_be(s: Setup, body: dict[str, Any], words: str) -> None:
    assert words in (await s.docker.call("NetworkDriver.CreateNetwork", **body))["Err"]
    assert set(s.ops.networks()) == {"default", "mesh"}
    assert s.networks.known("new-id") == ""


async def test_a_store_out_of_reach_is_said(s: Setup) -> None:
    s.ops.fail("ensure_network", StoreUnavailable("the store cannot be reached"))
    answer = await s.docker.call("NetworkDriver.CreateNetwork", **creation(**{"plait.net": "blue"}))
    assert answer["Err"] == "plait: the store cannot be reached"


async def test_only_what_an_engine_made_leaves_the_cluster_through_one(s: Setup) -> None:
    await s.docker.call("NetworkDriver.CreateNetwork", **creation(**{"plait.net": "blue"}))
    for network in ("new-id", "mesh-id", "never-heard-of"):
        assert await s.docker.call("NetworkDriver.DeleteNetwork", NetworkID=network) == {}
    assert set(s.ops.networks()) == {"default", "mesh"}


async def test_a_removal_that_failed_can_be_repeated(s: Setup) -> None:
    await s.docker.call("NetworkDriver.CreateNetwork", **creation(**{"plait.net": "blue"}))
    s.ops.fail("remove_network", StoreUnavailable("the store cannot be reached"))
    assert "cannot be reached" in (await s.docker.call("NetworkDriver.DeleteNetwork", NetworkID="new-id"))["Err"]
    assert await s.docker.call("NetworkDriver.DeleteNetwork", NetworkID="new-id") == {}
    assert "blue" not in s.ops.networks()


async def test_a_network_in_use_elsewhere_stays(s: Setup) -> None:
    await s.docker.call("NetworkDriver.CreateNetwork", **creation("10.31.0.0/16", **{"plait.net": "blue"}))
    await s.ops.attach(AttachRequest("other", "blue", "sandbox", "c", "n"))
    assert await s.docker.call("NetworkDriver.DeleteNetwork", NetworkID="new-id") == {}
    assert "blue" in s.ops.networks()


# --- pools and addresses


async def test_empty_pools_differ_until_they_are_given_back(s: Setup) -> None:
    async def ask(**more: Any) -> dict[str, Any]:
        return await s.docker.call("IpamDriver.RequestPool", AddressSpace="plait-local", Pool="", SubPool="", V6=False, **more)

    got = [(await ask(Options=None))["Pool"] for _ in range(3)]
    assert got == ["10.30.0.0/16", "10.31.0.0/16", "10.32.0.0/16"]
    await s.docker.call("IpamDriver.ReleasePool", PoolID="plait:10.31.0.0/16")
    assert (await ask(Options={}))["Pool"] == "10.31.0.0/16"
    assert (await ask(Options={"plait.net": "mesh"}))["Pool"] == "10.29.0.0/16"
    for _ in range(300):
        answer = await ask(Options=None)
        if "Error" in answer:
            assert "--subnet" in answer["Error"]
            return
    pytest.fail("the pools never end")


async def test_named_pools_and_their_ids_are_stable(s: Setup) -> None:
    async def ask(**body: Any) -> dict[str, Any]:
        return await s.docker.call("IpamDriver.RequestPool", **({"AddressSpace": "plait-local", "SubPool": "", "V6": False} | body))

    first = await ask(Pool="10.40.0.0/24")
    assert first == await ask(Pool="10.40.0.0/24") == {"PoolID": "plait:10.40.0.0/24", "Pool": "10.40.0.0/24", "Data": {}}
    assert (await ask(Pool="10.40.0.0/24", SubPool="10.40.0.64/26"))["PoolID"] == "plait:10.40.0.0/24,10.40.0.64/26"
    assert "no part of" in (await ask(Pool="10.40.0.0/24", SubPool="10.41.0.0/26"))["Error"]
    assert "needs the --subnet" in (await ask(Pool="", SubPool="10.41.0.0/26"))["Error"]
    assert (await ask(Pool="fd00:40::/64", V6=True))["PoolID"] == "plait:fd00:40::/64"
    drawn = [(await ask(Pool="", V6=True))["Pool"] for _ in range(2)]
    assert all(IPv6Network(pool).subnet_of(IPv6Network("fd00::/8")) for pool in drawn) and drawn[0] != drawn[1]
    assert "give the range in IPv4" in (await ask(Pool="fd00:40::/64", SubPool="fd00:40::/96", V6=True))["Error"]
    assert "is no IPv6 network" in (await ask(Pool="10.0.0.0/8", V6=True))["Error"]
    assert "Swarm" in (await ask(Pool="", AddressSpace="plait-global"))["Error"]


async def test_the_gateway_is_the_networks(s: Setup) -> None:
    async def ask(pool: str, address: str = "") -> dict[str, Any]:
        return await s.docker.call("IpamDriver.RequestAddress", PoolID=pool, Address=address, Options=GATEWAY)

    assert (await ask(MESH))["Address"] == (await ask(MESH, "10.29.0.1"))["Address"] == "10.29.0.1/16"
    assert "--gateway 10.29.0.1" in (await ask(MESH, "10.29.0.9"))["Error"]
    assert (await ask("plait:10.60.0.0/24"))["Address"] == "10.60.0.1/24"
    assert (await ask("plait:10.60.0.0/24", "10.60.0.254"))["Address"] == "10.60.0.254/24"
    assert s.ops.held("") == {}
    assert await s.docker.call("IpamDriver.ReleaseAddress", PoolID=MESH, Address="10.29.0.1") == {}


async def test_the_same_mac_gets_the_same_address_and_a_given_one_is_checked(s: Setup) -> None:
    async def ask(mac: str, address: str = "") -> dict[str, Any]:
        return await s.docker.call("IpamDriver.RequestAddress", PoolID=MESH, Address=address, Options={MAC: mac})

    assert (await ask("02:00:00:00:00:01"))["Address"] == (await ask("02:00:00:00:00:01"))["Address"] == "10.29.0.2/32"
    assert (await ask("02:00:00:00:00:02", "10.29.7.7"))["Address"] == "10.29.7.7/32"
    assert "in use" in (await ask("02:00:00:00:00:03", "10.29.7.7"))["Error"]
    assert "PoolID" in (await s.docker.call("IpamDriver.RequestAddress", PoolID="pool:10.29.0.0/16"))["Error"]
    assert "MAC" in (await s.docker.call("IpamDriver.RequestAddress", PoolID=MESH, Options=None))["Error"]


async def test_a_range_hands_out_only_what_lies_in_it(s: Setup) -> None:
    body = {"AddressSpace": "plait-local", "Pool": "10.31.0.0/16", "SubPool": "10.31.4.0/30", "V6": False}
    pool = (await s.docker.call("IpamDriver.RequestPool", **body))["PoolID"]
    assert await s.docker.call("NetworkDriver.CreateNetwork", **creation(**{"plait.net": "blue"})) == {}
    assert s.ops.networks()["blue"].ip_range == IPv4Network("10.31.4.0/30")
    got = []
    for number in range(5):
        options = {MAC: f"02:00:00:00:00:{number:02x}"}
        # Another host's engine, or one that was told before, may know the pool without its range.
        got.append(await s.docker.call("IpamDriver.RequestAddress", PoolID=pool.partition(",")[0], Address="", Options=options))
    assert [g.get("Address") for g in got] == ["10.31.4.0/32", "10.31.4.1/32", "10.31.4.2/32", "10.31.4.3/32", None]
    assert "pool 10.31.4.0/30 of network 'blue' is exhausted" in got[4]["Error"]
    wanted = await s.docker.call("IpamDriver.RequestAddress", PoolID=pool, Address="10.31.200.7", Options={MAC: "02:00:00:00:00:07"})
    assert wanted["Address"] == "10.31.200.7/32", "asked for by itself, an address may lie outside"


async def test_a_network_that_is_there_does_not_change_its_range(s: Setup) -> None:
    body = {"AddressSpace": "plait-local", "Pool": "10.29.0.0/16", "V6": False}
    await s.docker.call("IpamDriver.RequestPool", **body, SubPool="10.29.4.0/24")
    answer = await s.docker.call("NetworkDriver.CreateNetwork", **creation("10.29.0.0/16", **{"plait.net": "mesh"}))
    assert "IP range None, not 10.29.4.0/24" in answer["Err"]
    await s.docker.call("IpamDriver.RequestPool", **body, SubPool="")
    assert await s.docker.call("NetworkDriver.CreateNetwork", **creation("10.29.0.0/16", **{"plait.net": "mesh"})) == {}


async def test_a_restarted_dockerd_gets_the_same_answers_without_a_mac(s: Setup) -> None:
    address = await s.endpoint("web", "02:00:00:00:00:01")
    before = s.ops.held("")
    for wanted, options in (("10.29.0.1/16", GATEWAY), (address, None)):
        for _ in range(2):
            asked = wanted.partition("/")[0]
            again = await s.docker.call("IpamDriver.RequestAddress", PoolID=MESH, Address=asked, Options=options)
            assert again == {"Address": wanted, "Data": {}}
    assert s.ops.held("") == before


# --- endpoints


async def test_join_plumbs_with_everything_that_the_engine_knows(s: Setup) -> None:
    s.engine.add_container("web", "created", Labels={"app": "shop"})
    address = await s.endpoint("web", "02:00:00:00:00:01")
    (endpoint,) = s.ops.attached.values()
    assert (endpoint.name, endpoint.container, endpoint.labels) == ("web", "web-id", {"app": "shop"})
    assert (f"{endpoint.address}/32", endpoint.mac, endpoint.runtime) == (address, "02:00:00:00:00:01", "docker")
    assert not [asked for asked in s.engine.asked if asked.endswith("web-id/json")], "an inspection inside Join waits for itself"


async def test_limits_are_asked_for_by_options_of_the_driver(s: Setup) -> None:
    ids = {"NetworkID": "mesh-id", "EndpointID": "ep1"}
    face = {"Address": "10.29.0.9/32", "AddressIPv6": "", "MacAddress": "02:00:00:00:00:09"}
    refused = await s.docker.call("NetworkDriver.CreateEndpoint", **ids, Interface=face, Options={"plait.limit.in": "fast"})
    assert "plait.limit.in: 'fast' is no rate; write 512kbit" in refused["Err"]
    options = {"plait.limit.in": "10M", "plait.limit.manner": "drop", "com.docker.network.portmap": []}
    assert await s.docker.call("NetworkDriver.CreateEndpoint", **ids, Interface=face, Options=options) == {"Interface": {}}
    await s.docker.call("NetworkDriver.Join", **ids, SandboxKey="/x", Options=None)
    (endpoint,) = s.ops.attached.values()
    assert endpoint.limits == Limits(Limit(10_000_000, drop=True))


async def test_join_answers_link_and_gateway(s: Setup) -> None:
    await s.endpoint("web", "02:00:00:00:00:01")
    again = await s.docker.call("NetworkDriver.Join", NetworkID="mesh-id", EndpointID="ep020000000001", SandboxKey="/x", Options=None)
    name = peer_name(device_name("ep020000000001"))
    on_link = {"Destination": "10.29.0.1/32", "RouteType": 1}
    behind = {"Destination": "10.29.0.0/16", "RouteType": 0, "NextHop": "10.29.0.1"}
    assert again == {
        "InterfaceName": {"SrcName": name, "DstPrefix": "eth"},
        "StaticRoutes": [on_link, behind],
        "Gateway": "10.29.0.1",
    }
    assert len(name) <= 15


@pytest.mark.parametrize("internal", [False, True])
async def test_a_network_with_a_bridge_has_neighbours_and_nobody_behind_the_gateway(s: Setup, internal: bool) -> None:
    subnet = IPv4Network("10.31.0.0/16")
    await s.ops.ensure_network(NetworkRequest("here", subnet, internal=internal, options={"model": "sandbox"}))
    s.engine.add_network("here", str(subnet), Internal=internal)
    got = await s.docker.call("IpamDriver.RequestAddress", PoolID=f"plait:{subnet}", Address="", Options={MAC: "02:00:00:00:00:01"})
    assert got["Address"] == "10.31.0.2/16"
    face = {"Address": got["Address"], "MacAddress": "02:00:00:00:00:01"}
    await s.docker.call("NetworkDriver.CreateEndpoint", NetworkID="here-id", EndpointID="e", Interface=face)
    answer = await s.docker.call("NetworkDriver.Join", NetworkID="here-id", EndpointID="e", SandboxKey="/x")
    assert answer.pop("InterfaceName")
    assert answer == {"StaticRoutes": [], **({"DisableGatewayService": True} if internal else {"Gateway": "10.31.0.1"})}
    again = await s.docker.call("IpamDriver.RequestAddress", PoolID=f"plait:{subnet}", Address="10.31.0.2", Options=None)
    assert again["Address"] == "10.31.0.2/16", "a restarted dockerd gets the same"


@pytest.mark.parametrize("mode", ["l2", "l3", "", "given"])
async def test_on_a_link_of_the_host_the_engine_takes_the_containers_own_link(s: Setup, mode: str) -> None:
    """`mode` is that of ipvlan, else it is macvlan, and the engine has given the MAC."""
    options = {"backend": "ipvlan", "mode": mode} if mode.startswith("l") else {"backend": "macvlan"}
    gateway, subnet, mac = A("192.168.7.254"), IPv4Network("192.168.7.0/24"), "02:00:00:00:00:01"
    await s.ops.ensure_network(NetworkRequest("lan", subnet, gateway, options={"parent": "eth1", **options}))
    s.engine.add_network("lan", str(subnet))
    ids = {"NetworkID": "lan-id", "EndpointID": "e"}
    face = {"Address": "192.168.7.2/24", **({"MacAddress": mac} if mode == "given" else {})}
    created = await s.docker.call("NetworkDriver.CreateEndpoint", **ids, Interface=face)
    assert ("MacAddress" in created["Interface"]) == (mode == ""), "ipvlan has its parent's MAC"
    answer = await s.docker.call("NetworkDriver.Join", **ids, SandboxKey="/x")
    assert answer.pop("InterfaceName") == {"SrcName": device_name("e"), "DstPrefix": "eth"}
    on_link = {"DisableGatewayService": True, "StaticRoutes": [{"Destination": "0.0.0.0/0", "RouteType": 1}]}
    assert answer == (on_link if mode == "l3" else {"Gateway": str(gateway), "StaticRoutes": []})
    if mode.startswith("l"):
        assert s.ops.attached["e"].mac == "", "there is none to ask for"
        answer = await s.docker.call("NetworkDriver.CreateEndpoint", **ids, Interface={**face, "MacAddress": mac})
        assert "have the MAC of their link: leave out --mac-address" in answer["Err"]


@pytest.mark.parametrize("options", [{"backend": "macvlan"}, {"backend": "ipvlan", "mode": "l3"}], ids=["macvlan", "l3"])
async def test_ipv6_on_a_link_of_the_host_has_its_prefix_and_the_routers_way(s: Setup, options: dict[str, str]) -> None:
    subnet, subnet6 = IPv4Network("192.168.7.0/24"), IPv6Network("fd00:7::/64")
    given = NetworkRequest("lan", subnet, A("192.168.7.254"), options={"parent": "eth1", **options}, subnet6=subnet6)
    await s.ops.ensure_network(replace(given, gateway6=IPv6Address("fe80::1")))
    s.engine.add_network("lan", str(subnet))
    mac = {MAC: "02:00:00:00:00:01"}
    four = await s.docker.call("IpamDriver.RequestAddress", PoolID=f"plait:{subnet}", Address="", Options=mac)
    six = await s.docker.call("IpamDriver.RequestAddress", PoolID=f"plait:{subnet6}", Address="", Options=mac)
    assert six["Address"] == "fd00:7::1/64"
    assert (await s.docker.call("IpamDriver.RequestAddress", PoolID=f"plait:{subnet6}", Options=GATEWAY))["Address"] == "fe80::1/64"
    face = {"Address": four["Address"], "AddressIPv6": six["Address"]}
    ids = {"NetworkID": "lan-id", "EndpointID": "e"}
    await s.docker.call("NetworkDriver.CreateEndpoint", **ids, Interface=face)
    answer = await s.docker.call("NetworkDriver.Join", **ids, SandboxKey="/x")
    assert answer.pop("InterfaceName")
    straight = [{"Destination": "0.0.0.0/0", "RouteType": 1}, {"Destination": "::/0", "RouteType": 1}]
    routed = {"Gateway": "192.168.7.254", "GatewayIPv6": "fe80::1", "StaticRoutes": []}
    assert answer == (routed if options["backend"] == "macvlan" else {"DisableGatewayService": True, "StaticRoutes": straight})
    pools = in_engine(s.ops.networks()["lan"])["IPAM"]["Config"]
    assert pools[1] == {"Subnet": "fd00:7::/64"}, "an engine takes no gateway of another subnet"


async def test_the_ipv6_gateway_that_an_engine_always_names_is_nothing_where_a_server_gives_the_addresses(s: Setup) -> None:
    options = {"plait.net": "leased", "backend": "macvlan", "parent": "eth1", "ipam": "dhcp"}
    body = creation("10.40.0.0/16", **options) | {"IPv6Data": [SIX | {"Gateway": "fd00:40::9/64"}]}
    assert await s.docker.call("NetworkDriver.CreateNetwork", **body) == {}
    made = s.ops.networks()["leased"]
    assert (made.subnet6, made.gateway6) == (IPv6Network("fd00:40::/64"), IPv6Address("fd00:40::1")), "as if it had not been named"


async def test_a_network_on_the_hosts_own_link_may_be_what_the_host_uses(s: Setup) -> None:
    subnet = IPv4Network("192.168.7.0/24")
    s.ops.used.append(subnet)
    pool = [{"AddressSpace": "plait-local", "Pool": str(subnet), "Gateway": "192.168.7.254/24", "AuxAddresses": {}}]
    generic = {"com.docker.network.generic": {"backend": "macvlan", "parent": "eth1"}}
    ids = {"NetworkID": "n" * 64, "IPv4Data": pool, "IPv6Data": []}
    assert "overlaps what a host uses" in (await s.docker.call("NetworkDriver.CreateNetwork", **ids, Options={}))["Err"]
    assert await s.docker.call("NetworkDriver.CreateNetwork", **ids, Options=generic) == {}
    generic["com.docker.network.generic"].pop("parent")
    assert "is no link of a host" in (await s.docker.call("NetworkDriver.CreateNetwork", **ids, Options=generic))["Err"]


async def test_on_a_network_of_layer_2_both_families_are_on_the_link(s: Setup) -> None:
    subnet, subnet6 = IPv4Network("10.31.0.0/16"), IPv6Network("fd00:31::/64")
    options = {"layer2": "true"}
    await s.ops.ensure_network(NetworkRequest("flat", subnet, options=options, subnet6=subnet6))
    s.engine.add_network("flat", str(subnet))
    face = {"MacAddress": "02:00:00:00:00:01"}
    for key, pool, asked in (("Address", subnet, "10.31.0.2"), ("AddressIPv6", subnet6, "fd00:31::2")):
        got = await s.docker.call("IpamDriver.RequestAddress", PoolID=f"plait:{pool}", Address=asked, Options={MAC: face["MacAddress"]})
        assert got["Address"] == f"{asked}/{pool.prefixlen}"
        face[key] = got["Address"]
    assert await s.docker.call("NetworkDriver.CreateEndpoint", NetworkID="flat-id", EndpointID="e", Interface=face) == {"Interface": {}}
    answer = await s.docker.call("NetworkDriver.Join", NetworkID="flat-id", EndpointID="e", SandboxKey="/x")
    assert (answer["StaticRoutes"], answer["Gateway"], answer["GatewayIPv6"]) == ([], "10.31.0.1", "fd00:31::1")


async def test_an_internal_network_has_no_gateway_and_wants_no_other_nic(s: Setup) -> None:
    await s.ops.ensure_network(NetworkRequest("inner", IPv4Network("10.30.0.0/16"), internal=True))
    s.engine.add_network("inner", "10.30.0.0/16", Internal=True)
    await s.docker.call("NetworkDriver.CreateEndpoint", NetworkID="inner-id", EndpointID="e", Interface={"Address": "10.30.0.2/16"})
    answer = await s.docker.call("NetworkDriver.Join", NetworkID="inner-id", EndpointID="e", SandboxKey="/x")
    assert answer["DisableGatewayService"] is True
    assert "Gateway" not in answer
    assert "10.30.0.0/16" in [route["Destination"] for route in answer["StaticRoutes"]]


async def test_only_a_missing_mac_is_answered(s: Setup) -> None:
    answer = await s.create("e1", {"Address": "10.29.0.9/16"})
    assert answer["Interface"].keys() == {"MacAddress"}
    assert "no address" in (await s.create("e2", {"Address": ""}))["Err"]


async def test_an_engine_that_is_silent_does_not_hold_up_a_start(s: Setup) -> None:
    s.engine.silent = True
    got = await s.docker.call("IpamDriver.RequestAddress", PoolID=MESH, Address="", Options={MAC: "02:00:00:00:00:01"})
    await s.create("e1", {"Address": got["Address"], "MacAddress": "02:00:00:00:00:01"})
    assert "Gateway" in await s.docker.call("NetworkDriver.Join", NetworkID="mesh-id", EndpointID="e1", SandboxKey="/x")
    assert s.ops.attached["e1"].name == ""
    assert len(s.engine.asked) <= 4, "after the first silence the others are not waited for"


async def test_an_agent_restarted_between_create_and_join_asks_the_engine(s: Setup) -> None:
    s.engine.networks["mesh-id"]["Containers"]["ep-e1"] = {
        "Name": "web",
        "EndpointID": "e1",
        "MacAddress": "02:00:00:00:00:01",
        "IPv4Address": "10.29.0.2/16",
    }
    assert "Err" not in await s.docker.call("NetworkDriver.Join", NetworkID="mesh-id", EndpointID="e1", SandboxKey="/x")
    assert (s.ops.attached["e1"].address, s.ops.attached["e1"].mac) == (A("10.29.0.2"), "02:00:00:00:00:01")
    assert "start the container again" in (await s.docker.call("NetworkDriver.Join", NetworkID="mesh-id", EndpointID="e9"))["Err"]


async def test_a_kernel_that_refuses_is_told_to_the_user(s: Setup) -> None:
    s.ops.fail("attach", KernelError("put", ("link", "pl-e1"), 1))
    await s.create("e1", {"Address": "10.29.0.9/16"})
    assert "EPERM" in (await s.docker.call("NetworkDriver.Join", NetworkID="mesh-id", EndpointID="e1"))["Err"]


async def test_the_end_is_idempotent_and_leaves_nothing(s: Setup) -> None:
    address = await s.endpoint("web", "02:00:00:00:00:01")
    for _ in range(2):
        await s.end("web", "02:00:00:00:00:01", address)
    assert s.ops.attached == {}
    assert s.ops.held("") == {}


async def test_a_late_release_does_not_take_the_next_owners_address(s: Setup) -> None:
    address = await s.endpoint("web", "02:00:00:00:00:01")
    ids = {"NetworkID": "mesh-id", "EndpointID": "ep020000000001"}
    await s.docker.call("NetworkDriver.Leave", **ids)
    await s.docker.call("NetworkDriver.DeleteEndpoint", **ids)
    bare = address.partition("/")[0]
    await s.docker.call("IpamDriver.RequestAddress", PoolID=MESH, Address=bare, Options={MAC: "02:00:00:00:00:02"})
    await s.docker.call("IpamDriver.ReleaseAddress", PoolID=MESH, Address=bare)
    assert s.ops.held("") == {("mesh", A(bare)): "docker:02:00:00:00:00:02"}


async def test_a_start_that_failed_gives_its_address_back(s: Setup) -> None:
    got = await s.docker.call("IpamDriver.RequestAddress", PoolID=MESH, Address="", Options={MAC: "02:00:00:00:00:01"})
    await s.docker.call("IpamDriver.ReleaseAddress", PoolID=MESH, Address=got["Address"].partition("/")[0])
    assert s.ops.held("") == {}


# --- addresses stick to names


async def test_a_container_keeps_its_address_over_stop_and_start(s: Setup) -> None:
    names = ["aa", "bb", "cc"]
    first = {n: await s.endpoint(n, f"02:00:00:00:00:0{i}") for i, n in enumerate(names)}
    for i, name in enumerate(names):
        await s.end(name, f"02:00:00:00:00:0{i}", first[name])
    for i, name in enumerate(reversed(names)):
        s.engine.locked = {f"{name}-id"}
        assert await s.endpoint(name, f"02:00:00:00:01:0{i}", "exited") == first[name]


async def test_and_over_removal_and_a_new_container_of_the_same_name(s: Setup) -> None:
    first = await s.endpoint("web", "02:00:00:00:00:01")
    await s.endpoint("db", "02:00:00:00:00:02")
    await s.end("web", "02:00:00:00:00:01", first)
    s.engine.containers = [r for r in s.engine.containers if r["Names"] != ["/web"]]
    await s.endpoint("other", "02:00:00:00:00:03")
    assert await s.endpoint("web", "02:00:00:00:00:04") == first


async def restarted(s: Setup, *names: str, mounted: tuple[str, ...] | None) -> dict[str, str]:
    """Containers `names` ran, their engine ended, and one that answers nothing is starting them, with the root file systems of `mounted`
    mounted (None: its storage driver mounts nothing); their addresses."""
    macs = {name: f"02:00:00:00:00:0{n}" for n, name in enumerate(names)}
    first = {name: await s.endpoint(name, mac) for name, mac in macs.items()}
    await s.known.learn(await s.plugin.driver._engine.containers(), {})
    for name, mac in macs.items():
        await s.end(name, mac, first[name])
    mount(s, mounted)
    s.engine.silent, s.plugin.names.answered = True, 1
    return first


def mount(s: Setup, names: tuple[str, ...] | None) -> None:
    ids = [f"{name}-id" for name in names or ()]
    s.plugin.names.places = lambda pid, asked: None if names is None else {key: n for n, key in enumerate(ids) if key in asked}


async def ask(s: Setup, number: int) -> dict[str, Any]:
    return await s.docker.call("IpamDriver.RequestAddress", PoolID=MESH, Address="", Options={MAC: f"02:00:00:00:01:0{number}"})


async def test_an_engine_that_starts_is_given_what_is_certain(s: Setup) -> None:
    first = await restarted(s, "aa", "bb", "cc", mounted=("bb",))
    assert (await ask(s, 0))["Address"] == first["bb"]
    mount(s, ("aa", "bb"))
    assert (await ask(s, 1))["Address"] == first["aa"], "bb has asked already"
    face = {"Address": first["bb"], "AddressIPv6": "", "MacAddress": "02:00:00:00:01:00"}
    await s.create("new", face)
    await s.docker.call("NetworkDriver.Join", NetworkID="mesh-id", EndpointID="new", SandboxKey="/x")
    assert s.ops.endpoints("docker")["new"].name == "bb", "what is certain is a name in DNS at once"


async def test_and_refused_what_is_not(s: Setup) -> None:
    first = await restarted(s, "aa", "bb", "cc", mounted=("aa", "bb"))
    s.plugin.names.deferred = False
    for n in range(2):
        assert WHY_DEFERRED in (await ask(s, n))["Error"]
    assert s.plugin.names.deferred and s.ops.held("") == {}
    mount(s, ("cc",))
    assert (await ask(s, 2))["Address"] == first["cc"]


async def test_without_mounts_only_one_that_is_left_is_certain(s: Setup) -> None:
    first = await restarted(s, "aa", "bb", mounted=None)
    assert WHY_DEFERRED in (await ask(s, 0))["Error"]
    s.engine.silent = False
    await s.known.learn((await s.plugin.driver._engine.containers())[:1], {})
    s.engine.silent = True
    assert (await ask(s, 1))["Address"] == first["aa"]


async def test_a_new_engine_is_not_asked_for_what_the_old_one_began(s: Setup) -> None:
    first = await restarted(s, "aa", "bb", mounted=("aa",))
    assert (await ask(s, 0))["Address"] == first["aa"]
    s.plugin.names.called_by(1)
    await s.docker.call("IpamDriver.ReleaseAddress", PoolID=MESH, Address=first["aa"].partition("/")[0])
    assert (await ask(s, 1))["Address"] == first["aa"]


async def test_an_engine_that_answers_late_refuses_nobody(s: Setup) -> None:
    await restarted(s, "aa", "bb", mounted=("aa", "bb"))
    s.plugin.names.answered = os.getpid()
    assert "Address" in await ask(s, 0)


async def test_deferred_containers_are_started_one_after_another(s: Setup) -> None:
    names = ("aa", "bb", "cc", "dd")
    rows = [s.engine.add_container(name, "exited") for name in names]
    for name in ("aa", "cc", "dd"):
        s.engine.details[f"{name}-id"] = {"State": {"Error": f"IpamDriver.RequestAddress: plait: Docker is starting 3; {WHY_DEFERRED}"}}
    s.engine.refuse["/containers/aa-id/start"] = (409, "port is already allocated")
    engine = s.plugin.driver._engine
    starts = DeferredStarts(engine, s.plugin.names)
    task = asyncio.create_task(starts.run())
    starts.listed(await engine.containers())
    await until(lambda: s.engine.started == ["cc-id", "dd-id"])
    assert [row["State"] for row in rows] == ["exited", "exited", "running", "running"]
    starts.listed(await engine.containers())
    s.plugin.names.deferred = True
    starts.listed(await engine.containers())
    await until(lambda: s.engine.asked.count("POST /containers/aa-id/start") == 2)
    assert s.engine.started == ["cc-id", "dd-id"], "what runs is not started again"
    task.cancel()


@pytest.mark.parametrize(
    ("state", "policy", "error", "started"),
    [
        ("exited", "always", 'plugin "plait" not found', True),
        ("exited", "unless-stopped", "dial unix /run/docker/plugins/plait.sock: connect: no such file or directory", True),
        ("exited", "on-failure", 'plugin "plait" not found', True),
        ("exited", "no", 'plugin "plait" not found', False),
        ("exited", "", 'plugin "plait" not found', False),
        ("created", "always", 'plugin "plait" not found', False),
        ("exited", "always", 'plugin "other" not found', False),
        ("exited", "always", "", False),
    ],
)
async def test_what_missed_the_agent_at_boot_comes_up_afterwards(s: Setup, state: str, policy: str, error: str, started: bool) -> None:
    """What the engine itself was to start, and nothing that somebody else has to."""
    s.engine.add_container("aa", state)
    s.engine.details["aa-id"] = {"State": {"Error": error}, "HostConfig": {"RestartPolicy": {"Name": policy}}}
    s.engine.add_container("last", "exited")
    s.engine.details["last-id"] = {"State": {"Error": WHY_DEFERRED}}
    engine = s.plugin.driver._engine
    starts = DeferredStarts(engine, s.plugin.names)
    task = asyncio.create_task(starts.run())
    starts.listed(await engine.containers())
    await until(lambda: "last-id" in s.engine.started)
    assert ("aa-id" in s.engine.started) == started
    task.cancel()


async def test_an_engine_that_ends_meanwhile_is_looked_through_again(s: Setup) -> None:
    s.engine.add_container("aa", "exited")
    s.engine.details["aa-id"] = {"State": {"Error": WHY_DEFERRED}}
    engine = DockerEngine(s.engine.path, timeout_s=0.2)
    starts = DeferredStarts(engine, s.plugin.names)
    task = asyncio.create_task(starts.run())
    rows = await engine.containers()
    s.engine.silent = True
    starts.listed(rows)
    await until(lambda: s.plugin.names.deferred)
    s.engine.silent = False
    starts.listed(await engine.containers())
    await until(lambda: s.engine.started == ["aa-id"])
    task.cancel()
    await engine.close()


@pytest.mark.parametrize("silent", [True, False])
async def test_what_starts_together_is_told_apart_by_its_mounts(s: Setup, silent: bool) -> None:
    """The engine asks in the order in which it mounted the root file systems."""
    macs = {name: f"02:00:00:00:00:0{n}" for n, name in enumerate(("aa", "bb", "cc"))}
    first = {name: await s.endpoint(name, mac) for name, mac in macs.items()}
    await s.known.learn(await s.plugin.driver._engine.containers(), {})
    for name, mac in macs.items():
        await s.end(name, mac, first[name])
    s.plugin.names.places = lambda pid, ids: {key: place for key, place in (("aa-id", 9), ("cc-id", 7)) if pid and key in ids}
    s.engine.silent = silent
    for n, name in enumerate(("cc", "aa")):
        got = await s.docker.call("IpamDriver.RequestAddress", PoolID=MESH, Address="", Options={MAC: f"02:00:00:00:01:0{n}"})
        assert got["Address"] == first[name]


async def test_a_wrong_guess_lets_two_swap_their_addresses_and_nobody_else(s: Setup) -> None:
    names = ("aa", "bb", "cc")
    first = {name: await s.endpoint(name, f"02:00:00:00:00:0{n}") for n, name in enumerate(names)}
    for n, name in enumerate(names):
        await s.end(name, f"02:00:00:00:00:0{n}", first[name])
    s.plugin.names.places = lambda pid, ids: {f"{name}-id": n for n, name in enumerate(names) if f"{name}-id" in ids}
    assert await s.endpoint("bb", "02:00:00:00:01:01", "exited") == first["aa"], "aa was mounted first and is guessed"
    for row in s.engine.containers:
        row["State"] = "running" if row["Names"] == ["/bb"] else "exited"
    assert await s.endpoint("aa", "02:00:00:00:01:00", "exited") == first["bb"], "Join has told that it is still to come"
    assert await s.endpoint("cc", "02:00:00:00:01:02", "exited") == first["cc"]


@pytest.mark.parametrize("silent", [True, False])
async def test_who_has_a_chosen_address_is_not_who_asks_for_any(s: Setup, silent: bool) -> None:
    first = {name: await s.endpoint(name, f"02:00:00:00:00:0{n}") for n, name in enumerate(("aa", "bb"))}
    for n, name in enumerate(("aa", "bb")):
        await s.end(name, f"02:00:00:00:00:0{n}", first[name])
    s.engine.containers[0]["NetworkSettings"]["Networks"]["mesh"]["IPAMConfig"] = {"IPv4Address": "10.29.0.2"}
    await s.known.learn(await s.plugin.driver._engine.containers(), {})
    s.plugin.names.places = lambda pid, ids: {key: n for n, key in enumerate(("aa-id", "bb-id")) if key in ids}
    s.engine.silent = silent
    got = await s.docker.call("IpamDriver.RequestAddress", PoolID=MESH, Address="", Options={MAC: "02:00:00:00:01:00"})
    assert got["Address"] == first["bb"]


async def test_a_chosen_mac_names_its_container(s: Setup) -> None:
    mac = "02:42:00:00:00:99"
    first = {"aa": await s.endpoint("aa", "02:00:00:00:00:01"), "bb": await s.endpoint("bb", mac)}
    engine = s.plugin.driver._engine
    s.engine.details["bb-id"] = {"Config": {"MacAddress": mac.upper()}}
    await s.known.learn(await engine.containers(), {"bb-id": await engine.container("bb-id")})
    await s.end("bb", mac, first["bb"])
    await s.end("aa", "02:00:00:00:00:01", first["aa"])
    await s.known.learn(await engine.containers(), {})
    s.plugin.names.places = lambda pid, ids: {"aa-id": 1, "bb-id": 2}
    for s.engine.silent in (True, False):
        got = await s.docker.call("IpamDriver.RequestAddress", PoolID=MESH, Address="", Options={MAC: mac})
        assert got["Address"] == first["bb"]


async def test_what_is_known_of_containers_is_durable_and_forgotten_with_them(s: Setup) -> None:
    s.engine.add_container("aa", "created")
    s.engine.add_container("bb", "running", network="other")
    engine = s.plugin.driver._engine
    await s.known.learn(await engine.containers(), {})
    assert [k.name for k in s.known.on({"mesh-id"})] == [k.name for k in s.known.on({"mesh"})] == ["aa"]
    s.engine.containers.pop(0)
    await s.known.learn(await engine.containers(), {})
    assert s.known.on({"mesh"}) == []


def test_mounted_root_file_systems_are_found_in_their_order(tmp_path: Path) -> None:
    here = tmp_path / "42"
    layers = here / "root/data dir/image/overlay2/layerdb/mounts"
    for container, layer in (("c1", "aaa"), ("c2", "bbb"), ("c3", "ccc")):
        (layers / container).mkdir(parents=True)
        (layers / container / "mount-id").write_text(layer)
    points = [
        "/",
        r"/data\040dir/overlay2/bbb/merged",
        "/proc",
        "/x/merged",
        r"/data\040dir/overlay2/aaa/merged",
        "/data/rootfs/overlayfs/c4",
    ]
    lines = [f"{n} 1 0:5 / {point} rw,relatime - overlay overlay rw" for n, point in enumerate(points)]
    (here / "mountinfo").write_text("\n".join(lines) + "\n")
    places = rootfs_places(42, ["c1", "c2", "c3", "c4", "unknown"], tmp_path)
    assert places is not None and sorted(places, key=places.__getitem__) == ["c2", "c1", "c4"]
    assert rootfs_places(42, ["c3"], tmp_path) == {}, "known, not mounted"
    assert rootfs_places(42, ["unknown"], tmp_path) is None
    assert rootfs_places(43, ["c1"], tmp_path) is None


# --- ports


def ports(*rows: tuple[int, str, int, int, int]) -> dict[str, Any]:
    keys = ("Proto", "HostIP", "HostPort", "HostPortEnd", "Port")
    return {"com.docker.network.portmap": [dict(zip(keys, row, strict=True)) | {"IP": ""} for row in rows]}


async def test_ports_are_published_and_withdrawn(s: Setup) -> None:
    await s.endpoint("web", "02:00:00:00:00:01")
    ids = {"NetworkID": "mesh-id", "EndpointID": "ep020000000001"}
    options = ports((6, "", 8080, 8080, 80), (17, "127.0.0.1", 53, 53, 53), (6, "", 0, 0, 443))
    for _ in range(2):
        assert await s.docker.call("NetworkDriver.ProgramExternalConnectivity", **ids, Options=options) == {}
    shown = s.ops.attached["ep020000000001"].ports
    assert shown[:2] == (PortMapping("tcp", 8080, 80), PortMapping("udp", 53, 53, A("127.0.0.1")))
    assert shown[2].host_port and shown[2].container_port == 443
    await s.docker.call("NetworkDriver.RevokeExternalConnectivity", **ids)
    assert s.ops.attached["ep020000000001"].ports == ()


async def test_a_range_takes_its_first_free_port(s: Setup) -> None:
    for number, expected in enumerate((8000, 8001, None)):
        mac = f"02:00:00:00:00:0{number}"
        await s.endpoint(f"web{number}", mac)
        ids = {"NetworkID": "mesh-id", "EndpointID": f"ep{mac.replace(':', '')}"}
        answer = await s.docker.call("NetworkDriver.ProgramExternalConnectivity", **ids, Options=ports((6, "", 8000, 8001, 80)))
        if expected is None:
            assert "8000 to 8001" in answer["Err"]
        else:
            assert s.ops.attached[ids["EndpointID"]].ports == (PortMapping("tcp", expected, 80),)


async def test_a_used_port_is_refused_in_plaits_words(s: Setup) -> None:
    for number in (1, 2):
        await s.endpoint(f"web{number}", f"02:00:00:00:00:0{number}")
        ids = {"NetworkID": "mesh-id", "EndpointID": f"ep02000000000{number}"}
        answer = await s.docker.call("NetworkDriver.ProgramExternalConnectivity", **ids, Options=ports((6, "", 80, 80, 80)))
    assert answer == {"Err": "plait: port 80/tcp of this host is in use by web1"}
    for wrong in (ports((6, "::1", 80, 80, 80)), ports((1, "", 80, 80, 80)), {"com.docker.network.portmap": 5}):
        assert "Err" in await s.docker.call("NetworkDriver.ProgramExternalConnectivity", **ids, Options=wrong)


async def test_nothing_to_publish_writes_nothing(s: Setup) -> None:
    await s.endpoint("web", "02:00:00:00:00:01")
    s.ops.calls.clear()
    await s.docker.call("NetworkDriver.ProgramExternalConnectivity", NetworkID="mesh-id", EndpointID="ep020000000001", Options=ports())
    assert s.ops.calls == []


# --- both families

DUAL4, DUAL6 = "plait:10.40.0.0/16", "plait:fd00:40::/64"


@pytest.fixture
async def dual(s: Setup) -> Setup:
    """With a network of both families, which the engine lists as dockerd does: the IPv6 pool second, its gateway with a length."""
    body = creation("10.40.0.0/16", **{"plait.net": "dual"}) | {"IPv6Data": [SIX], "NetworkID": "dual-id"}
    assert await s.docker.call("NetworkDriver.CreateNetwork", **body) == {}
    s.engine.add_network("dual", "10.40.0.0/16", Id="dual-id", Options={"plait.net": "dual"})
    s.engine.networks["dual-id"]["IPAM"]["Config"].append({"Subnet": "fd00:40::/64", "Gateway": "fd00:40::1/64"})
    return s


async def joined(s: Setup, mac: str, six: str = "") -> tuple[str, str, dict[str, Any]]:
    """Both addresses of a container that starts, and what its Join was answered."""
    found = [
        str((await s.docker.call("IpamDriver.RequestAddress", PoolID=pool, Address=wanted, Options={MAC: mac}))["Address"])
        for pool, wanted in ((DUAL4, ""), (DUAL6, six))
    ]
    ids = {"NetworkID": "dual-id", "EndpointID": f"ep{mac.replace(':', '')}"}
    face = {"Address": found[0], "AddressIPv6": found[1], "MacAddress": mac}
    assert await s.docker.call("NetworkDriver.CreateEndpoint", **ids, Interface=face) == {"Interface": {}}
    return found[0], found[1], await s.docker.call("NetworkDriver.Join", **ids, SandboxKey="/x")


async def test_a_container_gets_an_address_of_each_family_and_a_way_to_the_others(dual: Setup) -> None:
    assert dual.ops.networks()["dual"].gateway6 == IPv6Address("fd00:40::1")
    gateway = await dual.docker.call("IpamDriver.RequestAddress", PoolID=DUAL6, Address="", Options=GATEWAY)
    assert gateway["Address"] == "fd00:40::1/64"
    four, six, answer = await joined(dual, "02:00:00:00:00:01")
    assert (four, six) == ("10.40.0.2/32", "fd00:40::2/128")
    assert answer["GatewayIPv6"] == "fd00:40::1"
    assert answer["StaticRoutes"][2:] == [
        {"Destination": "fd00:40::1/128", "RouteType": 1},
        {"Destination": "fd00:40::/64", "RouteType": 0, "NextHop": "fd00:40::1"},
    ]
    (endpoint,) = dual.ops.attached.values()
    assert endpoint.address6 == IPv6Address("fd00:40::2")


async def test_a_port_of_ipv6_is_published_where_there_is_ipv6(dual: Setup) -> None:
    await joined(dual, "02:00:00:00:00:01")
    ids = {"NetworkID": "dual-id", "EndpointID": "ep020000000001"}
    assert await dual.docker.call("NetworkDriver.ProgramExternalConnectivity", **ids, Options=ports((6, "::", 81, 81, 81))) == {}
    assert dual.ops.attached["ep020000000001"].ports == (PortMapping("tcp", 81, 81, IPv6Address("::")),)


async def test_after_a_restart_of_dockerd_it_gets_the_same_answers(dual: Setup) -> None:
    _, six, _ = await joined(dual, "02:00:00:00:00:01")
    for pool in (DUAL4, DUAL6):
        assert (await dual.docker.call("IpamDriver.RequestPool", AddressSpace="plait-local", Pool=pool[6:], V6=pool == DUAL6))[
            "PoolID"
        ] == pool
    before = dict(dual.ops.held(""))
    assert (await dual.docker.call("IpamDriver.RequestAddress", PoolID=DUAL6, Address="fd00:40::2"))["Address"] == six
    assert dict(dual.ops.held("")) == before


async def test_an_ipv6_address_that_is_chosen_is_held_until_its_container_goes(dual: Setup) -> None:
    four, six, _ = await joined(dual, "02:00:00:00:00:01", "fd00:40::77")
    assert (four, six) == ("10.40.0.2/32", "fd00:40::77/128")
    apart = ("dual", A("10.40.0.119"))
    assert apart in dual.ops.held("")
    assert await dual.docker.call("IpamDriver.ReleaseAddress", PoolID=DUAL6, Address="fd00:40::77") == {}
    assert apart in dual.ops.held(""), "it is in use"
    await dual.docker.call("IpamDriver.RequestAddress", PoolID=DUAL4, Address="", Options={MAC: "02:00:00:00:00:02"})
    await dual.docker.call("IpamDriver.RequestAddress", PoolID=DUAL6, Address="fd00:40::88", Options={MAC: "02:00:00:00:00:02"})
    assert ("dual", A("10.40.0.136")) in dual.ops.held("")
    assert dual.plugin.ipam.age("docker:02:00:00:00:00:02#6") < 5, "nobody takes it for forgotten while the container starts"
    assert await dual.docker.call("IpamDriver.ReleaseAddress", PoolID=DUAL6, Address="fd00:40::88") == {}
    assert ("dual", A("10.40.0.136")) not in dual.ops.held(""), "its container did not start"


async def test_what_is_kept_for_a_container_it_gets_by_ip6_too(dual: Setup) -> None:
    dual.ops.kept[A("10.40.0.80")] = "db"
    row = dual.engine.add_container("db", "created", "dual")
    row["NetworkSettings"]["Networks"]["dual"]["IPAMConfig"] = {"IPv6Address": "fd00:40:0::50"}
    assert (await joined(dual, "02:00:00:00:00:01", "fd00:40::50"))[1] == "fd00:40::50/128"
    dual.ops.kept[A("10.40.0.81")] = "other"
    await dual.docker.call("IpamDriver.RequestAddress", PoolID=DUAL4, Address="", Options={MAC: "02:00:00:00:00:02"})
    got = await dual.docker.call("IpamDriver.RequestAddress", PoolID=DUAL6, Address="fd00:40::51", Options={MAC: "02:00:00:00:00:02"})
    assert "10.40.0.81 is reserved for 'other'" in got["Error"]


async def test_an_ipv6_aux_address_keeps_what_it_goes_with(s: Setup) -> None:
    six = SIX | {"AuxAddresses": {"router": "fd00:40::9"}}
    body = creation("10.40.0.0/16", **{"plait.net": "dual"}) | {"IPv6Data": [six], "NetworkID": "dual-id"}
    body["IPv4Data"][0]["AuxAddresses"] = {"printer": "10.40.0.5"}
    assert await s.docker.call("NetworkDriver.CreateNetwork", **body) == {}
    assert [str(part) for part in s.ops.networks()["dual"].excluded] == ["10.40.0.5", "10.40.0.9"]
    again = await s.docker.call("IpamDriver.RequestAddress", PoolID=DUAL6, Address="fd00:40::9", Options=None)
    assert again["Address"] == "fd00:40::9/128" and not s.ops.held("")


async def test_an_internal_network_leads_to_itself_alone(s: Setup) -> None:
    body = creation("10.40.0.0/16", **{"plait.net": "dual"}) | {"IPv6Data": [SIX], "NetworkID": "dual-id"}
    body["Options"]["com.docker.network.internal"] = True
    assert await s.docker.call("NetworkDriver.CreateNetwork", **body) == {}
    _, _, answer = await joined(s, "02:00:00:00:00:01")
    assert "GatewayIPv6" not in answer and answer["DisableGatewayService"] and len(answer["StaticRoutes"]) == 4


async def test_an_engine_may_not_have_half_of_a_network(dual: Setup) -> None:
    refused = await dual.docker.call("NetworkDriver.CreateNetwork", **creation("10.40.0.0/16", **{"plait.net": "dual"}))
    assert "add --ipv6 --subnet fd00:40::/64" in refused["Err"]
    more = await dual.docker.call("NetworkDriver.CreateNetwork", **creation("10.29.0.0/16", **{"plait.net": "mesh"}) | {"IPv6Data": [SIX]})
    assert "exists already with IPv6 subnet None" in more["Err"]


async def test_networks_of_both_families_are_made_in_the_engine_and_adopted_from_it(s: Setup) -> None:
    await s.ops.ensure_network(NetworkRequest("made", IPv4Network("10.50.0.0/16"), subnet6=IPv6Network("fd00:50::/64")))
    await s.networks.sync()
    assert "made" in {row["Name"] for row in s.engine.networks.values()}
    made = in_engine(s.ops.networks()["made"])
    assert made["EnableIPv6"] is True
    assert made["IPAM"]["Config"][1] == {"Subnet": "fd00:50::/64", "Gateway": "fd00:50::1"}
    s.engine.add_network("found", "10.51.0.0/16", Id="found-id")
    s.engine.networks["found-id"]["IPAM"]["Config"].append({"Subnet": "fd00:51::/64", "Gateway": "fd00:51::1/64"})
    await s.networks.sync()
    found = s.ops.networks()["found"]
    assert (found.subnet6, found.gateway6) == (IPv6Network("fd00:51::/64"), IPv6Address("fd00:51::1"))
