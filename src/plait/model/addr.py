# SPDX-License-Identifier: Apache-2.0
"""Address types shared by every room. Past a parser an address is never a plain string."""

from __future__ import annotations

import hashlib
from abc import ABC
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    collapse_addresses,
    summarize_address_range,
)
from typing import TYPE_CHECKING, Literal

Protocol = Literal["tcp", "udp", "sctp"]
"""Those that have ports."""
IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
IPInterface = IPv4Interface | IPv6Interface
if TYPE_CHECKING:
    EitherAddress = IPAddress
    EitherNetwork = IPNetwork
else:

    class EitherAddress(ABC):  # noqa: B024 (has no methods of its own)
        """`IPAddress` as the type of a stored field: a decoder takes one type for a text, not a union of two."""

    EitherAddress.register(IPv4Address)
    EitherAddress.register(IPv6Address)

    class EitherNetwork(ABC):  # noqa: B024 (has no methods of its own)
        """The same of `IPNetwork`."""

    EitherNetwork.register(IPv4Network)
    EitherNetwork.register(IPv6Network)


@dataclass(frozen=True, slots=True)
class AddressRange:
    """The addresses from `first` to `last`, both included."""

    first: IPv4Address
    last: IPv4Address

    def __contains__(self, address: IPv4Address) -> bool:
        return self.first <= address <= self.last

    def __iter__(self) -> Iterator[IPv4Address]:
        return map(IPv4Address, range(int(self.first), int(self.last) + 1))

    def __len__(self) -> int:
        return int(self.last) - int(self.first) + 1

    def __str__(self) -> str:
        """As it is written: one address, a network if it is a whole one, else `FIRST-LAST`."""
        if self.first == self.last:
            return str(self.first)
        parts = list(summarize_address_range(self.first, self.last))
        return str(parts[0]) if len(parts) == 1 else f"{self.first}-{self.last}"

    def overlaps(self, other: AddressRange) -> bool:
        return self.first <= other.last and other.first <= self.last

    def lies_in(self, network: IPv4Network) -> bool:
        return self.first in network and self.last in network


def in_order(networks: Iterable[IPNetwork]) -> tuple[IPNetwork, ...]:
    """Each once, those of IPv4 first."""
    return tuple(sorted(set(networks), key=lambda one: (one.version, int(one.network_address), one.prefixlen)))


def collapsed(networks: Iterable[IPNetwork]) -> tuple[IPNetwork, ...]:
    """The fewest that hold the same addresses, those of IPv4 first."""
    kept = tuple(networks)
    four = collapse_addresses(one for one in kept if isinstance(one, IPv4Network))
    return (*four, *collapse_addresses(one for one in kept if isinstance(one, IPv6Network)))


def lies_in(part: IPNetwork, whole: IPNetwork) -> bool:
    """Whether `whole`, of the same family, holds all of `part`."""
    if isinstance(part, IPv4Network):
        return isinstance(whole, IPv4Network) and part.subnet_of(whole)
    return isinstance(whole, IPv6Network) and part.subnet_of(whole)


def parse_range(text: str) -> AddressRange:
    """`ADDRESS`, `NETWORK/PREFIX` or `FIRST-LAST` -> the range. ValueError says what is wrong; host bits that are set are wrong too."""
    first, dash, last = (part.strip() for part in text.partition("-"))
    if dash:
        found = AddressRange(IPv4Address(first), IPv4Address(last))
        if found.first > found.last:
            raise ValueError(f"{first} lies behind {last}")
        return found
    network = IPv4Network(text.strip())
    return AddressRange(network.network_address, network.broadcast_address)


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
