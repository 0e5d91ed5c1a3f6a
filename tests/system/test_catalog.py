# SPDX-License-Identifier: Apache-2.0
"""The catalogue as several hosts write it: transactions over real agents, one of which carries the store."""

from __future__ import annotations

import json
import subprocess
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


WATCHED = ("kv/kept", "kv/gone", "kv/?keys", "session/list", "query", "coordinate/nodes", "catalog/service/kept", "health/service/none")
PROBE = f"""
for n in $(seq 300); do
  for path in kv/kept catalog/service/kept; do
    echo $path $(curl -s -m 5 -o /dev/null -w '%{{http_code}} %header{{x-consul-index}}' {BASE}/$path)
  done
  sleep 0.01
done
"""


def index_of(lab: Lab, host: str, path: str) -> int:
    said = lab.run(host, "curl", "-sS", "-m", "10", "-o", "/dev/null", "-D", "-", f"{BASE}/{path}").stdout.lower()
    return int(said.partition("x-consul-index: ")[2].split()[0])


@pytest.mark.parametrize("host", ["A", "B"])
def test_no_index_goes_back_when_the_agent_is_killed(two: Lab, host: str) -> None:
    """A carries the store, B has a copy of it. Somebody asks all the time, also while the agent comes back."""
    put(two, host, "kv/kept", f"first {host}")
    put(two, host, "agent/service/register", {"Name": "kept", "ID": f"kept-{host}"})
    put(two, host, "kv/gone", "")
    two.run(host, "curl", "-sS", "-X", "DELETE", f"{BASE}/kv/gone")
    before = {path: index_of(two, host, path) for path in WATCHED}
    probe = two.popen(host, "timeout", "60", "sh", "-c", PROBE, stdout=subprocess.PIPE, text=True)
    try:
        put(two, host, "agent/service/register", {"Name": "kept", "ID": f"kept-{host}", "Port": 81})
        two.kill_agent(host)
        two.start_agent(host)
        after = {path: index_of(two, host, path) for path in WATCHED}
        assert min(before.values()) >= 1 and all(before[path] <= after[path] for path in WATCHED), (before, after)
        probe.terminate()
        rows = [line.split() for line in probe.communicate(timeout=20)[0].splitlines()]
    finally:
        probe.kill()
    for path in ("kv/kept", "catalog/service/kept"):
        told = [(row[1], int(row[2])) for row in rows if row[0] == path and len(row) == 3]
        assert len(told) > 2 and {status for status, _ in told} == {"200"}, "no index, no answer"
        assert [index for _, index in told] == sorted(index for _, index in told), path
