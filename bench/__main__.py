# SPDX-License-Identifier: Apache-2.0
"""`python -m bench [--page] [NAME…]`: run the benchmarks and print them; all of them together write docs/benchmarks.md, with --page
some put their rows into that page, each with its day.

Exit status 1 if a figure misses its bar.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from bench.core import Row

NAMES = (
    "plumbing",
    "network",
    "vips",
    "encryption",
    "limits",
    "priority",
    "lab",
    "agent",
    "hosts",
    "dns",
    "names",
    "docker",
    "models",
    "cni",
    "checks",
    "kv",
    "http",
    "policy",
    "events",
    "propagation",
    "incident",
)
TOOLS = {
    "sockperf": "sockperf",
    "wrk": "wrk",
    "nginx": "nginx-light",
    "dnsmasq": "dnsmasq-base",
    "unbound": "unbound",
    "etcd": "etcd-server",
    "dnsperf": "dnsperf",
    "iperf3": "iperf3",
    "wireguard-go": "wireguard-go",
    "wg": "wireguard-tools",
    "/usr/lib/podman/aardvark-dns": "aardvark-dns",
}
PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"


def _tools() -> None:
    """Install the peers and clients that are missing; none of their services may start on this machine."""
    missing = [package for program, package in TOOLS.items() if shutil.which(program) is None]
    if not missing:
        return
    print(f"==> installing {' '.join(missing)}", flush=True)
    guard = Path("/usr/sbin/policy-rc.d")
    made = not guard.exists()
    if made:
        guard.write_text("#!/bin/sh\nexit 101\n")
        guard.chmod(0o755)
    try:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        command = ["apt-get", "-qq", "install", "-y", "--no-install-recommends", *missing]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    finally:
        if made:
            guard.unlink()


def _cpu() -> str:
    match = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return match.group(1) if match else platform.machine()


def _page(rows: list[Row]) -> str:
    machine = f"Linux {platform.release()}, {os.cpu_count()} CPUs ({_cpu()}), Python {platform.python_version()}"
    head = f"""# Benchmarks

Written by `make bench`. Every figure that names a peer is the median of per-round ratios of one interleaved run, with the
order reversed each round. Hosts are namespaces on one machine, so figures are path cost and say nothing of a wire.

{datetime.now(UTC):%Y-%m-%d}, {machine}.

| what | figure | bar | held | how |
|---|---|---|---|---|
"""
    return head + "\n".join(row.line() for row in rows) + "\n"


def _patched(page: str, rows: list[Row]) -> str:
    """The page with `rows` in the place of those that say the same, else at its end."""
    lines = page.splitlines()
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    for row in rows:
        line = replace(row, note=f"{row.note}; {today}").line()
        at = next((n for n, old in enumerate(lines) if old.startswith(f"| {row.name} |") and f" {row.unit} |" in old), None)
        lines[at if at is not None else len(lines) : (at + 1) if at is not None else len(lines)] = [line]
    return "\n".join(lines) + "\n"


def main(names: list[str]) -> int:
    into_page = "--page" in names
    names = [name for name in names if name != "--page"]
    unknown = set(names) - set(NAMES)
    if unknown:
        print(f"bench: unknown {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    _tools()
    rows: list[Row] = []
    for name in names or NAMES:
        print(f"==> {name}", flush=True)
        found = importlib.import_module(f"bench.{name}").run()
        for row in found:
            print(row.line(), flush=True)
        rows += found
    if not names or into_page:
        PAGE.write_text(_patched(PAGE.read_text(), rows) if names else _page(rows))
        print(f"written to {PAGE.name}")
    missed = [row.name for row in rows if not row.holds]
    print(f"{len(rows) - len(missed)} figures hold, {len(missed)} miss their bar" + (f": {', '.join(missed)}" if missed else ""))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
