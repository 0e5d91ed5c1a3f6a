# SPDX-License-Identifier: Apache-2.0
"""DNS over loopback: queries a second of the child beside dnsmasq, unbound and aardvark-dns, its memory, its latency beside a busy agent.

The client is dnsperf with one thread and 32 queries in flight, the same for all; it shares the CPUs with the server. aardvark-dns is
asked for the same names in its own domain.

The latency is that of one query at a time, 500 a second, in a lab host: with an agent at rest, and while an agent computes all the time,
answers over 300 services that wrk asks it to filter. (Small answers that it has at hand keep the other CPU busy as well, with wrk and
with packets over loopback: 43 to 151 µs a query then, by chance.) The client goes before all others on the CPUs, at rest too: otherwise one
query in a hundred tells how long dnsperf itself, and not the child, waited for the end of somebody's turn (2 to 5 ms).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

from bench.core import Row, interleave, median, ratio
from bench.http import register
from bench.kv import PLAIT
from plait.dns.message import wire_name
from plait.dns.zone import build_table
from plait.lab.lab import Lab
from plait.lab.spec import simple
from plait.model.cluster import Instance, Node, Snapshot
from plait.serve.dns_parent import DnsService

NAMES, IN_FLIGHT, SECONDS, ROUNDS = 1000, 32, 1, 7
LATENCY_RATE, LATENCY_SECONDS = 500, 2
WORK, WORKED_ON = f"{PLAIT}/v1/agent/services?filter=Service==web", 300
AARDVARK = "/usr/lib/podman/aardvark-dns"
PSS_LIMIT_MB = 12.0
HOST = "127.0.0.1"


def _name(number: int) -> str:
    return f"svc{number}.service.consul"


def _address(number: int) -> str:
    return f"10.28.{number // 250}.{1 + number % 250}"


def _free_port() -> int:
    """One that is free for UDP and for TCP: not every server starts with one of them."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
            udp.bind((HOST, 0))
            port = int(udp.getsockname()[1])
            with contextlib.suppress(OSError):
                tcp.bind((HOST, port))
                return port


def _check(server: str, port: int, names: list[str]) -> None:
    """Raise RuntimeError unless the server on `port` has an address for the first and the last name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect((HOST, port))
        udp.settimeout(2)
        for name in (names[0], names[-1]):
            try:
                udp.send(b"\0\1\1\0\0\1\0\0\0\0\0\0" + wire_name(name.encode()) + b"\0\1\0\1")
                response = udp.recv(512)
            except OSError as error:
                raise RuntimeError(f"{server} on port {port} does not answer: {error}") from error
            if response[6:8] != b"\0\1":
                raise RuntimeError(f"{server} on port {port} has no address for {name}, which it was given")


def _dnsperf(names: Path, port: int, *more: str) -> list[str]:
    """One client that asks for all of `names` again and again."""
    return ["dnsperf", "-s", HOST, "-p", str(port), "-d", str(names), "-c1", "-T1", *more]


def _figure(shown: str, name: str) -> float:
    """What dnsperf says of `name`; raises RuntimeError if a query was lost or failed."""
    found = re.search(rf"{re.escape(name)}:\s+([\d.]+)", shown)
    if found is None or not re.search(r"Queries lost:\s+0 ", shown) or not re.search(r"Response codes:\s+NOERROR \d+ \(100.00%\)", shown):
        raise RuntimeError(f"dnsperf: {shown}")
    return float(found.group(1))


def _rate(names: Path, port: int) -> float:
    """Answers a second for A queries over all names."""
    command = _dnsperf(names, port, f"-l{SECONDS}", f"-q{IN_FLIGHT}")
    return _figure(subprocess.run(command, capture_output=True, text=True, check=True).stdout, "Queries per second")


def _dnsmasq(folder: Path, port: int) -> list[str]:
    hosts = folder / "hosts"
    hosts.write_text("".join(f"{_address(number)} {_name(number)}\n" for number in range(NAMES)))
    options = (f"--port={port}", f"--listen-address={HOST}", "--bind-interfaces", f"--addn-hosts={hosts}")
    return ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-hosts", "--no-resolv", "--user=root", "--pid-file=", *options]


def _unbound(folder: Path, port: int) -> list[str]:
    records = "".join(f'  local-data: "{_name(number)}. A {_address(number)}"\n' for number in range(NAMES))
    (folder / "unbound.conf").write_text(
        f'server:\n  interface: {HOST}@{port}\n  num-threads: 1\n  do-daemonize: no\n  chroot: ""\n  username: ""\n  pidfile: ""\n'
        f'  use-syslog: no\n  logfile: /dev/null\n  local-zone: "consul." static\n{records}'
    )
    return ["unbound", "-d", "-c", str(folder / "unbound.conf")]


def _aardvark(folder: Path, port: int) -> list[str]:
    """It goes to the background on its own and says in a file who it is."""
    network = folder / "aardvark" / "bench"
    network.parent.mkdir()
    containers = "".join(f"{number:064x} {_address(number)}  svc{number}\n" for number in range(NAMES))
    network.write_text(f"{HOST}\n{containers}")
    return [AARDVARK, "-c", str(network.parent), "-p", str(port), "run"]


PEERS: dict[str, tuple[str, Callable[[Path, int], list[str]], str, float]] = {
    "dnsmasq": ("dnsmasq", _dnsmasq, "service.consul", 1.0),
    "unbound": ("unbound", _unbound, "service.consul", 1.0),
    "aardvark-dns": (AARDVARK, _aardvark, "dns.podman", 10.0),
}
"""Name -> program, its command, the domain of its names, the least ratio."""


@contextlib.contextmanager
def _peers(folder: Path) -> Iterator[dict[str, int]]:
    """The installed peers, running: name -> port."""
    ports: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        for name, (program, command, _, _) in PEERS.items():
            if shutil.which(program) is None:
                print(f"    {name} is not installed: skipped", flush=True)
                continue
            ports[name] = _free_port()
            process = subprocess.Popen(command(folder, ports[name]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(process.wait, 5)
            stack.callback(process.terminate)
        stack.callback(_end_aardvark, folder / "aardvark" / "aardvark.pid")
        time.sleep(1.0 if ports else 0)
        yield ports


def _end_aardvark(pid_file: Path) -> None:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int(pid_file.read_text()), signal.SIGTERM)


def _pss_mb(pid: int) -> float:
    match = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert match is not None
    return int(match.group(1)) / 1024


async def _measure() -> list[Row]:
    node = Node("a", "1", IPv4Address("192.0.2.1"))
    instances = {("a", str(n)): Instance(str(n), f"svc{n}", "a", _address(n), 80) for n in range(NAMES)}
    service = DnsService(on_crash=print)
    await service.start()
    try:
        await service.set_table(build_table(Snapshot(me="a", nodes={"a": node}, instances=instances)))
        port = _free_port()
        if refused := await service.set_listen({(HOST, port)}):
            raise RuntimeError(str(refused[0]))
        return await asyncio.to_thread(_compare, port, (await service.stats()).pid)
    finally:
        await service.close()


def _compare(port: int, pid: int) -> list[Row]:
    trials = {}
    with tempfile.TemporaryDirectory() as name, _peers(Path(name)) as peers:
        for server, number in {"plait": port, **peers}.items():
            domain = PEERS[server][2] if server in PEERS else "service.consul"
            names = [f"svc{at}.{domain}" for at in range(NAMES)]
            _check(server, number, names)
            queries = Path(name, f"{server}.queries")
            queries.write_text("".join(f"{asked} A\n" for asked in names))
            trials[server] = functools.partial(_rate, queries, number)
        results = interleave(trials, ROUNDS)
    print(f"    {', '.join(f'{server} {median(found):,.0f}' for server, found in results.items())} queries/s", flush=True)
    note = f"A over {NAMES} names by dnsperf, {IN_FLIGHT} in flight, loopback; the client shares the CPUs"
    rows = [Row(f"DNS queries/s beside {peer}", ratio(results, "plait", peer), "x", PEERS[peer][3], False, note) for peer in peers]
    return [*rows, Row("DNS child's memory after that", _pss_mb(pid), "MB", PSS_LIMIT_MB, True, f"PSS, {NAMES} services, full cache")]


def _latency_us(lab: Lab, names: Path) -> float:
    command = _dnsperf(names, 8600, f"-l{LATENCY_SECONDS}", "-q1", f"-Q{LATENCY_RATE}")
    return 1e6 * _figure(lab.run("A", "nice", "-n", "-19", *command).stdout, "Average Latency (s)")


def _busy_latency_us(lab: Lab, names: Path) -> float:
    load = lab.popen("A", "wrk", "-t1", "-c8", f"-d{10 * LATENCY_SECONDS}s", WORK, stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        return _latency_us(lab, names)
    finally:
        load.terminate()
        load.wait(5)


def _latency() -> Row:
    lab = Lab.up(simple(1), "bench-dns", owned=True)
    try:
        for number in range(WORKED_ON):
            register(lab, f"svc{number}", 0, 80)
        register(lab, "web", 0, 80)
        with tempfile.TemporaryDirectory() as folder:
            names = Path(folder, "queries")
            names.write_text("web.service.consul A\n")
            trials = {"busy": lambda: _busy_latency_us(lab, names), "idle": lambda: _latency_us(lab, names)}
            results = interleave(trials, ROUNDS)
    finally:
        lab.down()
    print(f"    {', '.join(f'{state} {median(found):.0f}' for state, found in results.items())} µs a query", flush=True)
    note = f"mean of one query at a time, {LATENCY_RATE}/s, first on the CPUs; the agent filters {WORKED_ON} services for 8 connections"
    return Row("DNS latency with the agent busy", ratio(results, "busy", "idle"), "x idle", 2.0, True, note)


def run() -> list[Row]:
    return [*asyncio.run(_measure()), _latency()]
