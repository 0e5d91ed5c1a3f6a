# SPDX-License-Identifier: Apache-2.0
"""Which targets the router of the Consul API keeps: those that are asked for often, however many others come once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from plait.http.message import Answer, Request
from plait.serve.consul_http import Call, Repeated, Route, text_answer
from plait.serve.consul_router import Router


def _router() -> tuple[Router, Counter[str]]:
    """A router of one route, and how often the handler of which path was prepared anew: for each target that was not kept."""
    prepared: Counter[str] = Counter()

    def prepare(call: Call) -> Callable[[], Answer]:
        prepared[call.path] += 1
        return lambda: text_answer(200, call.path)

    router = Router("dc1")
    router.add([Route("kv/<key>", "a key", {"GET": Repeated(prepare)})])
    return router, prepared


def _ask(router: Router, target: str) -> None:
    answer = router.respond(Request("GET", target.encode(), {}))
    assert isinstance(answer, Answer) and answer.status == 200


def test_hundreds_of_busy_targets_stay_kept_beside_queries_that_come_once() -> None:
    router, prepared = _router()
    for round_ in range(10):
        for key in range(800):
            _ask(router, f"/v1/kv/busy{key}")
            if key % 10 == 0:
                _ask(router, f"/v1/kv/watched?index={round_ * 800 + key + 1}")
    assert {prepared[f"kv/busy{key}"] for key in range(800)} == {1}
    assert prepared["kv/watched"] == 800


def test_what_nobody_asks_for_is_let_go() -> None:
    router, prepared = _router()
    _ask(router, "/v1/kv/early")
    for key in range(5000):
        _ask(router, f"/v1/kv/{key}")
    _ask(router, "/v1/kv/early")
    assert prepared["kv/early"] == 2
