# SPDX-License-Identifier: Apache-2.0
"""What a DHCP server says of an address besides the address."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network


@dataclass(frozen=True, slots=True)
class Way:
    """A route that a server names. `via` None: on the link itself."""

    to: IPv4Network
    via: IPv4Address | None = None


@dataclass(frozen=True, slots=True)
class Leased:
    """`prefix`: length of that of the link's subnet, 0 if it was not said; `ways`: everything that is not on the link, and by whom it
    is reached; `mtu` 0: that of the link. `lost`: the lease ran out or was taken back, and nobody may use the address."""

    prefix: int
    ways: tuple[Way, ...] = ()
    dns: tuple[IPv4Address, ...] = ()
    domain: str = ""
    mtu: int = 0
    lost: bool = False

    @property
    def gateway(self) -> IPv4Address | None:
        """Who leads everywhere."""
        return next((way.via for way in self.ways if way.to.prefixlen == 0), None)
