# SPDX-License-Identifier: Apache-2.0
"""Address types shared by every room. Past a parser an address is never a plain string."""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
IPInterface = IPv4Interface | IPv6Interface


def mac_from_digest(digest: bytes) -> str:
    """A stable, locally administered unicast MAC from the first six bytes of `digest` (IEEE 802c, bit 1 set, bit 0 clear).

    The caller hashes an identity (endpoint id, node id), never an address: a MAC that follows an address
    leaves stale neighbour entries when the address moves.
    """
    if len(digest) < 6:
        raise ValueError(f"a MAC needs 6 bytes of digest, got {len(digest)}")
    first = (digest[0] | 0x02) & 0xFE
    return ":".join(f"{byte:02x}" for byte in (first, *digest[1:6]))
