# SPDX-License-Identifier: Apache-2.0
"""Limits of endpoints -> queueing disciplines and what leads packets to them. Pure."""

from plait.shaping.counts import BYTE_METER, METER, METERED, counted_objects, counted_rules, metered, policed, set_name
from plait.shaping.limits import Limiting, Means, effective, ifb_name, known_as, led_away, limit_objects, port_name, unmet

__all__ = [
    "BYTE_METER",
    "METER",
    "METERED",
    "Limiting",
    "Means",
    "counted_objects",
    "counted_rules",
    "effective",
    "ifb_name",
    "known_as",
    "led_away",
    "limit_objects",
    "metered",
    "policed",
    "port_name",
    "set_name",
    "unmet",
]
