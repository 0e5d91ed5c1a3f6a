# SPDX-License-Identifier: Apache-2.0
"""The calls of Docker 28 and 29, in their order and shapes, against the plug-in over a fake agent (tests/system has the real one)."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from tests.support.docker import Conditions, FakeEngine, dockerd
from tests.support.dockerproto import FILES, Play

from plait.model.cluster import published_text
from plait.runtimes.api import NetworkRequest
from plait.runtimes.docker.engine import DockerEngine
from plait.runtimes.docker.known import KnownContainers
from plait.runtimes.docker.networks import DockerNetworks
from plait.runtimes.docker.plugin import DockerPlugin
from plait.runtimes.docker.state import memory_state
from plait.runtimes.fake import FakeOperations


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
async def test_a_sequence_is_answered_and_leaves_nothing(file: Path, tmp_path: Path) -> None:
    ops, fake, state = FakeOperations(), FakeEngine(tmp_path / "d.sock"), memory_state()
    await ops.ensure_network(NetworkRequest("default", IPv4Network("10.28.0.0/16")))
    await fake.start()
    engine = DockerEngine(fake.path)
    networks = DockerNetworks(ops, state, engine, Conditions(), "default", lambda: True)
    plugin = DockerPlugin(ops, engine, networks, KnownContainers(state))
    await plugin.start(tmp_path / "p.sock")

    async def ports() -> list[str]:
        found = [(e.address6 if port.host_ip.version == 6 else e.address, port) for e in ops.attached.values() for port in e.ports]
        return [f"{published_text(port)} of {address}" for address, port in found]

    async with dockerd(tmp_path / "p.sock") as docker:

        async def call(name: str, **body: Any) -> dict[str, Any]:
            return await docker.call(name, **body)

        await Play(call, ports).file(file)
    await plugin.close()
    await engine.close()
    await fake.stop()
    assert set(ops.networks()) == {"default"}
    assert (ops.attached, dict(ops.held(""))) == ({}, {})
