# SPDX-License-Identifier: Apache-2.0
"""Bringing a lab up: four hosts bare, and with their agents initialised, joined and ready."""

from __future__ import annotations

import time

from bench.core import Row, median
from plait.lab.lab import Lab
from plait.lab.spec import simple

ROUNDS = 5


def run() -> list[Row]:
    bare = median([_up(agents=False) for _ in range(ROUNDS)])
    joined = median([_up(agents=True) for _ in range(ROUNDS)])
    return [
        Row("four bare lab hosts", bare, "s", 1.0, True, "`Lab.up` without agents, median of five"),
        Row("four lab hosts with agents", joined, "s", 3.0, True, "initialised, joined and ready, median of five"),
    ]


def _up(*, agents: bool) -> float:
    started = time.perf_counter()
    lab = Lab.up(simple(4, agents=agents), "bench-lab", owned=True)
    took = time.perf_counter() - started
    lab.down()
    return took
