# SPDX-License-Identifier: Apache-2.0
"""Limits of endpoints -> queueing disciplines and what leads packets to them. Pure."""

from plait.shaping.limits import MEANS, Limiting, Means, effective, ifb_name, known_as, limit_objects, unmet

__all__ = ["MEANS", "Limiting", "Means", "effective", "ifb_name", "known_as", "limit_objects", "unmet"]
