# SPDX-License-Identifier: Apache-2.0
"""Where a node is in the space of round trips, learnt from what it measures (pure).

Data in: round trips in seconds, the coordinates of those at the other end. Data out: this node's coordinate. Sources: Dabek et al.,
"Vivaldi: A Decentralized Network Coordinate System" (SIGCOMM 2004: the spring, the height); Ledlie, Gardner, Seltzer, "Network
Coordinates in the Wild" (NSDI 2007: the median of a few samples, gravity); Lee et al., "On Suitability of Euclidean Embedding of Internet
Hosts" (SIGMETRICS 2006: the adjustment).
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import replace
from statistics import median

from plait.model.kv import Coordinate

DIMENSIONS = 8
MAX_RTT_S = 10.0
_ERROR_PART, _FORCE_PART = 0.25, 0.25
_MAX_ERROR, _MIN_ERROR = 1.5, 1e-6
_MIN_HEIGHT = 1e-5
_GRAVITY_S = 150.0
"""So far from the origin the pull towards it is a second: coordinates of a whole cluster do not drift away."""
_ADJUSTMENTS, _SAMPLES, _PEERS = 20, 3, 256
_NEAR_ZERO = 1e-6
_FARTHEST_S = 60.0
"""No coordinate of a cluster on this planet is so far from the origin."""


def distance(one: Coordinate, other: Coordinate) -> float:
    """Round trip in seconds, as the two estimate it."""
    plain = _plain(one, other)
    adjusted = plain + one.adjustment + other.adjustment
    return adjusted if adjusted > 0 else plain


def is_sound(coordinate: Coordinate) -> bool:
    """Whether it may be computed with: all numbers are finite, and none says that a node is farther away than can be."""
    numbers = (*coordinate.vec, coordinate.error, coordinate.adjustment, coordinate.height)
    near = all(math.isfinite(number) and abs(number) <= _FARTHEST_S for number in numbers)
    return near and len(coordinate.vec) == DIMENSIONS and coordinate.error >= 0 and coordinate.height >= 0


class Locator:
    """This node's coordinate. `chance` gives numbers from -0.5 to 0.5, for a direction where none is."""

    def __init__(self, start: Coordinate, chance: Callable[[], float]) -> None:
        self.coordinate = start if is_sound(start) else Coordinate(start.node)
        self._chance = chance
        self._samples: OrderedDict[str, deque[float]] = OrderedDict()
        self._adjustments: deque[float] = deque(maxlen=_ADJUSTMENTS)

    def observe(self, peer: str, other: Coordinate, rtt_s: float) -> bool:
        """Take a measured round trip to `peer`, which says it is at `other`. False if that makes no sense, then nothing has changed."""
        if not 0 < rtt_s <= MAX_RTT_S or not is_sound(other):
            return False
        rtt = self._usual(peer, rtt_s)
        moved = _pulled(self._sprung(other, rtt))
        self._adjustments.append(rtt - _plain(moved, other))
        moved = replace(moved, adjustment=sum(self._adjustments) / (2 * _ADJUSTMENTS))
        if is_sound(moved):
            self.coordinate = moved
        else:
            self.coordinate = Coordinate(self.coordinate.node)
            self._adjustments.clear()
        return True

    def _usual(self, peer: str, rtt_s: float) -> float:
        """The median of the last few: one late answer says nothing of the way."""
        samples = self._samples.setdefault(peer, deque(maxlen=_SAMPLES))
        self._samples.move_to_end(peer)
        samples.append(rtt_s)
        while len(self._samples) > _PEERS:
            self._samples.popitem(last=False)
        return median(samples)

    def _sprung(self, other: Coordinate, rtt: float) -> Coordinate:
        """Where the spring between the two pulls or pushes this one; the less sure it is, the more."""
        own = self.coordinate
        apart = _plain(own, other)
        share = own.error / max(own.error + other.error, _MIN_ERROR)
        wrong = abs(apart - rtt) / rtt
        error = min(_MAX_ERROR, _ERROR_PART * share * wrong + own.error * (1 - _ERROR_PART * share))
        force = _FORCE_PART * share * (rtt - apart)
        flat = math.dist(own.vec, other.vec)
        if flat > _NEAR_ZERO:
            way = [(mine - theirs) / flat for mine, theirs in zip(own.vec, other.vec, strict=True)]
            height = max(_MIN_HEIGHT, own.height + (own.height + other.height) * force / flat)
        else:
            way, height = self._some_way(), own.height
        return replace(own, vec=tuple(at + step * force for at, step in zip(own.vec, way, strict=True)), error=error, height=height)

    def _some_way(self) -> list[float]:
        """A direction drawn at random, of length 1."""
        drawn = [self._chance() for _ in range(DIMENSIONS)]
        length = math.hypot(*drawn)
        return [part / length for part in drawn] if length > _NEAR_ZERO else [1.0] + [0.0] * (DIMENSIONS - 1)


def _pulled(own: Coordinate) -> Coordinate:
    """Nearer to the origin by gravity."""
    far = math.hypot(*own.vec)
    if far <= _NEAR_ZERO:
        return own
    step = min(1.0, (far / _GRAVITY_S) ** 2 / far)
    return replace(own, vec=tuple(at * (1 - step) for at in own.vec))


def _plain(one: Coordinate, other: Coordinate) -> float:
    return math.dist(one.vec, other.vec) + one.height + other.height
