# SPDX-License-Identifier: Apache-2.0
"""Regular expressions that a client gives: only those that Python's backtracking engine matches in bounded time.

Consul evaluates such expressions with RE2, which has no look-around and no back-references; both are refused here too.
"""

from __future__ import annotations

import re
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

MAX_LENGTH = 256
"""Characters of an expression."""
MAX_OPEN = 3
"""Repetitions without an upper limit, or with a great one, in one expression: each multiplies the time by the length of the text."""
_MANY = 16
_REPEATS = (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT)
_REFUSED = (_constants.ASSERT, _constants.ASSERT_NOT, _constants.GROUPREF, _constants.GROUPREF_EXISTS)


class BadPattern(ValueError):
    """The expression is wrong, or could take very long."""


def compile_bounded(pattern: str) -> re.Pattern[str]:
    """The compiled expression. BadPattern says why not."""
    if len(pattern) > MAX_LENGTH:
        raise BadPattern(f"it must have at most {MAX_LENGTH} characters")
    try:
        opened = _open_repeats(_parser.parse(pattern), inside=False)
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise BadPattern(str(error)) from error
    if opened > MAX_OPEN:
        raise BadPattern(f"it repeats without limit in more than {MAX_OPEN} places, which could take very long")
    return compiled


def _open_repeats(parsed: Any, inside: bool) -> int:
    """How many repetitions of many times it holds. BadPattern for one that holds another or a choice, and for what RE2 does not have."""
    count = 0
    for kind, argument in parsed:
        if kind in _REFUSED:
            raise BadPattern("look-around and back-references are not supported")
        if inside and kind is _constants.BRANCH:
            raise BadPattern("a choice inside of a repetition could take very long")
        if kind in _REPEATS:
            many = argument[1] > _MANY
            if inside:
                raise BadPattern("a repetition inside of a repetition could take very long")
            count += many + _open_repeats(argument[2], inside or argument[1] > 1)
        elif kind is _constants.BRANCH:
            count += sum(_open_repeats(choice, inside) for choice in argument[1])
        elif kind is _constants.SUBPATTERN:
            count += _open_repeats(argument[3], inside)
        elif kind is _constants.ATOMIC_GROUP:
            count += _open_repeats(argument, inside)
    return count
