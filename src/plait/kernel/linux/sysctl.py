# SPDX-License-Identifier: Apache-2.0
"""Values below /proc/sys/net, in the network namespace of the calling thread (the kernel picks it at each open)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from plait.model.objects import PREFIX, KernelObject, Key, Sysctl

_ROOT = Path("/proc/sys/net")
_CONF6 = _ROOT / "ipv6/conf"
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
