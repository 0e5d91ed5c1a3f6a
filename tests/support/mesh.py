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


def docker(lab: Lab, host: str, *words: str) -> str:
    """What the engine of `host` says."""
    return lab.run(host, "docker", *words, timeout_s=60).stdout.strip()


def remove_containers(lab: Lab, hosts: str) -> None:
    for host in hosts:
        if found := docker(lab, host, "ps", "-aq").split():
            docker(lab, host, "rm", "-f", *found)


def networks(lab: Lab, host: str) -> set[str]:
    """Those of plait in the host's engine."""
    return set(lab.run(host, "docker", "network", "ls", "--filter", "driver=plait", "--format", "{{.Name}}").stdout.split())
