# SPDX-License-Identifier: Apache-2.0
"""Limits of published ports in the table `inet plait`: what comes and goes by a publication, and nothing else of the container's port.

Each is an element of a set, keyed by the container's address and port and with a limit and a counter of its own (`shaping/counts.py`).
What comes by a publication is known by its connection, whose destination was translated: it is judged where it leaves for the container,
and what is answered where it comes from there, before it is translated back. A port that several publications lead to has one limit. A
connection by the virtual address of a service is none by a published port.

A queue is a class at the host side of the container's link (`shaping/limits.py`), and a map says which, in the same place. What the
container answers is led to its queue before connections are known: there the source port alone counts (`sorting_rules`).

Nothing is asked while no port of this host is limited.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from plait.model.cluster import Endpoint
from plait.model.limits import Limits
from plait.model.objects import NFT_FAMILY, NFT_FAST_FAMILY, KernelObject, NftChain, NftSet
from plait.model.tc import PORTS_MAJORS
from plait.plan.dual import V4, V6, Family
from plait.shaping import BYTE_METER, METER, Limiting, Queued, metered, policed

_NEW = "ct state new "
_WAYS = {"in": ("original", "daddr", "dport"), "out": ("reply", "saddr", "sport")}
"""Direction -> that of the connection, and which ends of the packet are the container's."""


def port_limit_set(word: str, end: str = "") -> str:
    """The set for the `word` of `PORT_WORDS` in a family with that `end`."""
    return f"port_{word.replace('-', '_')}{end}"


def port_queue_map(direction: str, end: str = "") -> str:
    """The map to classes in a family with that `end`."""
    return f"port_queue_{direction}{end}"


def port_element_key(address: str, port: str) -> str:
    """Of the container's port of that name (`shaping.port_name`)."""
    number, _, proto = port.partition("/")
    return f"{address} . {proto} . {number}"


def port_limit_objects(endpoints: Iterable[Endpoint], limiting: Limiting) -> list[KernelObject]:
    """For the published ports of this node's endpoints."""
    endpoints = list(endpoints)
    held = [(endpoint, port, limits) for endpoint in endpoints for port, limits in limiting.ports_of(endpoint).items()]
    objects: list[KernelObject] = []
    rules: dict[str, list[str]] = {"in": [], "out": []}
    queued = [(endpoint, limiting.queues_of(endpoint)) for endpoint in endpoints]
    for family in (V4, V6):
        for direction, table in (("in", NFT_FAMILY), ("out", NFT_FAST_FAMILY)):
            if classes := frozenset(_classes(queued, direction, family)):
                kind = f"{family.type} . inet_proto . inet_service : classid"
                objects.append(NftSet(port_queue_map(direction, family.end), kind, classes, kind="map", family=table))
                rules["in"] += [_queue_rule(family)] if direction == "in" else []
        found: dict[str, set[str]] = {}
        for endpoint, port, limits in held:
            if (address := family.address(endpoint)) is not None:
                for word, element in _elements(port_element_key(str(address), port), limits):
                    found.setdefault(word, set()).add(element)
        for word, elements in sorted(found.items()):
            direction = word.rpartition("-")[2]
            meter = METER if "-" in word else BYTE_METER
            kind = f"{family.type} . inet_proto . inet_service"
            objects.append(NftSet(port_limit_set(word, family.end), kind, frozenset(elements), bounds=meter))
            rules[direction].append(_rule(family, word, direction))
    hooks = {"in": ("ports_in", "postrouting"), "out": ("ports_out", "prerouting")}
    for direction, (name, hook) in hooks.items():
        if rules[direction]:
            declared = f"type filter hook {hook} priority mangle; policy accept;"
            objects.append(NftChain(name, tuple(rules[direction]), declared))
    return objects


def _elements(key: str, limits: Limits) -> list[tuple[str, str]]:
    """By word."""
    rates = [(word, policed(key, limit.rate)) for word, limit in limits.by_direction().items() if limit.drop]
    return rates + [(word, metered(key, word, number)) for word, number in limits.counts().items()]


def _rule(family: Family, word: str, direction: str) -> str:
    new = _NEW if word.startswith("connections") else ""
    return f"{new}{_published(family, direction)}{_key(family.ip, direction)} @{port_limit_set(word, family.end)} drop"


def _published(family: Family, direction: str) -> str:
    """What is true of packets by a publication."""
    return f"ct direction {_WAYS[direction][0]} ct status dnat ct original {family.ip} daddr != {family.vips} "


def _key(ip: str, direction: str) -> str:
    _, address, port = _WAYS[direction]
    return f"{ip} {address} . meta l4proto . th {port}"


def _classes(queued: Iterable[tuple[Endpoint, Queued]], direction: str, family: Family) -> Iterator[str]:
    """Elements of the map that says by which class a port's packets are held back."""
    for endpoint, queues in queued:
        if (address := family.address(endpoint)) is not None:
            for minor, (port, _) in queues.get(direction, {}).items():
                yield f"{port_element_key(str(address), port)} : {PORTS_MAJORS[direction]:x}:{minor:x}"


def _queue_rule(family: Family) -> str:
    return f"{_published(family, 'in')}meta priority set {_key(family.ip, 'in')} map @{port_queue_map('in', family.end)}"


def sorting_rules(ips: Iterable[str]) -> tuple[str, ...]:
    """Of the chain of a link, for what its container sends from ports that have a queue."""
    return tuple(
        f"meta priority set {_key(ip, 'out')} map @{port_queue_map('out', family.end)}" for ip, family in zip(ips, (V4, V6), strict=False)
    )
