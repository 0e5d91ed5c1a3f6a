# SPDX-License-Identifier: Apache-2.0
"""`docker run --rm` on a plait network beside Docker's own bridges and a Swarm overlay, one engine, interleaved."""

from __future__ import annotations

import time
from collections.abc import Sequence

from bench.core import Row, interleave, ratio
from plait.lab.lab import Lab
from plait.lab.spec import simple

ROUNDS = 25
"""One start differs from the next by a tenth on a quiet machine; of nine the ratio came out between 0.98 and 1.16."""
NOTE = "`docker run --rm` of `true`, the whole command"


def run() -> list[Row]:
    lab = Lab.up(simple(1, engines=True), "bench-docker", owned=True)
    try:
        lab.run("A", "plait", "network", "create", "mesh")
        lab.run("A", "docker", "network", "create", "plainbridge")
        swarm(lab, "A")
        lab.run("A", "docker", "network", "create", "-d", "overlay", "--attachable", "swarmnet")
        wait_for(lab, "mesh")
        names = ("mesh", "plainbridge", "bridge", "swarmnet")
        found = interleave({name: (lambda name=name: once(lab, name)) for name in names}, ROUNDS)
    finally:
        lab.down()
    return [
        Row("docker run on a plait network", ratio(found, "mesh", "plainbridge"), "x Docker's user bridge", 1.1, True, NOTE),
        Row("docker run on a plait network", ratio(found, "mesh", "bridge"), "x Docker's default bridge", 1.1, True, NOTE),
        Row("docker run on a plait network", ratio(found, "mesh", "swarmnet"), "x Swarm overlay", 0.6, True, NOTE),
    ]


def once(lab: Lab, network: str) -> float:
    """Seconds that it takes on host A."""
    started = time.perf_counter()
    lab.run("A", "docker", "run", "--rm", "--network", network, "--entrypoint", "/bin/true", "nginx")
    return time.perf_counter() - started


def swarm(lab: Lab, hosts: Sequence[str]) -> None:
    """Make these hosts' engines a swarm, with the first as manager."""
    first = hosts[0]
    lab.run(first, "docker", "swarm", "init", "--advertise-addr", lab.address(first))
    token = lab.run(first, "docker", "swarm", "join-token", "-q", "worker").stdout.strip()
    for host in hosts[1:]:
        lab.run(host, "docker", "swarm", "join", "--token", token, f"{lab.address(first)}:2377")


def wait_for(lab: Lab, network: str) -> None:
    for _ in range(50):
        if network in lab.run("A", "docker", "network", "ls", "--format", "{{.Name}}").stdout.split():
            return
        time.sleep(0.1)
    raise RuntimeError(f"{network} does not appear in docker network ls")
