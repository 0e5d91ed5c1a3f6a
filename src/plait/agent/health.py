# SPDX-License-Identifier: Apache-2.0
"""Health conditions: what is wrong now, out of the registry of everything that can be.

A condition is raised with a subject (which node, which network) and a sentence of fact; what to do about it stands in the registry.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from plait.agent.conditions import REGISTRY, Condition

log = logging.getLogger("plait.health")


@dataclass(frozen=True, slots=True)
class Active:
    """One condition that holds now. `since` in seconds of the agent's clock."""

    condition: Condition
    subject: str
    text: str
    since: float


class Health:
    """What is wrong now, keyed by (code, subject). Logged when it begins and when it ends."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._active: dict[tuple[str, str], Active] = {}

    def set(self, code: str, subject: str, text: str) -> None:
        known = self._active.get((code, subject))
        since = known.since if known is not None else self._clock()
        self._active[code, subject] = Active(REGISTRY[code], subject, text, since)
        if known is None:
            log.warning("condition_began", extra={"code": code, "subject": subject, "error": text})

    def clear(self, code: str, subject: str = "") -> None:
        if self._active.pop((code, subject), None) is not None:
            log.info("condition_ended", extra={"code": code, "subject": subject})

    def replace(self, code: str, texts: dict[str, str]) -> None:
        """Exactly these subjects have the condition now."""
        for _, subject in [key for key in self._active if key[0] == code and key[1] not in texts]:
            self.clear(code, subject)
        for subject, text in texts.items():
            self.set(code, subject, text)

    def active(self) -> list[Active]:
        """All that holds now, errors first, then by code and subject."""
        return sorted(self._active.values(), key=lambda a: (a.condition.severity, a.condition.code, a.subject))

    @property
    def well(self) -> bool:
        return not self._active
