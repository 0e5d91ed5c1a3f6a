# SPDX-License-Identifier: Apache-2.0
"""What a guaranteed container keeps while a bulk one floods the host's link: of its idle request rate, and of the link.

A lab of two hosts; the link of the first is as fast as its configuration says, held there by the queues that are measured. A request is a
byte each way over one TCP connection through the tunnel. The same flood without priorities is measured beside, in the same rounds: then
both containers wait in one class.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator

from bench.core import Row, end, interleave, median, ratio
from plait.lab.lab import Lab
from plait.lab.process import until
from plait.lab.spec import simple

RATE_MBIT, WEIGHTS = 100, (60, 30, 10)
SECONDS, ROUNDS, STREAMS = 2, 5, 4
CONTAINERS = {"A": ("first", "job"), "B": ("peer", "sink")}
SETTINGS = f'\n[uplink]\nrate = "{RATE_MBIT}M"\nweights = "{"/".join(map(str, WEIGHTS))}"\n'
ECHO = """import socket
listener = socket.create_server(("", 9000))
while True:
    taken, _ = listener.accept()
    taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with taken:
        while data := taken.recv(1):
            taken.send(data)
"""
ASK = """import socket, sys, time
caller = socket.create_connection((sys.argv[1], 9000), 10)
caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
count, end = 0, time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    caller.send(b"x")
    caller.recv(1)
    count += 1
print(count / float(sys.argv[2]))
"""


class Hosts:
    """The lab with its containers; `job` floods, `first` is measured."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        config = lab.path("A", "/etc/plait/plait.toml")
        config.write_text(config.read_text() + SETTINGS)
        lab.kill_agent("A")
        lab.start_agent("A")
        for host, names in CONTAINERS.items():
            for name in names:
                lab.run(host, "plait", "run", "--name", name)
        rows = json.loads(lab.run("A", "plait", "ps", "--json").stdout)
        self._address = {row["name"]: row["addresses"]["default"] for row in rows}
        self._servers = [
            self._start("B", "peer", "python3", "-c", ECHO),
            *(self._start("B", name, "iperf3", "-s") for name in ("peer", "sink")),
        ]
        until("they listen", lambda: ":9000" in lab.run("B", "plait", "exec", "peer", "--", "ss", "-Hltn").stdout, 10)

    def _start(self, host: str, name: str, *command: str) -> subprocess.Popen[bytes]:
        return self._lab.popen(host, "plait", "exec", name, "--", *command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def prefer(self, priorities: dict[str, str]) -> None:
        for name in CONTAINERS["A"]:
            self._lab.run("A", "plait", "limit", "set", name, "--priority", priorities.get(name, "normal"))

    @contextlib.contextmanager
    def flood(self) -> Iterator[None]:
        """For so long as a measurement takes."""
        command = f"iperf3 -c {self._address['sink']} -P {STREAMS} -t {SECONDS + 3}".split()
        flooding = self._start("A", "job", *command)
        try:
            until("it floods", lambda: self._waiting() > 0, 10)
            yield
        finally:
            flooding.wait(60)

    def _waiting(self) -> int:
        """Bytes that wait at the link."""
        text = self._lab.run("A", "tc", "-s", "-j", "qdisc", "show", "dev", "eth0", "root").stdout
        return int(json.loads(text)[0]["backlog"])

    def requests(self) -> float:
        """A second, of `first`."""
        return float(self._lab.run("A", "plait", "exec", "first", "--", "python3", "-c", ASK, self._address["peer"], str(SECONDS)).stdout)

    def goodput(self) -> float:
        """bit/s of one connection of `first`."""
        command = f"iperf3 -c {self._address['peer']} -t {SECONDS} -J".split()
        told = json.loads(self._lab.run("A", "plait", "exec", "first", "--", *command).stdout)
        return float(told["end"]["sum_received"]["bits_per_second"])

    def close(self) -> None:
        end(self._servers)


def _trials(hosts: Hosts) -> dict[str, Callable[[], float]]:
    def trial(priorities: dict[str, str], flooded: bool, measure: Callable[[], float]) -> Callable[[], float]:
        def run() -> float:
            hosts.prefer(priorities)
            with hosts.flood() if flooded else contextlib.nullcontext():
                return measure()

        return run

    classes = {"first": "guaranteed", "job": "bulk"}
    return {
        "idle": trial(classes, False, hosts.requests),
        "flooded": trial(classes, True, hosts.requests),
        "flooded without": trial({}, True, hosts.requests),
        "share": trial(classes, True, hosts.goodput),
        "share without": trial({}, True, hosts.goodput),
    }


def run() -> list[Row]:
    lab = Lab.up(simple(2), "bench-priority", owned=True)
    try:
        hosts = Hosts(lab)
        try:
            found = interleave(_trials(hosts), ROUNDS)
        finally:
            hosts.close()
    finally:
        lab.down()
    kept, without = (ratio(found, name, "idle") for name in ("flooded", "flooded without"))
    share, share_without = (median(found[name]) / (RATE_MBIT * 1_000_000) for name in ("share", "share without"))
    note = f"link of {RATE_MBIT} Mbit/s, flood of {STREAMS} TCP connections"
    return [
        Row(
            "request rate a guaranteed container keeps under a bulk flood",
            kept,
            "of idle",
            0.7,
            False,
            f"{note}; without priorities {without:.3f}",
        ),
        Row(
            "bandwidth it has then",
            share,
            "of the link",
            WEIGHTS[0] / sum(WEIGHTS),
            False,
            f"{note}; without priorities {share_without:.3f}",
        ),
    ]
