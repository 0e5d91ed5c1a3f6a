# SPDX-License-Identifier: Apache-2.0
"""DNS: queries a second of the child beside dnsmasq and unbound where these are installed, over loopback, and its memory.

The client is a plain loop with 32 queries in flight, in this process: it costs more CPU than any of the servers, so the
ratios are pulled towards 1 and say "no slower", not "how much faster".
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

from bench.core import Row, interleave, median, ratio
from plait.dns.message import wire_name
from plait.dns.zone import build_table
from plait.model.cluster import Instance, Node, Snapshot
from plait.serve.dns_parent import DnsService

NAMES, IN_FLIGHT, SECONDS, ROUNDS = 1000, 32, 0.5, 5
PSS_LIMIT_MB = 12.0
HOST = "127.0.0.1"


def _name(number: int) -> str:
    return f"svc{number}.service.consul"


def _address(number: int) -> str:
    return f"10.28.{number // 250}.{1 + number % 250}"


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((HOST, 0))
        return int(udp.getsockname()[1])


def _rate(port: int) -> float:
    """Answers a second for A queries over all names; raises if one is lost or no address."""
    queries = [b"\1\0\0\1\0\0\0\0\0\0" + wire_name(_name(number).encode()) + b"\0\1\0\1" for number in range(NAMES)]
    answered = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect((HOST, port))
        udp.settimeout(2)
        start = time.perf_counter()
        while time.perf_counter() - start < SECONDS:
            for number in range(answered, answered + IN_FLIGHT):
                udp.send((number & 0xFFFF).to_bytes(2, "big") + queries[number % NAMES])
            for _ in range(IN_FLIGHT):
                if udp.recv(512)[6:8] != b"\0\1":
                    raise RuntimeError(f"the server on port {port} has no address for a name it was given")
            answered += IN_FLIGHT
        return answered / (time.perf_counter() - start)


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


PEERS = {"dnsmasq": _dnsmasq, "unbound": _unbound}


@contextlib.contextmanager
def _peers(folder: Path) -> Iterator[dict[str, int]]:
    """The installed peers, running: name -> port."""
    ports: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        for name, command in PEERS.items():
            if shutil.which(name) is None:
                print(f"    {name} is not installed: skipped", flush=True)
                continue
            ports[name] = _free_port()
            process = subprocess.Popen(command(folder, ports[name]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(process.wait, 5)
            stack.callback(process.terminate)
        time.sleep(1.0 if ports else 0)
        yield ports


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
    with tempfile.TemporaryDirectory() as folder, _peers(Path(folder)) as peers:
        trials = {name: functools.partial(_rate, number) for name, number in {"plait": port, **peers}.items()}
        results = interleave(trials, ROUNDS)
    print(f"    {median(results['plait']):,.0f} queries/s by this client", flush=True)
    note = f"A over {NAMES} names, {IN_FLIGHT} in flight, loopback; the client shares the CPUs and costs more than any server"
    rows = [Row(f"DNS queries/s beside {peer}", ratio(results, "plait", peer), "x", 1.0, False, note) for peer in peers]
    return [*rows, Row("DNS child's memory after that", _pss_mb(pid), "MB", PSS_LIMIT_MB, True, f"PSS, {NAMES} services, full cache")]


def run() -> list[Row]:
    return asyncio.run(_measure())
