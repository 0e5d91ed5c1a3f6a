# SPDX-License-Identifier: Apache-2.0
"""The catalogue as several hosts write it: transactions over real agents, one of which carries the store."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]
BASE = "http://127.0.0.1:8500/v1"


@pytest.fixture(scope="module")
def two(make_lab: Callable[..., Lab]) -> Lab:
    lab = make_lab(hosts=2, agents=True)
    until("A knows both hosts", lambda: {row["Node"] for row in asked(lab, "A", "catalog/nodes")} == {"A", "B"}, 20)
    return lab


def asked(lab: Lab, host: str, path: str) -> Any:
    return json.loads(lab.run(host, "curl", "-sS", "-m", "10", f"{BASE}/{path}").stdout)


def put(lab: Lab, host: str, path: str, body: object) -> tuple[int, Any]:
    """Status, and what the answer holds."""
    said = lab.run(host, "curl", "-sS", "-X", "PUT", "-d", json.dumps(body), "-w", "\n%{http_code}", f"{BASE}/{path}").stdout
    text, _, status = said.rpartition("\n")
    return int(status), json.loads(text) if text else None


def ports(lab: Lab, host: str, service: str) -> list[int]:
    return [row["ServicePort"] for row in asked(lab, host, f"catalog/service/{service}")]


def test_a_transaction_of_one_host_is_one_change_on_the_other(two: Lab) -> None:
    node = {"Node": "ext", "Address": "192.0.2.7"}
    ops = [
        {"Node": {"Verb": "set", "Node": node}},
        {"Service": {"Verb": "set", "Node": "ext", "Service": {"ID": "db-1", "Service": "db", "Port": 5432}}},
        {"Check": {"Verb": "set", "Check": {"Node": "ext", "CheckID": "up", "Name": "up", "Status": "passing", "ServiceID": "db-1"}}},
        {"KV": {"Verb": "set", "Key": "db/leader", "Value": "ZXh0"}},
    ]
    status, answer = put(two, "B", "txn", ops)
    assert status == 200 and answer["Errors"] is None
    (index,) = {shown["ModifyIndex"] for result in answer["Results"] for shown in result.values()}
    until("A has it", lambda: ports(two, "A", "db") == [5432], 10)
    (entry,) = asked(two, "A", "health/service/db?passing")
    assert [entry[part]["ModifyIndex"] for part in ("Node", "Service")] + [entry["Checks"][0]["ModifyIndex"]] == [index] * 3
    assert asked(two, "A", "kv/db/leader")[0]["ModifyIndex"] == index
    assert two.run("A", "dig", "+short", "@127.0.0.1", "db.service.consul").stdout.split() == ["192.0.2.7"]
    status, answer = put(
        two,
        "A",
        "txn",
        [
            {"Service": {"Verb": "cas", "Node": "ext", "Service": {"ID": "db-1", "Service": "db", "Port": 1, "ModifyIndex": index - 1}}},
            {"KV": {"Verb": "delete", "Key": "db/leader"}},
            {"Check": {"Verb": "get", "Check": {"Node": "ext", "CheckID": "none"}}},
        ],
    )
    assert status == 409 and [error["OpIndex"] for error in answer["Errors"]] == [0, 2]
    assert ports(two, "B", "db") == [5432] and asked(two, "B", "kv/db/leader")
    assert put(two, "A", "txn", [{"Node": {"Verb": "delete", "Node": {"Node": "ext"}}}]) == (200, {"Results": [], "Errors": None})
    until("B has lost the node", lambda: ports(two, "B", "db") == [], 10)
