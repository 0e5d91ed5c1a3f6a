# SPDX-License-Identifier: Apache-2.0
"""Whether a device leaves checksums of what it sends to those below it (its offload): the SIOCETHTOOL ioctl.

Source: include/uapi/linux/ethtool.h (struct ethtool_value), netdevice(7) (struct ifreq).
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct

_SIOCETHTOOL, _GTXCSUM, _STXCSUM = 0x8946, 0x16, 0x17
_VALUE = struct.Struct("=II")
_IFREQ = struct.Struct("16sP16x")


def tx_checksum(dev: str) -> bool:
    """Whether the offload is on. OSError, if only because there is no such device."""
    return _ask(dev, _GTXCSUM, 0) != 0


def set_tx_checksum(dev: str, on: bool) -> None:
    """Switch it. Idempotent. OSError."""
    _ask(dev, _STXCSUM, int(on))


def _ask(dev: str, command: int, value: int) -> int:
    buffer = ctypes.create_string_buffer(_VALUE.pack(command, value), _VALUE.size)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, _IFREQ.pack(dev.encode(), ctypes.addressof(buffer)))
    answer: int = _VALUE.unpack(buffer.raw)[1]
    return answer
