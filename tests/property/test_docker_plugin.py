# SPDX-License-Identifier: Apache-2.0
"""Nothing that is posted to the plug-in's socket ends it: every body is answered with JSON, and a good call works afterwards."""

from __future__ import annotations

import asyncio
import json
from ipaddress import IPv4Network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.docker import Conditions, FakeEngine, dockerd

from plait.model.errors import ConfigError, PlaitError
from plait.runtimes.api import NetworkRequest
from plait.runtimes.docker import wire
from plait.runtimes.docker.engine import DockerEngine
from plait.runtimes.docker.known import KnownContainers
from plait.runtimes.docker.networks import DockerNetworks
from plait.runtimes.docker.plugin import DockerPlugin
from plait.runtimes.docker.state import memory_state
from plait.runtimes.fake import FakeOperations

CALLS = [
    *(f"IpamDriver.{c}" for c in ("RequestPool", "ReleasePool", "RequestAddress", "ReleaseAddress", "GetCapabilities")),
    *(f"NetworkDriver.{c}" for c in ("CreateNetwork", "DeleteNetwork", "CreateEndpoint", "Join", "Leave", "DeleteEndpoint")),
    *(f"NetworkDriver.{c}" for c in ("ProgramExternalConnectivity", "RevokeExternalConnectivity", "EndpointOperInfo")),
]
FIELDS = ["NetworkID", "EndpointID", "PoolID", "Pool", "SubPool", "Address", "Options", "IPv4Data", "IPv6Data", "Interface", "V6"]
WORDS = ["plait:10.29.0.0/16", "10.29.0.7", "10.29.0.0/16", "mesh-id", "e1", "plait-local", "", wire.PORTMAP, wire.GENERIC, wire.MAC]
BODIES = [wire.RequestPool, wire.RequestAddress, wire.CreateNetwork, wire.CreateEndpoint, wire.EndpointOnly]

texts = st.sampled_from(WORDS) | st.text(max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.sampled_from(FIELDS), values, max_size=6)
bodies = st.binary(max_size=64) | objects.map(lambda value: json.dumps(value).encode())


@given(st.sampled_from(BODIES), bodies)
def test_a_body_is_parsed_or_refused(wanted: type[wire.Body], body: bytes) -> None:
    try:
        assert isinstance(wire.parse(wanted, body, "Call"), wanted)
    except ConfigError:
        pass


@given(
    st.dictionaries(
        st.just(wire.PORTMAP), values | st.lists(st.dictionaries(st.sampled_from(["Proto", "Port", "HostIP", "HostPort"]), values))
    )
)
def test_port_maps_are_read_or_refused(options: dict[str, Any]) -> None:
    try:
        for port, last in wire.port_requests(options):
            assert 0 < port.container_port < 65536
            assert last == 0 or port.host_port < last < 65536
    except PlaitError:
        pass


@settings(max_examples=12)
@given(st.lists(st.tuples(st.sampled_from(CALLS), bodies), min_size=20, max_size=40))
def test_the_plugin_outlives_every_body(posts: list[tuple[str, bytes]]) -> None:
    asyncio.run(_post_all(posts))


async def _post_all(posts: list[tuple[str, bytes]]) -> None:
    with TemporaryDirectory() as folder:
        ops, fake = FakeOperations(), FakeEngine(Path(folder) / "d.sock")
        await ops.ensure_network(NetworkRequest("mesh", IPv4Network("10.29.0.0/16")))
        fake.add_network("mesh", "10.29.0.0/16")
        await fake.start()
        engine = DockerEngine(fake.path)
        state = memory_state()
        networks = DockerNetworks(ops, state, engine, Conditions(), "default", lambda: True)
        plugin = DockerPlugin(ops, engine, networks, KnownContainers(state))
        await plugin.start(Path(folder) / "p.sock")
        async with dockerd(Path(folder) / "p.sock") as docker:
            for call, body in posts:
                status, answer = await docker.post(call, body)
                assert status == 200, call
                assert "inside the agent" not in str(json.loads(answer)), (call, body)
            assert "Implements" in await docker.call("Plugin.Activate")
        await plugin.close()
        await engine.close()
        await fake.stop()
