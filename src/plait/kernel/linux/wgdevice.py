# SPDX-License-Identifier: Apache-2.0
"""What a WireGuard device holds and what can be changed of it, whichever way it is asked (`wguapi`, `wgnetlink`). Pure."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Endpoint = tuple[IPv4Address | IPv6Address, int]
Cidr = IPv4Network | IPv6Network
KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Peer:
    """`handshake` is when the last one was completed, seconds since the epoch (0: none yet). `received` and `sent` count bytes on the
    underlay. `endpoint` is where it was last heard from, or was told to be."""

    public: str
    endpoint: Endpoint | None = None
    keepalive: int = 0
    handshake: float = 0.0
    received: int = 0
    sent: int = 0
    allowed: tuple[Cidr, ...] = ()


@dataclass(frozen=True, slots=True)
class Device:
    """`public` is "" while it has no private key."""

    public: str
    port: int
    peers: tuple[Peer, ...] = ()


@dataclass(frozen=True, slots=True)
class PeerChange:
    """Make or change the peer `public`; what is None or empty stays as it is. `allowed` is added, taken from whichever peer has it now."""

    public: str
    remove: bool = False
    endpoint: Endpoint | None = None
    keepalive: int | None = None
    allowed: tuple[Cidr, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """What to change of a device, in one step; None stays as it is. `private` are the 32 bytes of the private key."""

    private: bytes | None = None
    port: int | None = None
    peers: tuple[PeerChange, ...] = ()


def key_bytes(text: str) -> bytes:
    """A key as wg(8) writes it -> 32 bytes. ValueError if it is none."""
    try:
        raw = base64.b64decode(text.strip(), validate=True)
    except binascii.Error as error:
        raise ValueError(f"a WireGuard key must be base64: {error}") from error
    if len(raw) != KEY_BYTES:
        raise ValueError(f"a WireGuard key has {KEY_BYTES} bytes, not {len(raw)}")
    return raw


def key_text(raw: bytes) -> str:
    """32 bytes -> as wg(8) writes them."""
    return base64.b64encode(raw).decode()


def public_of(private: bytes) -> str:
    """The public half of a private key (X25519, RFC 7748)."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return key_text(X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw())
