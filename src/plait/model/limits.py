# SPDX-License-Identifier: Apache-2.0
"""How much an endpoint may receive and send: values, and the words that people write them in. Pure.

A rate is *goodput*: what a TCP connection with full packets carries for its program, in bits a second (`shaping` adds the headers). Words
are those of tc(8), where they mean the same everywhere: `512kbit`, `10mbit`, `1gbit`, `10Mibit`; and the short `512K`, `10M`, `1G`.
`10mbps` is megabytes in tc(8) and megabits elsewhere, so it is refused. Sizes (bursts) are bytes, K and M of 1024, as in tc(8). A number
is one of packets or new connections a second: `200`, `50k`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from plait.model.errors import ConfigError

NO_LIMIT = "none"
"""In place of a rate: not limited, whatever a label or the network says."""
LEAST_RATE, LARGEST_RATE = 8_000, 32_000_000_000
"""bit/s: the kernel counts in bytes a second, in 32 bits."""
LEAST_LARGEST_BURST = 64 << 10
"""A burst may last a second, and so many bytes at any rate: a slow container receives packets as large as others do."""
DIRECTIONS = ("in", "out")
"""What comes to the container, and what it sends."""
MANNERS = ("shape", "drop")
"""What exceeds the rate waits its turn in a queue, or is lost at once."""
LABEL_PREFIX, OPTION_PREFIX = "plait.limit.", "limit-"
"""Before the words `WORDS`: in labels of containers and options of engines, and in options of networks."""
PRIORITIES = GUARANTEED, NORMAL, BULK = ("guaranteed", "normal", "bulk")
"""Classes of what a container sends, the one that goes first first."""
COUNTED = ("packets-in", "packets-out", "connections-in", "connections-out")
"""How many may come or go within a second."""
PRIORITY = "priority"
WORDS = (*DIRECTIONS, "burst", "manner", *COUNTED, PRIORITY)
PORT_PREFIX, PORT_WORDS = "plait.ports.limit.", (*DIRECTIONS, "packets-in", "packets-out", "connections-in")
"""What is limited of published ports, in labels, besides the manner; they begin no connections."""
LARGEST_COUNT = 10_000_000
_FIELDS = {"in": "incoming", "out": "outgoing"} | {word: word.replace("-", "_") for word in (*COUNTED, PRIORITY)}
"""What `Limits` has of each word."""
RATE_HINT = "write 512kbit, 10M or 1G (8kbit to 32gbit, of bits a second), or none"
BURST_HINT = "write bytes, 64k or 1m"
COUNT_HINT = f"write how many a second, 200 or 50k (1 to {LARGEST_COUNT}), or none"
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmg])(i?)(bit)?|(bit)?)", re.ASCII)
_SIZE = re.compile(r"(\d+)\s*(?:([km])i?b?|b?)", re.ASCII)
_COUNT = re.compile(r"(\d+)([km]?)", re.ASCII)
_BYTES_A_SECOND = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?(bps|b/s)", re.ASCII)
_POWERS = {"k": 1, "m": 2, "g": 3}


@dataclass(frozen=True, slots=True)
class Limit:
    """Of one direction. `rate` bit/s of goodput, 0: none, whatever would count otherwise. `burst` bytes that may pass at once after a rest,
    0: by the rate. `drop`: what exceeds it is lost, else it waits."""

    rate: int
    burst: int = 0
    drop: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """Of both directions; None: nothing is said of it. The numbers are packets and new connections a second, 0: as many as come.
    `priority`: one of `PRIORITIES`."""

    incoming: Limit | None = None
    outgoing: Limit | None = None
    packets_in: int | None = None
    packets_out: int | None = None
    connections_in: int | None = None
    connections_out: int | None = None
    priority: str | None = None

    def over(self, below: Limits) -> Limits:
        """What this says, and where it says nothing, what `below` does."""
        if UNSAID in (self, below):  # most containers have no limits, and every pass asks
            return below if self == UNSAID else self
        return replace(below, **{name: mine for name in _FIELDS.values() if (mine := getattr(self, name)) is not None})

    def by_direction(self) -> dict[str, Limit]:
        """Those of rates that there are, by word of `DIRECTIONS`."""
        return {word: limit for word in DIRECTIONS if (limit := getattr(self, _FIELDS[word])) is not None}

    def counts(self) -> dict[str, int]:
        """Those of numbers that there are, by word of `COUNTED`."""
        return {word: number for word in COUNTED if (number := getattr(self, _FIELDS[word])) is not None}

    def words(self) -> tuple[str, ...]:
        """What is said something of, in the order of the fields."""
        return (*self.by_direction(), *self.counts(), *([PRIORITY] if self.priority is not None else []))

    def only(self, words: Collection[str]) -> Limits:
        """What is said of these `words` of `DIRECTIONS`, `COUNTED` and `PRIORITY`."""
        if self == UNSAID:
            return self
        return replace(self, **{name: None for word, name in _FIELDS.items() if word not in words})

    def holding(self) -> Limits:
        """Without what is limited to nothing, and without the priority that everybody has."""
        if self == UNSAID:
            return self
        freed = {word for word, limit in self.by_direction().items() if not limit.rate}
        freed |= {word for word, number in self.counts().items() if not number} | ({PRIORITY} if self.priority == NORMAL else set())
        return self.only(set(self.words()) - freed)


UNSAID = Limits()


def parse_rate(text: str, where: str) -> int:
    """bit/s, 0 for `NO_LIMIT`. ConfigError names `where`."""
    words = text.strip().lower()
    if words == NO_LIMIT:
        return 0
    if told := _BYTES_A_SECOND.fullmatch(words):
        prefix = (told[2] or "").upper()
        raise ConfigError(where, text, "is bytes to tc(8) and bits to others", f"write {told[1]}{prefix}bit for bits; {RATE_HINT}")
    found = _RATE.fullmatch(words)
    if found is None:
        raise ConfigError(where, text, "is no rate", RATE_HINT)
    rate = round(float(found[1]) * (1024.0 if found[3] else 1000.0) ** _POWERS.get(found[2] or "", 0))
    if not LEAST_RATE <= rate <= LARGEST_RATE:
        raise ConfigError(where, text, "is not possible", RATE_HINT)
    return rate


def parse_count(text: str, where: str) -> int:
    """Packets or connections a second, 0 for `NO_LIMIT`. ConfigError names `where`."""
    words = text.strip().lower()
    if words == NO_LIMIT:
        return 0
    found = _COUNT.fullmatch(words)
    number = int(found[1]) * 1000 ** _POWERS.get(found[2], 0) if found is not None else 0
    if not 1 <= number <= LARGEST_COUNT:
        raise ConfigError(where, text, "is no number a second" if found is None else "is not possible", COUNT_HINT)
    return number


def parse_burst(text: str, where: str) -> int:
    """Bytes. ConfigError names `where`."""
    found = _SIZE.fullmatch(text.strip().lower())
    size = int(found[1]) << 10 * _POWERS.get(found[2] or "", 0) if found is not None else 0
    if not size:
        raise ConfigError(where, text, "is no size", BURST_HINT)
    return size


def largest_burst(rate: int) -> int:
    """Bytes that a limit of `rate` bit/s may let pass at once."""
    return max(rate // 8, LEAST_LARGEST_BURST)


def port_limits_of(texts: Mapping[str, str], prefix: str) -> Limits:
    """What is said of published ports by `PORT_WORDS` and a manner behind `prefix`, as `limits_of`: if no manner is said, what exceeds a
    rate is lost."""
    return limits_of(texts, prefix, (*PORT_WORDS, "manner"), "drop")


def limits_of(texts: Mapping[str, str], prefix: str, words: Sequence[str] = WORDS, usual: str = MANNERS[0]) -> Limits:
    """What is said by `words` behind `prefix` in labels or options; burst and manner (the `usual` one, if none is said) are those of both
    directions. ConfigError names the key, what is wrong and what is allowed, also for a key behind the prefix that is none."""
    said = {key: value for key, value in texts.items() if key.startswith(prefix)}
    if not said:
        return UNSAID
    for key in sorted(said):
        if key.removeprefix(prefix) not in words:
            raise ConfigError(key, said[key], "is not known", f"use one of {', '.join(prefix + word for word in words)}")
    manner, burst_key = said.get(f"{prefix}manner", usual), f"{prefix}burst"
    if manner not in MANNERS:
        raise ConfigError(f"{prefix}manner", manner, "is not possible", f"one of {', '.join(MANNERS)}")
    burst = parse_burst(said[burst_key], burst_key) if burst_key in said else 0
    rates = [parse_rate(said[key], key) if (key := prefix + word) in said else None for word in DIRECTIONS]
    if rates == [None, None] and (alone := said.keys() & {burst_key, f"{prefix}manner"}):
        raise ConfigError(min(alone), said[min(alone)], "says nothing by itself", f"give {prefix}in, {prefix}out or both too")
    incoming, outgoing = (None if rate is None else checked(Limit(rate, burst, manner == "drop"), burst_key) for rate in rates)
    counts: dict[str, Any] = {_FIELDS[word]: parse_count(said[key], key) for word in COUNTED if (key := prefix + word) in said}
    priority = said.get(prefix + PRIORITY)
    if priority not in (None, *PRIORITIES):
        raise ConfigError(prefix + PRIORITY, priority, "is no class", f"one of {', '.join(PRIORITIES)}")
    return replace(Limits(incoming, outgoing, priority=priority), **counts)


def checked(limit: Limit, where: str) -> Limit:
    """The same. ConfigError that names `where` if its burst is none of such a rate."""
    if limit.rate and limit.burst > largest_burst(limit.rate):
        allowed = f"at most {largest_burst(limit.rate)} bytes at {rate_text(limit.rate)}, which is a second of it"
        raise ConfigError(where, limit.burst, "would be no limit for more than a second", allowed)
    return limit


def read_or_unsaid(texts: Mapping[str, str], prefix: str) -> Limits:
    """As `limits_of`, of ports as `port_limits_of`, with nothing said by words that cannot be read: they were refused when they came, or
    came from somebody else."""
    try:
        return port_limits_of(texts, prefix) if prefix == PORT_PREFIX else limits_of(texts, prefix)
    except ConfigError:
        return UNSAID


def rate_text(rate: int) -> str:
    """As `parse_rate` reads it: in the largest unit that it is whole in."""
    if not rate:
        return NO_LIMIT
    unit = next((unit for unit, power in (("gbit", 9), ("mbit", 6), ("kbit", 3)) if rate % 10**power == 0), "bit")
    return f"{rate // {'gbit': 10**9, 'mbit': 10**6, 'kbit': 10**3}.get(unit, 1)}{unit}"
