# SPDX-License-Identifier: Apache-2.0
"""Kernel objects of the way by which packets from other hosts go straight into containers (see `objects`, and `plan/shortcut.py`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from plait.model.hostlinks import Key


@dataclass(frozen=True, slots=True)
class Shortcut:
    """That the host's link `dev` gives containers what its deliveries name, as soon as it has received it. One that is not `current` is
    another release's, whose deliveries this one cannot read. What a `bare` link receives are containers' packets themselves, without any
    frame, others' are in VXLAN."""

    dev: str
    current: bool = True
    bare: bool = False

    @property
    def key(self) -> Key:
        return ("shortcut", self.dev)


@dataclass(frozen=True, slots=True)
class Delivery:
    """That a VXLAN packet (`vni`, UDP `port`) to this host's address `local`, with a packet inside from an address in `source` to
    `address`, is for the container at the other end of the link `link`, whose MAC is `mac`. With `framed` only in a frame for that MAC,
    which stays as it is; else the packet was routed to it. On a bare link there is nothing around the packet, and `local`, `vni` and `port`
    are zero. Needs the shortcut of `dev`."""

    dev: str
    address: IPv4Address
    source: IPv4Network
    link: str
    local: IPv4Address
    vni: int
    port: int
    mac: str = field(compare=False, default="")
    framed: bool = False

    @property
    def key(self) -> Key:
        return ("delivery", self.dev, str(self.address))
