# SPDX-License-Identifier: Apache-2.0
"""Whether the process of a container still lives, without asking its engine."""

from __future__ import annotations

from pathlib import Path

_STATE, _STARTTIME = 0, 19
"""Fields of /proc/<pid>/stat counted from the one after the name (proc(5): fields 3 and 22)."""


def birth_of(pid: int) -> int | None:
    """When the process began, in ticks since boot, which tells it from a later one of the same number. None: there is none, or it is dead
    and only waits to be collected."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[_STATE] in "ZX" else int(fields[_STARTTIME])
