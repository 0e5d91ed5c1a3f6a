# SPDX-License-Identifier: Apache-2.0
"""The catalogue as several hosts write it, over real agents, one of which carries the store."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from plait.lab.agents import log_of
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


def put_status(lab: Lab, host: str, path: str) -> int:
    words = ("curl", "-sS", "-m", "10", "-X", "PUT", "-o", "/dev/null", "-w", "%{http_code}")
    return int(lab.run(host, *words, f"{BASE}/{path}").stdout)


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
ENOUGH = "/run/enough"
PROBE = f"""
rm -f {ENOUGH}
until [ -e {ENOUGH} ]; do
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
    until("the host writes", lambda: put_status(two, host, "kv/writes") == 200, 20)
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
        two.run(host, "touch", ENOUGH)
        rows = [line.split() for line in probe.communicate(timeout=20)[0].splitlines()]
    finally:
        probe.kill()
    for path in ("kv/kept", "catalog/service/kept"):
        told = [(row[1], int(row[2])) for row in rows if row[0] == path and len(row) == 3]
        assert len(told) > 2 and {status for status, _ in told} == {"200"}, "no index, no answer"
        assert [index for _, index in told] == sorted(index for _, index in told), path


def test_a_restart_of_the_agent_with_the_store_fails_no_write_that_begins_meanwhile_elsewhere(two: Lab) -> None:
    """Three times at most: on a busy machine an agent may take longer to come back than writes are held for. What is sent before the kernel
    has ended the connection of the killed one is lost with it, and whether it was written nobody can tell."""
    for attempt in range(3):
        until("B writes", lambda: put_status(two, "B", "kv/writes") == 200, 20)
        lost = logged(two, "B", "store_lost")
        two.kill_agent("A")
        until("B has no connection", lambda before=lost: logged(two, "B", "store_lost") > before, 10)
        write = two.popen("B", "curl", "-sS", "-X", "PUT", "-d", str(attempt), f"{BASE}/kv/held", stdout=subprocess.PIPE, text=True)
        two.start_agent("A")
        if write.communicate(timeout=20)[0].strip() == "true":
            assert two.run("A", "curl", "-sS", f"{BASE}/kv/held?raw").stdout == str(attempt)
            return
    pytest.fail("a write on B failed in each of three restarts of A's agent")


def test_no_index_goes_back_when_the_agent_is_killed_before_it_could_publish(two: Lab) -> None:
    """B is cut off from the store: what it answers has no revision behind it, and is older or newer than the copy on its disk."""
    paths = ("catalog/service/far", "catalog/services", "catalog/nodes", "health/state/any")
    until("B writes", lambda: put_status(two, "B", "kv/writes") == 200, 20)
    put(two, "B", "kv/far", "")
    two.cut("A", "B")
    try:
        for port in (1, 2, 3):
            put(two, "B", "agent/service/register", {"Name": "far", "Port": port})
            before = {path: index_of(two, "B", path) for path in paths}
        two.kill_agent("B")
        two.start_agent("B")
        assert ports(two, "B", "far") == [3]
        after = {path: index_of(two, "B", path) for path in paths}
        assert all(before[path] < after[path] for path in paths), (before, after)
        assert two.run("B", "curl", "-sS", f"{BASE}/kv/far").stdout == "No cluster leader", "the copy may be older than what was answered"
        assert asked(two, "B", "kv/far?stale")[0]["Key"] == "far"
    finally:
        two.heal()
    until("A knows it", lambda: ports(two, "A", "far") == [3], 30)
    assert asked(two, "B", "kv/far")[0]["Key"] == "far"
    assert index_of(two, "B", "catalog/service/far") >= after["catalog/service/far"]


def conflicts(lab: Lab, host: str) -> dict[str, str]:
    """What `plait status` of the host says of records that others put under its name."""
    said = json.loads(lab.run(host, "plait", "status", "--json", check=False).stdout)
    return {row["subject"]: row["text"] for row in said["conditions"] if row["code"] == "catalog-conflict"}


def logged(lab: Lab, host: str, event: str, **fields: str) -> int:
    lines = log_of(lab.state, host).read_text().splitlines()
    return sum(f" {event} " in line and all(f"{name}={value}" in line for name, value in fields.items()) for line in lines)


def test_what_another_host_puts_under_this_ones_name_is_never_erased_silently(two: Lab) -> None:
    """B writes two services and a check under A's name: one that A's agent has too, and others that it has not. They outlast the agent's
    publishing, its kill and its restart, are named by status and log all the time, and go when somebody takes them away."""
    put(two, "A", "agent/service/register", {"Name": "shop", "ID": "shop-1", "Port": 8080})
    until("B knows A's service", lambda: ports(two, "B", "shop") == [8080], 10)
    for service in ({"Service": "shop", "ID": "shop-1", "Port": 1}, {"Service": "guest", "Port": 9, "Address": "192.0.2.9"}):
        assert put(two, "B", "catalog/register", {"Node": "A", "SkipNodeUpdate": True, "Service": service}) == (200, True)
    check = {"Node": "A", "CheckID": "seen", "Name": "seen from B", "Status": "passing"}
    assert put(two, "B", "txn", [{"Check": {"Verb": "set", "Check": check}}])[0] == 200
    named = {"service shop-1", "service guest", "check seen"}
    until("A names them", lambda: set(conflicts(two, "A")) == named, 10)

    def as_it_should_be() -> bool:
        return all(
            (ports(two, host, "shop"), ports(two, host, "guest")) == ([8080], [9])
            and "seen" in {row["CheckID"] for row in asked(two, host, "health/node/A")}
            for host in "AB"
        )

    assert as_it_should_be() and conflicts(two, "B") == {}
    assert {"shop-1", "guest"} & asked(two, "A", "agent/services").keys() == {"shop-1"}, "what others put there is not the agent's"
    until("DNS knows it", lambda: two.run("B", "dig", "+short", "@127.0.0.1", "guest.service.consul").stdout.split() == ["192.0.2.9"], 1)
    assert "which counts" in conflicts(two, "A")["service shop-1"] and "clients see the catalogue's" in conflicts(two, "A")["service guest"]
    assert "catalog-conflict" in two.run("A", "plait", "status", check=False).stdout

    put(two, "A", "agent/service/register", {"Name": "shop", "ID": "shop-1", "Port": 8081})
    put(two, "A", "agent/service/register", {"Name": "shop", "ID": "shop-1", "Port": 8080})
    two.kill_agent("A")
    two.start_agent("A")
    until("A names them again", lambda: set(conflicts(two, "A")) == named, 10)
    until("nothing is gone", as_it_should_be, 10)
    for subject in named:
        assert logged(two, "A", "condition_began", code="catalog-conflict", subject=f'"{subject}"') >= 2, "before and after the restart"

    put(two, "A", "agent/service/deregister/shop-1", None)
    until("the other comes to light", lambda: [ports(two, host, "shop") for host in "AB"] == [[1], [1]], 10)
    put(two, "B", "catalog/deregister", {"Node": "A", "ServiceID": "shop-1"})
    put(
        two,
        "A",
        "txn",
        [{"Service": {"Verb": "delete", "Node": "A", "Service": {"ID": "guest"}}}, {"Check": {"Verb": "delete", "Check": check}}],
    )
    until(
        "they are gone, and so is the condition",
        lambda: (conflicts(two, "A"), ports(two, "B", "shop"), ports(two, "B", "guest")) == ({}, [], []),
        10,
    )
    until("the log says so", lambda: logged(two, "A", "condition_ended", code="catalog-conflict") == 3, 10)
