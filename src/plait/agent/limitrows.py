# SPDX-License-Identifier: Apache-2.0
"""What people are told of limits: who is limited to what, who says so, whether it is in force and how much it has dropped.

Data in: a Snapshot, what was told of containers and is kept, the kernel's counters. Data out: rows of the admin API.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Literal, Protocol, cast

from plait.model.cluster import Endpoint, Network, Snapshot
from plait.model.limits import DIRECTIONS, LABEL_PREFIX, MANNERS, PRIORITY, UNSAID, Limits, read_or_unsaid
from plait.model.report import LimitRow
from plait.plan import member
from plait.plan.limits import endpoint_limits, limitable
from plait.plan.portlimits import port_element_key, port_limit_set
from plait.shaping import Limiting, burst_of, ifb_name, known_as, port_name, port_names, set_name

_WHATS = ("rate", "packets", "connections", PRIORITY)


class Counters(Protocol):
    """What is asked of the kernel (`kernel.linux.LinuxKernel`); it may block."""

    def counted_links(self, name: str) -> dict[str, int]: ...

    def counted_elements(self, name: str) -> dict[str, int]: ...


class Told(Protocol):
    """What was told of containers called `name` on `network`, or of a published `port` of theirs."""

    @property
    def network(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def limits(self) -> Limits: ...
    @property
    def port(self) -> str: ...


class _Once:
    """The counters, each set asked for once: listing costs by its elements."""

    def __init__(self, counters: Counters) -> None:
        self.links, self.elements = cache(counters.counted_links), cache(counters.counted_elements)


def limit_rows(snapshot: Snapshot, limiting: Limiting, kept: Sequence[Told], counters: Counters) -> list[LimitRow]:
    """By container, network, port, what is limited and direction. Asks the kernel only for what is counted."""
    rows, asked = list[LimitRow](), _Once(counters)
    present: set[tuple[str, str, str]] = set()
    for endpoint in snapshot.endpoints.values():
        network = snapshot.networks.get(endpoint.network)
        if endpoint.node == snapshot.me and network is not None and limitable(network, endpoint.runtime):
            rows += [*_whole(snapshot, endpoint, network, limiting, asked), *_ports(endpoint, limiting, asked)]
            present |= {(*known_as(endpoint), port) for port in ("", *map(port_name, endpoint.ports))}
    for one in kept:
        if (one.network, one.name, one.port) not in present:
            rows += [_row(one.name, one.network, word, one.limits, "command", one.port) for word in one.limits.words()]
    return sorted(rows, key=lambda row: (row["container"], row["network"], row["port"], _WHATS.index(row["what"]), row["direction"]))


def _whole(snapshot: Snapshot, endpoint: Endpoint, network: Network, limiting: Limiting, counters: _Once) -> Iterator[LimitRow]:
    """Those of all that comes to the container and that it sends."""
    told, asked = limiting.told_of(endpoint), limiting.asked(endpoint, network)
    started = (endpoint.limits or UNSAID).over(read_or_unsaid(endpoint.labels, LABEL_PREFIX)).words()
    objects = endpoint_limits(member(snapshot, network), network, endpoint, limiting)
    buckets = {obj.key[1]: burst for obj in objects if (burst := burst_of(obj))}
    devs = dict(zip(DIRECTIONS, (endpoint.dev, ifb_name(endpoint.dev)), strict=True))
    held = limiting.of(endpoint, network).words()
    for word, shown, freed in _shown(told, asked):
        source = "command" if word in told.words() else "container" if word in started else "network"
        row = _row(known_as(endpoint)[1], network.name, word, shown, source)
        dropped = counters.links(set_name(word)).get(endpoint.dev, 0) if word in asked.counts() else 0
        burst = buckets.get(devs.get(word, ""), row["burst"])
        yield {**row, "burst": burst, "running": True, "held": freed or word in held, "dropped": dropped}


def _ports(endpoint: Endpoint, limiting: Limiting, counters: _Once) -> Iterator[LimitRow]:
    kept = limiting.ports_of(endpoint)
    for port in port_names(endpoint):
        told, words = limiting.port_told(endpoint, port), kept.get(port, UNSAID).words()
        for word, shown, freed in _shown(told, limiting.port_asked(endpoint, port)):
            source = "command" if word in told.words() else "container"
            row = _row(known_as(endpoint)[1], endpoint.network, word, shown, source, port)
            counted = word in words and row["manner"] == "drop"
            dropped = sum(_dropped(endpoint, port, word, counters)) if counted else 0
            yield {**row, "running": True, "held": freed or word in words, "dropped": dropped}


def _dropped(endpoint: Endpoint, port: str, word: str, counters: _Once) -> Iterator[int]:
    """By family."""
    for end, address in (("", endpoint.address), ("6", endpoint.address6)):
        if address is not None:
            yield counters.elements(port_limit_set(word, end)).get(port_element_key(str(address), port), 0)


def _shown(told: Limits, asked: Limits) -> Iterable[tuple[str, Limits, bool]]:
    """Each word that something is said of, where that stands, and whether it was freed by command."""
    freed = set(told.words()) - set(told.holding().words())
    shown = told.only(freed).over(asked)
    return [(word, shown, word in freed) for word in shown.words()]


def _row(container: str, network: str, word: str, limits: Limits, by: str, port: str = "") -> LimitRow:
    what, _, direction = (PRIORITY, "", "out") if word == PRIORITY else word.rpartition("-")
    limit = limits.by_direction().get(word)
    return {
        "container": container,
        "network": network,
        "port": port,
        "what": cast(Literal["rate", "packets", "connections", "priority"], what or "rate"),
        "direction": direction,
        "rate": limit.rate if limit is not None else limits.counts().get(word, 0),
        "burst": limit.burst if limit is not None else 0,
        "manner": limits.priority or "" if word == PRIORITY else MANNERS[limit is None or limit.drop],
        "by": by,
        "running": False,
        "held": False,
        "dropped": 0,
    }
