# SPDX-License-Identifier: Apache-2.0
"""The calls of Docker 28 and 29 to the socket of a real agent. No such engine can be had here: the order and the shapes are those of its
source (tests/fixtures/docker/28), and what it does with an answer to Join is done here as libnetwork's `osl` does it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.support.docker import dockerd
from tests.support.dockerproto import FILES, Play

from plait.client.admin import AdminClient
from plait.lab.agents import SOCKET
from plait.lab.lab import Lab
from plait.lab.process import until
from plait.model.addr import at_port

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
PLUGIN = "/run/docker/plugins/plait.sock"
PING = ("ping", "-c", "1", "-W", "1")


@pytest.fixture(scope="module")
def two(make_lab: Callable[..., Lab]) -> Lab:
    """A's agent answers an engine that is not there."""
    lab = make_lab(hosts=2)
    config = lab.path("A", "/etc/plait/plait.toml")
    config.write_text(config.read_text().replace("[docker]\nenabled = false", "[docker]\nenabled = true"))
    lab.kill_agent("A")
    lab.start_agent("A")
    return lab


@pytest.fixture(autouse=True)
def nothing_stays(two: Lab) -> Iterator[None]:
    yield
    for line in two.run("A", "ip", "netns", "list").stdout.splitlines():
        two.run("A", "ip", "netns", "del", line.split()[0])
    assert [row["name"] for row in rows(two, "A", "network", "ls")] == ["default"]
    assert published(two) == []
    until("no link is left", lambda: "pl-e" not in two.run("A", "ip", "-br", "link").stdout, 3)
    until("no address is held", lambda: not rows(two, "A", "ipam")["addresses"], 3)


def rows(lab: Lab, host: str, *words: str) -> Any:
    return json.loads(lab.run(host, "plait", *words, "--json").stdout)


def published(lab: Lab) -> list[str]:
    return [
        f"{at_port(row['host_ip'], row['host_port'])}->{row['container_port']}/{row['proto']} of {row['address']}"
        for row in rows(lab, "A", "ports")
    ]


class Boxes:
    """Containers' namespaces on A as Docker fills them, by the end of their SandboxKey."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.links = lab, dict[str, int]()
        self.faces: dict[str, Mapping[str, str]] = {}
        self.on_start: Callable[[str, Mapping[str, str]], None] = lambda box, face: None

    def ip(self, box: str, *words: str) -> str:
        return self.lab.run("A", "ip", "-n", box, *words).stdout

    async def see(self, call: str, body: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        if call == "NetworkDriver.CreateEndpoint":
            self.faces[body["EndpointID"]] = body["Interface"]
        if call == "NetworkDriver.Join":
            self._fill(body["SandboxKey"].rpartition("/")[2], self.faces[body["EndpointID"]], answer)

    def _fill(self, box: str, face: Mapping[str, str], answer: Mapping[str, Any]) -> None:
        """Move and name the link, give it its MAC and addresses, set connected routes, then others, then the gateways."""
        if box not in self.links:
            self.lab.run("A", "ip", "netns", "add", box)
        number = self.links[box] = self.links.get(box, -1) + 1
        told = answer["InterfaceName"]
        name = told.get("DstName") or f"{told['DstPrefix']}{number}"
        self.lab.run("A", "ip", "link", "set", told["SrcName"], "netns", box, "name", name)
        self.ip(box, "link", "set", name, "address", face["MacAddress"])
        for address in filter(None, (face["Address"], face["AddressIPv6"])):
            self.ip(box, "address", "add", address, "dev", name, *(["nodad"] if ":" in address else []))
        self.ip(box, "link", "set", name, "up")
        for route in sorted(answer["StaticRoutes"], key=lambda route: -int(route["RouteType"])):
            self.ip(box, "route", "add", route["Destination"], *(["via", route["NextHop"]] if route.get("NextHop") else ["dev", name]))
        for gateway in filter(None, (answer.get("Gateway"), answer.get("GatewayIPv6"))):
            self.ip(box, "-6" if ":" in gateway else "-4", "route", "replace", "default", "via", gateway)
            self.lab.run("A", "ip", "netns", "exec", box, *PING, gateway)
        self.on_start(box, face)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
async def test_an_agent_answers_the_sequence_and_keeps_nothing(two: Lab, file: Path) -> None:
    boxes = Boxes(two)
    if file.stem == "run":
        boxes.on_start = lambda box, face: reached_from_b(two, box, face)
    async with dockerd(two.path("A", PLUGIN)) as docker:

        async def call(name: str, **body: Any) -> dict[str, Any]:
            return await docker.call(name, **body)

        async def ports() -> list[str]:
            return published(two)

        await Play(call, ports, boxes.see).file(file)


def reached_from_b(lab: Lab, box: str, face: Mapping[str, str]) -> None:
    """A sandbox of the other host and the container answer each other, by both families."""
    client = AdminClient(lab.path("B", SOCKET), timeout_s=20)
    until("B knows the network", lambda: "p28run" in {row["name"] for row in client.networks()}, 5)
    peer = client.create_sandbox("peer", "p28run")
    for key in ("Address", "AddressIPv6"):
        ask = ("nsenter", "--net=/run/plait/netns/peer", *PING, face[key].partition("/")[0])
        until(f"B reaches {ask[-1]}", lambda ask=ask: lab.run("B", *ask, check=False).returncode == 0, 5)
    lab.run("A", "ip", "netns", "exec", box, *PING, str(peer["address"]))
    client.remove_sandbox("peer")
