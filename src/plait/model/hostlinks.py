# SPDX-License-Identifier: Apache-2.0
"""Kernel objects of networks on a link of the host (see `objects`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface

from plait.model.addr import IPAddress
from plait.model.inside import Inside6
from plait.model.leases import Way

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VlanLink:
    """A link that sends and takes the frames of one VLAN (802.1Q tag `vlan`) of the link `parent`, with its MAC and MTU."""

    name: str
    parent: str
    vlan: int
    up: bool = True

    @property
    def key(self) -> Key:
        return ("link", self.name)


@dataclass(frozen=True, slots=True)
class ChildLink:
    """An endpoint that is a link of its own on the host's link `parent`: `kind` is "macvlan" or "ipvlan", `mode` one of that kind's.

    It lies in the namespace `netns`, where plait plumbs it (`ifname`, `address`, what is reached `through` `gateway`; where that is None
    both families go straight by the link), or in the host's ("") until the container engine takes it away. Wherever that is, `name` is its
    alias. `mac` is "" where it has its parent's, `mtu` 0. `inside6` is what the network says of IPv6. `ways` are routes that a server of
    the link named, `address6` what it gave of IPv6: its routes are learnt inside. Only who asks for it by its key is told of one in another
    namespace.
    """

    name: str
    parent: str
    kind: str
    mode: str
    netns: str = ""
    mac: str = field(default="", compare=False)
    ifname: str = field(default="eth0", compare=False)
    address: IPv4Interface | None = field(default=None, compare=False)
    gateway: IPv4Address | None = field(default=None, compare=False)
    through: tuple[IPv4Network, ...] = field(default=(), compare=False)
    ways: tuple[Way, ...] = field(default=(), compare=False)
    mtu: int = field(default=0, compare=False)
    address6: IPv6Interface | None = field(default=None, compare=False)
    inside6: Inside6 | None = field(default=None, compare=False)

    @property
    def key(self) -> Key:
        return ("child", self.name, self.netns)


@dataclass(frozen=True, slots=True)
class SwitchPort:
    """That the link `dev` is a port of the Open vSwitch bridge `bridge`, whose frames are in VLAN `tag` there. `inside` is the name of the
    veth's other end, in the namespace `netns` or ("") this one."""

    bridge: str
    dev: str
    tag: int
    netns: str = field(default="", compare=False)
    inside: str = field(default="", compare=False)

    @property
    def key(self) -> Key:
        return ("port", self.dev)


@dataclass(frozen=True, slots=True)
class PortGuard:
    """That what comes in by the link `dev`, a port of a switch that others steer, is dropped and counted unless it is from the MAC and one
    of the addresses that `digest` stands for (`guard_of`), or the link-local one of that MAC. The kernel does not tell which they are."""

    dev: str
    digest: str
    mac: str = field(default="", compare=False)
    own: tuple[IPAddress, ...] = field(default=(), compare=False)

    @property
    def key(self) -> Key:
        return ("guard", self.dev)


@dataclass(frozen=True, slots=True)
class ChildGuard:
    """That what leaves by the child `dev` of a link of the host, in the container's namespace `netns`, is judged there by `rules`, which
    `digest` stands for, and what they lead to `strangers` by those. The kernel does not tell which they are, nor of it whom does not ask by
    its key."""

    dev: str
    netns: str
    digest: str
    rules: tuple[str, ...] = field(default=(), compare=False)
    strangers: tuple[str, ...] = field(default=(), compare=False)

    @property
    def key(self) -> Key:
        return ("child-guard", self.dev, self.netns)


def guard_of(dev: str, mac: str, own: Iterable[IPAddress]) -> PortGuard:
    """For these addresses, of which the first are to be the most frequent."""
    own = tuple(own)
    return PortGuard(dev, hashlib.sha256(" ".join((mac, *map(str, own))).encode()).hexdigest()[:8], mac, own)


@dataclass(frozen=True, slots=True)
class BridgePort:
    """A container's link to its engine's own bridge, which is no object of plait's: its side on the host, the MAC of the other."""

    dev: str
    mac: str
