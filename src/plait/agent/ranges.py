# SPDX-License-Identifier: Apache-2.0
"""`/etc/plait/ranges.toml`: addresses that are kept for some containers, by name or label, alike on every host.

Data in: the file, followed as it changes (`ownfile.py`). Data out: ranges; an absent file means none.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import Path

from plait.agent.health import Health
from plait.agent.journal import Journal
from plait.agent.ownfile import Kept, OwnFile
from plait.ipam import NamedRange
from plait.model.addr import AddressRange, parse_range
from plait.model.cluster import Network, Snapshot
from plait.model.errors import ConfigError
from plait.services.requests import BadRequest
from plait.services.selector import Selector, parse_selector

MOST = 4096
"""Addresses of one range; each of them may have to be looked at when a member comes."""
REFUSED, DIFFER, MISPLACED = "ranges-refused", "ranges-differ", "ranges-misplaced"
_KEYS = frozenset({"name", "network", "addresses", "containers", "labels"})
_HEAD = re.compile(r"^[ \t]*\[\[\s*range\s*\]\]", re.MULTILINE)


def parse_ranges(text: str, path: str) -> tuple[NamedRange, ...]:
    """What the file says. ConfigError names the line at which the wrong range begins, and why it is wrong."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(path, "", f"is not valid TOML: {error}") from error
    entries = raw.pop("range", [])
    if raw or not isinstance(entries, list):
        raise ConfigError(path, next(iter(raw), "range"), "is not a known key", "the file is a list of [[range]]")
    lines = [text.count("\n", 0, match.start()) + 1 for match in _HEAD.finditer(text)]
    found = []
    for number, entry in enumerate(entries):
        line = lines[number] if len(lines) == len(entries) else 1
        found.append((_Entry(entry, f"{path}: line {line}: range {number + 1}").read(), line))
    for (one, _), (other, line) in combinations(found, 2):
        _check_apart(one, other, f"{path}: line {line}")
    return tuple(one for one, _ in found)


class _Entry:
    """One [[range]]. Every method raises ConfigError naming the place."""

    def __init__(self, raw: object, where: str) -> None:
        if not isinstance(raw, Mapping):
            raise ConfigError(where, raw, "must be a table")
        self._raw, self._where = raw, where

    def read(self) -> NamedRange:
        unknown = sorted(self._raw.keys() - _KEYS)
        if unknown:
            raise ConfigError(self._where, unknown[0], "is not a known key", f"known are {', '.join(sorted(_KEYS))}")
        network, parts = self._text("network"), self._parts()
        containers, labels = self._raw.get("containers"), self._raw.get("labels")
        if containers is None and labels is None:
            raise ConfigError(self._where, "", "says not for whom it is", 'add containers = "db-*" or labels = "app=db"')
        glob = self._text("containers") if containers is not None else "*"
        selector = self._selector(self._text("labels")) if labels is not None else Selector(())

        def is_for(name: str, has: Mapping[str, str]) -> bool:
            return bool(name) and fnmatchcase(name, glob) and selector.matches(has)

        name = self._text("name") if "name" in self._raw else glob if labels is None else str(labels)
        spelled = repr((name, network, list(map(str, parts)), containers, labels))
        return NamedRange(name, network, parts, is_for, spelled)

    def _text(self, key: str) -> str:
        value = self._raw.get(key)
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{self._where}: {key}", value, "must be a text that is not empty")
        return value

    def _parts(self) -> tuple[AddressRange, ...]:
        values = self._raw.get("addresses")
        if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
            raise ConfigError(f"{self._where}: addresses", values, 'must be a list like ["10.31.1.0/28", "10.31.2.1-10.31.2.9"]')
        try:
            parts = tuple(parse_range(value) for value in values)
        except ValueError as error:
            raise ConfigError(f"{self._where}: addresses", values, f"holds what is no range: {error}") from error
        if sum(map(len, parts)) > MOST:
            raise ConfigError(
                f"{self._where}: addresses", values, f"are more than {MOST}", "give that part of the pool a network of its own"
            )
        return parts

    def _selector(self, text: str) -> Selector:
        try:
            return parse_selector(text)
        except BadRequest as error:
            raise ConfigError(f"{self._where}: labels", text, f"is no label selector: {error}") from error


def _check_apart(one: NamedRange, other: NamedRange, where: str) -> None:
    if one.network != other.network:
        return
    if one.name == other.name:
        raise ConfigError(where, other.name, "is the name of an earlier range of the same network")
    for part in other.parts:
        overlapped = next((mine for mine in one.parts if mine.overlaps(part)), None)
        if overlapped is not None:
            raise ConfigError(where, str(part), f"overlaps {overlapped} of range {one.name!r}")


def digest(ranges: Iterable[NamedRange]) -> str:
    """Alike on two hosts exactly if they keep the same for the same; "" of none."""
    spelled = "\n".join(sorted(one.spelled for one in ranges))
    return hashlib.sha256(spelled.encode()).hexdigest()[:16] if spelled else ""


def differing(snapshot: Snapshot) -> dict[str, str]:
    """Living nodes by name whose ranges are others than this node's, with what to say of each."""
    me = snapshot.nodes.get(snapshot.me)
    if me is None:
        return {}
    others = (node for node in snapshot.nodes.values() if node.name in snapshot.alive and node.ranges != me.ranges)
    return {node.name: f"{node.name} has {_said(node.ranges)}, {me.name} {_said(me.ranges)}" for node in others}


def _said(found: str) -> str:
    return f"ranges {found}" if found else "no ranges"


def misplaced(ranges: Iterable[NamedRange], networks: Mapping[str, Network]) -> list[str]:
    """Ranges that lie outside their network, as far as that is there."""
    found = []
    for one in ranges:
        network = networks.get(one.network)
        outside = [str(part) for part in one.parts if network is not None and not part.lies_in(network.subnet)]
        if network is not None and outside:
            found.append(f"{', '.join(outside)} of range {one.name!r} is no part of network {one.network} ({network.subnet})")
    return found


class RangesFile(OwnFile[tuple[NamedRange, ...]]):
    """The ranges in force. `changed` is called when they are others than before."""

    def __init__(self, path: Path, journal: Journal, health: Health, changed: Callable[[], None]) -> None:
        super().__init__(path, Kept("ranges", REFUSED), parse_ranges, journal, health, changed)

    @property
    def ranges(self) -> tuple[NamedRange, ...]:
        return self.value
