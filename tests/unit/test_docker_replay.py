# SPDX-License-Identifier: Apache-2.0
"""What Docker 20.10 really sent on two hosts, replayed: every call is answered, with the fields that were answered then."""

from __future__ import annotations

import json
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from tests.support.docker import Conditions, FakeEngine, dockerd

from plait.runtimes.api import NetworkRequest
from plait.runtimes.docker.engine import DockerEngine
from plait.runtimes.docker.known import KnownContainers
from plait.runtimes.docker.networks import DockerNetworks
from plait.runtimes.docker.plugin import DockerPlugin
from plait.runtimes.docker.state import memory_state
from plait.runtimes.fake import FakeOperations

FIXTURES = sorted((Path(__file__).parent.parent / "fixtures/docker").glob("*.jsonl"))


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.stem)
async def test_recorded_traffic_is_answered(fixture: Path, tmp_path: Path) -> None:
    recorded = [json.loads(line.replace("pool:10.", "plait:10.")) for line in fixture.read_text().splitlines()]
    assert len(recorded) > 30
    ops, fake = FakeOperations(), FakeEngine(tmp_path / "d.sock")
    await ops.ensure_network(NetworkRequest("mesh", IPv4Network("10.77.0.0/16")))
    for network in {line["req"]["NetworkID"] for line in recorded if "NetworkID" in line["req"]}:
        fake.add_network("mesh", "10.77.0.0/16", Id=network)
        fake.networks[network] = fake.networks.pop("mesh-id")
    await fake.start()
    engine = DockerEngine(fake.path)
    state = memory_state()
    networks = DockerNetworks(ops, state, engine, Conditions(), "default", lambda: True)
    plugin = DockerPlugin(ops, engine, networks, KnownContainers(state))
    await plugin.start(tmp_path / "p.sock")
    async with dockerd(tmp_path / "p.sock") as docker:
        for line in recorded:
            answer = await docker.call(line["call"].lstrip("/"), **line["req"])
            beyond = {"StaticRoutes"} if line["call"] == "/NetworkDriver.Join" else set()
            assert answer.keys() - beyond - {"GwAllocChecker"} == line["resp"].keys() - {"GwAllocChecker"}, line["call"]
    await plugin.close()
    await engine.close()
    await fake.stop()
    assert not any(e.ports for e in ops.attached.values())
