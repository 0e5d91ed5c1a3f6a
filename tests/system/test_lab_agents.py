# SPDX-License-Identifier: Apache-2.0
"""Agents in lab hosts: formed into a cluster, killed, started, rebooted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from plait.lab import agents, build
from plait.lab import state as states
from plait.lab.lab import Lab
from plait.lab.spec import simple
from plait.model.errors import PlaitError

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def three(make_lab) -> Lab:
    return make_lab(hosts=3)


def nodes(lab: Lab, host: str) -> set[str]:
    return {node["name"] for node in json.loads(lab.run(host, "plait", "nodes", "--json").stdout)}


def test_every_agent_is_ready_and_knows_all(three: Lab) -> None:
    for host in "ABC":
        assert nodes(three, host) == {"A", "B", "C"}


def test_each_host_talks_to_its_own_agent(three: Lab) -> None:
    for host in "ABC":
        assert three.path(host, agents.SOCKET).is_socket()
        assert three.run(host, "cat", "/etc/plait/plait.toml").stdout.startswith(f'[node]\nname = "{host}"\n')
    assert not Path(agents.SOCKET).exists()


def test_kill_and_start(three: Lab) -> None:
    with pytest.raises(PlaitError, match="running already"):
        three.start_agent("B")
    three.kill_agent("B")
    assert not agents.is_running(three.state, "B")
    with pytest.raises(PlaitError, match="none is running"):
        three.kill_agent("B")
    three.start_agent("B")
    assert nodes(three, "B") == {"A", "B", "C"}


def test_a_rebooted_host_is_the_same_node(three: Lab) -> None:
    three.reboot("C")
    assert nodes(three, "C") == {"A", "B", "C"}


def test_the_first_host_may_reboot_too(three: Lab) -> None:
    three.reboot("A")
    assert nodes(three, "A") == {"A", "B", "C"}


def test_an_agent_that_cannot_start_shows_host_and_log(three: Lab) -> None:
    config = three.path("B", "/etc/plait/plait.toml")
    good = config.read_text()
    three.kill_agent("B")
    config.write_text('[nodule]\nname = "B"\n')
    with pytest.raises(PlaitError, match=r"(?s)plait agent on host B: .*nodule"):
        three.start_agent("B")
    config.write_text(good)
    three.start_agent("B")


def test_a_command_that_fails_is_named_with_its_host() -> None:
    state = states.new_state(f"test-{os.getpid()}-fails", simple(1), owned=True)
    states.create(state)
    try:
        state = build.make(state)
        (state.disks / "A/own/var/lib/plait").rmdir()
        (state.disks / "A/own/etc/plait").rmdir()
        (state.disks / "A/own/etc/plait").mkdir()
        with pytest.raises(PlaitError, match="plait init on host A: exit status"):
            agents.form_cluster(state, lambda _: None)
    finally:
        build.remove(state)
