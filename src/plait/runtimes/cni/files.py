# SPDX-License-Identifier: Apache-2.0
"""What engines read of plait on a host: a network configuration list for each network, and the program that they run.

Data in: the cluster's networks. Data out: `50-plait-<network>.conflist` below the CNI configuration directory, the shim as `plait` in the
directories of plug-ins. Only what carries plait's mark is ever changed or removed. A list of somebody else for a network of that name takes
the place of plait's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from plait.model.errors import PlaitError
from plait.runtimes.cni import shim

MARK = "written by the plait agent; changes are lost"
_SHIM_MARK = "plait's plug-in for CNI and netavark"
_CAPABILITIES = ("aliases", "bandwidth", "dns", "ipRanges", "ips", "mac", "portMappings")
WriteFile = Callable[[Path, str, int], None]
"""Replaces a file at once as a whole: path, text, mode."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where engines look: configuration lists, plug-ins of CNI, those of netavark (None = not wanted). `version` of the lists."""

    config: Path
    plugins: Path
    netavark: Path | None
    version: str

    @property
    def programs(self) -> list[Path]:
        return [folder / "plait" for folder in (self.plugins, self.netavark) if folder is not None]


def conflist(network: str, version: str) -> str:
    """The text of a network's configuration list."""
    plugin = {"type": "plait", "network": network, "capabilities": dict.fromkeys(_CAPABILITIES, True)}
    return json.dumps({"cniVersion": version, "name": network, "plait": MARK, "plugins": [plugin]}, indent=2) + "\n"


def sync_conflists(places: Places, networks: Iterable[str], write: WriteFile) -> dict[str, str]:
    """Have a list for each network, none for others. Returns what stands in the way, by network. PlaitError if nothing can be written."""
    wanted = {f"50-plait-{name}.conflist": name for name in networks}
    problems: dict[str, str] = {}
    try:
        others = _names_of_others(places.config)
        for path in sorted(places.config.glob("50-plait-*.conflist")):
            if path.name not in wanted and _marked(path):
                path.unlink()
        for file, name in wanted.items():
            path = places.config / file
            if name in others:
                if _marked(path):
                    path.unlink()
                file_of_other, kind = others[name]
                if kind != "plait":
                    problems[name] = f"{file_of_other} gives the network {name!r} to the plug-in {kind!r}; rename one of them"
            elif (text := conflist(name, places.version)) != _text(path):
                write(path, text, 0o644)
    except OSError as error:
        raise PlaitError(f"cannot write the CNI configuration in {places.config}: {error.strerror or error}") from error
    return problems


def install_shim(places: Places, write: WriteFile) -> None:
    """Put the shim where engines find it, unless somebody put another program there (such as the build in C). PlaitError if it fails."""
    text = Path(shim.__file__).read_text()
    for path in places.programs:
        try:
            present = _text(path)
            if present != text and (present == "" or _SHIM_MARK in present):
                write(path, text, 0o755)
        except OSError as error:
            raise PlaitError(f"cannot install the CNI plug-in as {path}: {error.strerror or error}; see cni.bin_dir") from error


def remove_files(places: Places) -> list[Path]:
    """Remove all of it. Returns what was removed."""
    marked = [path for path in sorted(places.config.glob("50-plait-*.conflist")) if _marked(path)]
    shims = [path for path in places.programs if _SHIM_MARK in _text(path)]
    for path in (*marked, *shims):
        path.unlink()
    return [*marked, *shims]


def _names_of_others(folder: Path) -> dict[str, tuple[Path, str]]:
    """The networks that files of others configure: by name, the file and the type of the first plug-in. What cannot be read counts not."""
    found: dict[str, tuple[Path, str]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix not in (".conf", ".conflist", ".json") or _marked(path):
            continue
        try:
            value = json.loads(_text(path))
            first = value.get("plugins", [value])[0]
            found.setdefault(str(value["name"]), (path, str(first.get("type", ""))))
        except (ValueError, KeyError, IndexError, AttributeError, TypeError):
            continue
    return found


def _marked(path: Path) -> bool:
    return f'"plait": "{MARK}"' in _text(path)


def _text(path: Path) -> str:
    """What it holds, "" if there is no such file."""
    try:
        return path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return ""
