# SPDX-License-Identifier: Apache-2.0
"""Regular expressions that a client gives, in RE2's syntax and matched by RE2: in time linear in the text, whatever the expression.

Consul's filters and query templates are written for the same engine, so they mean the same here. The engine is loaded by the first
expression: most agents never see one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

MAX_LENGTH = 1024
"""Characters of an expression."""
_MAX_MEMORY = 1 << 20
"""Bytes that one compiled expression may take; RE2 refuses what would take more."""


class BadPattern(ValueError):
    """The text is no expression of RE2, or one that is too large."""


class Pattern:
    """A compiled expression."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled

    def groups(self, text: str) -> tuple[str, ...] | None:
        """What it first matches anywhere in `text`: the whole, then each group ("" for one that took no part). None if nowhere."""
        match = self._compiled.search(_encodable(text))
        return None if match is None else (match.group(0), *(group or "" for group in match.groups()))

    def matches(self, text: str) -> bool:
        return self._compiled.search(_encodable(text)) is not None


@lru_cache(maxsize=64)
def compile_pattern(pattern: str) -> Pattern:
    """The compiled expression, of at most MAX_LENGTH characters. BadPattern says why not."""
    import re2  # type: ignore[import-untyped]

    if len(pattern) > MAX_LENGTH:
        raise BadPattern(f"it must have at most {MAX_LENGTH} characters")
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MAX_MEMORY
    try:
        return Pattern(re2.compile(_encodable(pattern), options))
    except re2.error as error:
        reason = error.args[0] if error.args else "not an expression"
        raise BadPattern(reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)) from error


def _encodable(text: str) -> str:
    """Half a surrogate pair has no UTF-8: it stands as a question mark."""
    return text if text.isascii() else text.encode(errors="replace").decode()
