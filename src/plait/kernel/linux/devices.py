# SPDX-License-Identifier: Apache-2.0
"""Links by name and by index, what makes a device, and what its own message does not tell of it."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Mapping
from dataclasses import replace

from plait.kernel.linux import ethtool
from plait.kernel.linux import link as links
from plait.kernel.linux import netlink as nl
from plait.kernel.linux.child import create_vlan
from plait.kernel.linux.tc import create_ifb
from plait.model.hostlinks import ChildLink, VlanLink
from plait.model.objects import BridgeLink, EndpointLink, VxlanLink
from plait.model.tc import IfbLink


class Indexes(dict[str, int]):
    """Interface indexes by name, each asked once: many routes of one pass lie on one device."""

    def __missing__(self, name: str) -> int:
        self[name] = index_of(name)
        return self[name]


def index_of(name: str) -> int:
    """Interface index by name in this namespace. OSError ENODEV if there is none."""
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise OSError(errno.ENODEV, f"no link named {name}") from error


def creation(link: VxlanLink | BridgeLink | VlanLink | IfbLink) -> nl.Message:
    """The request that makes it. OSError if its parent is not there."""
    match link:
        case VlanLink(parent=parent):
            return create_vlan(link, index_of(parent))
        case IfbLink():
            return create_ifb(link)
        case VxlanLink():
            return links.create_vxlan(link)
    return links.create_bridge(link)


def names_here() -> dict[int, str]:
    """Links of this namespace by index."""
    return dict(socket.if_nameindex())


def completed(link: links.Link, found: links.Found, names: Mapping[int, str]) -> links.Link:
    """With what the link's own message does not tell: names of its master or parent, and what is not rtnetlink's matter."""
    if isinstance(link, VxlanLink | EndpointLink):
        link = replace(link, master=names.get(found.master, ""))
    if isinstance(link, VlanLink | ChildLink):
        return replace(link, parent=names.get(found.parent, ""))
    if isinstance(link, VxlanLink):
        with contextlib.suppress(OSError):  # it may have gone meanwhile
            return replace(link, tx_checksum=ethtool.tx_checksum(link.name))
    return link
