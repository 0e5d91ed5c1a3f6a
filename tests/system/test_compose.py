# SPDX-License-Identifier: Apache-2.0
"""docker-compose (1.29, Debian's) on plait networks: an external one, and one that compose makes itself."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator

import pytest
from tests.support.mesh import networks, two_on_mesh

from plait.lab import process
from plait.lab.lab import Lab

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]
HTTP = ("curl", "-sS", "-m", "3", "-o", "/dev/null", "-w", "%{http_code}")
FILE = "/var/lib/plait/compose.yml"
SHOP = """
version: "2.4"
services:
  web:
    image: nginx
    networks: {mesh: {aliases: [shop]}}
  api:
    image: nginx
    networks: [mesh]
  db:
    image: nginx
    networks: [back]
networks:
  mesh: {external: true}
  back:
    driver: plait
    ipam: {driver: plait, config: [{subnet: 10.77.0.0/16}]}
"""


@pytest.fixture(scope="module")
def two(make_lab: Callable[..., Lab]) -> Lab:
    lab = two_on_mesh(make_lab)
    lab.path("A", FILE).write_text(SHOP)
    return lab


@pytest.fixture(autouse=True)
def clean(two: Lab) -> Iterator[None]:
    yield
    compose(two, "down", "-t", "0")
    process.until("nothing is left", lambda: not addresses(two, "mesh") and networks(two, "B") == {"mesh"}, 5)


def compose(lab: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    return lab.run("A", "docker-compose", "--no-ansi", "-f", FILE, "-p", "shop", *words, timeout_s=120)


def addresses(lab: Lab, *names: str) -> dict[str, str]:
    """Address of every endpoint of the networks, by container."""
    views = [json.loads(lab.run("A", "plait", "network", "inspect", name, "--json").stdout) for name in names]
    return {row["name"]: row["address"] for view in views for row in view["attached"]}


def same(now: dict[str, str], before: dict[str, str]) -> bool:
    """The same containers hold the same addresses. compose starts them at the same moment, when the engine says nothing of who asks, so
    two of one network may have swapped theirs (docs/guide.md, "Addresses that stay")."""
    return set(now) == set(before) and sorted(now.values()) == sorted(before.values())


def answers(lab: Lab, host: str, client: str, name: str) -> bool:
    return lab.run(host, "docker", "exec", client, *HTTP, f"http://{name}/", check=False).stdout == "200"


def test_services_resolve_scale_and_come_back_with_their_addresses(two: Lab) -> None:
    compose(two, "up", "-d")
    first = addresses(two, "mesh", "shop_back")
    assert set(first) == {"shop_web_1", "shop_api_1", "shop_db_1"}
    assert first["shop_db_1"].startswith("10.77.")
    process.until("compose's network is everybody's", lambda: "shop_back" in networks(two, "B"), 3)
    two.run("B", "docker", "run", "-d", "--name", "cli", "--network", "mesh", "nginx")
    for host, client in (("A", "shop_api_1"), ("B", "cli")):
        for name in ("web", "shop", "api", "shop_web_1"):
            process.until(f"{client} reaches {name}", lambda h=host, c=client, n=name: answers(two, h, c, n), 5)
    assert not answers(two, "A", "shop_api_1", first["shop_db_1"]), "they share no network"
    two.run("B", "docker", "rm", "-f", "cli")

    compose(two, "up", "-d", "--scale", "web=3")
    scaled = addresses(two, "mesh", "shop_back")
    assert {name for name in scaled if "web" in name} == {"shop_web_1", "shop_web_2", "shop_web_3"}
    assert {name: scaled[name] for name in first} == first

    compose(two, "down", "-t", "0")
    process.until("compose's network is gone everywhere", lambda: networks(two, "A") == networks(two, "B") == {"mesh"}, 5)
    assert addresses(two, "mesh") == {}
    compose(two, "up", "-d", "--scale", "web=3")
    assert same(addresses(two, "mesh", "shop_back"), scaled)


def test_what_was_stopped_together_starts_together_with_its_addresses(two: Lab) -> None:
    compose(two, "up", "-d", "--scale", "web=3")
    first = addresses(two, "mesh", "shop_back")
    assert len(first) == 5
    for _ in range(3):
        compose(two, "stop", "-t", "0")
        process.until("they have stopped", lambda: not addresses(two, "mesh", "shop_back"), 5)
        compose(two, "start")
        assert same(addresses(two, "mesh", "shop_back"), first)
