# SPDX-License-Identifier: Apache-2.0
"""Which port of a bridge leads into a network namespace. The host is asked, not the namespace: who is inside may call its links as it
likes, and give them whatever addresses.

Sources: include/uapi/linux/net_namespace.h, rtnetlink(7).
"""

from __future__ import annotations

import contextlib
import os
import struct

from plait.kernel.linux import link as links
from plait.kernel.linux import netlink as nl
from plait.kernel.linux.devices import index_of

_RTM_NEWNSID, _RTM_GETNSID = 88, 90
_NETNSA_NSID, _NETNSA_FD = 1, 3
_UNKNOWN = struct.pack("=i", -1)


def port_into(path: str, bridge: str) -> str:
    """The name of the port of `bridge` whose other end lies in the namespace at `path`, "" if there is none, or one of them is gone. Any
    thread may call it."""
    with contextlib.suppress(OSError), contextlib.closing(nl.NetlinkSocket()) as sock:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            ports = links.dump_ports(sock, index_of(bridge))  # first, for the namespaces that links lead to are numbered when they are told
            number = _number_of(sock, fd)
        finally:
            os.close(fd)
        return next((name for name, away in ports.items() if away == number), "")
    return ""


def _number_of(sock: nl.NetlinkSocket, fd: int) -> bytes:
    """By which links of the host name the namespace `fd`."""
    body = struct.pack("=B3x", 0) + nl.attr_u32(_NETNSA_FD, fd)
    for kind, answer in sock.ask(nl.Message(_RTM_GETNSID, 0, body)):
        if kind == _RTM_NEWNSID:
            return nl.parse_attrs(answer[4:]).get(_NETNSA_NSID, _UNKNOWN)
    return _UNKNOWN
