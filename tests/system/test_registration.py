# SPDX-License-Identifier: Apache-2.0
"""A container that names its service is registered exactly as long as it runs: real engines, seen from another host by DNS and HTTP.

Containers run on B; A looks, and carries the store."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.support.mesh import docker, remove_containers, two_on_mesh

from plait.lab import inside
from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.timeout(240)]
SHOP = ("-e", "SERVICE_NAME=shop", "-e", "SERVICE_TAGS=blue", "-e", "SERVICE_CHECK_HTTP=/", "-e", "SERVICE_CHECK_INTERVAL=1s")
GONE_S = 10.0
"""The promise for the death of a host; everything else takes about a second at most."""


@pytest.fixture(scope="module")
def two(make_lab: Callable[..., Lab]) -> Lab:
    return two_on_mesh(make_lab)


@pytest.fixture(autouse=True)
def clean(two: Lab) -> Iterator[None]:
    yield
    remove_containers(two, "B")
    becomes(two, {})


def shop(lab: Lab, *options: str, name: str = "web") -> str:
    """Start it on B; its address."""
    docker(lab, "B", "run", "-d", "--name", name, "--network", "mesh", *SHOP, *options, "nginx")
    return docker(lab, "B", "inspect", "-f", "{{.NetworkSettings.Networks.mesh.IPAddress}}", name)


def asked(lab: Lab, path: str, host: str = "A") -> Any:
    return json.loads(lab.run(host, "curl", "-sS", "-m", "5", f"http://127.0.0.1:8500/v1/{path}").stdout)


def passing(lab: Lab, host: str = "A") -> dict[str, str]:
    """Address of every healthy instance by its id, as HTTP and DNS of `host` agree; what they do not agree about is of "?"."""
    entries = asked(lab, "health/service/shop?passing", host)
    found = {entry["Service"]["ID"]: entry["Service"]["Address"] for entry in entries}
    names = set(lab.run(host, "dig", "+short", "@127.0.0.1", "shop.service.consul").stdout.split())
    return found if names == set(found.values()) else {"?": ""}


def becomes(lab: Lab, wanted: dict[str, str], timeout_s: float = 5.0) -> None:
    until(f"the healthy instances are {wanted}", lambda: passing(lab) == wanted, timeout_s)


def stays(lab: Lab, wanted: dict[str, str], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert passing(lab) == wanted
        time.sleep(0.1)


def test_what_a_container_says_is_what_others_find(two: Lab) -> None:
    address = shop(two)
    becomes(two, {"B:web:80": address})
    ((entry,), services) = asked(two, "health/service/shop?passing"), asked(two, "catalog/services")
    assert (entry["Service"]["Port"], entry["Service"]["Tags"], services["shop"]) == (80, ["blue"], ["blue"])
    assert [check["CheckID"] for check in entry["Checks"]] == ["serfHealth", "running:B:web:80", "service:B:web:80"]
    assert two.run("A", "dig", "+short", "@127.0.0.1", "blue.shop.service.consul", "SRV").stdout.split()[2] == "80"


def test_it_follows_its_container_through_every_state(two: Lab) -> None:
    here = {"B:web:80": shop(two)}
    becomes(two, here)
    for command, wanted in (
        (("pause", "web"), {}),
        (("unpause", "web"), here),
        (("kill", "web"), {}),
        (("start", "web"), here),
        (("restart", "-t", "0", "web"), here),
        (("stop", "-t", "1", "web"), {}),
        (("start", "web"), here),
        (("rm", "-f", "web"), {}),
    ):
        docker(two, "B", *command)
        becomes(two, wanted)
    assert asked(two, "catalog/service/shop") == []


def test_what_was_deregistered_by_hand_comes_back_with_the_next_start(two: Lab) -> None:
    here = {"B:web:80": shop(two)}
    becomes(two, here)
    two.run("B", "curl", "-sS", "--fail", "-X", "PUT", "http://127.0.0.1:8500/v1/agent/service/deregister/B%3Aweb%3A80")
    becomes(two, {})
    docker(two, "B", "run", "-d", "--name", "other", "--network", "mesh", "nginx")
    two.kill_agent("B")
    two.start_agent("B")
    stays(two, {}, 2)
    docker(two, "B", "restart", "-t", "0", "web")
    becomes(two, here)


def test_the_agent_dies_and_its_containers_meanwhile(two: Lab) -> None:
    lives, dies = shop(two, name="lives"), shop(two, name="dies")
    becomes(two, {"B:lives:80": lives, "B:dies:80": dies})
    pid = docker(two, "B", "inspect", "-f", "{{.State.Pid}}", "dies")
    two.kill_agent("B")
    two.run("B", "kill", "-KILL", pid)
    two.start_agent("B")
    becomes(two, {"B:lives:80": lives})
    stays(two, {"B:lives:80": lives}, 2)


def test_the_engine_dies_and_its_containers_live_on_until_they_end(two: Lab) -> None:
    lives, dies = shop(two, name="lives"), shop(two, name="dies")
    both = {"B:lives:80": lives, "B:dies:80": dies}
    becomes(two, both)
    pid = docker(two, "B", "inspect", "-f", "{{.State.Pid}}", "dies")
    engine = inside.daemon_pid(two.state.holder("B"), "dockerd")
    two.run("B", "kill", "-KILL", str(engine))
    stays(two, both, 1)
    two.run("B", "kill", "-KILL", pid)
    becomes(two, {"B:lives:80": lives})
    two.stop_engine("B", kill=True)
    two.start_engine("B")
    becomes(two, {})  # an engine without live-restore ends what it finds


def test_a_host_that_dies_is_gone_soon_and_never_back_as_passing(two: Lab) -> None:
    becomes(two, {"B:web:80": shop(two)})
    pids = two.run("B", "sh", "-c", "cat /run/lab/agent.pid /run/lab/dockerd.pid").stdout.split()
    two.run("B", "ip", "link", "set", "eth0", "down")
    two.run("B", "kill", "-KILL", *pids)
    becomes(two, {}, GONE_S)
    two.reboot("B")
    stays(two, {}, 3)


def test_nothing_old_returns_when_a_partition_heals(two: Lab) -> None:
    address, dies = shop(two, name="stays"), shop(two, name="dies")
    becomes(two, {"B:stays:80": address, "B:dies:80": dies})
    two.cut("A", "B")
    becomes(two, {}, GONE_S)
    docker(two, "B", "rm", "-f", "dies")
    two.heal()
    seen: list[dict[str, str]] = []

    def back() -> bool:
        seen.append(passing(two))
        return seen[-1] == {"B:stays:80": address}

    until("what lives is back", back, 15)
    assert not any("B:dies:80" in found for found in seen)


def test_a_container_that_cannot_be_registered_is_a_condition(two: Lab) -> None:
    docker(two, "B", "run", "-d", "--name", "web", "--network", "mesh", "-l", "plait.service=shop", "-l", "plait.check.ttl=soon", "nginx")
    until("B says so", lambda: "ttl must be a duration" in two.run("B", "plait", "status", check=False).stdout, 5)
    docker(two, "B", "rm", "-f", "web")
    until("B is well again", lambda: two.run("B", "plait", "status", check=False).returncode == 0, 5)


def test_a_container_without_names_is_reached_by_its_service_and_static_hosts(two: Lab) -> None:
    address = shop(two, "-l", "plait.dns=off")
    docker(two, "B", "run", "-d", "--name", "static", "--network", "mesh", "--add-host", f"fixed:{address}", "nginx")
    becomes(two, {"B:web:80": address})
    until("A knows the other", lambda: two.run("A", "dig", "+short", "@127.0.0.1", "static.plait").stdout != "", 5)
    for name in (("web.plait",), ("web.mesh",), ("-x", address)):
        assert "web" not in two.run("A", "dig", "+short", "@127.0.0.1", *name).stdout
    assert docker(two, "B", "exec", "static", "getent", "hosts", "fixed").split()[0] == address


def test_a_sandbox_names_its_service_too(two: Lab) -> None:
    two.run("B", "plait", "run", "--name", "box", "--label", "plait.service=shop", "--label", "plait.port=9000")
    until("A finds it", lambda: [e["ServicePort"] for e in asked(two, "catalog/service/shop")] == [9000], 5)
    two.run("B", "plait", "rm", "box")
    becomes(two, {})


COMPOSE = """
version: "2.4"
services:
  front:
    image: nginx
    networks: [mesh]
    environment: {SERVICE_NAME: shop, SERVICE_TAGS: compose}
    healthcheck: {test: [CMD, test, "!", -e, /tmp/ill], interval: 1s, retries: 1}
  back:
    image: nginx
    networks: [mesh]
    labels: {plait.service: back, plait.ports: "http:80,metrics:9100"}
  quiet:
    image: nginx
    networks: [mesh]
networks:
  mesh: {external: true}
"""


def compose(lab: Lab, *words: str) -> None:
    lab.path("B", "/var/lib/plait/shop.yml").write_text(COMPOSE)
    lab.run("B", "docker-compose", "--no-ansi", "-f", "/var/lib/plait/shop.yml", "-p", "shop", *words, timeout_s=120)


def test_the_services_of_a_compose_project_are_registered_as_long_as_they_run(two: Lab) -> None:
    compose(two, "up", "-d", "--scale", "front=2")
    place = "{{.NetworkSettings.Networks.mesh.IPAddress}}"
    here = {f"B:shop_front_{number}:80": docker(two, "B", "inspect", "-f", place, f"shop_front_{number}") for number in (1, 2)}
    becomes(two, here)
    assert set(asked(two, "catalog/services")) >= {"shop", "back"}
    srv = two.run("A", "dig", "+short", "@127.0.0.1", "metrics.port.back.service.consul", "SRV").stdout.split()
    assert srv[2] == "9100"
    assert "quiet" not in str(asked(two, "catalog/services")), "it names no service"

    docker(two, "B", "exec", "shop_front_1", "touch", "/tmp/ill")
    becomes(two, {key: address for key, address in here.items() if "front_2" in key}, 10)
    docker(two, "B", "exec", "shop_front_1", "rm", "/tmp/ill")
    becomes(two, here, 10)

    compose(two, "stop", "-t", "0", "front")
    becomes(two, {})
    compose(two, "start", "front")
    until("both are back", lambda: set(passing(two)) == set(here), 10)
    compose(two, "up", "-d", "--scale", "front=1")
    until("one is left", lambda: set(passing(two)) == {"B:shop_front_1:80"}, 10)
    compose(two, "down", "-t", "0")
    becomes(two, {})
    assert asked(two, "catalog/service/back") == []
