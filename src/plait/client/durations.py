# SPDX-License-Identifier: Apache-2.0
"""Durations as the API writes them (Go's: "1m30s", "500ms") from and to seconds."""

from __future__ import annotations


def text(seconds: float) -> str:
    """Whole seconds as "15s", others in milliseconds ("1500ms"), rounded."""
    return f"{round(seconds)}s" if seconds == round(seconds) else f"{round(seconds * 1000)}ms"
