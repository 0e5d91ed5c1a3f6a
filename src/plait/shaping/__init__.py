# SPDX-License-Identifier: Apache-2.0
"""Limits of endpoints -> queueing disciplines and what leads packets to them. Pure."""

from plait.shaping.limits import Limiting, Means, effective, ifb_name, known_as, led_away, limit_objects, unmet

__all__ = ["Limiting", "Means", "effective", "ifb_name", "known_as", "led_away", "limit_objects", "unmet"]
