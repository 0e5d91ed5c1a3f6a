# SPDX-License-Identifier: Apache-2.0
"""The agent itself: memory with its DNS child, time from start to ready, time until another host knows a name."""

from __future__ import annotations

import json
import subprocess
import time

from bench.core import Row, median
from plait.lab.lab import Lab
from plait.lab.spec import simple


def run() -> list[Row]:
    lab = Lab.up(simple(3), "bench-agent", owned=True)
    try:
        for number in range(20):
            lab.run("A", "plait", "run", "--name", f"c{number}")
        time.sleep(2)
        resident = resident_mb(lab)
        ready = []
        for _ in range(5):
            lab.kill_agent("B")
            started = time.perf_counter()
            lab.start_agent("B")
            ready.append(time.perf_counter() - started)
        seen = [_visible_ms(lab, number) for number in range(15)]
        reached = [_reachable_ms(lab, number) for number in range(15)]
    finally:
        lab.down()
    return [
        Row(
            "agent's resident memory with DNS child",
            resident,
            "MB",
            60,
            True,
            "first agent (carries the store), 3 hosts, 20 sandboxes; sum of PSS",
        ),
        Row(
            "start of the agent until ready",
            median(ready),
            "s",
            1.0,
            True,
            "after kill -9, with its state on disk; ready = blocks, first pass, DNS",
        ),
        Row(
            "a name on another host after its attach",
            median(seen),
            "ms",
            150,
            True,
            "from the request on A (the attach itself included) to the first answer of B's DNS",
        ),
        Row(
            "a container reached from another host after its attach",
            median(reached),
            "ms",
            100,
            True,
            "from the request on A (the attach itself included) to its first answer to a container of B, which asks every 2 ms",
        ),
    ]


def resident_mb(lab: Lab) -> float:
    """Proportional set size of the agent and its children, MB: shared pages count once."""
    script = "p=$(cat /run/plait/agent.lock); for c in $p $(cat /proc/$p/task/*/children); do cat /proc/$c/smaps_rollup; done"
    lines = lab.run("A", "sh", "-c", script).stdout.splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _visible_ms(lab: Lab, number: int) -> float:
    """Milliseconds from the request to attach on A until host B answers the name. B asks in a loop that began before."""
    name = f"seen{number}"
    script = (
        "import socket,time,sys\n"
        f"q=b'\\x00\\x01\\x01\\x00\\x00\\x01'+b'\\0'*6+bytes([{len(name)}])+b'{name}'+b'\\0\\0\\x01\\0\\x01'\n"
        "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.settimeout(1)\n"
        "end=time.time()+10\n"
        "while time.time()<end:\n"
        "    s.sendto(q,('127.0.0.1',53))\n"
        "    if s.recv(512)[7]: print(time.time()); sys.exit()\n"
        "    time.sleep(0.002)\n"
    )
    return _until_seen_ms(lab, ["python3", "-c", script], {"name": name})


def _reachable_ms(lab: Lab, number: int) -> float:
    """The same until a sandbox of host B has an echo from the new one, whose address it knows."""
    if number == 0:
        lab.run("B", "plait", "run", "--name", "asks")
    address = f"10.28.0.{200 + number}"
    script = (
        "import socket,struct,time,sys\n"
        "s=socket.socket(socket.AF_INET,socket.SOCK_RAW,1); s.settimeout(0.002)\n"
        "q=struct.pack('!BBHHH',8,0,(~(0x0800+1))&0xffff,0,1)\n"
        "end=time.time()+10\n"
        "while time.time()<end:\n"
        "    try:\n"
        f"        s.sendto(q,('{address}',0))\n"
        "        data,(source,_)=s.recvfrom(512)\n"
        f"        if source=='{address}' and data[20]==0: print(time.time()); sys.exit()\n"
        "    except OSError: pass\n"
    )
    inside = ["nsenter", "--net=/run/plait/netns/asks", "python3", "-c", script]
    return _until_seen_ms(lab, inside, {"name": f"reached{number}", "address": address})


def _until_seen_ms(lab: Lab, watching: list[str], body: dict[str, str]) -> float:
    """Milliseconds from the request for a sandbox on A until `watching` on B, begun before, prints when it saw it."""
    watcher = lab.popen("B", *watching, stdout=subprocess.PIPE, text=True)
    time.sleep(0.3)
    asked = time.time()
    lab.run("A", "curl", "-sS", "--unix-socket", "/run/plait/plait.sock", "-d", json.dumps(body), "http://plait/v1/sandboxes")
    out, _ = watcher.communicate(timeout=15)
    return (json.loads(out) - asked) * 1000
