# SPDX-License-Identifier: Apache-2.0
"""Files that the tests' process has open, to be counted before and after."""

from __future__ import annotations

import gc
import os


def open_files() -> int:
    """But for those that are garbage already: what an earlier test left in a cycle is closed whenever the collector comes by. What it left
    to a thread may be closed later still, so that fewer afterwards are no fault."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))
