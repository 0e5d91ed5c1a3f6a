# SPDX-License-Identifier: Apache-2.0
"""The demonstration's checks tell a right answer from a wrong one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from plait.lab import demo

GOOD: dict[str, Any] = {
    "ID": "web",
    "Name": "web",
    "Tags": ["http"],
    "Address": "10.28.0.2",
    "TaggedAddresses": {"lan": "10.28.0.2", "wan": "10.28.0.2"},
    "Meta": {},
    "Port": 80,
    "EnableTagOverride": False,
    "CreateIndex": 7,
    "ModifyIndex": 7,
}
DIG = """\
;; ->>HEADER<<- opcode: QUERY, status: NOERROR, id: 40111
;; flags: qr aa rd; QUERY: 1, ANSWER: 1, AUTHORITY: 0, ADDITIONAL: 1

;; ANSWER SECTION:
web.service.consul.\t0\tIN\tA\t10.28.0.2
"""


def test_the_answer_of_the_case() -> None:
    assert demo.is_registered(json.dumps(GOOD))


@pytest.mark.parametrize(
    "change",
    [{"Address": ""}, {"Port": "80"}, {"TaggedAddresses": {}}, {"TaggedAddresses": {"lan": "10.28.0.2", "wan": ""}}, {"Tags": None}],
)
def test_a_wrong_answer(change: dict[str, Any]) -> None:
    assert not demo.is_registered(json.dumps(GOOD | change))


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", "not JSON"])
def test_no_answer(text: str) -> None:
    assert not demo.is_registered(text)


def test_a_missing_index() -> None:
    assert not demo.is_registered(json.dumps({key: value for key, value in GOOD.items() if key != "ModifyIndex"}))


def test_one_record() -> None:
    assert demo.is_one_record(DIG)


@pytest.mark.parametrize(
    ("old", "new"),
    [("aa ", ""), ("\t0\t", "\t5\t"), ("10.28.0.2", "10.28.0.3"), ("web.service.consul.\t0\tIN\tA\t10.28.0.2\n", ""), ("qr", "")],
)
def test_a_wrong_record(old: str, new: str) -> None:
    assert not demo.is_one_record(DIG.replace(old, new))


def test_two_records_are_one_too_many() -> None:
    assert not demo.is_one_record(DIG + "web.service.consul.\t0\tIN\tA\t10.28.0.9\n")


def test_a_verdict_needs_checks() -> None:
    verdict = demo.Verdict()
    assert not verdict.is_good
    verdict.checks.append(("a", True))
    assert verdict.is_good
    verdict.checks.append(("b", False))
    assert not verdict.is_good
    assert verdict.failed == ["b"]
