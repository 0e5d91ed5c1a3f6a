# SPDX-License-Identifier: Apache-2.0
"""Address types shared by every room. Past a parser an address is never a plain string."""

import hashlib
from abc import ABC
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import TYPE_CHECKING

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
IPInterface = IPv4Interface | IPv6Interface
if TYPE_CHECKING:
    EitherAddress = IPAddress
else:

    class EitherAddress(ABC):  # noqa: B024 (has no methods of its own)
        """`IPAddress` as the type of a stored field: a decoder takes one type for a text, not a union of two."""

    EitherAddress.register(IPv4Address)
    EitherAddress.register(IPv6Address)


def mac_from_digest(digest: bytes) -> str:
    """A stable, locally administered unicast MAC from the first six bytes of `digest` (IEEE 802c, bit 1 set, bit 0 clear).

    The caller hashes an identity (endpoint id, node id), never an address: a MAC that follows an address
    leaves stale neighbour entries when the address moves.
    """
    if len(digest) < 6:
        raise ValueError(f"a MAC needs 6 bytes of digest, got {len(digest)}")
    first = (digest[0] | 0x02) & 0xFE
    return ":".join(f"{byte:02x}" for byte in (first, *digest[1:6]))


def at_port(address: IPAddress | str, port: int) -> str:
    """`address:port`, an IPv6 address in brackets (RFC 3986, section 3.2.2)."""
    return f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"


def link_local(mac: str) -> IPv6Address:
    """The link-local address that is made of a MAC: fe80::/64 and its modified EUI-64 (RFC 4291, appendix A)."""
    raw = bytes.fromhex(mac.replace(":", ""))
    return IPv6Address(b"\xfe\x80" + bytes(6) + bytes((raw[0] ^ 0x02,)) + raw[1:3] + b"\xff\xfe" + raw[3:])


def unique_local(identity: bytes) -> IPv6Address:
    """An address of fd00::/8 (RFC 4193) that only `identity` has: 120 bits of its digest."""
    return IPv6Address(b"\xfd" + hashlib.sha256(b"ula:" + identity).digest()[:15])
