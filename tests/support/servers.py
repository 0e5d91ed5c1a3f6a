# SPDX-License-Identifier: Apache-2.0
"""Servers in sandboxes that say who they are and who asked, and clients that ask them by whatever address."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from plait.lab.lab import Lab
from plait.lab.process import until
from tests.support.sandboxes import inside, shown

NETWORKS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "direct": ("--backend", "direct"),
    "hybrid": ("--backend", "hybrid"),
    "secret": ("--backend", "wireguard"),
    "frames": ("-o", "layer2=true"),
    "double": ("--ipv6",),
}
"""A network of each kind that is on all hosts, and how it is asked for."""
DUAL = """
[[switch]]
name = "lan"
underlay = "dual"
[[host]]
name = "A"
[[host]]
name = "B"
[[host]]
name = "C"
"""
"""Hosts that know each other by IPv4, and have IPv6 as well."""
SERVER = """
import socket, socketserver, sys
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(f"{sys.argv[1]} {self.client_address[0].removeprefix('::ffff:')}\\n".encode())
        while line := self.rfile.readline():
            self.wfile.write(line)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address, daemon_threads, request_queue_size, address_family = True, True, 128, socket.AF_INET6
Server(("", 8080), Handler).serve_forever()
"""
"""Says its name and who comes, by IPv4 or IPv6, then gives back every line."""
CLIENT = """
import json, socket, sys, time
to, port, many, pause = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
for _ in range(many):
    began = time.time()
    try:
        with socket.create_connection((to, port), 2) as sock:
            said = sock.makefile().readline().split()
    except OSError as error:
        said = [str(error), ""]
    print(json.dumps([began, *(said or ["cut", ""])]), flush=True)
    time.sleep(pause)
"""
"""Connects so many times; prints when each began, who answered and what address that saw."""


def serve(lab: Lab, host: str, name: str, *options: str) -> subprocess.Popen[str]:
    """A sandbox of that name on the host, made with these options of `plait run`, in which a server listens on port 8080."""
    lab.run(host, "plait", "run", "--name", name, *options)
    process = lab.popen(host, "plait", "exec", name, "--", sys.executable, "-c", SERVER, name, stdout=subprocess.DEVNULL, text=True)
    until(f"{name} listens", lambda: ":8080" in inside(lab, host, name, "ss", "-ltnH").stdout, 20)
    return process


def connects(lab: Lab, host: str, to: str, many: int = 1, port: int = 80, sandbox: str = "") -> list[list[Any]]:
    """So many connections, one after the other, from the host or a sandbox of it: when each began, who answered ("cut", or why nobody did)
    and from which address it was seen to come."""
    words = sys.executable, "-c", CLIENT, to, str(port), str(many), "0"
    done = inside(lab, host, sandbox, *words) if sandbox else lab.run(host, *words, check=False)
    return [json.loads(line) for line in done.stdout.splitlines()]


@contextmanager
def serving() -> Iterator[list[subprocess.Popen[str]]]:
    """Servers that end with it."""
    servers: list[subprocess.Popen[str]] = []
    try:
        yield servers
    finally:
        for process in servers:
            process.kill()
            process.wait(5)


def create_networks(lab: Lab, *hosts: str, more: Sequence[str] = ()) -> None:
    """All of `NETWORKS`, with `more` options, known on these hosts too."""
    for network, options in NETWORKS.items():
        lab.run("A", "plait", "network", "create", network, *options, *more)
    for host in hosts:
        until(f"{host} has them", lambda h=host: {row["name"] for row in shown(lab, h, "network", "ls")} >= NETWORKS.keys(), 10)


def create_service(lab: Lab, network: str, published: int) -> None:
    """One called as its network, of the containers there whose label `app` is the same."""
    asked = "--port", "80:8080", "--selector", f"app={network}", "--publish", f"{published}:80"
    lab.run("A", "plait", "service", "create", network, "--network", network, *asked)


def vip(lab: Lab, service: str, field: str = "address") -> str:
    """Its virtual address; of IPv6, `field` is "address6"."""
    return next(str(row[field]) for row in shown(lab, "A", "service", "ls") if row["name"] == service)
