# SPDX-License-Identifier: Apache-2.0
"""Published ports in the table `inet plait`: what leads from a host's port to a container's, for whom, and what does not.

A publication is an element of a map, `ports` by host address or `ports_any` for all of them, whatever it says besides: whom it is for is an
element of `guarded` and one of `sources` for each network of clients; to others the port is what it would be without it, the host's own.
NAT (the container's port by the host's port alone) is an element of `hidden`. So rules are as many whatever is published, and they are
asked when a connection begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, collapse_addresses

from plait.model.addr import IPNetwork
from plait.model.cluster import Endpoint, PortMapping
from plait.model.objects import KernelObject, NftChain, NftSet
from plait.plan.dual import V4, Family

ANY = IPv4Address("0.0.0.0")
_SERVICE = "inet_proto . inet_service"
_PORT = "meta l4proto . th dport"


@dataclass(slots=True)
class _Elements:
    """Of one family. By place: those of publications on one host address, and of those on all."""

    exact: set[str] = field(default_factory=set)
    wildcard: set[str] = field(default_factory=set)
    guarded: set[str] = field(default_factory=set)
    guarded_any: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)
    sources_any: set[str] = field(default_factory=set)
    hairpin: set[str] = field(default_factory=set)
    published: set[str] = field(default_factory=set)
    hidden: set[str] = field(default_factory=set)


def port_sets(family: Family, endpoints: Iterable[Endpoint]) -> list[KernelObject]:
    found = _Elements()
    for endpoint in endpoints:
        address = family.address(endpoint)
        if address is None:
            continue
        for port in endpoint.ports:
            _add(found, family, f"{address}", port)
        found.hairpin.add(f"{address} . {address}")
    kind, end = family.type, family.end
    target = f"{kind} . inet_service"
    return [
        NftSet(f"ports{end}", f"{kind} . {_SERVICE} : {target}", frozenset(found.exact), kind="map"),
        NftSet(f"ports_any{end}", f"{_SERVICE} : {target}", frozenset(found.wildcard), kind="map"),
        NftSet(f"guarded{end}", f"{kind} . {_SERVICE}", frozenset(found.guarded)),
        NftSet(f"guarded_any{end}", _SERVICE, frozenset(found.guarded_any)),
        NftSet(f"sources{end}", f"{kind} . {_SERVICE} . {kind}", frozenset(found.sources), ("interval",)),
        NftSet(f"sources_any{end}", f"{_SERVICE} . {kind}", frozenset(found.sources_any), ("interval",)),
        NftSet(f"hairpin{end}", f"{kind} . {kind}", frozenset(found.hairpin)),
        NftSet(f"published{end}", f"{kind} . {_SERVICE}", frozenset(found.published)),
        NftSet(f"hidden{end}", f"{kind} . {_SERVICE}", frozenset(found.hidden)),
    ]


def _add(found: _Elements, family: Family, address: str, port: PortMapping) -> None:
    at, inside = f"{port.proto} . {port.host_port}", f"{address} . {port.proto} . {port.container_port}"
    if port.host_ip in (ANY, family.anywhere):
        leads, guarded, sources = found.wildcard, found.guarded_any, found.sources_any
    elif port.host_ip.version == family.anywhere.version:
        at = f"{port.host_ip} . {at}"
        leads, guarded, sources = found.exact, found.guarded, found.sources
    else:
        return
    leads.add(f"{at} : {address} . {port.container_port}")
    found.published.add(inside)
    if port.hidden:
        found.hidden.add(inside)
    if port.sources:
        guarded.add(at)
        sources.update(f"{at} . {source}" for source in networks_of(family, port.sources))


def networks_of(family: Family, found: Iterable[IPNetwork]) -> list[str]:
    """Those of the family, as elements of a set of ranges: none overlaps another, a single address has no length."""
    whole = collapse_addresses(one for one in found if one.version == family.anywhere.version)  # type: ignore[type-var]
    return [str(one).removesuffix("/32" if family is V4 else "/128") for one in whole]


def inbound(present: Sequence[Family], clients: Sequence[IPNetwork]) -> tuple[str, ...]:
    """Rules for what comes to this host's addresses from elsewhere, its containers included. `clients`: who may come to any published port
    at all, () for everybody. What returns here is for the host itself."""
    rules: list[str] = []
    for family in present:
        ip, end, mine = family.ip, family.end, f"{family.ip} daddr . {_PORT}"
        rules += [f"{ip} saddr != @clients{end} return"] if clients else []
        rules.append(f"{mine} @guarded{end} {mine} . {ip} saddr != @sources{end} return")
        rules.append(_exact(family))
        rules.append(f"fib daddr type local {_PORT} @guarded_any{end} {_PORT} . {ip} saddr != @sources_any{end} return")
        rules.append(_wildcard(family))
    return tuple(rules)


def outbound(present: Sequence[Family]) -> tuple[str, ...]:
    """Rules for what this host itself sends: whoever else a port is for, it is for the host."""
    return tuple(rule for family in present for rule in (_exact(family), _wildcard(family)))


def client_sets(present: Sequence[Family], clients: Sequence[IPNetwork]) -> list[KernelObject]:
    """What `inbound` asks for them."""
    return [NftSet(f"clients{f.end}", f.type, frozenset(networks_of(f, clients)), ("interval",)) for f in present if clients]


def hidden_chains(present: Sequence[Family], endpoints: Iterable[Endpoint]) -> list[NftChain]:
    """The host itself reaches a port that is published by NAT as the outside does. While there is none there is no chain, which would cost
    all that the host sends. Of ICMPv6 errors that a host sends to itself its TCP learns nothing (measured), of a reset it does."""
    if not any(port.hidden for endpoint in endpoints for port in endpoint.ports):
        return []
    rules: list[str] = []
    for family in present:
        which = f"ct direction original ct status ! dnat {family.ip} daddr . {_PORT} @hidden{family.end}"
        rules += [f"{which} meta l4proto tcp reject with tcp reset", f"{which} reject with {family.error} port-unreachable"]
    return [NftChain("hidden", tuple(rules), "type filter hook output priority filter; policy accept;")]


def _exact(family: Family) -> str:
    return f"dnat {family.ip} to {family.ip} daddr . {_PORT} map @ports{family.end}"


def _wildcard(family: Family) -> str:
    """A host's ::1 is left out: what comes from there never leaves the host (IPv6 has no route_localnet), so it is refused at once, and
    who asked for `localhost` goes on to 127.0.0.1."""
    where = "" if family is V4 else "ip6 daddr != ::1 "
    return f"{where}fib daddr type local dnat {family.ip} to {_PORT} map @ports_any{family.end}"
