# SPDX-License-Identifier: Apache-2.0
"""Choosing one of several instances for each use, and leaving out those that fail.

Data in: the instances of a service, the results of uses, the time. Data out: the instance for the next use. Pure: the clock and chance are
arguments.

Outlier ejection: an instance whose last `failures` uses failed is left out for `eject_s`, doubled each time it fails again right after its
return, up to `eject_max_s`; never more than `share` of all instances (rounded down) are left out at a time, so one is always in use.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from plait.client.errors import NoInstances
from plait.client.types import Instance
from plait.model.errors import ConfigError

Policy = Literal["round_robin", "weighted", "least_used", "nearest"]
"""round_robin: one after the other. weighted: in proportion to weights, evenly spread. least_used: the one with the fewest uses under way
for its weight. nearest: the first in the order of the answer (ask with `near="_agent"`), the next ones only while it is left out."""


@dataclass(frozen=True, slots=True)
class Ejection:
    """When and for how long failing instances are left out. `failures` 0: never."""

    failures: int = 5
    eject_s: float = 10.0
    eject_max_s: float = 300.0
    share: float = 0.5

    def __post_init__(self) -> None:
        if not (self.failures >= 0 and 0 < self.eject_s <= self.eject_max_s and 0 <= self.share < 1):
            raise ConfigError(
                "ejection", self, "has values that make no sense", "failures >= 0, 0 < eject_s <= eject_max_s, 0 <= share < 1"
            )


@dataclass(frozen=True, slots=True)
class Zone:
    """The part of the cluster to stay in while it has an instance that works: nodes whose meta has `key` = `value`."""

    key: str
    value: str


@dataclass(slots=True)
class _Slot:
    """What is known of one instance. `failed` counts uses in a row; `strikes` ejections in a row; `until`: left out before this time;
    `luck` decides among equals."""

    instance: Instance
    order: int
    luck: float
    turn: int = 0
    credit: float = 0.0
    active: int = 0
    failed: int = 0
    strikes: int = 0
    until: float = 0.0


class Balancer:
    """Instances and what is known of them. Not thread-safe; the facades of `sync` and `aio` guard it.

    Among equals `chance` decides, once for each instance, so that many programs that start together do not all begin with the same one.
    """

    def __init__(
        self,
        policy: Policy = "round_robin",
        ejection: Ejection | None = None,
        zone: Zone | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        choices = {"round_robin": _oldest, "weighted": _weighted, "least_used": _least_used, "nearest": _first}
        if policy not in choices:
            raise ConfigError("policy", policy, "is no policy", f"choose one of {', '.join(choices)}")
        self._choose = choices[policy]
        self._ejection, self._zone, self._chance = ejection or Ejection(), zone, chance
        self._slots: dict[tuple[str, str], _Slot] = {}
        self._turn = 0

    @property
    def instances(self) -> tuple[Instance, ...]:
        return tuple(slot.instance for slot in self._slots.values())

    def update(self, instances: Sequence[Instance]) -> None:
        """Replace the instances; what is known of those that stay is kept. A new one takes its turn with the others, not before them."""
        slots = {}
        for order, instance in enumerate(instances):
            known = self._slots.get(instance.key)
            if known is None or (known.instance.address, known.instance.port) != (instance.address, instance.port):
                known = _Slot(instance, order, self._chance(), turn=self._turn)
            known.instance, known.order = instance, order
            slots[instance.key] = known
        self._slots = slots

    def take(self, now: float) -> Instance:
        """The instance for the next use, which counts as under way until `give_back`. NoInstances if there is none."""
        usable = self._usable(now)
        if not usable:
            raise NoInstances(f"none of {len(self._slots)} instances may be used now" if self._slots else "the service has no instance")
        slot = self._choose(usable)
        self._turn += 1
        slot.turn, slot.active = self._turn, slot.active + 1
        return slot.instance

    def give_back(self, instance: Instance, ok: bool, now: float) -> None:
        """A use is over; `ok` False counts against the instance. One that is not there any more is ignored."""
        slot = self._slots.get(instance.key)
        if slot is None:
            return
        slot.active = max(0, slot.active - 1)
        if ok:
            slot.failed = slot.strikes = 0
            return
        slot.failed += 1
        again = slot.strikes > 0
        if self._ejection.failures and now >= slot.until and (again or slot.failed >= self._ejection.failures) and self._room(now):
            slot.until = now + min(self._ejection.eject_max_s, self._ejection.eject_s * 2 ** min(slot.strikes, 30))
            slot.strikes, slot.failed = slot.strikes + 1, 0

    def ejected(self, now: float) -> tuple[Instance, ...]:
        """Those left out now."""
        return tuple(slot.instance for slot in self._slots.values() if now < slot.until)

    def _room(self, now: float) -> bool:
        """Whether one more may be left out."""
        return len(self.ejected(now)) + 1 <= int(len(self._slots) * self._ejection.share)

    def _usable(self, now: float) -> list[_Slot]:
        """Those to choose from: not left out, of weight above 0 if any is, of the zone if any is.

        If the instances have become so few that all of them are left out, all of them: a failing one is better than none.
        """
        slots = list(self._slots.values())
        found = [slot for slot in slots if now >= slot.until] or slots
        found = [slot for slot in found if slot.instance.weight > 0] or found
        zone = self._zone
        return [slot for slot in found if zone and slot.instance.node_meta.get(zone.key) == zone.value] or found


def _oldest(slots: list[_Slot]) -> _Slot:
    return min(slots, key=lambda slot: (slot.turn, slot.luck, slot.order))


def _first(slots: list[_Slot]) -> _Slot:
    return min(slots, key=lambda slot: slot.order)


def _least_used(slots: list[_Slot]) -> _Slot:
    return min(slots, key=lambda slot: (slot.active / max(1, slot.instance.weight), slot.turn, slot.luck, slot.order))


def _weighted(slots: list[_Slot]) -> _Slot:
    """Each earns its weight per turn, the richest is chosen and pays for all: in any stretch everyone has its share within one use."""
    total = 0
    for slot in slots:
        weight = max(1, slot.instance.weight)
        slot.credit += weight
        total += weight
    chosen = max(slots, key=lambda slot: (slot.credit, -slot.luck, -slot.order))
    chosen.credit -= total
    return chosen
