# SPDX-License-Identifier: Apache-2.0
"""Which links lead to the containers of the engine's default bridge: looked for once an attachment, remembered, forgotten with it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from plait.model.hostlinks import BridgePort
from plait.runtimes.docker.bridgeports import BridgePorts
from plait.runtimes.docker.enginetypes import ContainerDetails, ContainerRow
from plait.runtimes.docker.state import PORTS, CachedState, memory_state

FOUND = BridgePort("vetha", "02:42:0a:1c:01:02")


class Host:
    """What is asked for links, and how often somebody is told of one."""

    def __init__(self) -> None:
        self.links = {"/proc/7/ns/net": "vetha"}
        self.asked: list[str] = []
        self.told = 0

    def find(self, path: str) -> str:
        self.asked.append(path)
        return self.links.get(path, "")

    def changed(self) -> None:
        self.told += 1

    def ports(self, state: CachedState) -> BridgePorts:
        return BridgePorts(state, self.find, self.changed)


def row(state: str = "running", endpoint: str = "e1", mac: str = "02:42:0A:1C:01:02", network: str = "bridge") -> ContainerRow:
    settings = {"EndpointID": endpoint, "MacAddress": mac}
    body: dict[str, Any] = {"Id": "c", "State": state, "NetworkSettings": {"Networks": {network: settings}}}
    return msgspec.convert(body, ContainerRow)


def seen(pid: int = 7) -> dict[str, ContainerDetails]:
    return {"c": msgspec.convert({"Id": "c", "State": {"Pid": pid}}, ContainerDetails)}


async def test_a_link_is_looked_for_once_and_known_to_the_next_agent() -> None:
    host, state = Host(), memory_state()
    ports = host.ports(state)
    for _ in range(3):
        await ports.learn([row()], seen())
    assert (ports.known, host.asked, host.told) == ({"c": FOUND}, ["/proc/7/ns/net"], 1)
    after = host.ports(state)
    await after.learn([row()], {})  # no inspection yet
    assert after.known == {"c": FOUND} and len(host.asked) == 1


async def test_it_is_looked_for_again_while_it_is_not_there_or_nobody_knows_the_process() -> None:
    host = Host()
    ports = host.ports(memory_state())
    await ports.learn([row()], {})
    await ports.learn([row()], seen(0))
    assert host.asked == []
    await ports.learn([row()], seen(8))
    assert (ports.known, host.asked, host.told) == ({}, ["/proc/8/ns/net"], 0)
    host.links["/proc/8/ns/net"] = "vethb"
    await ports.learn([row()], seen(8))
    assert ports.known == {"c": BridgePort("vethb", FOUND.mac)}


async def test_a_container_that_is_started_or_connected_again_has_another() -> None:
    host = Host()
    ports = host.ports(memory_state())
    await ports.learn([row()], seen())
    await ports.learn([row(endpoint="e2", mac="02:42:0a:1c:01:03")], {})
    assert ports.known == {}, "until its process is known"
    host.links["/proc/9/ns/net"] = "vethc"
    await ports.learn([row(endpoint="e2", mac="02:42:0a:1c:01:03")], seen(9))
    assert ports.known == {"c": BridgePort("vethc", "02:42:0a:1c:01:03")}


@pytest.mark.parametrize("now", [[], [row("exited")], [row(network="mesh")]], ids=["removed", "ended", "disconnected"])
async def test_what_is_on_the_bridge_no_longer_is_forgotten(now: list[ContainerRow]) -> None:
    host, state = Host(), memory_state()
    ports = host.ports(state)
    await ports.learn([row()], seen())
    await ports.learn(now, seen())
    assert ports.known == {} and not state.all(PORTS)


async def test_who_has_no_link_of_its_own_there_is_not_looked_for() -> None:
    """In host network mode, in another container's namespace, on other networks, or without a MAC that is known."""
    host = Host()
    ports = host.ports(memory_state())
    for settings in (
        {},
        {"host": {"EndpointID": "h"}},
        {"mesh": {"EndpointID": "m", "MacAddress": FOUND.mac}},
        {"bridge": {"EndpointID": "e1"}},
    ):
        body = {"Id": "c", "State": "running", "NetworkSettings": {"Networks": settings}}
        await ports.learn([msgspec.convert(body, ContainerRow)], seen())
    assert host.asked == []
