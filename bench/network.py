# SPDX-License-Identifier: Apache-2.0
"""Between hosts: plait's overlay beside flannel's plumbing as deployed, two labs in one run.

flannel as deployed: Docker's bridge, VXLAN, iptables, br_netfilter.

Both labs run real Docker Engines and the same containers: plait's on one of its networks, flannel's on Docker's bridge with the options and
the rules that flannel gives it.

Request-response by `sockperf ping-pong` over TCP, connect rate by `wrk` with a new connection for each request to nginx.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from bench.core import Row, interleave, ratio
from plait.lab.lab import Lab
from plait.lab.spec import simple

SECONDS = 1
ROUNDS = 13
PINNED = "chrt -f 10 taskset -c 0"
"""Both ends on one CPU: then a figure is the cost of the path, not of waking another CPU; before everything else there, so that
a busy machine measures the same."""
NGINX = "/tmp/plait-bench-nginx.conf"
NGINX_CONF = """daemon off; master_process off; error_log stderr crit; pid /tmp/plait-bench-nginx.pid; events {}
http { access_log off; keepalive_requests 1; server { listen 80; return 200 "x"; } }
"""
BRIDGE = "--bip=10.244.{n}.1/24 --mtu=1450 --ip-masq=false"
"""What flannel's start script gives dockerd."""
FLANNEL = """set -e
ip link add flannel.1 address 02:fe:00:00:00:0{n} mtu 1450 type vxlan id 1 local 198.18.0.{n} dstport 8472 nolearning
ip addr add 10.244.{n}.0/32 dev flannel.1; ip link set flannel.1 up
ip route add 10.244.{p}.0/24 via 10.244.{p}.0 dev flannel.1 onlink
ip neigh add 10.244.{p}.0 dev flannel.1 lladdr 02:fe:00:00:00:0{p} nud permanent
bridge fdb add 02:fe:00:00:00:0{p} dev flannel.1 dst 198.18.0.{p}
iptables -A FORWARD -s 10.244.0.0/16 -j ACCEPT; iptables -A FORWARD -d 10.244.0.0/16 -j ACCEPT
iptables -t nat -N FLANNEL-POSTRTG; iptables -t nat -A POSTROUTING -j FLANNEL-POSTRTG
iptables -t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN
iptables -t nat -A FLANNEL-POSTRTG -s 10.244.{n}.0/24 -d 10.244.0.0/16 -j RETURN
iptables -t nat -A FLANNEL-POSTRTG -s 10.244.0.0/16 -d 10.244.{n}.0/24 -j RETURN
iptables -t nat -A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.{n}.0/24 -j RETURN
iptables -t nat -A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
iptables -t nat -A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.0.0/16 -j MASQUERADE --random-fully
"""


class Side:
    """A lab with a server beside the container of host B, in its network namespace, and a client beside that of host A."""

    def __init__(self, lab: Lab, network: str) -> None:
        self.lab = lab
        name = f"end{network}"
        options = ["--network", network] if network else []
        for host in "AB":
            lab.run(host, "docker", "run", "-d", "--name", name, *options, "--entrypoint", "sleep", "nginx", "infinity")
        shape = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        self.target = lab.run("B", "docker", "inspect", "-f", shape, name).stdout.strip()
        self._pids = {host: lab.run(host, "docker", "inspect", "-f", "{{.State.Pid}}", name).stdout.strip() for host in "AB"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.servers = [
            lab.popen("B", *self._beside("B", f"exec {PINNED} sockperf server --tcp -p 11111"), **quiet),
            lab.popen("B", *self._beside("B", f"exec {PINNED} nginx -c {NGINX}"), **quiet),
        ]

    def _beside(self, host: str, command: str) -> list[str]:
        return ["nsenter", "-t", self._pids[host], "-n", "sh", "-c", command]

    def round_trips(self) -> float:
        """Request-response transactions per second."""
        text = self._client(f"{PINNED} sockperf ping-pong --tcp -i {self.target} -p 11111 -t {SECONDS} --msg-size 14")
        return 1e6 / (2 * _number(r"Latency is ([\d.]+) usec", text))

    def connects(self) -> float:
        """Connections with one request each, per second."""
        text = self._client(f"{PINNED} wrk -t1 -c1 -d{SECONDS}s -H 'Connection: close' http://{self.target}/")
        return _number(r"Requests/sec:\s+([\d.]+)", text)

    def _client(self, command: str) -> str:
        argv = self.lab.argv("A", self._beside("A", command))
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout

    def close(self) -> None:
        for server in self.servers:
            server.terminate()
            server.wait(5)


def _number(pattern: str, text: str) -> float:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"no {pattern!r} in: {text[-300:]}")
    return float(match.group(1))


def run() -> list[Row]:
    Path(NGINX).write_text(NGINX_CONF)
    labs: list[Lab] = []
    sides: list[Side] = []
    try:
        ours = Lab.up(simple(2, engines=True), "bench-plait", owned=True)
        labs.append(ours)
        ours.run("A", "plait", "network", "create", "mesh")
        time.sleep(2)
        sides.append(Side(ours, "mesh"))
        labs.append(flannel())
        sides.append(Side(labs[-1], ""))
        time.sleep(1)
        return _measure(*sides)
    finally:
        for side in sides:
            side.close()
        for lab in labs:
            lab.down()
        Path(NGINX).unlink(missing_ok=True)


def flannel() -> Lab:
    """Two hosts with flannel's plumbing."""
    lab = Lab.up(simple(2, agents=False, engines=True), "bench-flannel", owned=True)
    for number, host in enumerate("AB", 1):
        lab.stop_engine(host)
        lab.run(host, "ip", "link", "del", "docker0")
        lab.start_engine(host, *BRIDGE.format(n=number).split())
        lab.run(host, "sh", "-c", FLANNEL.format(n=number, p=3 - number))
    return lab


def _measure(ours: Side, peer: Side) -> list[Row]:
    def pair(name: str) -> dict[str, Callable[[], float]]:
        return {"plait": getattr(ours, name), "flannel": getattr(peer, name)}

    trips = interleave(pair("round_trips"), ROUNDS)
    connects = interleave(pair("connects"), ROUNDS)
    note = "container to container on another host, real engines on both sides, both ends on one CPU"
    return [
        Row(
            "request-response between hosts", ratio(trips, "plait", "flannel"), "x flannel's plumbing", 1.25, False, f"sockperf TCP; {note}"
        ),
        Row(
            "connect rate between hosts", ratio(connects, "plait", "flannel"), "x flannel's plumbing", 1.25, False, f"wrk to nginx; {note}"
        ),
    ]
