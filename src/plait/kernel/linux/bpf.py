# SPDX-License-Identifier: Apache-2.0
"""The system call bpf(2): maps and programs by number, as bytes. Sources: bpf(2), include/uapi/linux/bpf.h (union bpf_attr).

Only what the shortcut needs. Everything raises OSError with the kernel's errno; file descriptors are the caller's to close.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator

_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
"""Of the system call, by machine (arch/*/entry/syscalls)."""
_MAP_CREATE, _MAP_UPDATE, _MAP_DELETE, _PROG_LOAD = 0, 2, 3, 5
_PROG_BY_ID, _MAP_BY_ID, _INFO_BY_FD, _LOOKUP_BATCH = 13, 14, 15, 24
_PROG_ATTACH, _PROG_DETACH, _PROG_QUERY = 8, 9, 16
_TCX_INGRESS, _REPLACE = 46, 4
"""BPF_TCX_INGRESS (Linux 6.6), BPF_F_REPLACE."""
_MOST_PROGRAMS = 64
"""At one hook of one link (BPF_MPROG_MAX)."""
_HASH, _NO_PREALLOC, _SCHED_CLS, _XDP = 1, 1, 3, 6
_ATTR_BYTES = 128
_INFO_BYTES = 80
"""Of struct bpf_prog_info: up to and with its name."""
_LOG_BYTES = 64 * 1024


def create_hash(key_bytes: int, value_bytes: int, entries: int, name: str) -> int:
    """A new hash map for at most so many entries, which take memory only when they are there."""
    return _bpf(_MAP_CREATE, struct.pack("=5I8x16s", _HASH, key_bytes, value_bytes, entries, _NO_PREALLOC, name.encode()))


def put(table: int, key: bytes, value: bytes) -> None:
    """Add or replace one entry. E2BIG if the map is full."""
    pinned = _Pinned(key, value)
    _bpf(_MAP_UPDATE, struct.pack("=I4xQQQ", table, *pinned.addresses, 0))


def remove(table: int, key: bytes) -> None:
    """Take one entry away; an absent one is fine."""
    pinned = _Pinned(key)
    try:
        _bpf(_MAP_DELETE, struct.pack("=I4xQQQ", table, *pinned.addresses, 0, 0))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def entries(table: int, key_bytes: int, value_bytes: int, most: int) -> Iterator[tuple[bytes, bytes]]:
    """All entries of a hash map that was made for `most`, in no order, by one call."""
    keys, values, cursor = (ctypes.create_string_buffer(max(size, 8)) for size in (key_bytes * most, value_bytes * most, 8))
    attr = bytearray(struct.pack("=QQQQIIQQ", 0, *map(ctypes.addressof, (cursor, keys, values)), most, table, 0, 0))
    try:
        _bpf(_LOOKUP_BATCH, attr)
    except OSError as error:
        if error.errno != errno.ENOENT:  # how the call says that it has come to the end
            raise
    count = struct.unpack_from("=I", attr, 32)[0]
    all_keys, all_values = keys.raw, values.raw
    for number in range(count):
        yield all_keys[number * key_bytes : (number + 1) * key_bytes], all_values[number * value_bytes : (number + 1) * value_bytes]


def load_classifier(code: bytes, name: str) -> int:
    """A program for tc. EINVAL or EACCES with the verifier's words if it is refused."""
    return _load(_SCHED_CLS, code, name)


def load_xdp(code: bytes, name: str) -> int:
    """A program for what a link receives, before all else; refused like one for tc."""
    return _load(_XDP, code, name)


def _load(kind: int, code: bytes, name: str) -> int:
    pinned, log = _Pinned(code, b"Apache-2.0\0"), ctypes.create_string_buffer(_LOG_BYTES)
    head = struct.pack("=IIQQ", kind, len(code) // 8, *pinned.addresses)
    tail = struct.pack("=II16s", 0, 0, name.encode())
    try:
        return _bpf(_PROG_LOAD, head + struct.pack("=IIQ", 0, 0, 0) + tail)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EACCES):
            raise
    try:
        return _bpf(_PROG_LOAD, head + struct.pack("=IIQ", 1, _LOG_BYTES, ctypes.addressof(log)) + tail)
    except OSError as error:
        said = log.value.decode("utf-8", "replace").strip().splitlines()[-3:]
        raise OSError(error.errno, f"the verifier refuses the program: {' / '.join(said)}") from error


def attach(index: int, program: int, instead: int = -1) -> None:
    """Let the program see what the link with this index receives, before all others of its kind or in place of one. It stays there until it
    is taken away or the link goes; other than a queueing discipline, it does not stop what the link sends meanwhile."""
    flags, replaced = (_REPLACE, instead) if instead >= 0 else (0, 0)
    _bpf(_PROG_ATTACH, struct.pack("=6IQ", index, program, _TCX_INGRESS, flags, replaced, 0, 0))


def detach(index: int, program: int) -> None:
    """ENOENT if it is not there."""
    _bpf(_PROG_DETACH, struct.pack("=6IQ", index, program, _TCX_INGRESS, 0, 0, 0, 0))


def attached(index: int) -> list[int]:
    """Ids of the programs that see what a link receives, in their order. EINVAL in a kernel without such a hook."""
    ids = ctypes.create_string_buffer(4 * _MOST_PROGRAMS)
    attr = bytearray(struct.pack("=4IQ2I4Q", index, _TCX_INGRESS, 0, 0, ctypes.addressof(ids), _MOST_PROGRAMS, 0, 0, 0, 0, 0))
    try:
        _bpf(_PROG_QUERY, attr)
    except OSError as error:
        if error.errno != errno.ENOENT:  # none was ever there
            raise
        return []
    count = struct.unpack_from("=I", attr, 24)[0]
    return list(struct.unpack_from(f"={count}I", ids.raw))


def opened(program: int) -> int:
    """The program with this id. ENOENT if there is none."""
    return _bpf(_PROG_BY_ID, struct.pack("=I", program))


def named(program: int) -> tuple[str, list[int]]:
    """Name of an open program, and ids of its maps (the first of them)."""
    ids = ctypes.create_string_buffer(4)
    info = ctypes.create_string_buffer(struct.pack("=52xIQ16x", 1, ctypes.addressof(ids)), _INFO_BYTES)
    _bpf(_INFO_BY_FD, struct.pack("=IIQ", program, _INFO_BYTES, ctypes.addressof(info)))
    count = min(1, struct.unpack_from("=I", info.raw, 52)[0])
    return info.raw[64:80].rstrip(b"\0").decode("ascii", "replace"), list(struct.unpack_from(f"={count}I", ids.raw))


def opened_map(table: int) -> int:
    """The map with this id. ENOENT if there is none."""
    return _bpf(_MAP_BY_ID, struct.pack("=I", table))


class _Pinned:
    """Bytes that the kernel is told the addresses of; they stay where they are while this lives."""

    def __init__(self, *contents: bytes) -> None:
        self._buffers = [ctypes.create_string_buffer(content, len(content)) for content in contents]
        self.addresses = [ctypes.addressof(buffer) for buffer in self._buffers]


_LIBC = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attr: bytes | bytearray) -> int:
    """The call; what the kernel writes into `attr` is there afterwards if that is a bytearray."""
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"bpf(2) has no number known here on {platform.machine()}")
    buffer = ctypes.create_string_buffer(bytes(attr), _ATTR_BYTES)
    result: int = _LIBC.syscall(ctypes.c_long(number), ctypes.c_long(command), buffer, ctypes.c_long(_ATTR_BYTES))
    if isinstance(attr, bytearray):
        attr[:] = buffer.raw[: len(attr)]
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
