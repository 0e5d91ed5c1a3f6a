# SPDX-License-Identifier: Apache-2.0
"""Who may have which address: what is excluded, reserved for a name, or in a range that is kept for some containers.

A range belongs to the containers that it names by name or label: they get addresses of their ranges only, and nobody else gets one of
those, on no host. A reservation belongs to a container's name, on every host, and counts more than a range.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from plait.ipam.dual import held_by
from plait.ipam.pool import is_excluded, is_kept
from plait.model.addr import AddressRange
from plait.model.cluster import Assigned, Network, Snapshot
from plait.model.errors import PoolExhausted


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks for an address, as far as that is known: `name` "" if it is not. `within`: where it wants one from, () = anywhere.
    `mac`: what it will be known by on its link, for networks whose addresses come from a server there."""

    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    within: tuple[AddressRange, ...] = ()
    mac: str = ""


NOBODY = Asker()
ASKED = "ipRanges"
"""Name of the range that an asker brings along."""


@dataclass(frozen=True, slots=True)
class NamedRange:
    """Addresses of a network for those containers that `is_for` says (by name and labels). `spelled`: all that it says, as text."""

    name: str
    network: str
    parts: tuple[AddressRange, ...]
    is_for: Callable[[str, Mapping[str, str]], bool]
    spelled: str = ""

    def __contains__(self, address: IPv4Address) -> bool:
        return any(address in part for part in self.parts)

    def __str__(self) -> str:
        return f"range {self.name!r} ({', '.join(map(str, self.parts))})"


def ranges_for(network: str, asker: Asker, ranges: Iterable[NamedRange]) -> list[NamedRange]:
    """Those of which the asker is a member, in their order; none: it takes any address that is in no range."""
    return [r for r in ranges if r.network == network and r.is_for(asker.name, asker.labels)]


def choices_for(network: str, asker: Asker, ranges: Iterable[NamedRange]) -> list[NamedRange]:
    """Where an address for the asker is looked for: where it wants one from, else in its ranges; none: anywhere. Wherever that is,
    `refusal` says what it may not have."""
    if asker.within:
        return [NamedRange(ASKED, network, asker.within, lambda _name, _labels: False)]
    return ranges_for(network, asker, ranges)


def reserved_for(network: str, name: str, assigned: Iterable[Assigned]) -> IPv4Address | None:
    """The address that is reserved for containers of that name."""
    return next((a.address for a in assigned if name and a.network == network and a.name == name), None)


def refusal(network: Network, address: IPv4Address, asker: Asker, assigned: Assigned | None, ranges: Iterable[NamedRange]) -> str:
    """Why the asker may not have `address`, for whom it is `assigned`; "" if it may."""
    what = f"address {address} of network {network.name!r}"
    if is_excluded(network, address):
        return f"{what} is excluded (`plait network inspect {network.name}` shows what is); ask for another"
    if assigned is not None and assigned.name:
        if assigned.name == asker.name:
            return ""
        return (
            f"{what} is reserved for {assigned.name!r} (`plait ipam unreserve {network.name} {assigned.name}` ends that); ask for another"
        )
    known = list(ranges)
    mine = ranges_for(network.name, asker, known)
    if any(address in one for one in mine):
        return ""
    if mine:
        return f"{what} is not in {' nor '.join(map(str, mine))}, which {asker.name!r} takes its addresses from (ranges.toml)"
    other = next((one for one in known if one.network == network.name and address in one), None)
    if other is None:
        return ""
    who = repr(asker.name) if asker.name else "this container, whose name is not known,"
    return f"{what} is in {other}, of which {who} is no member (ranges.toml); ask for another, or name it there"


def range_addresses(network: Network, ranges: Iterable[NamedRange], taken: Collection[IPv4Address]) -> Iterator[IPv4Address]:
    """Addresses of the ranges that are not `taken`, in their order."""
    found = (a for one in ranges for part in one.parts for a in part if a in network.subnet)
    return (a for a in found if a not in taken and not is_kept(network, a) and not is_excluded(network, a))


def range_exhausted(network: Network, ranges: Iterable[NamedRange], snapshot: Snapshot) -> PoolExhausted:
    """The error for a member of ranges that have nothing left."""
    mine = list(ranges)
    users = [
        e for e in snapshot.endpoints.values() if e.network == network.name and any(a in one for one in mine for a in held_by(network, e))
    ]
    who = ", ".join(f"{e.name or e.id} on {e.node} ({e.address})" for e in sorted(users, key=lambda e: e.address)[:8])
    size = sum(len(part) for one in mine for part in one.parts)
    more = f" and {len(users) - 8} more" if len(users) > 8 else ""
    return PoolExhausted(
        f"{' and '.join(map(str, mine))} of network {network.name!r} has no address left: {size} addresses,"
        f" in use by {who or 'nobody'}{more}; remove containers (`plait ipam ls {network.name}` lists them), or make the range larger"
        + ("" if [one.name for one in mine] == [ASKED] else " in ranges.toml of every host")
    )


def assigned_of(snapshot: Snapshot, network: str) -> list[Assigned]:
    """What is reserved or lent of a network, by address."""
    return sorted((a for a in snapshot.assigned.values() if a.network == network), key=lambda a: a.address)
