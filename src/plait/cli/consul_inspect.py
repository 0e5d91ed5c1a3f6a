# SPDX-License-Identifier: Apache-2.0
"""What `plait consul snapshot inspect` prints, in Consul's formats. Term and version are those of Consul's archives of today: plait has
neither, and programs read them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from plait.services.archive import Archive, Part, identity, parts

_TERM, _VERSION = 1, 1


def as_table(data: bytes, archive: Archive, keys: Sequence[Part] | None) -> list[str]:
    """`keys` None: nobody asked for them."""
    found = parts(archive)
    meta = {"ID": identity(data), "Size": len(data), "Index": archive.index, "Term": _TERM, "Version": _VERSION}
    lines = [*(f" {name:<12} {value}" for name, value in meta.items()), "", *_table("Type", found)]
    return lines if keys is None else [*lines, "", *_table("Key Name", keys)]


def as_json(data: bytes, archive: Archive, keys: Sequence[Part] | None) -> list[str]:
    found = parts(archive)
    told = {
        "Meta": {"ID": identity(data), "Size": len(data), "Index": archive.index, "Term": _TERM, "Version": _VERSION},
        "Stats": [_row(part) for part in found],
        "StatsKV": [_row(part) for part in keys or ()],
        "TotalSize": sum(part.size for part in found),
        "TotalSizeKV": sum(part.size for part in keys or ()),
    }
    return [json.dumps(told, indent=4)]


def _row(part: Part) -> dict[str, object]:
    return {"Name": part.name, "Sum": part.size, "Count": part.count}


def _table(title: str, rows: Sequence[Part]) -> list[str]:
    shown = [(title, "Count", "Size"), ("----", "----", "----"), *((part.name, str(part.count), _size(part.size)) for part in rows)]
    total = ("Total", "", _size(sum(part.size for part in rows)))
    return [f" {name:<27} {count:<10} {size}" for name, count, size in (*shown, ("----", "----", "----"), total)]


def _size(number: int) -> str:
    """Bytes as Consul writes them: 1000B, 2.8KB."""
    value, unit = float(number), 0
    while value > 1024 and unit < 3:
        value, unit = value / 1024, unit + 1
    return f"{number}B" if not unit else f"{value:.1f}{('', 'KB', 'MB', 'GB')[unit]}"
