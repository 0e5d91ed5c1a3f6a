# SPDX-License-Identifier: Apache-2.0
"""Label selectors: a text -> which instances are meant, by the metadata of each and the labels of its container.

| requirement | fits |
|---|---|
| `key=value`, `key==value` | the label has that value |
| `key!=value` | it has another value, or there is no such label |
| `key` / `!key` | there is such a label / there is none |
| `key in (a,b)` | it has one of the values |
| `key notin (a,b)` | it has none of them, or there is no such label |

Requirements are joined by commas and must all hold; the empty text fits everything. Source of the grammar: Kubernetes' documentation of
label selectors. Keys and values are compared as they are written; a value may be empty and may hold anything but space and `,()=!`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from plait.services.requests import BadRequest

_MAX_LENGTH = 4096
_WORD = r"[^\s,()=!]"
_VALUES = r"\((?P<values>[^()=!]*)\)"
_REQUIREMENT = re.compile(
    rf"\s*(?:!\s*(?P<absent>{_WORD}+)|(?P<key>{_WORD}+)(?:\s*(?P<sign>==?|!=)\s*(?P<value>{_WORD}*)|\s+(?P<set>in|notin)\s*{_VALUES})?)\s*(?:,|$)"
)


class Requirement(NamedTuple):
    """One part of a selector. `values` None: any value. `wanted` False: what fits the rest does not fit."""

    key: str
    values: frozenset[str] | None
    wanted: bool

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        return (value is not None and (self.values is None or value in self.values)) == self.wanted


class Selector(NamedTuple):
    """All of these must hold."""

    requirements: tuple[Requirement, ...]

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(requirement.matches(labels) for requirement in self.requirements)


def parse_selector(text: str) -> Selector:
    """The selector that `text` spells. BadRequest says where it is none."""
    if len(text) > _MAX_LENGTH:
        raise BadRequest(f"Invalid selector: it is longer than {_MAX_LENGTH} characters")
    if not text.strip():
        return Selector(())
    if text.rstrip().endswith(","):
        raise BadRequest("Invalid selector: nothing follows the last comma")
    return Selector(tuple(_requirements(text)))


def _requirements(text: str) -> Iterator[Requirement]:
    at = 0
    while at < len(text):
        match = _REQUIREMENT.match(text, at)
        if match is None:
            hint = "write key=value, key!=value, key, !key, key in (a,b) or key notin (a,b)"
            raise BadRequest(f"Invalid selector: {text[at:].strip()[:40]!r} is no requirement; {hint}")
        yield _requirement(match)
        at = match.end()


def _requirement(match: re.Match[str]) -> Requirement:
    if match["absent"]:
        return Requirement(match["absent"], None, False)
    key = match["key"]
    if match["set"]:
        values = frozenset(value.strip() for value in match["values"].split(","))
        if any(re.search(r"\s", value) for value in values):
            raise BadRequest(f"Invalid selector: a value of {key!r} holds a space; separate values by commas")
        return Requirement(key, values, match["set"] == "in")
    if match["sign"]:
        return Requirement(key, frozenset((match["value"],)), match["sign"] != "!=")
    return Requirement(key, None, True)
