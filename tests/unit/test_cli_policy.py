# SPDX-License-Identifier: Apache-2.0
"""`plait policy`: what is asked of the agent, what is shown, how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.test_cli import Canned, run

from plait.client.admin import Refused

ROWS: list[dict[str, Any]] = [
    {"namespace": "_cluster", "name": "guard", "tier": "Admin", "priority": 0, "ingress": 2, "egress": -1, "selects": 7}
    | {"audit": True, "allowed": 0, "denied": 12},
    {"namespace": "shop", "name": "db", "tier": "NetworkPolicy", "priority": 0, "ingress": 1, "egress": 0, "selects": 1}
    | {"audit": False, "allowed": 5, "denied": 2},
]
SIDE = {"direction": "egress", "workload": "web", "allowed": True, "policy": "", "rule": "", "why": "no policy says anything of it"}
DENIED = {"policy": "a/b", "rule": "ingress[0]", "why": "Deny by tier Admin"}
TOLD: dict[str, Any] = {
    "allowed": False,
    "source": "web (10.28.0.2, default on A)",
    "destination": "db (10.28.0.3, default on A) tcp port 80",
    "sides": [SIDE, {**DENIED, "direction": "ingress", "workload": "db", "allowed": False}],
    "note": "",
}


def test_policies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    client = Canned(policies=ROWS)
    assert run(capsys, client, "policy", "ls")[1].splitlines() == [
        "NAMESPACE  NAME   KIND                    PRIORITY  INGRESS  EGRESS   SELECTS",
        "-          guard  Cluster, Admin (audit)  0         2 rules  -        7",
        "shop       db     Network                 -         1 rule   0 rules  1",
    ]
    assert run(capsys, client, "policy", "ls", "--counters")[1].splitlines() == [
        "NAMESPACE  NAME   KIND                    PRIORITY  INGRESS  EGRESS   SELECTS  ALLOWED  DENIED",
        "-          guard  Cluster, Admin (audit)  0         2 rules  -        7        0        12",
        "shop       db     Network                 -         1 rule   0 rules  1        5        2",
    ]
    assert json.loads(run(capsys, client, "policy", "ls", "--json")[1]) == ROWS


def test_a_file_is_sent_as_it_is_and_said_what_became_of_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    client = Canned(policies=[{"kind": "policy", "name": "shop/db", "change": "created"}])
    (tmp_path / "p.yaml").write_bytes(b"a: \xff\n")
    assert run(capsys, client, "policy", "apply", "-f", str(tmp_path / "p.yaml"))[:2] == (0, "policy shop/db created\n")
    assert client.asked == [("POST", "policies", b"a: \xff\n")]
    assert json.loads(run(capsys, client, "policy", "apply", "--json", "-f", str(tmp_path / "p.yaml"))[1])[0]["change"] == "created"
    assert run(capsys, client, "policy", "apply", "-f", str(tmp_path / "none"))[0] == 2
    assert run(capsys, client, "policy", "apply")[0] == 2


def test_what_a_file_would_change_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("x")
    applied = [{"kind": "policy", "name": name, "change": word} for name, word in (("shop/db", "created"), ("shop/web", "unchanged"))]
    told: dict[str, Any] = {"applied": applied, "selected": ["A/db ingress"], "released": ["A/x egress"], "added": 7, "removed": 0}
    told |= {
        "pairs": [{"source": "others", "destination": "A/db", "before": "everything", "after": "tcp 80"}],
        "compared": 1,
        "concerned": 4,
    }
    client = Canned(policies=told)
    assert run(capsys, client, "policy", "plan", "-f", str(tmp_path / "p.yaml"))[1].splitlines() == [
        "policy shop/db would be created",
        "policy shop/web unchanged",
        "selected: A/db ingress",
        "no longer selected: A/x egress",
        "FROM    TO    PASSES NOW  WOULD PASS",
        "others  A/db  everything  tcp 80",
        "compared 1 of 4 pairs of containers",
        "on this host: 7 elements more, 0 fewer",
    ]
    assert client.asked == [("POST", "policies?dry_run=1", b"x")]
    assert json.loads(run(capsys, client, "policy", "plan", "--json", "-f", str(tmp_path / "p.yaml"))[1]) == told


def test_a_wrong_file_is_refused_in_the_agents_words(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("x")
    client = Canned(policies=Refused("line 1, kind: 'Pod' is nothing", "ConfigError", 400))
    status, _, error = run(capsys, client, "policy", "apply", "-f", str(tmp_path / "p.yaml"))
    assert status == 1 and "line 1, kind" in error


def test_a_policy_is_shown_so_that_it_may_be_applied_again(capsys: pytest.CaptureFixture[str]) -> None:
    rules = [
        {"direction": "ingress", "rule": "ingress[0]", "allowed": 5, "denied": 0, "last": 9.0},
        {"direction": "ingress", "rule": "", "allowed": 0, "denied": 2, "last": 9.0},
    ]
    view = ROWS[1] | {"document": "kind: NetworkPolicy\n", "workloads": ["A/db"], "rules": rules}
    client = Canned(**{"policies_shop%2Fdb": view})
    assert run(capsys, client, "policy", "show", "shop/db")[1] == (
        "# about A/db\n# ingress[0]: 5 allowed, 0 denied\n# isolation of ingress: 0 allowed, 2 denied\nkind: NetworkPolicy\n"
    )
    assert json.loads(run(capsys, client, "policy", "show", "shop/db", "--json")[1]) == view


@pytest.mark.parametrize("command", ["drops", "audit"])
def test_what_was_dropped_or_would_be_is_listed(capsys: pytest.CaptureFixture[str], command: str) -> None:
    row = {"direction": "ingress", "source": "x (10.28.0.2)", "destination": "db (10.28.0.3)", "protocol": "tcp", "port": 80}
    told = row | {"policies": ["shop/db", "shop/all"], "rule": "", "count": 3, "first": 1.0, "last": 2.0}
    ping = row | {
        "policies": ["_cluster/guard"],
        "rule": "ingress[0]",
        "protocol": "icmp",
        "port": 0,
        "count": 1,
        "first": 1.0,
        "last": 2.0,
    }
    rows = [one | {"audit": audit} for one in (told, ping) for audit in (False, True)]
    client = Canned(**{"policy-drops": rows})
    lines = run(capsys, client, "policy", command)[1].splitlines()
    assert lines[1].endswith("x (10.28.0.2)  db (10.28.0.3)  tcp 80  shop/db, shop/all ingress  3")
    assert lines[2].endswith("x (10.28.0.2)  db (10.28.0.3)  icmp    _cluster/guard ingress[0]  1")
    assert len(lines) == 3
    assert json.loads(run(capsys, client, "policy", command, "--json")[1]) == [row for row in rows if row["audit"] == (command == "audit")]


def test_policies_are_removed_and_namespaces_listed(capsys: pytest.CaptureFixture[str]) -> None:
    client = Canned(namespaces=[{"name": "shop", "labels": {"team": "a", "env": "x"}, "workloads": 2}])
    assert run(capsys, client, "policy", "rm", "db", "shop/web")[1] == "db\nshop/web\n"
    assert client.asked == [("DELETE", "policies/db", None), ("DELETE", "policies/shop%2Fweb", None)]
    assert run(capsys, client, "policy", "namespaces")[1].splitlines()[1] == "shop  2           env=x team=a"
    assert json.loads(run(capsys, client, "policy", "namespaces", "--json")[1])[0]["labels"] == {"team": "a", "env": "x"}


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (("web", "db:80"), ("db", "tcp", 80)),
        (("--udp", "web", "db:53"), ("db", "udp", 53)),
        (("--sctp", "web", "10.28.0.3:9"), ("10.28.0.3", "sctp", 9)),
        (("web", "[fd00::3]:80"), ("fd00::3", "tcp", 80)),
        (("web", "[fd00::3]"), ("fd00::3", "icmp", 0)),
        (("web", "fd00::3"), ("fd00::3", "icmp", 0)),
        (("web", "db"), ("db", "icmp", 0)),
    ],
)
def test_a_test_asks_for_what_was_written(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], asked: tuple[str, str, int]) -> None:
    client = Canned(**{"policy-test": TOLD | {"allowed": True}})
    assert run(capsys, client, "policy", "test", *words)[0] == 0
    assert client.asked == [("POST", "policy-test", {"from": "web", "to": asked[0], "protocol": asked[1], "port": asked[2]})]


def test_a_test_says_why_and_ends_with_1_where_nothing_passes(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, Canned(**{"policy-test": TOLD | {"note": "networks a and b are apart"}}), "policy", "test", "web", "db:80")
    assert (status, out.splitlines()) == (
        1,
        [
            "web (10.28.0.2, default on A) -> db (10.28.0.3, default on A) tcp port 80: denied",
            "  egress of web: allowed, no policy says anything of it",
            "  ingress of db: denied, by policy a/b, ingress[0] (Deny by tier Admin)",
            "  networks a and b are apart",
        ],
    )
    nobody = Canned(**{"policy-test": TOLD | {"allowed": True, "sides": []}})
    assert "neither is a container" in run(capsys, nobody, "policy", "test", "198.51.100.1", "198.51.100.2:1")[1]
    assert json.loads(run(capsys, nobody, "policy", "test", "--json", "a", "b:1")[1])["sides"] == []


@pytest.mark.parametrize("words", [("a", "b:0"), ("a", "b:65536"), ("a", "b:x"), ("a", "[b"), ("a", "[b]9"), ("--udp", "a", "b"), ("a",)])
def test_what_is_no_place_is_wrong_usage(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    client = Canned()
    assert run(capsys, client, "policy", "test", *words)[0] == 2 and not client.asked
