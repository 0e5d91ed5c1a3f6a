# SPDX-License-Identifier: Apache-2.0
"""DNS names of a large catalogue: what one change costs the agent, what it says to the DNS child, and how soon that answers so."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from dataclasses import replace
from ipaddress import IPv4Address

from bench.core import Row, median
from plait.agent.view import View
from plait.dns.message import wire_name
from plait.dns.zone import Zone
from plait.model.cluster import Instance, Node
from plait.model.discovery import Check
from plait.serve.dns_link import frame
from plait.serve.dns_parent import DnsService

SERVICES, EACH, CHANGES = 1000, 10, 200
HOST = "127.0.0.1"
_NOTE = f"{SERVICES * EACH:,} instances in {SERVICES:,} services, a check each; one change at a time, median of {CHANGES}"


def _instance(number: int, address: str = "") -> Instance:
    address = address or f"10.{28 + number // 65025}.{number // 255 % 255}.{1 + number % 255}"
    return Instance(f"i{number}", f"svc{number % SERVICES}", "a", address, 80, ("http",))


def _check(number: int, **changes: str) -> Check:
    return replace(Check(f"c{number}", "a", "check", "passing", service_id=f"i{number}"), **changes)  # type: ignore[arg-type]


def _full() -> View:
    view = View("a")
    view.put(Node("a", "1", IPv4Address("192.0.2.1")))
    for number in range(SERVICES * EACH):
        view.put(_instance(number))
        view.put(_check(number))
    return view


async def _measure() -> list[Row]:
    view = _full()
    touched, zone = view.follow(), Zone(view.snapshot)
    service = DnsService(on_crash=print)
    await service.start()
    try:
        await service.set_table(zone.table)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind((HOST, 0))
            port = int(udp.getsockname()[1])
        if refused := await service.set_listen({(HOST, port)}):
            raise RuntimeError(str(refused[0]))
        gc.collect()
        costs, quiet, sizes, seen = [], [], [], []
        for number in range(CHANGES):
            view.put(_check(number, output=f"run {number}"))
            start = time.perf_counter()
            told = tuple(touched)
            touched.clear()
            if zone.advance(view.snapshot, told) is not None:
                raise RuntimeError("the output of a check alone changed a name")
            quiet.append(1000 * (time.perf_counter() - start))
            start = time.perf_counter()
            view.put(_instance(number, f"10.99.0.{1 + number}"))
            told = tuple(touched)
            touched.clear()
            changes = zone.advance(view.snapshot, told)
            costs.append(1000 * (time.perf_counter() - start))
            if changes is None:
                raise RuntimeError("a moved instance changed no name")
            sizes.append(float(len(frame((0, "changes", [changes.parts()])))))
            await service.change_table(zone.table, changes)
            await asyncio.to_thread(_ask, port, number)
            seen.append(1000 * (time.perf_counter() - start))
    finally:
        await service.close()
    return [
        Row("agent's work for a moved instance", median(costs), "ms", 1.0, True, _NOTE),
        Row("agent's work for a new output of a check", median(quiet), "ms", 1.0, True, _NOTE),
        Row("what the DNS child is told of a moved instance", median(sizes) / 1024, "KiB", 4.0, True, _NOTE),
        Row("the new address answered on this host", median(seen), "ms", 10.0, True, _NOTE),
    ]


def _ask(port: int, number: int) -> None:
    """Ask for the service of the moved instance; raises if its new address is not there."""
    query = b"\0\1\1\0\0\1\0\0\0\0\0\0" + wire_name(b"svc%d.service.consul" % (number % SERVICES)) + b"\0\1\0\1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(2)
        udp.sendto(query, (HOST, port))
        if bytes((10, 99, 0, 1 + number)) not in udp.recv(512):
            raise RuntimeError("the child acknowledged a change and does not answer so")


def run() -> list[Row]:
    return asyncio.run(_measure())
