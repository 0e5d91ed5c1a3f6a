# SPDX-License-Identifier: Apache-2.0
"""In which order the records of an answer come. Pure: chance is a passed chooser."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from plait.dns import message as m
from plait.dns.table import Records

Chooser = Callable[[int], int]
"""`chooser(n)` picks a number from 0 to n - 1."""
_DRAWS = 1 << 30
_FARTHEST = 1 << 62


def shuffle(records: list[m.Record], chooser: Chooser, most: int | None = None) -> None:
    """Put `records` into an order drawn by `chooser`, each order equally likely (Fisher and Yates); of the first `most` alone if given."""
    count = len(records)
    for place in range(min(count - 1, count if most is None else most)):
        other = place + chooser(count - place)
        records[place], records[other] = records[other], records[place]


def arrange(records: list[m.Record], chooser: Chooser, most: int | None = None) -> None:
    """Put `records` into an order drawn by `chooser`: SRV records of higher weight tend to come first, in each place with
    the chance that RFC 2782 gives them among those left; weight 0 comes last. Without differing weights, as `shuffle`, of
    which the first `most` places count alone."""
    if len({_weight(record) for record in records}) < 2:
        shuffle(records, chooser, most)
        return
    shuffle(records, chooser)
    # Exponential waiting times at the rate of each weight end in that order (Efraimidis and Spirakis 2006).
    records.sort(key=lambda record: -math.log((chooser(_DRAWS) + 1) / _DRAWS) / weight if (weight := _weight(record)) else math.inf)


def nearest_first(records: list[m.Record], near: Mapping[bytes, int], hosted: Callable[[bytes], Records | None]) -> None:
    """Put `records` into the order of the distances of their addresses in `near`, of an SRV record the nearest that `hosted` has of its
    target; what is equally far stays as it is, what is not in `near` comes last."""

    def distance(record: m.Record) -> int:
        rtype, rdata = record
        found = [record] if rtype != m.SRV else hosted(rdata[6:]) or ()
        return min((near.get(data, _FARTHEST) for kind, data in found if kind in (m.A, m.AAAA)), default=_FARTHEST)

    records.sort(key=distance)


def _weight(record: m.Record) -> int:
    """The weight in SRV data, 1 for a record of another type."""
    rtype, rdata = record
    return int.from_bytes(rdata[2:4], "big") if rtype == m.SRV else 1
