# SPDX-License-Identifier: Apache-2.0
"""(protocol, address, port) -> which process holds that port, from /proc: for the message about a bind that failed, or would fail."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Iterable, Iterator
from errno import EADDRINUSE
from pathlib import Path

_LISTENING = {"tcp": "0A", "udp": "07"}  # TCP_LISTEN and TCP_CLOSE of net/tcp_states.h, as /proc/net/tcp and udp print them


def holder(protocol: str, address: str, port: int) -> str:
    """ "name (pid 123)" of a process of this network namespace that listens on `port` at `address` or at all addresses, ""
    if none is found or may be seen. Reads the open files of every process: tens of milliseconds, so not for an event loop."""
    inodes = {f"socket:[{inode}]" for inode in _inodes(protocol, address, port)}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(file.readlink()) in inodes for file in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
        except OSError:  # it ended meanwhile, or belongs to another user
            continue
    return ""


def held(address: str, ports: Iterable[int]) -> str:
    """ "127.0.0.1:53/udp is held by NAME (pid 123)" of the first of the ports that cannot be listened on at the IPv4 address, over UDP or
    TCP, because somebody else does; "" if there is none. Nothing stays open."""
    for port in ports:
        for protocol, kind in (("udp", socket.SOCK_DGRAM), ("tcp", socket.SOCK_STREAM)):
            with socket.socket(socket.AF_INET, kind) as probe:
                if protocol == "tcp":  # what ended connections left behind holds up no listener
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((address, port))
                    if protocol == "tcp":
                        probe.listen(1)
                except OSError as error:
                    if error.errno == EADDRINUSE:
                        return f"{address}:{port}/{protocol} is held by {holder(protocol, address, port) or 'another program'}"
    return ""


def _inodes(protocol: str, address: str, port: int) -> Iterator[str]:
    """Inodes of the sockets that collide with (address, port); format of the lines: proc_net_tcp.txt of the kernel."""
    wanted = ipaddress.ip_address(address)
    for table in (protocol, protocol + "6"):
        try:
            lines = Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]
        except OSError:  # the kernel was built without IPv6
            continue
        for fields in map(str.split, lines):
            host, _, hex_port = fields[1].partition(":")
            held = _address(host)
            if int(hex_port, 16) == port and fields[3] == _LISTENING[protocol] and (held == wanted or held.is_unspecified):
                yield fields[9]


def _address(digits: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address as the kernel prints it: 32-bit words in the machine's byte order."""
    words = [int(digits[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(digits), 8)]
    return ipaddress.ip_address(b"".join(words))
