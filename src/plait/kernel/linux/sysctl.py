# SPDX-License-Identifier: Apache-2.0
"""Values below /proc/sys/net, in the network namespace of the calling thread (the kernel picks it at each open), and what those that are
not of plait's own links were before plait changed them: a host that plait leaves gets them back."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path

from plait.model.objects import PREFIX, KernelObject, Key, Sysctl

_ROOT = Path("/proc/sys/net")
_CONF6 = _ROOT / "ipv6/conf"
FORWARDING4 = "ipv4/ip_forward"
FORWARDING6 = "ipv6/conf/all/forwarding"
OPEN6 = (("disable_ipv6", "0"), ("accept_dad", "0"), ("accept_ra", "0"), ("autoconf", "0"))
"""What a sandbox's link needs, before it is up, to have IPv6 as plait gives it: no search for duplicates of what nobody else can have,
nothing from routers. The kernel's defaults may be those of the host, which may have IPv6 switched off."""


def read_sysctls(probe: Iterable[Key]) -> dict[Key, KernelObject]:
    """Those of the keys in `probe` that are of sysctls which are there."""
    found: dict[Key, KernelObject] = {}
    for key in probe:
        if key[0] == "sysctl":
            with contextlib.suppress(OSError):
                found[key] = Sysctl(key[1], (_ROOT / key[1]).read_text().strip())
    return found


def rp_filter(dev: str) -> int:
    """How strict the link (or "all", "default") is about where packets come from; 0 where that cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        return int((_ROOT / "ipv4/conf" / dev / "rp_filter").read_text())
    return 0


def write_sysctl(path: str, value: str) -> None:
    """Raises OSError."""
    if path == FORWARDING6 and value == "1":
        _keep_hearing_routers()
    (_ROOT / path).write_text(value)


def _keep_hearing_routers() -> None:
    """A host that forwards IPv6 hears no router advertisements any more unless accept_ra is 2 (Documentation/networking/ip-sysctl.rst):
    without this, one that has its address or default route from them would lose it a while after plait's start."""
    for conf in _CONF6.iterdir():
        ours = conf.name == "all" or conf.name.startswith(PREFIX)
        if not ours and (conf / "accept_ra").read_text().strip() == "1" and (conf / "forwarding").read_text().strip() == "0":
            (conf / "accept_ra").write_text("2")


def answer_at_once(dev: str) -> None:
    """No random delay before a proxy ARP answer (default up to 0.8 s, arp(7) proxy_delay)."""
    write_sysctl(f"ipv4/neigh/{dev}/proxy_delay", "0")


def speak_no_ipv6(dev: str) -> None:
    """A link that only carries frames of others sends none of its own: no reports of groups, no search for routers."""
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
        write_sysctl(f"ipv6/conf/{dev}/disable_ipv6", "1")


def open_for_ipv6(dev: str) -> None:
    """Let a link of this namespace have IPv6 (`OPEN6`). Raises OSError where the kernel has none."""
    for name, value in OPEN6:
        write_sysctl(f"ipv6/conf/{dev}/{name}", value)


class Sysctls:
    """Writes sysctls of the host and keeps in `file` what they were, before they are changed; None keeps nothing. A boot begins with the
    values that the host sets itself, so what was kept in an earlier one is void."""

    def __init__(self, file: Path | None) -> None:
        self._file = file

    def write(self, path: str, value: str) -> None:
        """Raises OSError, also when what was there cannot be kept: then nothing is changed."""
        if self._file is not None and f"/{PREFIX}" not in path:
            kept = self._kept()
            fresh = {name: pair for name, pair in _with_it(path, value) if name not in kept}
            if fresh:
                _replace(self._file, json.dumps({"boot": _boot(), "values": {**kept, **fresh}}, indent=1))
        write_sysctl(path, value)

    def restore(self, needed: Set[int] = frozenset()) -> list[str]:
        """Set back what is still as plait has set it; says what, a line each. The host goes on forwarding IP of the versions `needed`."""
        kept = self._kept()
        ours = {path: old for path, (old, new) in kept.items() if _read(path) == new}
        stay = {path for path, version in ((FORWARDING4, 4), (FORWARDING6, 6)) if version in needed and path in ours}
        done = [f"left net.{path.replace('/', '.')} at {_read(path)}: Docker needs it" for path in sorted(stay)]
        tied = {name for path in stay for name, _ in _with_it(path, "1")}
        for path, old in ours.items():
            if path not in tied and _read(path) != old:
                with contextlib.suppress(OSError):  # its link may have gone
                    (_ROOT / path).write_text(old)
                done += [f"set net.{path.replace('/', '.')} back to {old}"] if path.count("/") < 2 or "/all/" in path else []
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        return done

    def _kept(self) -> dict[str, tuple[str, str]]:
        """By path what it was and what plait has set, in the order in which to set it back; empty if there is nothing sound."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            held: Mapping[str, object] = json.loads(self._file.read_text()) if self._file is not None else {}
            if held.get("boot") == _boot():
                values = held["values"]
                assert isinstance(values, dict)
                return {str(path): (str(old), str(new)) for path, (old, new) in values.items()}
        return {}


def _with_it(path: str, value: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """The sysctl and those that change with it, each with what it is and what it becomes. Forwarding changes that of every link, and with
    it whether redirects are accepted or routers heard (Documentation/networking/ip-sysctl.rst)."""
    yield path, (_read(path), value)
    if path == FORWARDING4:
        yield "ipv4/conf/all/accept_redirects", (_read("ipv4/conf/all/accept_redirects"), "0")
    if path not in (FORWARDING4, FORWARDING6):
        return
    family = path.partition("/")[0]
    for conf in sorted((_ROOT / family / "conf").iterdir()):
        name = f"{family}/conf/{conf.name}"
        forwards = _read(f"{name}/forwarding")
        if conf.name.startswith(PREFIX):
            continue
        yield f"{name}/forwarding", (forwards, value)
        if path == FORWARDING6:
            hears = _read(f"{name}/accept_ra")
            yield f"{name}/accept_ra", (hears, "2" if (hears, forwards) == ("1", "0") else hears)


def _read(path: str) -> str:
    """The value, "" if there is none."""
    with contextlib.suppress(OSError):
        return (_ROOT / path).read_text().strip()
    return ""


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _replace(file: Path, text: str) -> None:
    """Whole or not at all, and on disk."""
    fresh = file.with_suffix(".new")
    with fresh.open("w") as written:
        written.write(text)
        written.flush()
        os.fsync(written.fileno())
    fresh.replace(file)
