# SPDX-License-Identifier: Apache-2.0
"""An encrypted network beside a WireGuard tunnel made by hand, both on wireguard-go, two labs in one run.

Container to container on another host. By hand: a device, a key, a route and a veth pair on each side, and nothing else. Everything of both
sides runs on one CPU, so that what is compared is what a packet costs on its way: left to itself the scheduler puts the four processes that
each packet passes now on one CPU and now on several, and single rounds of one and the same tunnel differ fourfold. It is before everything
else there, so that a busy machine measures the same.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Sequence

from bench.core import Row, interleave, ratio
from plait.lab.lab import Lab
from plait.lab.process import until
from plait.lab.spec import simple

SECONDS = 1
ON_ONE_CPU = ("chrt", "-r", "10", "taskset", "-c", "0")
TUNNELS_TOO = "for pid in $(pgrep -f '^wireguard-go '); do chrt -a -r -p 10 $pid; taskset -acp 0 $pid; done >/dev/null"
ROUNDS, TRIES = 31, 10
"""Two tunnels made by hand differ by 15 % in half of the rounds of round trips, by how the process's threads happen to take turns."""
WINDOW = "96K"
"""The most that is under way: no queue loses any of it. With TCP's own limit thousands of segments a second are lost and sent again, which
costs a fifth of the goodput, and what is measured is how losses fall: rounds of one and the same tunnel differ twofold."""
BY_HAND = """set -e
sysctl -qw net.ipv4.ip_forward=1
setsid wireguard-go wg0 2>/dev/null
wg set wg0 listen-port 7472 private-key /run/key peer {key} allowed-ips 10.30.{p}.0/24 endpoint 198.18.0.{p}:7472
ip link set wg0 mtu 1440 up; ip route add 10.30.{p}.0/24 dev wg0
ip netns add end; ip link add end mtu 1440 type veth peer name eth0 mtu 1440 netns end
ip addr add 10.30.{n}.1/24 dev end; ip link set end up
ip -n end link set lo up; ip -n end addr add 10.30.{n}.2/24 dev eth0; ip -n end link set eth0 up
ip -n end route add default via 10.30.{n}.1
"""


class Side:
    """A lab whose containers are entered by `enter`, with servers in that of host B, which has the address `target`."""

    def __init__(self, lab: Lab, enter: Sequence[str], target: str) -> None:
        self._lab, self._enter, self._target = lab, enter, target
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        servers = ("sockperf server --tcp -p 11111", "iperf3 -s")
        self._servers = [lab.popen("B", *enter, *ON_ONE_CPU, *server.split(), **quiet) for server in servers]
        for host in "AB":
            lab.run(host, "sh", "-c", TUNNELS_TOO)
        until("the tunnel carries", lambda: lab.run("A", *enter, "ping", "-c1", "-W1", target, check=False).returncode == 0, 20)

    def round_trips(self) -> float:
        """Request-response transactions per second."""
        text = self._client(f"sockperf ping-pong --tcp -i {self._target} -p 11111 -t {SECONDS} --msg-size 14")
        match = re.search(r"Latency is ([\d.]+) usec", text)
        if match is None:
            raise RuntimeError(f"no latency in: {text[-300:]}")
        return 1e6 / (2 * float(match.group(1)))

    def goodput(self) -> float:
        """Bits per second that arrive over one TCP connection."""
        for _ in range(TRIES):
            told = json.loads(self._client(f"iperf3 -c {self._target} -t {SECONDS} -w {WINDOW} -J"))
            if "sum_received" in told["end"]:
                return float(told["end"]["sum_received"]["bits_per_second"])
            time.sleep(0.2)  # the server is still busy with the run before
        raise RuntimeError(f"iperf3: {told.get('error')}")

    def _client(self, command: str) -> str:
        return self._lab.run("A", *self._enter, *ON_ONE_CPU, *command.split(), check=False).stdout

    def close(self) -> None:
        for server in self._servers:
            server.terminate()
            server.wait(5)


def run() -> list[Row]:
    labs: list[Lab] = []
    sides: list[Side] = []
    try:
        ours = Lab.up(simple(2), "bench-encrypted", owned=True)
        labs.append(ours)
        sides.append(Side(ours, ("plait", "exec", "end", "--"), _attached(ours)))
        peer = Lab.up(simple(2, agents=False), "bench-by-hand", owned=True)
        labs.append(peer)
        _make_by_hand(peer)
        sides.append(Side(peer, ("ip", "netns", "exec", "end"), "10.30.2.2"))
        return _measure(*sides)
    finally:
        for side in sides:
            side.close()
        for lab in labs:
            lab.down()


def _attached(lab: Lab) -> str:
    """A container on the encrypted network on each host; the address of that on B."""
    lab.run("A", "plait", "network", "create", "secret", "--backend", "wireguard")
    time.sleep(2)
    for host in "AB":
        lab.run(host, "plait", "run", "--name", "end", "--network", "secret")
    rows = json.loads(lab.run("B", "plait", "ps", "--json").stdout)
    return str(next(row["addresses"]["secret"] for row in rows if row["node"] == "B"))


def _make_by_hand(lab: Lab) -> None:
    keys = {host: lab.run(host, "sh", "-c", "umask 077; wg genkey > /run/key; wg pubkey < /run/key").stdout.strip() for host in "AB"}
    for number, (host, other) in enumerate(("AB", "BA"), 1):
        lab.run(host, "sh", "-c", BY_HAND.format(n=number, p=3 - number, key=keys[other]))


def _measure(ours: Side, peer: Side) -> list[Row]:
    def pair(name: str) -> dict[str, Callable[[], float]]:
        return {"plait": getattr(ours, name), "by hand": getattr(peer, name)}

    trips = interleave(pair("round_trips"), ROUNDS)
    goodput = interleave(pair("goodput"), ROUNDS)
    unit, note = "x a tunnel made by hand", "wireguard-go on both sides, container to container on another host, all on one CPU"
    return [
        Row("encrypted: request-response", ratio(trips, "plait", "by hand"), unit, 0.95, False, f"sockperf TCP; {note}"),
        Row(
            "encrypted: goodput of one connection",
            ratio(goodput, "plait", "by hand"),
            unit,
            0.95,
            False,
            f"iperf3, window of {WINDOW}; {note}",
        ),
    ]
