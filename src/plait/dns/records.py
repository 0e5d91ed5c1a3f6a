# SPDX-License-Identifier: Apache-2.0
"""Names and records in the shape of the table: from what people write and from addresses. Pure helpers of `zone`."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Address, ip_address

from plait.dns import message as m
from plait.model.addr import IPAddress


def dotted(name: str) -> bytes:
    """The table's shape of a name as people write it: lower case, UTF-8, no final dot."""
    return name.encode().lower().removesuffix(b".")


def is_name(name: bytes) -> bool:
    """Whether `name` can be asked for and written: labels of 1 to 63 bytes, 255 in all. The root is none."""
    try:
        return bool(name) and bool(m.wire_name(name))
    except ValueError:
        return False


def address_record(address: IPAddress) -> m.Record:
    return (m.AAAA if isinstance(address, IPv6Address) else m.A, address.packed)


def located(text: str) -> tuple[list[m.Record], IPAddress | None]:
    """The record that leads to an address or host name, and the address; no record if it is neither."""
    try:
        address = ip_address(text)
    except ValueError:
        host = dotted(text)
        return [(m.CNAME, m.wire_name(host))] if is_name(host) else [], None
    return [address_record(address)], address


def reverse_zones(subnet: IPv4Network) -> Iterator[bytes]:
    """The in-addr.arpa names that cover exactly `subnet`: one if its prefix ends at a byte, else up to 128."""
    octets = -(-subnet.prefixlen // 8)
    for part in subnet.subnets(new_prefix=octets * 8):
        labels = str(part.network_address).split(".")[:octets]
        yield ".".join((*reversed(labels), "in-addr.arpa")).encode()
