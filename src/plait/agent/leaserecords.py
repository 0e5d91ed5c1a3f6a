# SPDX-License-Identifier: Apache-2.0
"""What the journal keeps of leases, and by what servers know this node's containers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from plait.dhcp.client import Lease

_RFC4361, _IAID = b"\xff", b"\0\0\0\1"
_DUID_UUID = b"\0\4"
REMEMBERED = 256
"""Addresses of containers that are gone, which they ask for when they come again."""


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """`owner` "": nobody has it any more; `lease` is what was had last. `client_id` in
    hex; with `family` (of IP) it is the key."""

    owner: str
    network: str
    link: str
    name: str
    mac: str
    client_id: str
    lease: Lease | None = None
    family: int = 4

    @property
    def key(self) -> str:
        return self.client_id if self.family == 4 else f"{self.client_id}/{self.family}"


def client_id(node: str, network: str, name: str) -> bytes:
    """The same for a container of that name on that node for good, whatever its MAC is this time, and no other one's: a DUID made of a UUID
    (RFC 6355) behind an IAID, as RFC 4361 has it, so that a server knows it by the same in IPv6."""
    digest = hashlib.sha256("\0".join((node, network, name)).encode()).digest()
    return _RFC4361 + _IAID + _DUID_UUID + digest[:16]


def host_name(name: str) -> str:
    """A container's name as one label (RFC 1123), "" if nothing is left of it."""
    label = "".join(c if c.isascii() and c.isalnum() else "-" for c in name)[:63]
    return label.strip("-").lower()


def forgettable(records: Iterable[LeaseRecord]) -> list[LeaseRecord]:
    """What is remembered of containers that are gone, and too much: the oldest."""
    gone = [record for record in records if not record.owner]
    gone.sort(key=lambda record: -record.lease.since if record.lease is not None else 0.0)
    return gone[REMEMBERED:]
