# SPDX-License-Identifier: Apache-2.0
"""Bodies and parameters that were once an error inside the agent, or poisoned its later answers: each is refused with its reason."""

from __future__ import annotations

import json

import pytest

from plait.serve.consul_coordinate import parse_coordinate
from plait.serve.consul_http import Call
from plait.services.requests import BadRequest, duration_s, parse_service
from plait.services.sessions import parse_session

HUGE = 10**400


def body(text: str) -> object:
    return Call("path", (), {}, text.encode()).json()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_a_number_that_json_cannot_say_is_no_json(number: str) -> None:
    with pytest.raises(BadRequest, match="Request decode failed: "):
        body(f'{{"Name": "web", "Proxy": {{"a": [{number}]}}}}')


@pytest.mark.parametrize("left, right", [("[", "]"), ('{"a":', "}")])
def test_deep_bodies_are_refused_before_they_meet_an_answer_that_cannot_hold_them(left: str, right: str) -> None:
    assert body(left * 99 + "1" + right * 99) is not None
    for depth in (101, 900, 100_000):
        with pytest.raises(BadRequest, match="Request decode failed: "):
            body(left * depth + "1" + right * depth)
    assert body(json.dumps([[]] * 1000)) == [[]] * 1000
    assert body(json.dumps("[" * 1000)) == "[" * 1000


@pytest.mark.parametrize("text", ["9" * 400 + "h", "9" * 30 + "s", "2562048h"])
def test_a_duration_that_go_cannot_hold_is_none(text: str) -> None:
    assert duration_s("2562047h") == 2562047 * 3600
    with pytest.raises(ValueError, match="too long"):
        duration_s(text)


@pytest.mark.parametrize("delay", [HUGE, -HUGE, 1 << 63], ids=["huge", "-huge", "2^63"])
def test_the_lock_delay_of_a_session_is_a_number_that_go_can_hold(delay: int) -> None:
    with pytest.raises(BadRequest, match="LockDelay"):
        parse_session({"LockDelay": delay}, "A", "id")


@pytest.mark.parametrize("coord", [{"Vec": [HUGE] + [0] * 7}, {"Vec": [0] * 8, "Error": -HUGE}])
def test_a_coordinate_is_of_finite_numbers(coord: object) -> None:
    with pytest.raises(BadRequest, match="must be a finite number"):
        parse_coordinate({"Node": "A", "Coord": coord})


@pytest.mark.parametrize(("key", "value"), [("Kind", 5), ("SocketPath", ["a"]), ("Proxy", "x"), ("Proxy", [1]), ("Locality", 1)])
def test_what_is_kept_of_a_service_has_the_type_that_clients_read(key: str, value: object) -> None:
    with pytest.raises(BadRequest, match=f"Request decode failed: {key.lower()} must be"):
        parse_service({"Name": "web", key: value}, "A")
