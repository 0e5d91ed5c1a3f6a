# SPDX-License-Identifier: Apache-2.0
"""`Routing` and what this node has -> which routes of which family are exchanged with whom.

A network with IPv6 makes its table one of both families, and every neighbour one to speak both with: BGP by a second channel of the same
session (RFC 4760), OSPF by a second protocol (RFC 5340). Who does not speak it goes on with the other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from plait.model.addr import IPAddress, IPInterface, IPNetwork
from plait.routing.family import V4, V6, Family
from plait.routing.settings import Bgp, Routing, Session


@dataclass(frozen=True, slots=True)
class Facts:
    """What this node knows and the file does not say: its id as a router; what it announces of each network (blocks and single addresses);
    what nobody outside may announce, and what that is; networks that have IPv6; this host's own addresses, each with its link."""

    router_id: IPv4Address
    own: Mapping[str, tuple[IPNetwork, ...]]
    guarded: Mapping[IPNetwork, str]
    dual: Collection[str] = ()
    here: Collection[tuple[IPInterface, str]] = ()

    def families(self, networks: Collection[str]) -> tuple[Family, ...]:
        """Those of a table of these networks."""
        return (V4, V6) if any(name in self.dual for name in networks) else (V4,)

    def has(self, family: Family, neighbor: IPAddress) -> bool:
        """Whether this host has an address of the family (a global one) on the neighbour's link, which is the next hop that it can tell."""
        scope = neighbor.scope_id if isinstance(neighbor, IPv6Address) else None
        links = {dev for address, dev in self.here if neighbor in address.network} if scope is None else {scope}
        return any(address.version == family.version and dev in links for address, dev in self.here)


@dataclass(frozen=True, slots=True)
class Channel:
    """Routes of one family that one of BIRD's protocols (`name`) exchanges. `peer`: how people know with whom: the neighbour's address, or
    the area and its links. `closed`: why there is none, "" if there is."""

    name: str
    family: Family
    peer: str
    session: Session
    closed: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.name, self.family.word


def channels(routing: Routing, facts: Facts) -> list[Channel]:
    """In the order of the file, IPv4 first."""
    families = {table.name: facts.families(table.networks) for table in routing.tables}
    found = [
        Channel(one.name, family, str(one.neighbor), one.session, _closed(one, family, facts))
        for one in routing.bgp
        for family in families[one.session.table]
    ]
    for area in routing.ospf:
        peer = f"area {area.area} on {','.join(area.links)}"
        found += [Channel(area.name(family), family, peer, area.session) for family in families[area.session.table]]
    return found


def _closed(one: Bgp, family: Family, facts: Facts) -> str:
    """Routes of IPv6 need a next hop of IPv6; those of IPv4 may have either (RFC 8950)."""
    if family is V4 or one.neighbor.version == family.version or facts.has(family, one.neighbor):
        return ""
    return "this host has no IPv6 address on its link"
