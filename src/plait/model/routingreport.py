# SPDX-License-Identifier: Apache-2.0
"""What the admin API tells of routing, as JSON: shared by the agent, who fills these in, and the CLI, who reads them."""

from __future__ import annotations

from typing import TypedDict


class SessionRow(TypedDict):
    """A family of one neighbour (BGP) or area (OSPF; `protocol` ospf3 for IPv6). `state` is the daemon's own word; `up`: routes are
    exchanged. Numbers of routes."""

    peer: str
    protocol: str
    family: str
    table: str
    up: bool
    state: str
    learned: int
    announced: int
    refused: int


class LearnedRow(TypedDict):
    """A route of a table, as the kernel has it."""

    table: str
    prefix: str
    via: str
    dev: str


class RefusedRow(TypedDict):
    """An announcement that was refused, and why. `origin`: the router or AS that began it, "" unknown. `wrong`: nobody should make it."""

    peer: str
    prefix: str
    origin: str
    why: str
    wrong: bool


class RoutingView(TypedDict):
    """`announced`: prefixes by network."""

    sessions: list[SessionRow]
    announced: dict[str, list[str]]
    learned: list[LearnedRow]
    refused: list[RefusedRow]
