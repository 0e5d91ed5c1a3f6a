# SPDX-License-Identifier: Apache-2.0
"""The other models of a network: `docker run` on each beside Docker's own user bridge, and what goes between hosts beside flannel's
plumbing, one of layer 2 also beside Swarm's overlay, which is a bridge on each host as well. (An encrypted one is `bench.encryption`'s.)
Interleaved, as in `bench.docker` and `bench.network`. Swarm has hosts of its own: its rules would see what the fast path goes round.
"""

from __future__ import annotations

import time
from pathlib import Path

from bench.core import Row, interleave, ratio
from bench.docker import NOTE, once, swarm, wait_for
from bench.network import NGINX, NGINX_CONF, Side, flannel
from plait.lab.lab import Lab
from plait.lab.spec import simple

ROUNDS = 13
NETWORKS = {
    "direct": ("--backend", "direct"),
    "hybrid": ("--backend", "hybrid"),
    "layer2": ("-o", "layer2=true"),
    "bridge": ("--backend", "bridge"),
    "wireguard": ("--backend", "wireguard"),
}
BESIDE = (("direct", "flannel"), ("hybrid", "flannel"), ("layer2", "flannel"), ("layer2", "Swarm"))
BARS = {"flannel": 1.25, "Swarm": 1.0}


def run() -> list[Row]:
    Path(NGINX).write_text(NGINX_CONF)
    labs: list[Lab] = []
    sides: dict[str, Side] = {}
    try:
        labs.append(Lab.up(simple(2, engines=True), "bench-models", owned=True))
        for name, options in NETWORKS.items():
            labs[0].run("A", "plait", "network", "create", name, *options)
        labs[0].run("A", "docker", "network", "create", "plainbridge")
        for name in NETWORKS:
            wait_for(labs[0], name)
        rows = _starts(labs[0])
        labs.append(flannel())
        labs.append(Lab.up(simple(2, agents=False, engines=True), "bench-swarm", owned=True))
        swarm(labs[2], "AB")
        labs[2].run("A", "docker", "network", "create", "-d", "overlay", "--attachable", "Swarm")
        sides |= {name: Side(labs[0], name) for name in dict(BESIDE)} | {"flannel": Side(labs[1], ""), "Swarm": Side(labs[2], "Swarm")}
        time.sleep(1)
        return [*rows, *_between_hosts(sides)]
    finally:
        for side in sides.values():
            side.close()
        for lab in labs:
            lab.down()
        Path(NGINX).unlink(missing_ok=True)


def _starts(lab: Lab) -> list[Row]:
    names = (*NETWORKS, "plainbridge")
    found = interleave({name: (lambda name=name: once(lab, name)) for name in names}, ROUNDS)
    return [
        Row(f"docker run on a network of {name}", ratio(found, name, "plainbridge"), "x Docker's user bridge", 1.1, True, NOTE)
        for name in NETWORKS
    ]


def _between_hosts(sides: dict[str, Side]) -> list[Row]:
    rows = []
    for what, tool in (("round_trips", "sockperf TCP"), ("connects", "wrk to nginx")):
        found = interleave({name: getattr(side, what) for name, side in sides.items()}, ROUNDS)
        rows += [
            Row(
                f"{what.replace('_', ' ')} between hosts, {name}",
                ratio(found, name, peer),
                f"x {peer}",
                BARS[peer],
                False,
                f"{tool}; as on the overlay",
            )
            for name, peer in BESIDE
        ]
    return rows
