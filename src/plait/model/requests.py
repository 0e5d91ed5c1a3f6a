# SPDX-License-Identifier: Apache-2.0
"""What people and programs ask of an agent, in the shape that every door (admin socket, runtimes) hands on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from plait.model.addr import AddressRange


@dataclass(frozen=True, slots=True)
class NetworkRequest:
    """A network to be made. `subnet` None: the next free one of the cluster's range; `gateway` None: its first address;
    `ip_range` None: addresses are handed out from all of the subnet; `block_prefix` 0: by the size of what they are handed out from.
    `force`: although a host uses some of its addresses for something else.

    It has IPv6 too if `ipv6` says so or one of the two is named; `subnet6` None: a unique local one that is drawn; `gateway6` None: the
    image of the gateway."""

    name: str
    subnet: IPv4Network | None = None
    gateway: IPv4Address | None = None
    block_prefix: int = 0
    internal: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    ip_range: IPv4Network | None = None
    ipv6: bool = False
    subnet6: IPv6Network | None = None
    gateway6: IPv6Address | None = None
    excluded: tuple[AddressRange, ...] = ()
    force: bool = False

    @property
    def dual(self) -> bool:
        """Whether the network shall have IPv6."""
        return self.ipv6 or self.subnet6 is not None or self.gateway6 is not None


@dataclass(frozen=True, slots=True)
class NewSandbox:
    """A sandbox to be made. `network` "" is the cluster's default one; `ports` are texts as `docker run -p` spells them; `share`: the
    sandbox of this host in whose network namespace it is to be."""

    name: str
    network: str = ""
    address: IPv4Address | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    address6: IPv6Address | None = None
    share: str = ""
