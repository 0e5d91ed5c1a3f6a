# SPDX-License-Identifier: Apache-2.0
"""Routes announced to and learned from routers that know nothing of plait (pure): the settings, what is refused, BIRD's language."""

from plait.routing.bird import Facts, bird_config
from plait.routing.refusals import refusal
from plait.routing.replies import FilteredRoute, LearnedRoute, Speaker, parse_filtered, parse_protocols, parse_routes
from plait.routing.settings import DEFAULT_ROUTE, Bgp, Ospf, Routing, Session, Table, parse_routing

__all__ = [
    "DEFAULT_ROUTE",
    "Bgp",
    "Facts",
    "FilteredRoute",
    "LearnedRoute",
    "Ospf",
    "Routing",
    "Session",
    "Speaker",
    "Table",
    "bird_config",
    "parse_filtered",
    "parse_protocols",
    "parse_routes",
    "parse_routing",
    "refusal",
]
