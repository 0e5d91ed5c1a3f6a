# SPDX-License-Identifier: Apache-2.0
"""Hosts with an agent and an engine each, and the network `mesh` in both engines."""

from __future__ import annotations

from collections.abc import Callable

from plait.lab import process
from plait.lab.lab import Lab


def two_on_mesh(make_lab: Callable[..., Lab]) -> Lab:
    lab = make_lab(hosts=2, agents=True, engines=True)
    lab.run("A", "plait", "network", "create", "mesh")
    for host in "AB":
        process.until(f"mesh on {host}", lambda host=host: "mesh" in networks(lab, host), 5)
    return lab


def networks(lab: Lab, host: str) -> set[str]:
    """Those of plait in the host's engine."""
    return set(lab.run(host, "docker", "network", "ls", "--filter", "driver=plait", "--format", "{{.Name}}").stdout.split())
