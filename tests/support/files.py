# SPDX-License-Identifier: Apache-2.0
"""Files that the tests' process has open, to be counted before and after."""

from __future__ import annotations

import gc
import os


def open_files(kind: str = "") -> int:
    """Of `kind` alone, as the kernel calls what has no name ("eventpoll"), else of all. But for those that are garbage already: what an
    earlier test left in a cycle is closed whenever the collector comes by. What it left to a thread may be closed later still, so that
    fewer afterwards are no fault."""
    gc.collect()
    if not kind:
        return len(os.listdir("/proc/self/fd"))
    return sum(_target(name) == f"anon_inode:[{kind}]" for name in os.listdir("/proc/self/fd"))


def _target(name: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except FileNotFoundError:  # what listed them
        return ""
