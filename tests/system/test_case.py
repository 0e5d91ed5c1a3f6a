# SPDX-License-Identifier: Apache-2.0
"""The four-host case holds, as `plait lab demo` plays it."""

from __future__ import annotations

import pytest

from plait.lab import demo
from plait.lab import state as states

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def test_the_case_holds_and_leaves_nothing() -> None:
    lines: list[str] = []
    verdict = demo.run(lines.append)
    assert verdict.is_good, "\n".join(lines)
    assert verdict.took_s < 180
    assert not [state for state in states.list_labs() if state.name.startswith("demo-")]
