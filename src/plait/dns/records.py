# SPDX-License-Identifier: Apache-2.0
"""Names and records in the shape of the table: from what people write and from addresses. Pure helpers of `zone`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv6Address, ip_address

from plait.dns import message as m
from plait.model.addr import IPAddress, IPNetwork


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


def reverse_zones(subnet: IPNetwork) -> Iterator[bytes]:
    """The names below in-addr.arpa or ip6.arpa that cover exactly `subnet`: one if its prefix ends at a byte (IPv6: at four bits), else up
    to 128 (8)."""
    bits = 8 if subnet.version == 4 else 4
    labels = -(-subnet.prefixlen // bits)
    beyond = subnet.max_prefixlen // bits - labels
    for part in subnet.subnets(new_prefix=labels * bits):
        yield part.network_address.reverse_pointer.split(".", beyond)[beyond].encode()


def label_word(text: str) -> bytes:
    """How the key or the value of a container's label is spelled in a DNS label: lower case, `_` for whatever is not a letter of ASCII, a
    digit or a single `-` between such. Different ones may be spelled alike."""
    return re.sub(r"[^a-z0-9-]|--+|^-|-$", lambda found: "_" * len(found[0]), text.lower()).encode()


def text_record(key: str, value: str) -> m.Record:
    """One pair of a node's meta as TXT, `key=value` (RFC 1464: in the key a backquote before `=`, a backquote and outer blanks); of a key
    `rfc1035-…` the value alone. At most 255 bytes."""
    quoted = re.sub(r"[=`]|^[ \t]+|[ \t]+$", lambda found: "".join("`" + sign for sign in found[0]), key)
    text = (value if key.startswith("rfc1035-") else f"{quoted}={value}").encode()[:255]
    return m.TXT, bytes((len(text),)) + text
