# SPDX-License-Identifier: Apache-2.0
"""Which ports of the host lead elsewhere, or are for others, after operations on the table `inet plait` (see `model.flows`).

Data in: the operations and what is published by now, as elements of the sets and maps of `plan/ports.py`. Data out: a rule for each host
port that they touch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from typing import cast

from plait.model.addr import IPAddress, IPNetwork, Protocol
from plait.model.flows import PortRule, Target
from plait.model.hostlinks import Key
from plait.model.objects import NFT_FAMILY, NftSet, Op, Plan
from plait.plan.dual import V4, V6, Family

_EXACT, _WILDCARD = ("ports", "guarded", "sources"), ("ports_any", "guarded_any", "sources_any")
_FIELDS = {_EXACT: 3, _WILDCARD: 2}
"""So many fields of an element say which port of the host it is about: address, protocol, number; or the last two."""


def changed_ports(ops: Iterable[Op], now: Plan) -> list[PortRule]:
    """`now` has all that is published, whether `ops` touched it or not."""
    done = {op.subject.name: op for op in ops if isinstance(op.subject, NftSet) and op.subject.family == NFT_FAMILY}
    return [rule for family in (V4, V6) for names in (_EXACT, _WILDCARD) for rule in _changed(family, names, done, now)] if done else []


def _changed(family: Family, names: tuple[str, str, str], done: Mapping[str, Op], now: Plan) -> Iterator[PortRule]:
    ports, guarded, sources = (f"{name}{family.end}" for name in names)
    clients = f"clients{family.end}"
    leads, before = targets(_elements(now, ports)), targets(_before(done.get(ports)))
    touched = {_place(element, names) for name in (ports, guarded, sources) for element in _difference(done.get(name))}
    if clients in done:
        touched |= leads.keys()
    for_all = [_networks(_elements(now, clients))] if _key(clients) in now else []
    for place in sorted(touched):
        *host, proto, port = place.split(" . ")
        if proto == "tcp" and place in leads and place not in before and ports in done:
            continue  # what was refused there is over: conntrack takes another SYN for a connection of its own
        own = [_networks(one.removeprefix(f"{place} . ") for one in _elements(now, sources) if one.startswith(f"{place} . "))]
        yield PortRule(
            cast(Protocol, proto),
            int(port),
            family.anywhere.version,
            host=ip_address(host[0]) if host else None,
            others=frozenset() if host else _elsewhere(family, place, now),
            led=frozenset([before[place]] if place in before else []),
            leads=leads.get(place),
            sources=(*for_all, *(own if place in _elements(now, guarded) else [])),
        )


def _elsewhere(family: Family, place: str, now: Plan) -> frozenset[IPAddress]:
    """Addresses of the host at which that port is published by itself."""
    exact = targets(_elements(now, f"{_EXACT[0]}{family.end}"))
    return frozenset(ip_address(one.partition(" . ")[0]) for one in exact if one.endswith(f" . {place}"))


def _key(name: str) -> Key:
    return NftSet(name, "", frozenset(), kind="map" if name.startswith(_EXACT[0]) else "set").key


def _elements(now: Plan, name: str) -> frozenset[str]:
    found = now.get(_key(name))
    return found.elements if isinstance(found, NftSet) else frozenset()


def _before(op: Op | None) -> frozenset[str]:
    return op.old.elements if op is not None and isinstance(op.old, NftSet) else frozenset()


def _difference(op: Op | None) -> frozenset[str]:
    return _before(op) ^ (op.new.elements if op is not None and isinstance(op.new, NftSet) else frozenset())


def _place(element: str, names: tuple[str, str, str]) -> str:
    return " . ".join(element.partition(" : ")[0].split(" . ")[: _FIELDS[names]])


def targets(elements: Iterable[str]) -> dict[str, Target]:
    """By place, of elements of a map `place : address . port`."""
    found: dict[str, Target] = {}
    for element in elements:
        place, _, target = element.partition(" : ")
        address, _, port = target.partition(" . ")
        found[place] = ip_address(address), int(port)
    return found


def _networks(elements: Iterable[str]) -> tuple[IPNetwork, ...]:
    return tuple(map(ip_network, elements))
