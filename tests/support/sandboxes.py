# SPDX-License-Identifier: Apache-2.0
"""What tests ask of a lab's hosts by `plait` itself: what it shows, where a sandbox is, and what happens inside one."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from plait.lab.lab import Lab


def shown(lab: Lab, host: str, *words: str) -> Any:
    """What `plait WORDS --json` of `host` says, whatever its exit status: that of `status` tells that something is wrong."""
    return json.loads(lab.run(host, "plait", *words, "--json", check=False).stdout)


def address(lab: Lab, name: str, network: str = "", *, host: str = "A", family: str = "addresses") -> str:
    """Address of sandbox `name` as `host` sees it, in `network` or (without one) the first it is in; `family` is the field of `plait ps`:
    "addresses", or "addresses6" for IPv6. StopIteration, KeyError if there is none."""
    found = next(row[family] for row in shown(lab, host, "ps") if row["name"] == name)
    return str(found[network] if network else next(iter(found.values())))


def inside(lab: Lab, host: str, name: str, *command: str) -> subprocess.CompletedProcess[str]:
    """`command` in sandbox `name` of `host`, to its end and whatever that is."""
    return lab.run(host, "plait", "exec", name, "--", *command, check=False)


def pings(lab: Lab, host: str, name: str, to: object, *options: str, wait_s: float = 1) -> bool:
    """Whether `to` (an address, or a name) answers one echo of sandbox `name` of `host` within `wait_s`; `options` are ping's."""
    return inside(lab, host, name, "ping", "-c1", f"-W{wait_s:g}", *options, str(to)).returncode == 0
