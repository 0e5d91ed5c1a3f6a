# SPDX-License-Identifier: Apache-2.0
"""`plait service`: what is asked of the agent, what is shown, how it ends."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit.test_cli import Canned, run

from plait.client.admin import Refused

ROW: dict[str, Any] = {
    "namespace": "default",
    "name": "shop",
    "address": "10.27.3.4",
    "address6": "",
    "network": "default",
    "ports": ["http=80:8080/tcp", "53/udp"],
    "published": ["9090:80/tcp"],
    "ready": 1,
    "backends": 2,
}
BOX = {"node": "A", "name": "near", "address": "10.28.1.2", "address6": "", "weight": 1, "state": "ready"}
VIEW = ROW | {
    "dns": "shop.default.svc.cluster.local",
    "selector": {"app": "shop"},
    "affinity": True,
    "local_first": True,
    "hosts": ["A"],
    "containers": [BOX],
}


def test_services_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    client = Canned(services=[ROW])
    assert run(capsys, client, "service", "ls")[1].splitlines() == [
        "NAMESPACE  NAME  ADDRESS    PORTS                                        READY",
        "default    shop  10.27.3.4  http=80:8080/tcp 53/udp 9090:80/tcp (hosts)  1/2",
    ]
    assert json.loads(run(capsys, client, "service", "ls", "--json")[1]) == [ROW]


def test_one_is_shown_with_its_containers(capsys: pytest.CaptureFixture[str]) -> None:
    client = Canned(**{"services_lab%2Fshop": VIEW, "services_shop": VIEW})
    assert run(capsys, client, "service", "show", "lab/shop")[1].splitlines() == [
        "name        shop.default.svc.cluster.local",
        "address     10.27.3.4 (network default)",
        "ports       http=80:8080/tcp 53/udp 9090:80/tcp (hosts)",
        "selector    app=shop",
        "on hosts    A",
        "manner      affinity, local first",
        "NODE  CONTAINER  ADDRESS    WEIGHT  STATE",
        "A     near       10.28.1.2  1       ready",
    ]
    assert client.asked[0][:2] == ("GET", "services/lab%2Fshop")
    assert json.loads(run(capsys, client, "service", "show", "shop", "--json")[1]) == VIEW


def test_one_is_made_of_what_was_said_and_its_address_printed(capsys: pytest.CaptureFixture[str]) -> None:
    client = Canned(services=VIEW)
    words = ("--port", "80:8080", "--selector", "app=shop,tier=web", "--publish", "9090:80", "--affinity", "--publish-on", "A")
    assert run(capsys, client, "service", "create", "shop", *words)[:2] == (0, "10.27.3.4\n")
    assert client.asked == [
        (
            "POST",
            "services",
            {
                "name": "shop",
                "ports": ["80:8080"],
                "selector": {"app": "shop", "tier": "web"},
                "publish": ["9090:80"],
                "namespace": "default",
                "network": "default",
                "address": None,
                "headless": False,
                "affinity": True,
                "local_first": False,
                "hosts": ["A"],
            },
        )
    ]
    assert json.loads(run(capsys, client, "service", "create", "shop", "--json")[1]) == VIEW
    assert run(capsys, client, "service", "create", "shop", "--selector", "app")[0] == 2
    bare = Canned(services=VIEW | {"address": ""}, services_shop=VIEW | {"address": ""})
    assert run(capsys, bare, "service", "create", "shop", "--headless")[1] == "shop.default.svc.cluster.local\n"
    assert "address     none (network default)" in run(capsys, bare, "service", "show", "shop")[1]


def test_only_what_is_said_is_changed(capsys: pytest.CaptureFixture[str]) -> None:
    client = Canned(services=VIEW)
    assert run(capsys, client, "service", "set", "shop", "--no-affinity", "--drain", "near")[0] == 0
    assert run(capsys, client, "service", "set", "shop", "--port", "81", "--selector", "a=b")[0] == 0
    rest = {"local_first": None, "undrain": []}
    assert [body for _, _, body in client.asked] == [
        {"affinity": False, "drain": ["near"], **rest},
        {"affinity": None, "drain": [], "ports": ["81"], "publish": [], "selector": {"a": "b"}, **rest},
    ]
    assert run(capsys, client, "service", "set", "shop", "--publish", "9090:80")[0] == 2


def test_they_are_removed_and_a_refusal_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    client = Canned(services={})
    assert run(capsys, client, "service", "rm", "shop", "lab/db")[:2] == (0, "shop\nlab/db\n")
    assert [one[:2] for one in client.asked] == [("DELETE", "services/shop"), ("DELETE", "services/lab%2Fdb")]
    refusing = Canned(services_x=Refused("there is no service 'x'; `plait service ls` lists them", "NotFound", 404))
    assert run(capsys, refusing, "service", "rm", "x")[0] == 1
