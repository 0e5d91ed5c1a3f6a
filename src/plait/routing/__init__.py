# SPDX-License-Identifier: Apache-2.0
"""Routes announced to and learned from routers that know nothing of plait (pure): the settings, what is refused, BIRD's language."""

from plait.routing.bird import bird_config, table_name
from plait.routing.channels import Channel, Facts, channels
from plait.routing.family import FAMILIES, V4, V6, Family, is_default
from plait.routing.refusals import refusal
from plait.routing.replies import FilteredRoute, LearnedRoute, Speaker, parse_filtered, parse_protocols, parse_routes
from plait.routing.settings import Bgp, Ospf, Routing, Session, Table, parse_routing

__all__ = [
    "FAMILIES",
    "V4",
    "V6",
    "Bgp",
    "Channel",
    "Facts",
    "Family",
    "FilteredRoute",
    "LearnedRoute",
    "Ospf",
    "Routing",
    "Session",
    "Speaker",
    "Table",
    "bird_config",
    "channels",
    "is_default",
    "parse_filtered",
    "parse_protocols",
    "parse_routes",
    "parse_routing",
    "refusal",
    "table_name",
]
