# SPDX-License-Identifier: Apache-2.0
"""Kernel objects of encrypted tunnels (see `objects`)."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from plait.model.hostlinks import Key


@dataclass(frozen=True, slots=True)
class WireguardLink:
    """A WireGuard device, of the kernel or of `wireguard-go`. `public` is the public half (base64, as wg(8) prints it) of the private key
    in `key_file`, which no object holds; `port` the UDP port that it listens on."""

    name: str
    public: str
    port: int
    mtu: int
    up: bool = True

    @property
    def key(self) -> Key:
        return ("link", self.name)

    @property
    def key_file(self) -> str:
        """Name of the file below the node's state directory that holds the private key."""
        return f"{self.name}.key"


@dataclass(frozen=True, slots=True)
class WireguardPeer:
    """Who a device talks to, known by its public key. `endpoint` is where its packets are sent to; None: wherever it was last heard from,
    which is the device's to know and no part of any plan. `keepalive` in seconds, 0 for none."""

    dev: str
    public: str
    endpoint: tuple[IPv4Address | IPv6Address, int] | None
    keepalive: int = 0

    @property
    def key(self) -> Key:
        return ("peer", self.dev, self.public)


@dataclass(frozen=True, slots=True)
class AllowedIp:
    """A row of a device's routing by keys: packets for `cidr` are encrypted for the peer `public`, and packets from there are taken from
    that peer alone."""

    dev: str
    cidr: IPv4Network | IPv6Network
    public: str

    @property
    def key(self) -> Key:
        return ("allowed", self.dev, str(self.cidr))
