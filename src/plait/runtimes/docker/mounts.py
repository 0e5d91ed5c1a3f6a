# SPDX-License-Identifier: Apache-2.0
"""Which containers' root file systems an engine has mounted, and in what order.

An engine mounts a container's root file system as the first step of its start, before it asks for an address, and unmounts it at its end.
Data in: the mount table of the engine's process (proc(5), mountinfo: oldest first) and the engine's own note of which layer is whose
(`image/DRIVER/layerdb/mounts/ID/mount-id` in its data directory; an engine on containerd's image store names the mount point by the id).
Data out: places in that order. Storage drivers that mount nothing give nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

Places = Callable[[int, Iterable[str]], dict[str, int] | None]
_LAYER = re.compile(r"(?P<data>.*)/(?P<driver>[^/]+)/(?P<layer>[^/]+)/merged")
_OCTAL = re.compile(r"\\([0-7]{3})")
"""How mountinfo writes a space, a tab, a newline and a backslash."""


def rootfs_places(pid: int, containers: Iterable[str], proc: Path = Path("/proc")) -> dict[str, int] | None:
    """Place of each of `containers` (ids) whose root file system process `pid` has mounted, growing with the mount's age in the table;
    None if nothing can be said: no such process, or a storage driver that mounts nothing."""
    try:
        lines = (proc / str(pid) / "mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    points = {_OCTAL.sub(lambda found: chr(int(found[1], 8)), line.split(" ", 5)[4]): number for number, line in enumerate(lines)}
    layers = {found.groups(): number for point, number in points.items() if (found := _LAYER.fullmatch(point)) is not None}
    by_id = {point.rpartition("/")[2]: number for point, number in points.items()}
    stores = {(data, driver) for data, driver, _ in layers}
    places: dict[str, int] = {}
    told = False
    for container in containers:
        if container in by_id:
            places[container], told = by_id[container], True
        for data, driver in stores:
            layer = _layer(proc / str(pid) / "root" / data.lstrip("/"), driver, container)
            told = told or bool(layer)
            if (data, driver, layer) in layers:
                places[container] = layers[data, driver, layer]
    return places if told else None


def _layer(data: Path, driver: str, container: str) -> str:
    try:
        return (data / "image" / driver / "layerdb" / "mounts" / container / "mount-id").read_text().strip()
    except OSError:
        return ""
