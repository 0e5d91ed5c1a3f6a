# SPDX-License-Identifier: Apache-2.0
"""Labs for the tests that need hosts.

`make_lab` makes as many as a module likes; each has a name of its own and goes when the module ends. A lab of a run that was killed is
removed by the next run.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator

import pytest

from plait.lab.lab import Lab, sweep
from plait.lab.spec import parse_toml, simple

_numbers = itertools.count(1)
MakeLab = Callable[..., Lab]


@pytest.fixture(scope="session")
def swept_labs() -> None:
    """Once per run: what dead runs left behind is removed."""
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    sweep()


@pytest.fixture(scope="module")
def make_lab(swept_labs: None) -> Iterator[MakeLab]:
    """`make_lab(hosts=3, agents=True, engines=False)` or `make_lab(toml="…")` gives a Lab; it is removed when the module ends."""
    made: list[Lab] = []

    def make(*, hosts: int = 3, toml: str | None = None, agents: bool = True, engines: bool = False) -> Lab:
        flags = {"agents": agents, "engines": engines}
        spec = simple(hosts, **flags) if toml is None else parse_toml(toml, **flags)
        lab = Lab.up(spec, f"test-{os.getpid()}-{next(_numbers)}", owned=True)
        made.append(lab)
        return lab

    yield make
    for lab in made:
        lab.down()
