# SPDX-License-Identifier: Apache-2.0
"""The HTTP API: a read that is asked again and again beside Go's net/http, and ten thousand blocking queries that wait.

`GET /v1/health/service/web` (8 instances, about 7 KB of JSON) beside `GET /version` of Debian's etcd (about 45 bytes, answered by Go's
net/http), both by the same wrk with one thread and 64 connections, in one lab host. The blocking queries are on connections of their own,
all about one service; they are woken by a registration, and the time is from sending it until the last one has its whole answer, taken by
one process that reads them all.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time

from bench.agent import resident_mb
from bench.core import Row, interleave, median, ratio
from bench.kv import ETCD, FOLDER, PLAIT, etcd
from plait.lab.lab import Lab
from plait.lab.spec import simple

INSTANCES, IN_FLIGHT, SECONDS, ROUNDS = 8, 64, 3, 5
WATCHERS, WAKES = 10_000, 5

WATCH = r"""
import json, re, resource, select, socket, sys, time
watchers = int(sys.argv[1])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
def connect():
    found = socket.create_connection(("127.0.0.1", 8500))
    found.setblocking(False)
    return found
sockets = [connect() for _ in range(watchers)]
by_fd = {found.fileno(): found for found in sockets}
poll = select.epoll()
for fd in by_fd:
    poll.register(fd, select.EPOLLIN)
def answers():
    "From the first answer until the last one is whole; every index."
    missing, left, indexes = set(by_fd), {}, set()
    end = time.monotonic() + 60
    while missing and time.monotonic() < end:
        for fd, _ in poll.poll(1):
            data = by_fd[fd].recv(1 << 18)
            if fd not in left:
                head, _, body = data.partition(b"\r\n\r\n")
                indexes.add(int(re.search(rb"X-Consul-Index: (\d+)", head)[1]))
                left[fd] = int(re.search(rb"Content-Length: (\d+)", head)[1]) - len(body)
            else:
                left[fd] -= len(data)
            if left[fd] == 0:
                missing.discard(fd)
                del left[fd]
    return time.time(), len(missing), max(indexes)
ask = "GET /v1/health/service/watched?index=%d&wait=10m HTTP/1.1\r\nHost: x\r\n\r\n"
index = 0
for line in sys.stdin:
    if line == "park\n":
        for found in sockets:
            found.sendall((ask % index).encode())
        print("{}", flush=True)
    else:
        last, missing, index = answers()
        print(json.dumps({"last": last, "missing": missing, "index": index}), flush=True)
"""


def register(lab: Lab, name: str, number: int, port: int) -> None:
    """Instance `number` of the service `name`, with its agent on host A."""
    body = json.dumps({"ID": f"{name}{number}", "Name": name, "Address": f"192.0.2.{number + 1}", "Port": port, "Tags": ["http"]})
    lab.run("A", "curl", "-sSf", "-X", "PUT", "-d", body, f"{PLAIT}/v1/agent/service/register")


def _rate(lab: Lab, url: str) -> float:
    """Answered requests a second; raises if one fails."""
    shown = lab.run("A", "wrk", "-t1", f"-c{IN_FLIGHT}", f"-d{SECONDS}s", url).stdout
    found = re.search(r"Requests/sec:\s+([\d.]+)", shown)
    if found is None or "Non-2xx" in shown or "Socket errors" in shown:
        raise RuntimeError(f"{url}: {shown}")
    return float(found.group(1))


class _Watchers:
    """The process that holds the blocking queries."""

    def __init__(self, lab: Lab) -> None:
        arguments = (sys.executable, "-c", WATCH, str(WATCHERS))
        self._process = lab.popen("A", *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._lab = lab
        self.ask("park")
        self.ask("answers")

    def say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def heard(self) -> dict[str, float]:
        assert self._process.stdout is not None
        found: dict[str, float] = json.loads(self._process.stdout.readline())
        return found

    def ask(self, word: str) -> dict[str, float]:
        self.say(word)
        return self.heard()

    def woken_s(self, number: int) -> float:
        """Seconds from a registration until all have the answer."""
        self.say("answers")
        began = time.time()
        register(self._lab, "watched", 0, 1000 + number)
        found = self.heard()
        if found["missing"]:
            raise RuntimeError(f"{found['missing']:.0f} of {WATCHERS} watchers got no answer")
        return found["last"] - began

    def close(self) -> None:
        self._process.communicate(timeout=30)


def run() -> list[Row]:
    lab = Lab.up(simple(1), "bench-http", owned=True)
    try:
        for number in range(INSTANCES):
            register(lab, "web", number, 80)
        lab.path("A", FOLDER).mkdir()
        urls = {"plait": f"{PLAIT}/v1/health/service/web", "etcd": f"{ETCD}/version"}
        with etcd(lab):
            rates = interleave({server: lambda url=url: _rate(lab, url) for server, url in urls.items()}, ROUNDS)
        alone = resident_mb(lab)
        watchers = _Watchers(lab)
        woken, memory = [], []
        for number in range(WAKES):
            watchers.ask("park")
            time.sleep(2)
            memory.append(resident_mb(lab))
            woken.append(watchers.woken_s(number))
        watchers.close()
    finally:
        lab.down()
    print(f"    {json.dumps({server: round(median(found)) for server, found in rates.items()})} requests/s", flush=True)
    print(f"    {alone:.1f} MB before, then {[round(mb, 1) for mb in memory]} MB; woken in {[round(s, 3) for s in woken]} s", flush=True)
    parked = f"{WATCHERS:,} blocking queries about one service, a connection each"
    return [
        Row(
            "GET of `health/service` beside Go's net/http",
            ratio(rates, "plait", "etcd"),
            "x",
            1.0,
            False,
            f"8 instances, 7 KB; etcd's `/version`, 45 bytes; wrk, {IN_FLIGHT} connections, one host",
        ),
        Row("agent's memory with 10,000 parked watchers", max(memory), "MB", 90, True, f"{parked}; sum of PSS with DNS child"),
        Row("all 10,000 woken", median(woken), "s", 0.5, True, f"{parked}; from the registration by curl to the last answer"),
    ]
