# SPDX-License-Identifier: Apache-2.0
"""How close limits come to what was asked: goodput of one TCP connection over the rate asked for.

A host with two containers of one network, planned as an agent plans them, in namespaces without a way out; one of the containers is
limited, in each direction and manner at 10, 100 and 1000 Mbit/s. Each figure is the median of rounds in turn.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from bench.core import Row, end, interleave, median
from plait.kernel.linux import LinuxKernel, create_netns, delete_netns
from plait.kernel.linux.netns import in_thread, inside
from plait.model.cluster import Block, Endpoint, Network, Node, PortMapping, Snapshot
from plait.model.limits import UNSAID, Limit, Limits
from plait.plan import Local, plan_node
from plait.reconcile import diff, order
from plait.shaping import Limiting, Means

MEGABITS = (10, 100, 1000)
SECONDS, ROUNDS, TRIES = 3, 3, 20
OMITTED_S, OMITTED_OF_PORTS_S = 1, 3
"""What a bucket had at first, and a connection's start, are no part of a rate. That of a published port has a second of it, if it drops."""
NETWORK = Network("default", IPv4Network("10.28.0.0/16"), IPv4Address("10.28.0.1"), 24)
ME = Node("A", "a" * 8, IPv4Address("198.18.0.1"), 1500, "02:00:00:00:00:01", IPv4Address("10.28.0.0"))
NAMES = {"limited": 2, "other": 3}
PORT = 5201
"""On which iperf3 listens, and which the limited one publishes."""


class Host:
    """A namespace with an agent's plan, and those of two containers."""

    def __init__(self, folder: Path) -> None:
        self._paths = {name: folder / name for name in ("host", *NAMES)}
        for path in self._paths.values():
            create_netns(path)
        endpoints = (self._endpoint(name, last) for name, last in NAMES.items())
        block = Block("default", IPv4Network("10.28.0.0/24"), "A")
        self._snapshot = Snapshot(
            "A", 1, {"A": ME}, frozenset("A"), {"default": NETWORK}, {(block.network, block.cidr): block}, {e.id: e for e in endpoints}
        )
        self._run("host", f"ip addr add {ME.address}/32 dev lo")
        self.hold(Limits())
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._servers = [subprocess.Popen([*self._enter(name), "iperf3", "-s"], **quiet) for name in NAMES]

    def _run(self, where: str, command: str) -> None:
        subprocess.run([*self._enter(where), *command.split()], check=True)

    def _endpoint(self, name: str, last: int) -> Endpoint:
        address, mac = IPv4Address(f"10.28.0.{last}"), f"02:00:00:00:01:{last:02x}"
        ports = (PortMapping("tcp", PORT, PORT),) if name == "limited" else ()
        return Endpoint(name, "default", "A", address, mac, f"pl-e{name}", "sandbox", name=name, netns=str(self._paths[name]), ports=ports)

    def _enter(self, name: str) -> list[str]:
        return ["nsenter", f"--net={self._paths[name]}"]

    def hold(self, limits: Limits, published: Limits = UNSAID) -> None:
        """One pass that holds the container `limited` to that, and its published port."""
        ports = {("default", "limited", f"{PORT}/tcp"): published}
        limiting = Limiting({("default", "limited"): limits}, Means.of({"tbf", "ifb", "fwd", "metered", "egress", "htb"}), ports)

        def work() -> None:
            with self._paths["host"].open() as file, inside(file.fileno()), contextlib.closing(LinuxKernel()) as kernel:
                plan = plan_node(self._snapshot, Local(fast_path=True, limiting=limiting))
                probes = [key for key in plan if key[0] in ("sysctl", "hook")]
                failed = kernel.apply(order(diff(plan, kernel.owned(probes), True))).failed
                assert not failed, failed

        in_thread(work)

    def goodput(self, client: str, server: str, options: str) -> float:
        """bit/s that arrive, by iperf3; `server`: a container, or the host at whose port one is published."""
        address = f"10.28.0.{NAMES[server]}" if server in NAMES else ME.address
        command = f"iperf3 -c {address} -t {SECONDS} -J {options}"
        for _ in range(TRIES):
            done = subprocess.run([*self._enter(client), *command.split()], capture_output=True, text=True, check=False)
            told = json.loads(done.stdout)
            if told.get("end"):
                return float(told["end"]["sum_received"]["bits_per_second"])
            time.sleep(0.2)  # the server is not there yet, or busy with the run before
        raise RuntimeError(f"iperf3: {told.get('error')}")

    def close(self) -> None:
        end(self._servers)
        for path in self._paths.values():
            delete_netns(path)


@contextlib.contextmanager
def _host() -> Iterator[Host]:
    with tempfile.TemporaryDirectory() as folder:
        host = Host(Path(folder))
        try:
            yield host
        finally:
            host.close()


def _trials(host: Host) -> dict[str, Callable[[], float]]:
    def trial(limits: Limits, rate: int, client: str, server: str) -> Callable[[], float]:
        def run() -> float:
            host.hold(limits)
            return host.goodput(client, server, f"-O {OMITTED_S}") / rate

        return run

    def by_port(limits: Limits, rate: int, options: str, omitted: int) -> Callable[[], float]:
        def run() -> float:
            host.hold(UNSAID, limits)
            return host.goodput("other", "host", f"-O {omitted} {options}") / rate

        return run

    found: dict[str, Callable[[], float]] = {}
    for megabits in MEGABITS:
        shaped = Limit(megabits * 1_000_000)
        for manner, limit in (("shape", shaped), ("drop", replace(shaped, drop=True))):
            name = f"{megabits} Mbit/s, {manner}"
            found[f"{name}, in"] = trial(Limits(limit), limit.rate, "other", "limited")
            found[f"{name}, out"] = trial(Limits(outgoing=limit), limit.rate, "limited", "other")
            omitted = OMITTED_OF_PORTS_S if limit.drop else OMITTED_S
            name = f"{megabits} Mbit/s, published port" if limit.drop else f"{megabits} Mbit/s, published port, shape"
            found[f"{name}, in"] = by_port(Limits(limit), limit.rate, "", omitted)
            found[f"{name}, out"] = by_port(Limits(outgoing=limit), limit.rate, "-R", omitted)
    return found


def run() -> list[Row]:
    with _host() as host:
        results = interleave(_trials(host), ROUNDS)
    rows = []
    for name, values in results.items():
        ratio = median(values)
        note = f"goodput / asked {ratio:.3f}; iperf3, one TCP connection of {SECONDS} s after its start"
        rows.append(Row(f"limit of {name}: off by", abs(ratio - 1), "of the rate", 0.05, True, note))
    return rows
