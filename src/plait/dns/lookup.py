# SPDX-License-Identifier: Apache-2.0
"""Table and a dotted name, in any of its spellings -> the records that stand there. Pure; the DNS child loads it."""

from __future__ import annotations

from plait.dns import message as m
from plait.dns.grammar import address_in_name, canonical, labels_in_name
from plait.dns.table import Records, Table
from plait.dns.view import View

_ADDRESSES = frozenset((m.A, m.AAAA, m.CNAME))


def lookup(table: Table, key: bytes, view: View) -> Records | None:
    """The records of a dotted name that `view` sees, in the table's order; () if it exists without any, None if it does not exist."""
    if not key.endswith(b"." + table.domain):
        return view.of(table.names.get(key))
    name = canonical(key, table.domain, table.datacenter)
    selected = labels_in_name(name, table.domain)
    return _labelled(table, *selected) if selected is not None else named(table, name)


def named(table: Table, name: bytes) -> Records | None:
    """The records of a canonical name that is no choice by label."""
    address = address_in_name(name, table.domain)
    if address is not None:
        return ((m.A if len(address) == 4 else m.AAAA, address),)
    found = table.names.get(name)
    service, _, below = name.partition(b".")
    if found is None and below == b"virtual." + table.domain:
        return table.names.get(service + b".service." + table.domain)
    return found


def spells_address(table: Table, key: bytes) -> bool:
    """Whether the name is that of an address, which is given even to those who asked for another type."""
    return address_in_name(canonical(key, table.domain, table.datacenter), table.domain) is not None


def _labelled(table: Table, wanted: list[list[bytes]], unwanted: list[list[bytes]]) -> Records | None:
    """SRV of the instances that fit (see `labels_in_name`), and the addresses of their targets."""

    def having(names: list[bytes]) -> set[m.Record]:
        return {record for name in names for record in table.names.get(name, ())}

    found = set.intersection(*map(having, wanted)).difference(*map(having, unwanted))
    records = set(found)
    for _, rdata in found:
        target = rdata[6:]
        host = hosted(table, target)
        records.update([(m.CNAME, target)] if host is None else [(kind, data) for kind, data in host if kind in _ADDRESSES])
    return tuple(sorted(records)) or None


def hosted(table: Table, target: bytes) -> Records | None:
    """The records of the host that an SRV record names. Not `lookup`: somebody may have registered a choice by label as a host name."""
    return named(table, canonical(m.dotted(target), table.domain, table.datacenter))


def zone_of(table: Table, key: bytes) -> bytes | None:
    """The longest of our zones that `key` is or lies below."""
    while key and key not in table.zones:
        key = key.partition(b".")[2]
    return key or None
