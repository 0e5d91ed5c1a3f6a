# SPDX-License-Identifier: Apache-2.0
"""Syncing a file without a thread: the kernel does it while the event loop goes on, and rings when it is done.

Data in: an open file. Data out: a call in the loop when what was written before `start` is on disk, or why it is not. A thread that waits
in fdatasync would have to win the interpreter back from a busy loop twice for each sync. Sources: io_setup(2), io_submit(2),
io_getevents(2), linux/aio_abi.h; IOCB_CMD_FDSYNC is there since Linux 4.18.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import platform
import sys
from collections.abc import Callable
from typing import NamedTuple


class _Numbers(NamedTuple):
    """Of the system calls, for which the C library has no functions (asm/unistd.h)."""

    setup: int
    destroy: int
    getevents: int
    submit: int


_GENERIC = _Numbers(0, 1, 4, 2)
_NUMBERS = {"x86_64": _Numbers(206, 207, 208, 209), "aarch64": _GENERIC, "riscv64": _GENERIC}
_FDSYNC = 3  # enum IOCB_CMD_*
_RESFD = 1  # IOCB_FLAG_RESFD: `resfd` is an eventfd that is rung
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _Iocb(ctypes.Structure):
    """struct iocb of a little-endian machine."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_int32),
        ("opcode", ctypes.c_uint16),
        ("reqprio", ctypes.c_int16),
        ("fildes", ctypes.c_uint32),
        ("buf", ctypes.c_uint64),
        ("nbytes", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved2", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("resfd", ctypes.c_uint32),
    )


class _Event(ctypes.Structure):
    """struct io_event. `res`: 0 or a negative errno."""

    _fields_ = (("data", ctypes.c_uint64), ("obj", ctypes.c_uint64), ("res", ctypes.c_int64), ("res2", ctypes.c_int64))


class KernelSync:
    """Of one file, one sync at a time. Make it anywhere, `attach` it in the loop; `start` and `close` from there."""

    def __init__(self, fd: int) -> None:
        """Tries one sync and waits for it. OSError where the kernel, its limits, a filter of system calls or the file's file system do not
        allow it. The file stays the caller's, who closes it after this."""
        numbers = _NUMBERS.get(platform.machine())
        if numbers is None or sys.maxsize < 1 << 32 or sys.byteorder != "little":
            raise OSError(errno.ENOSYS, f"asynchronous sync: no system calls known for {platform.machine()}")
        self._numbers = numbers
        self._done: Callable[[OSError | None], object] = lambda error: None
        self._event, self._context = _Event(), ctypes.c_ulong()
        _call(numbers.setup, 1, ctypes.byref(self._context))
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._block = _Iocb(opcode=_FDSYNC, fildes=fd, flags=_RESFD, resfd=self._bell)
        self._blocks = (ctypes.POINTER(_Iocb) * 1)(ctypes.pointer(self._block))
        try:
            self.start()
            self._collect(1)
            if error := self._error():
                raise error
        except OSError:
            self.close()
            raise

    def attach(self, done: Callable[[OSError | None], object]) -> None:
        """From now on `done(error)` is called in the running loop after each sync."""
        self._done = done
        asyncio.get_running_loop().add_reader(self._bell, self._rung)

    def start(self) -> None:
        """Begin a sync. OSError if the kernel does not take it now."""
        _call(self._numbers.submit, self._context, 1, self._blocks)

    def detach(self) -> None:
        """No more calls."""
        asyncio.get_running_loop().remove_reader(self._bell)

    def close(self) -> None:
        """Let go of everything, after a sync that is under way. Not while it is attached."""
        _call(self._numbers.destroy, self._context)
        os.close(self._bell)

    def _collect(self, least: int) -> int:
        """The number of syncs that are done, 0 or 1; waits for `least`."""
        return _call(self._numbers.getevents, self._context, least, 1, ctypes.byref(self._event), None)

    def _error(self) -> OSError | None:
        number = -self._event.res
        return OSError(number, os.strerror(number)) if number else None

    def _rung(self) -> None:
        os.eventfd_read(self._bell)
        if self._collect(0):
            self._done(self._error())


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"asynchronous sync, system call {number}: {os.strerror(code)}")
    return result
