# SPDX-License-Identifier: Apache-2.0
"""A socket for DNS inside a sandbox that cannot reach its host: queries go by the sandbox's own loopback, and no packet leaves it.

In: the sandbox's namespace, the resolver's address, the sandbox's own address. Out: a local route there (`local ADDRESS dev lo src OWN`),
by which the kernel takes the first for an address of its own and asks it from the second, so that the answer is for who asks; and the
socket, which takes what comes by the loopback alone, nothing from the link.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from ipaddress import ip_address

from plait.kernel.linux import netlink as nl
from plait.kernel.linux.inside import opened
from plait.kernel.linux.link import RTM_NEWROUTE
from plait.kernel.linux.netns import inside
from plait.model.objects import ROUTE_PROTOCOL

_LOOPBACK = 1
_RTA_DST, _RTA_OIF, _RTA_PREFSRC = 1, 4, 7
_TABLE_LOCAL, _SCOPE_HOST, _LOCAL = 255, 254, 2
"""RT_TABLE_LOCAL, RT_SCOPE_HOST, RTN_LOCAL (include/uapi/linux/rtnetlink.h)."""


def open_resolver(netns: str, address: str, own: str, open_socket: Callable[[], socket.socket]) -> socket.socket:
    """What `open_socket` opens in the namespace at `netns`. OSError if that is gone, has not the address `own`, or the socket cannot be."""
    with opened(netns) as (fd, there):
        (reply,) = there.transact([_local_route(address, own)])
        if reply.errno:
            raise OSError(reply.errno, f"inside {netns}: {reply.text or os.strerror(reply.errno)}")
        with inside(fd):
            sock = open_socket()
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    except OSError:
        sock.close()
        raise
    return sock


def _local_route(address: str, own: str) -> nl.Message:
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 32, 0, 0, _TABLE_LOCAL, ROUTE_PROTOCOL, _SCOPE_HOST, _LOCAL, 0)
    body += nl.attr_u32(_RTA_OIF, _LOOPBACK) + nl.attr(_RTA_DST, ip_address(address).packed)
    return nl.Message(RTM_NEWROUTE, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, body + nl.attr(_RTA_PREFSRC, ip_address(own).packed))
