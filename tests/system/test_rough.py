# SPDX-License-Identifier: Apache-2.0
"""Names while containers come and go over wires that delay, reorder and lose packets: what is gone is gone."""

from __future__ import annotations

import itertools
import json
import random
import re
import time
from collections.abc import Callable, Iterator

import pytest
from tests.support.rough import rough

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]
DELAY_MS, LOST = (0, 300), 0.01
"""As in the report that the promise stands against: 100 +- 200 ms, 1 %."""
AT_ONCE, FLAPS = 6, 24
SETTLED_S = 30
"""A second or two; with room for packets that are lost twice, and a loaded machine."""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    """A has the store and a smooth wire, the others rough ones."""
    made = make_lab(hosts=3)
    with rough(made, "B", DELAY_MS, LOST), rough(made, "C", DELAY_MS, LOST):
        yield made


def start(lab: Lab, host: str, name: str) -> str:
    """The address of a new instance of `web` on `host`."""
    lab.run(host, "plait", "run", "--name", name, "--label", "plait.service=web", "--label", "plait.port=80")
    rows = json.loads(lab.run(host, "plait", "ps", "--json").stdout)
    return str(next(row for row in rows if row["name"] == name)["addresses"]["default"])


def answers(lab: Lab, host: str) -> set[str]:
    said = lab.run(host, "dig", "+short", "+tcp", "+time=5", "@127.0.0.1", "web.service.consul", check=False).stdout
    return set(re.findall(r"^\d[\d.]*$", said, re.MULTILINE))


def test_the_wire_is_rough(lab: Lab) -> None:
    said = lab.run("A", "ping", "-c", "20", "-i", "0.05", "-W", "2", "B", check=False).stdout
    times = [float(ms) for ms in re.findall(r"time=([\d.]+)", said)]
    assert times and max(times) > 100 and max(times) - min(times) > 50, said


def test_what_went_is_gone_everywhere_and_nothing_returns(lab: Lab) -> None:
    chance, numbers = random.Random(7), itertools.count(1)
    living: dict[str, tuple[str, str]] = {}

    def add() -> None:
        host, name = chance.choice("ABC"), f"web-{next(numbers)}"
        living[name] = host, start(lab, host, name)

    def drop() -> None:
        name = chance.choice(sorted(living))
        host, _ = living.pop(name)
        lab.run(host, "plait", "rm", name)

    def wanted() -> set[str]:
        return {address for _, address in living.values()}

    for _ in range(AT_ONCE):
        add()
    for _ in range(FLAPS):
        drop()
        add()
        assert len(answers(lab, chance.choice("ABC"))) <= AT_ONCE + FLAPS // 2, "the answer grows with what comes and goes"
    for host in "ABC":
        until(f"{host} answers what lives", lambda host=host: answers(lab, host) == wanted(), SETTLED_S)
    while len(living) > 1:
        drop()
    for host in "ABC":
        until(f"{host} answers the last one", lambda host=host: answers(lab, host) == wanted(), SETTLED_S)
    end = time.monotonic() + 5
    while time.monotonic() < end:
        assert [answers(lab, host) for host in "ABC"] == [wanted()] * 3, "what was late, or sent again, brings nothing back"
