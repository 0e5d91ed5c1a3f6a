# SPDX-License-Identifier: Apache-2.0
"""What BIRD answers on its control socket -> who speaks, in which state, and what was refused.

Lines are taken without their reply codes. What has another form than expected is left out, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_network

from plait.model.addr import IPNetwork

_PROTOCOL = re.compile(r"(\w+)\s+(BGP|OSPF|Static|Kernel|Device|BFD)\s+\S+\s+(up|down|start|stop|flush)\s+(\S+(?: \S+)?)\s*(.*)")
_CHANNEL = re.compile(r"\s+Channel (ipv[46])$")
_CLOSED = re.compile(r"\s+State:\s+DOWN")
_ROUTES = re.compile(r"\s+Routes:\s+(\d+) imported, (?:(\d+) filtered, )?(\d+) exported")
_ERROR = re.compile(r"\s+Last error:\s+(.+)")
_ROUTE = re.compile(r"(?P<prefix>[0-9a-f.:]+/\d+)\s+\S+ \[(?P<by>\w+) ")
_VIA = re.compile(r"\s+(?:via (?P<via>\S+) on|dev) (?P<dev>\S+)")
_ATTRIBUTE = re.compile(r"\s*(Type|OSPF\.router_id|BGP\.originator_id|BGP\.as_path):\s*(.*\S)?")


@dataclass(frozen=True, slots=True)
class Speaker:
    """One channel of a protocol of BIRD's. `up`: routes of its family are exchanged (BGP: Established, OSPF: with a neighbour). `info` is
    BIRD's own word for it."""

    name: str
    kind: str
    up: bool
    info: str
    learned: int = 0
    refused: int = 0
    announced: int = 0


@dataclass(frozen=True, slots=True)
class FilteredRoute:
    """An announcement that the import filter refused. `origin`: the router that began it, where the protocol tells; `path` the AS path;
    `within_area`: OSPF has it from the links of routers of the same area."""

    prefix: IPNetwork
    by: str
    origin: str = ""
    path: tuple[int, ...] = ()
    within_area: bool = False


@dataclass(frozen=True, slots=True)
class LearnedRoute:
    """`via` is "" for one without a next hop."""

    prefix: IPNetwork
    by: str
    via: str = ""
    dev: str = ""


def parse_protocols(lines: Iterable[str]) -> dict[tuple[str, str], Speaker]:
    """From `show protocols all`, by name and family: BGP and OSPF alone."""
    found: dict[tuple[str, str], Speaker] = {}
    protocol, key = None, ("", "")
    for line in lines:
        if match := _PROTOCOL.match(line):
            name, kind, state, _, info = match.groups()
            info = " ".join(info.split()) or state
            up = state == "up" and info in ("Established", "Running")
            protocol, key = Speaker(name, kind, up, info) if kind in ("BGP", "OSPF") else None, ("", "")
        elif protocol is not None and (match := _CHANNEL.match(line)):
            key = protocol.name, match[1]
            found[key] = protocol
        elif protocol is not None and (match := _ERROR.match(line)) and not protocol.up and match[1] not in protocol.info:
            protocol = replace(protocol, info=f"{protocol.info}: {match[1]}")
        elif key in found:
            found[key] = _channel(found[key], key[1], line)
    return found


def _channel(one: Speaker, family: str, line: str) -> Speaker:
    if match := _ROUTES.match(line):
        learned, refused, announced = (int(number or 0) for number in match.groups())
        return replace(one, learned=learned, refused=refused, announced=announced)
    return replace(one, up=False, info=f"{family} is not agreed on") if one.up and _CLOSED.match(line) else one


def parse_filtered(lines: Iterable[str]) -> list[FilteredRoute]:
    """From `show route filtered … all`."""
    found: list[FilteredRoute] = []
    for line in lines:
        if begun := _begun(line):
            found.append(FilteredRoute(*begun))
        elif found and (match := _ATTRIBUTE.match(line)):
            found.append(_described(found.pop(), match[1], match[2] or ""))
    return found


def _begun(line: str) -> tuple[IPNetwork, str] | None:
    """Prefix and protocol, where the line is the first one of a route."""
    match = _ROUTE.match(line.strip())
    try:
        return (ip_network(match["prefix"]), match["by"]) if match is not None else None
    except ValueError:
        return None


def _described(route: FilteredRoute, what: str, value: str) -> FilteredRoute:
    if what == "Type":
        return replace(route, within_area=value == "OSPF univ")
    if what == "BGP.as_path":
        return replace(route, path=tuple(int(word) for word in value.split() if word.isdigit()))
    return replace(route, origin=value)


def parse_routes(lines: Iterable[str]) -> list[LearnedRoute]:
    """From `show route primary …`: of several next hops the first."""
    found: list[LearnedRoute] = []
    for line in lines:
        if begun := _begun(line):
            found.append(LearnedRoute(*begun))
        elif found and not found[-1].dev and (match := _VIA.match(line)):
            found.append(replace(found.pop(), via=match["via"] or "", dev=match["dev"]))
    return found
