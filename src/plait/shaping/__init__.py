# SPDX-License-Identifier: Apache-2.0
"""Limits of endpoints -> queueing disciplines and what leads packets to them. Pure."""

from plait.shaping.counts import BYTE_METER, EGRESS, METER, METERED, counted_objects, counted_rules, metered, policed, set_name
from plait.shaping.limits import (
    Limiting,
    Means,
    Queued,
    burst_of,
    effective,
    ifb_name,
    known_as,
    led_away,
    limit_objects,
    port_name,
    port_names,
    port_unmet,
    unmet,
)
from plait.shaping.priorities import QUEUES, Uplink, mark_rules, uplink_objects

__all__ = [
    "BYTE_METER",
    "EGRESS",
    "METER",
    "METERED",
    "QUEUES",
    "Limiting",
    "Means",
    "Queued",
    "Uplink",
    "burst_of",
    "counted_objects",
    "counted_rules",
    "effective",
    "ifb_name",
    "known_as",
    "led_away",
    "limit_objects",
    "mark_rules",
    "metered",
    "policed",
    "port_name",
    "port_names",
    "port_unmet",
    "set_name",
    "unmet",
    "uplink_objects",
]
