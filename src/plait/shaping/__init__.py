# SPDX-License-Identifier: Apache-2.0
"""Limits of endpoints -> queueing disciplines and what leads packets to them. Pure."""

from plait.shaping.counts import counted_objects, counted_rules, set_name
from plait.shaping.limits import Limiting, Means, effective, ifb_name, known_as, led_away, limit_objects, unmet

__all__ = [
    "Limiting",
    "Means",
    "counted_objects",
    "counted_rules",
    "effective",
    "ifb_name",
    "known_as",
    "led_away",
    "limit_objects",
    "set_name",
    "unmet",
]
