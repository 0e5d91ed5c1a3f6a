# SPDX-License-Identifier: Apache-2.0
"""How the interpreter of the agent is set up."""

from __future__ import annotations

import gc

_THRESHOLDS = (20_000, 20, 50)
"""Objects until the youngest generation is collected, and how often before the next. Python's 700, 10, 10 look through the store's
history for cycles that hardly ever are there: with them durable writes are slower by a quarter (measured, 64 in flight)."""


def tune() -> None:
    """Call it when most modules are imported: what there is by then is never looked through again."""
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
