# SPDX-License-Identifier: Apache-2.0
"""`plait routing` and `plait egress`: what is asked of the agent, what is shown."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit.test_cli import Canned, run

VIEW: dict[str, Any] = {
    "sessions": [
        {
            "peer": "192.0.2.1",
            "protocol": "bgp",
            "family": "ipv4",
            "table": "red",
            "up": True,
            "state": "Established",
            "learned": 1,
            "announced": 2,
            "refused": 1,
        }
    ],
    "announced": {"pink": [], "red": ["10.40.0.0/24", "10.40.7.7/32"]},
    "learned": [{"table": "red", "prefix": "10.200.0.0/16", "via": "192.0.2.1", "dev": "eth0"}],
    "refused": [{"peer": "192.0.2.1", "prefix": "0.0.0.0/0", "origin": "AS 65000", "why": "the default route", "wrong": True}],
}
OUT: dict[str, Any] = {
    "name": "out",
    "network": "zone",
    "selector": {"tier": "x", "app": "web"},
    "gateways": ["G1=192.0.2.7", "G2"],
    "by": "G1",
    "address": "192.0.2.7",
    "containers": 3,
}


@pytest.mark.parametrize(
    ("option", "shown"),
    [
        (
            (),
            [
                "ROUTER     PROTOCOL  FAMILY  TABLE  STATE        LEARNED  ANNOUNCED  REFUSED",
                "192.0.2.1  bgp       ipv4    red    Established  1        2          1",
            ],
        ),
        (("--announced",), ["NETWORK  PREFIX", "red      10.40.0.0/24", "red      10.40.7.7/32"]),
        (("--learned",), ["TABLE  PREFIX         VIA        LINK", "red    10.200.0.0/16  192.0.2.1  eth0"]),
        (("--refused",), ["ROUTER     PREFIX     ORIGIN    WHY", "192.0.2.1  0.0.0.0/0  AS 65000  the default route"]),
    ],
)
def test_routing_is_shown(capsys: pytest.CaptureFixture[str], option: tuple[str, ...], shown: list[str]) -> None:
    assert run(capsys, Canned(routing=VIEW), "routing", *option)[1].splitlines() == shown
    assert json.loads(run(capsys, Canned(routing=VIEW), "routing", *option, "--json")[1]) == VIEW


def test_egress_rules_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    none = OUT | {"name": "shut", "selector": {}, "by": "", "address": ""}
    assert run(capsys, Canned(egress=[OUT, none]), "egress", "ls")[1].splitlines() == [
        "NAME  NETWORK  SELECTOR        CONTAINERS  GATEWAYS         BY    SEEN AS",
        "out   zone     app=web,tier=x  3           G1=192.0.2.7 G2  G1    192.0.2.7",
        "shut  zone     -               3           G1=192.0.2.7 G2  none  -",
    ]
    assert json.loads(run(capsys, Canned(egress=[OUT]), "egress", "ls", "--json")[1]) == [OUT]


def test_a_rule_is_made_of_what_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    client = Canned(egress_out=OUT)
    words = ("--network", "zone", "--selector", "app=web", "--selector", "tier=x", "--via", "G1=192.0.2.7", "--via", "G2")
    assert run(capsys, client, "egress", "set", "out", *words)[1] == "G1 192.0.2.7\n"
    body = {"network": "zone", "selector": {"app": "web", "tier": "x"}, "via": ["G1=192.0.2.7", "G2"]}
    assert client.asked[-1] == ("PUT", "egress/out", body)
    nobody = Canned(egress_out=OUT | {"by": ""})
    assert run(capsys, nobody, "egress", "set", "out", "--via", "G1")[1] == "no gateway is reached: nothing leaves\n"
    assert run(capsys, client, "egress", "set", "out")[0] == 2, "without a gateway it means nothing"


def test_rules_are_removed(capsys: pytest.CaptureFixture[str]) -> None:
    client = Canned(egress_a={}, egress_b={})
    assert run(capsys, client, "egress", "rm", "a", "b")[0] == 0
    assert [call[:2] for call in client.asked] == [("DELETE", "egress/a"), ("DELETE", "egress/b")]
