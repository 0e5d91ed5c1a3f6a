# SPDX-License-Identifier: Apache-2.0
"""Between hosts: plait's overlay beside flannel's plumbing as deployed (bridge, VXLAN, iptables, br_netfilter), two labs in one run.

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
PINNED = "taskset -c 0"
"""Both ends on one CPU: then a figure is the cost of the path, not of waking another CPU."""
NGINX = "/tmp/plait-bench-nginx.conf"
NGINX_CONF = """daemon off; master_process off; error_log /dev/null crit; pid /dev/null; events {}
http { access_log off; keepalive_requests 1; server { listen 80; return 200 "x"; } }
"""
FLANNEL = """set -e
ip link add cni0 type bridge; ip addr add 10.244.{n}.1/24 dev cni0; ip link set cni0 mtu 1450 up
ip link add flannel.1 address 02:fe:00:00:00:0{n} mtu 1450 type vxlan id 1 local 198.18.0.{n} dstport 8472 nolearning
ip addr add 10.244.{n}.0/32 dev flannel.1; ip link set flannel.1 up
ip route add 10.244.{p}.0/24 via 10.244.{p}.0 dev flannel.1 onlink
ip neigh add 10.244.{p}.0 dev flannel.1 lladdr 02:fe:00:00:00:0{p} nud permanent
bridge fdb add 02:fe:00:00:00:0{p} dev flannel.1 dst 198.18.0.{p}
sysctl -qw net.ipv4.ip_forward=1
[ ! -e /proc/sys/net/bridge/bridge-nf-call-iptables ] || sysctl -qw net.bridge.bridge-nf-call-iptables=1
iptables -A FORWARD -s 10.244.0.0/16 -j ACCEPT; iptables -A FORWARD -d 10.244.0.0/16 -j ACCEPT
iptables -t nat -N FLANNEL-POSTRTG; iptables -t nat -A POSTROUTING -j FLANNEL-POSTRTG
iptables -t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN
iptables -t nat -A FLANNEL-POSTRTG -s 10.244.{n}.0/24 -d 10.244.0.0/16 -j RETURN
iptables -t nat -A FLANNEL-POSTRTG -s 10.244.0.0/16 -d 10.244.{n}.0/24 -j RETURN
iptables -t nat -A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.{n}.0/24 -j RETURN
iptables -t nat -A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
iptables -t nat -A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.0.0/16 -j MASQUERADE --random-fully
mkdir -p /run/plait/netns; touch /run/plait/netns/c; unshare --net=/run/plait/netns/c true
ip link add vethc type veth peer name eth9; ip link set eth9 netns /run/plait/netns/c name eth0
ip link set vethc mtu 1450 master cni0 up; bridge link set dev vethc hairpin on
c="nsenter --net=/run/plait/netns/c ip"; $c link set lo up; $c link set eth0 mtu 1450 up
$c addr add 10.244.{n}.2/24 dev eth0; $c route add default via 10.244.{n}.1
"""


def _inside(command: str) -> list[str]:
    return ["nsenter", "--net=/run/plait/netns/c", "sh", "-c", command]


class Side:
    """A lab with a server in host B's sandbox `c` and a client in host A's."""

    def __init__(self, lab: Lab, target: str) -> None:
        self.lab, self.target = lab, target
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.servers = [
            lab.popen("B", *_inside(f"exec {PINNED} sockperf server --tcp -p 11111"), **quiet),
            lab.popen("B", *_inside(f"exec {PINNED} nginx -c {NGINX}"), **quiet),
        ]

    def round_trips(self) -> float:
        """Request-response transactions per second."""
        text = self._client(f"{PINNED} sockperf ping-pong --tcp -i {self.target} -p 11111 -t {SECONDS} --msg-size 14")
        return 1e6 / (2 * _number(r"Latency is ([\d.]+) usec", text))

    def connects(self) -> float:
        """Connections with one request each, per second."""
        text = self._client(f"{PINNED} wrk -t1 -c1 -d{SECONDS}s -H 'Connection: close' http://{self.target}/")
        return _number(r"Requests/sec:\s+([\d.]+)", text)

    def _client(self, command: str) -> str:
        argv = self.lab.argv("A", _inside(command))
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
        ours = Lab.up(simple(2), "bench-plait", owned=True)
        labs.append(ours)
        for host in "AB":
            ours.run(host, "plait", "run", "--name", "c")
        address = ours.run("B", "plait", "ps", "--json").stdout
        target = next(w for w in re.findall(r"10\.28\.\d+\.\d+", address) if w != "10.28.0.2")
        sides.append(Side(ours, target))
        peer = Lab.up(simple(2, agents=False), "bench-flannel", owned=True)
        labs.append(peer)
        for number, host in enumerate("AB", 1):
            peer.run(host, "sh", "-c", FLANNEL.format(n=number, p=3 - number))
        sides.append(Side(peer, "10.244.2.2"))
        time.sleep(1)
        return _measure(*sides)
    finally:
        for side in sides:
            side.close()
        for lab in labs:
            lab.down()
        Path(NGINX).unlink(missing_ok=True)


def _measure(ours: Side, peer: Side) -> list[Row]:
    def pair(name: str) -> dict[str, Callable[[], float]]:
        return {"plait": getattr(ours, name), "flannel": getattr(peer, name)}

    trips = interleave(pair("round_trips"), ROUNDS)
    connects = interleave(pair("connects"), ROUNDS)
    note = "container to container on another host; both labs side by side"
    return [
        Row(
            "request-response between hosts", ratio(trips, "plait", "flannel"), "x flannel's plumbing", 1.25, False, f"sockperf TCP; {note}"
        ),
        Row(
            "connect rate between hosts", ratio(connects, "plait", "flannel"), "x flannel's plumbing", 1.25, False, f"wrk to nginx; {note}"
        ),
    ]
