# SPDX-License-Identifier: Apache-2.0
"""The four-host case holds, as `plait lab demo` plays it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from plait.lab import demo
from plait.lab import state as states

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def test_the_case_holds_and_leaves_nothing() -> None:
    lines: list[str] = []
    verdict = demo.run(lines.append)
    assert verdict.is_good, "\n".join(lines)
    assert verdict.took_s < 180
    assert not [state for state in states.list_labs() if state.name == f"demo-{os.getpid()}"]


@pytest.mark.parametrize("delay_s", [1.0, 4.0, 9.0])
def test_a_show_that_is_interrupted_leaves_nothing(delay_s: float) -> None:
    show = subprocess.Popen([sys.executable, "-m", "plait.cli.lab", "demo"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(delay_s)
    show.terminate()
    assert show.wait(60) == 143
    assert not [state for state in states.list_labs() if state.name == f"demo-{show.pid}"]
    assert not (states.DISKS / f"demo-{show.pid}").exists()
