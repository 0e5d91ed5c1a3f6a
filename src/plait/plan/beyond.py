# SPDX-License-Identifier: Apache-2.0
"""What the table `inet plait` has besides for networks that do not leave by their own host's default route."""

from __future__ import annotations

from dataclasses import dataclass

from plait.model.objects import KernelObject


@dataclass(frozen=True, slots=True)
class Beyond:
    """Objects, and rules that the chains `forward` and `postrouting` have before those of their own."""

    objects: tuple[KernelObject, ...] = ()
    forward: tuple[str, ...] = ()
    postrouting: tuple[str, ...] = ()

    def __add__(self, other: Beyond) -> Beyond:
        return Beyond(self.objects + other.objects, self.forward + other.forward, self.postrouting + other.postrouting)
