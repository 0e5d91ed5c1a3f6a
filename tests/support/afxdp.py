# SPDX-License-Identifier: Apache-2.0
"""A sender by AF_XDP: its frames go to the link's driver past queueing disciplines and all hooks at that link, with CAP_NET_RAW alone.

Source: Documentation/networking/af_xdp.rst, include/uapi/linux/if_xdp.h."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import socket
import struct
from collections.abc import Iterator

_AF_XDP, _SOL_XDP = 44, 283
_MMAP_OFFSETS, _TX_RING, _UMEM_REG, _FILL_RING, _COMPLETION_RING = 1, 3, 4, 5, 6
_TX_AT = 0x80000000
_COPY = 1 << 1
_SLOTS, _CHUNK = 16, 2048
_LIBC = ctypes.CDLL(None, use_errno=True)


def send(dev: str, frame: bytes) -> None:
    """One frame by the link `dev` of the thread's namespace. OSError if the kernel takes none."""
    with _memory() as (memory, address), contextlib.closing(socket.socket(_AF_XDP, socket.SOCK_RAW)) as sock:
        sock.setsockopt(_SOL_XDP, _UMEM_REG, struct.pack("QQIIII", address, len(memory), _CHUNK, 0, 0, 0))
        for ring in (_FILL_RING, _COMPLETION_RING, _TX_RING):
            sock.setsockopt(_SOL_XDP, ring, _SLOTS)
        producer, _, descriptors = struct.unpack_from("QQQ", sock.getsockopt(_SOL_XDP, _MMAP_OFFSETS, 128), 32)
        place = struct.pack("=HHIII", _AF_XDP, _COPY, socket.if_nametoindex(dev), 0, 0)
        _check(_LIBC.bind(sock.fileno(), place, len(place)))
        with mmap.mmap(sock.fileno(), descriptors + _SLOTS * 16, offset=_TX_AT) as ring_of_sent:
            memory[: len(frame)] = frame
            struct.pack_into("=QII", ring_of_sent, descriptors, 0, len(frame), 0)
            struct.pack_into("=I", ring_of_sent, producer, 1)
            with contextlib.suppress(BlockingIOError):
                _check(_LIBC.sendto(sock.fileno(), None, 0, socket.MSG_DONTWAIT, None, 0))


@contextlib.contextmanager
def _memory() -> Iterator[tuple[mmap.mmap, int]]:
    with mmap.mmap(-1, _SLOTS * _CHUNK) as memory:
        held = ctypes.c_char.from_buffer(memory)
        try:
            yield memory, ctypes.addressof(held)
        finally:
            del held


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        if number not in (errno.ENOBUFS, errno.EBUSY):  # dropped, which is what is to be seen
            raise OSError(number, os.strerror(number))
