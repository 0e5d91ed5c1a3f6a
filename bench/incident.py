# SPDX-License-Identifier: Apache-2.0
"""Addresses that all move to another host during short partitions: what is left of it on a plait network and on a Swarm overlay.

One lab of four hosts with an engine each, the same schedule for both, one after the other: every container is removed and made anew on the
next host under its old address while one host after another is cut off. Counted afterwards: pairs that do not answer, and rows by which a
host would send an address to where it is no longer.

All hosts share one kernel and its one table of 1,024 neighbours, which real hosts do not. A Swarm's container has one for each other it
talks to, so both are asked for one pair in `PARTS`, a part after the other and with pauses in which the kernel may forget neighbours. On
the plait network, whose containers know one neighbour, all pairs are asked besides.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import NamedTuple

from tests.support.matrix import unreached

from bench.core import Row
from bench.docker import swarm
from plait.lab.inside import CommandFailed
from plait.lab.lab import Lab
from plait.lab.spec import simple

HOSTS = "ABCD"
EACH = 50
CUT_S, BETWEEN_S = 5.0, 1.0
SETTLE_S = 30.0
"""So long both may take to come to rest before anything is counted."""
RETRY_S = 90.0
PARTS, PAUSE_S = 16, 6.0
"""A neighbour that was heard of in the last five seconds is kept, however full the table is (neigh_forced_gc)."""


def run() -> list[Row]:
    lab = Lab.up(simple(4, engines=True), "bench-incident", owned=True)
    try:
        _make_networks(lab)
        found = {kind: _incident(lab, kind, subnet) for kind, subnet in (("swarm", "10.70.0.0/24"), ("plait", "10.71.0.0/24"))}
    finally:
        lab.down()
    moved = f"{len(HOSTS) * EACH} addresses moved during partitions"
    plait, swarm = found["plait"], found["swarm"]
    pairs = (len(HOSTS) * EACH) ** 2
    note = (
        f"{moved}; all {pairs:,} pairs; of one in {PARTS}: {plait.before} before it, {plait.after} after; "
        f"Swarm on the same schedule: {swarm.before} before it, {swarm.after} after"
    )
    return [
        Row("pairs without an answer after an incident", plait.whole, "pairs", 0, True, note),
        Row("stale rows after an incident", plait.stale, "rows", 0, True, f"{moved}; Swarm on the same schedule: {swarm.stale}"),
    ]


class _Found(NamedTuple):
    """Pairs without an answer of one in `PARTS`, before and after the incident, and of all after it; stale rows."""

    before: int
    after: int
    whole: int
    stale: int


def _make_networks(lab: Lab) -> None:
    swarm(lab, HOSTS)
    lab.run("A", "docker", "network", "create", "-d", "overlay", "--attachable", "--subnet", "10.70.0.0/24", "swarm")
    lab.run("A", "plait", "network", "create", "plait", "--subnet", "10.71.0.0/24")


def _on_all(do: Callable[[str], object]) -> None:
    with ThreadPoolExecutor(len(HOSTS)) as pool:
        list(pool.map(do, HOSTS))


def _patiently(lab: Lab, host: str, *command: str) -> None:
    """Again and again while it is refused: hosts that are cut off have to wait with some things. What cannot be had is left out, and counts
    as silent in the end."""
    end = time.monotonic() + RETRY_S
    while True:
        try:
            lab.run(host, *command, timeout_s=60)
            return
        except CommandFailed as error:
            if time.monotonic() > end:
                print(f"given up: {error}", flush=True)
                return
            time.sleep(1)


def _incident(lab: Lab, kind: str, subnet: str) -> _Found:
    """Of the schedule on network `kind`. Not all pairs of the Swarm are asked."""
    base = subnet.removesuffix("0/24")
    place = {host: number for number, host in enumerate(HOSTS)}

    def blocks(host: str) -> list[str]:
        return [f"{base}{64 * place[host] + offset}" for offset in range(10, 10 + EACH)]  # Swarm takes some of the first for itself

    def make(host: str) -> None:
        for address in blocks(host):
            name = f"{kind}-{address.rpartition('.')[2]}"
            _patiently(lab, host, "sh", "-c", f"docker rm -f {name} >/dev/null 2>&1; exec docker run -d --name {name} --network {kind} "
                       f"--ip {address} --entrypoint sleep nginx infinity")  # fmt: skip

    def drop(host: str) -> None:
        lab.run(host, "sh", "-c", f"docker rm -f $(docker ps -aq --filter name={kind}-)", timeout_s=300)

    def partitions() -> None:
        for host in HOSTS[1:]:
            for other in HOSTS.replace(host, ""):
                lab.cut(host, other)
            time.sleep(CUT_S)
            lab.heal()
            time.sleep(BETWEEN_S)

    def silent(parts: int, pause_s: float) -> int:
        addresses = [address for host in HOSTS for address in blocks(host)]
        spaces = {host: _namespaces(lab, host, kind) for host in HOSTS}
        found = 0
        for part in range(parts):
            found += len(unreached(lab, {host: spaces[host][part::parts] for host in HOSTS}, addresses[part::parts]))
            time.sleep(pause_s)
        return found

    _on_all(make)
    before = silent(PARTS, PAUSE_S)
    storm = Thread(target=partitions)
    storm.start()
    try:
        _on_all(drop)
        place = {host: (number + 1) % len(HOSTS) for host, number in place.items()}
        _on_all(make)
    finally:
        storm.join()
    time.sleep(SETTLE_S)
    where = {address: host for host in HOSTS for address in blocks(host)}
    after = silent(PARTS, PAUSE_S)
    whole = silent(1, 0) if kind == "plait" else 0
    stale = sum(len(_stale(lab, host, kind, where)) for host in HOSTS)
    _on_all(drop)
    return _Found(before, after, whole, stale)


def _namespaces(lab: Lab, host: str, kind: str) -> list[str]:
    """Those of the containers on `host`, as paths there."""
    pids = lab.run(host, "sh", "-c", f"docker inspect -f '{{{{.State.Pid}}}}' $(docker ps -q --filter name={kind}-)").stdout.split()
    return [f"/proc/{pid}/ns/net" for pid in pids]


def _stale(lab: Lab, host: str, kind: str, where: Mapping[str, str]) -> list[str]:
    """Addresses that `host` would send to another host than that which has them."""
    seen = _swarm_rows(lab, host) if kind == "swarm" else _plait_rows(lab, host, where)
    return [address for address, target in seen.items() if address in where and target != lab.address(where[address])]


def _swarm_rows(lab: Lab, host: str) -> dict[str, str]:
    """Host by address, as the neighbours and the FDB in the overlay's own namespace say."""
    ident = json.loads(lab.run(host, "docker", "network", "inspect", "swarm").stdout)[0]["Id"]
    space = f"--net=/var/run/docker/netns/1-{ident[:10]}"
    neighbours = lab.run(host, "nsenter", space, "ip", "neigh", "show", "nud", "permanent").stdout
    fdb = dict(re.findall(r"^(\S+) dev \S+ dst (\S+)", lab.run(host, "nsenter", space, "bridge", "fdb").stdout, re.MULTILINE))
    rows = re.findall(r"^(\S+) dev \S+ lladdr (\S+)", neighbours, re.MULTILINE)
    return {address: fdb[mac] for address, mac in rows if mac in fdb}


def _plait_rows(lab: Lab, host: str, where: Mapping[str, str]) -> dict[str, str]:
    """Host by address, as the routes, the tunnel's neighbours and its FDB say; of its own containers itself."""
    fdb = dict(re.findall(r"^(\S+) dst (\S+)", lab.run(host, "bridge", "fdb", "show", "dev", "pl-x1").stdout, re.MULTILINE))
    neighbours = dict(re.findall(r"^(\S+) lladdr (\S+)", lab.run(host, "ip", "neigh", "show", "dev", "pl-x1").stdout, re.MULTILINE))
    script = "".join(f"route get {address}\n" for address in where)
    found: dict[str, str] = {}
    for line in lab.run(host, "ip", "-force", "-batch", "-", text=script, check=False).stdout.splitlines():
        match re.match(r"(\S+) (?:via (\S+) )?dev (\S+)", line):
            case None:
                continue
            case parts if parts[2]:
                found[parts[1]] = fdb.get(neighbours.get(parts[2], ""), "nowhere")
            case parts if parts[3].startswith("pl-e"):
                found[parts[1]] = lab.address(host)
    return found
