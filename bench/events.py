# SPDX-License-Identifier: Apache-2.0
"""From an event to the rule on the same host, among 5,000 services of three containers each, on 50 hosts.

The host's namespace has no way out. An event is a Snapshot in which one record is another one, as the agent's view makes them: a container
elsewhere fails or is well again, or one of this host begins or ends. The first goes by elements ahead of the pass, as the agent does it
(`KernelWork.hasten`), the second by a pass for its sake, and the pass that follows it finds nothing to do. Time ends when the kernel has
taken all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from bench.core import Row, median, worst
from plait.agent.kernelwork import KernelWork
from plait.agent.process import tune
from plait.kernel.linux import LinuxKernel, create_netns, delete_netns
from plait.kernel.linux.netns import in_thread, inside
from plait.kernel.linux.nft import LibNft
from plait.model.cluster import Block, Container, Endpoint, Network, Node, Snapshot
from plait.model.service import Service, ServicePort
from plait.plan import Local, plan_node, prompt_objects

HOSTS, SERVICES, EACH, HERE, EVENTS = 50, 5000, 3, 20, 200
NETWORK = Network("default", IPv4Network("10.32.0.0/12"), IPv4Address("10.32.0.1"), 23)
_BLOCK = 512


class Timed(LibNft):
    """`within`: seconds of each script."""

    def __init__(self) -> None:
        super().__init__(keeps=True)
        self.within: list[float] = []

    def run(self, script: str, handles: bool = False, counters: bool = False) -> str:
        began = time.perf_counter()
        try:
            return super().run(script, handles, counters)
        finally:
            self.within.append(time.perf_counter() - began)


def _first(host: int) -> IPv4Address:
    return IPv4Address("10.32.0.0") + host * _BLOCK


def _endpoint(number: int, host: int, place: int, service: int) -> Endpoint:
    """The container at that place of the host's block, behind that service."""
    mac = f"02:10:00:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
    labels, dev = {"app": f"s{service}", "tier": "web", "env": "prod"}, f"pl-e{number}"
    return Endpoint(f"e{number}", "default", f"h{host}", _first(host) + 2 + place, mac, dev, "sandbox", name=f"c{number}", labels=labels)


def cluster() -> Snapshot:
    nodes = {
        f"h{n}": Node(f"h{n}", f"h{n}", IPv4Address("198.18.0.1") + n, 1500, f"02:00:00:00:00:{n:02x}", _first(n)) for n in range(HOSTS)
    }
    blocks = [Block("default", IPv4Network((_first(n), 23)), f"h{n}") for n in range(HOSTS)]
    ends = [_endpoint(n, 0, n, n % SERVICES) for n in range(HERE)]
    ends += [_endpoint(n, 1 + n % (HOSTS - 1), n // (HOSTS - 1), n % SERVICES) for n in range(HERE, SERVICES * EACH)]
    boxes = [Container(one.id, one.name, one.node, "docker", labels=one.labels) for one in ends]
    ports = (ServicePort("tcp", 80, 8080),)
    services = [Service(f"s{n}", "default", IPv4Address("10.27.0.1") + n, ports, {"app": f"s{n}"}) for n in range(SERVICES)]
    return Snapshot(
        "h0",
        1,
        nodes,
        frozenset(nodes),
        {"default": NETWORK},
        {(one.network, one.cidr): one for one in blocks},
        {one.id: one for one in ends},
        {(one.node, one.id): one for one in boxes},
        services={one.ident: one for one in services},
    )


async def _measured(kernel: LinuxKernel, nft: Timed) -> tuple[list[float], list[float], list[float]]:
    """Seconds of events elsewhere, of nft in these, of containers that begin and end here."""
    work, local, snapshot = KernelWork(kernel), Local(fast_path=True), cluster()
    failed = (await work.converge(lambda: plan_node(snapshot, local), True)).failed
    assert not failed, failed
    await work.converge(lambda: plan_node(snapshot, local), True)
    nft.within.clear()
    elsewhere, here = list[float](), list[float]()
    for number in range(EVENTS):
        chosen = HERE + number // 2  # each fails and is well again
        box = snapshot.containers[f"h{1 + chosen % (HOSTS - 1)}", f"e{chosen}"]
        other = replace(box, health="" if box.health else "unhealthy")
        snapshot = replace(snapshot, containers={**snapshot.containers, (box.node, box.id): other})
        began = time.perf_counter()
        assert await work.hasten(lambda: prompt_objects(snapshot, local))  # noqa: B023
        elsewhere.append(time.perf_counter() - began)
        await asyncio.sleep(0.02)
    within = list(nft.within)
    assert (await work.converge(lambda: plan_node(snapshot, local), True)).writes == 0
    for number in range(EVENTS // 4):
        fresh = _endpoint(SERVICES * EACH + number, 0, 400 - number, number)
        snapshot = replace(snapshot, endpoints={**snapshot.endpoints, fresh.id: fresh})
        began = time.perf_counter()
        failed = (await work.converge(lambda: plan_node(snapshot, local), True, fresh.dev)).failed  # noqa: B023
        here.append(time.perf_counter() - began)
        assert not failed, failed
        assert (await work.converge(lambda: plan_node(snapshot, local), True)).writes == 0  # noqa: B023
    return elsewhere, within, here


def run() -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "host"
        create_netns(path)

        nft = Timed()

        def there() -> tuple[list[float], list[float], list[float]]:
            with path.open() as file, inside(file.fileno()), contextlib.closing(LinuxKernel(Path(name), nft=nft)) as kernel:
                tune()
                return asyncio.run(_measured(kernel, nft))

        try:
            elsewhere, within, here = ([1000 * one for one in found] for found in in_thread(there))
        finally:
            delete_netns(path)
    note = f"{SERVICES:,} services of {EACH} containers each on {HOSTS} hosts, {EVENTS} events; median {median(elsewhere):.1f} ms"
    passes = f"whole passes, link and all, {HERE} containers here before; {EVENTS // 4} events, median {median(here):.0f} ms"
    return [
        Row(
            f"an instance that fails or is well again among {SERVICES:,} services, event to rule, p99",
            worst(elsewhere),
            "ms",
            20,
            True,
            note,
        ),
        Row(f"an instance that fails or is well again among {SERVICES:,} services, in nft, p99", worst(within), "ms", 2, True, note),
        Row(f"a container that begins among {SERVICES:,} services, event to rule, p99", worst(here), "ms", 20, True, passes),
    ]
