# SPDX-License-Identifier: Apache-2.0
"""Many hosts: how soon a new network is there among 200, and what an agent keeps of containers elsewhere.

The store and its server are a process of their own (that of `bench.scale`), over loopback with mutual TLS, and so are the host that makes
the network and one that is told of it. Each is a copy of the store with its view of it, as an agent has them. All other hosts share one
process, which runs only when nobody else wants the CPU, as if each had a CPU of its own: what all share is the store, whose work for each
is measured as CPU time too. What an agent makes of it in its kernel is measured apart, for one, in a namespace made for it.
"""

from __future__ import annotations

import asyncio
import gc
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network, ip_address
from pathlib import Path

from bench.core import Row
from plait.agent.kernelwork import ADDED, KernelWork
from plait.agent.keys import Record, record_key
from plait.agent.networks import Networks
from plait.agent.reconciler import SETTLE_S
from plait.agent.view import View
from plait.dns.zone import Zone
from plait.kernel.fake import FakeKernel
from plait.kernel.linux import LinuxKernel
from plait.kernel.linux.netns import unshare_net
from plait.model.cluster import Block, Container, Endpoint, Network, Node
from plait.plan import Local, plan_node
from plait.runtimes.api import NetworkRequest
from plait.store.api import Change, Item, Put
from plait.store.codec import encode
from plait.store.memory import MemoryStore
from plait.store.pki import init_cluster
from plait.store.remote import RemoteStore
from plait.store.replica import Replica
from plait.store.tls import ssl_context_client

FEW, MANY, ROUNDS = 20, 200, 12
ENDPOINTS = 10_000
DEFAULT = Network("default", IPv4Network("10.28.0.0/16"), IPv4Address("10.28.0.1"), 24)


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 (of many objects, none of which tells of changes)
        await asyncio.sleep(0.002)


def _node(number: int) -> Node:
    tunnel = IPv4Address("10.28.0.0") + 256 * number
    return Node(
        f"h{number}",
        f"id{number}",
        IPv4Address("198.18.0.1") + number,
        vtep_mac=f"02:00:00:00:{number // 256:02x}:{number % 256:02x}",
        tunnel=tunnel,
    )


def _cluster(count: int) -> list[Record]:
    nodes = [_node(number) for number in range(count)]
    blocks = [Block("default", IPv4Network((int(node.tunnel or 0), 24)), node.name) for node in nodes]
    return [DEFAULT, *nodes, *blocks]


@asynccontextmanager
async def _store(folder: Path) -> AsyncIterator[tuple[int, int]]:
    """The port of a store in a process of its own, and its PID."""
    init_cluster(folder, "h0", "id0", ip_address("127.0.0.1"))
    words = [sys.executable, "-m", "bench.scale", "serve", str(folder)]
    child = await asyncio.create_subprocess_exec(*words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    assert child.stdin is not None and child.stdout is not None
    try:
        yield int(await child.stdout.readline()), child.pid
    finally:
        child.stdin.close()
        await child.wait()


class _Host:
    """A copy of the store and the view of it, as an agent has them."""

    def __init__(self, folder: Path, port: int, number: int) -> None:
        self.store = RemoteStore("127.0.0.1", port, ssl_context_client(folder))
        self.view, self.replica = View(f"h{number}"), Replica(self.store, folder / f"r{number}")
        self.replica.subscribe(self.view.change)

    async def run(self) -> None:
        await self.replica.run()


async def crowd(folder: Path, port: int, first: int, count: int) -> None:
    """The other hosts: prints "ready", then the name of each network that the last of them knows, with the moment (time.monotonic)."""
    hosts = [_Host(folder, port, number) for number in range(first, count)]
    knowing: dict[str, int] = {}

    def look(host: _Host, kinds: frozenset[str]) -> None:
        for name in host.view.snapshot.networks if "networks" in kinds else ():
            if name not in known[host.view.me]:
                known[host.view.me].add(name)
                knowing[name] = knowing.get(name, 0) + 1
                if knowing[name] == len(hosts):
                    print(name, time.monotonic(), flush=True)

    known: dict[str, set[str]] = {host.view.me: set() for host in hosts}
    async with asyncio.TaskGroup() as group:
        for host in hosts:
            host.view.subscribe(lambda kinds, host=host: look(host, kinds))
            group.create_task(host.run())
            await asyncio.sleep(0.02)
        await _until(lambda: all(host.replica.synced for host in hosts))
        print("ready", flush=True)


def _cpu_ms(pid: int) -> float:
    """CPU time that the threads of a process had (proc(5), `schedstat`)."""
    return sum(int(told.read_text().split()[0]) for told in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e6


async def _creation(count: int) -> list[float]:
    """Medians of `ROUNDS` creations among `count` hosts: milliseconds until the request is answered, until one of the hosts knows it, until
    all the others have done their work on one CPU, and of the store's CPU."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        async with _store(folder) as (port, pid):
            me = _Host(folder, port, 0)
            await me.store.txn([], _puts(_cluster(count)))
            task = asyncio.ensure_future(me.run())
            try:
                async with _told(("chrt", "-i", "0"), name, port, 1, count - 1) as others, _told((), name, port, count - 1, count) as last:
                    found = [one async for one in _rounds(me, last, others, pid)]
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
    return [statistics.median(one) for one in zip(*found, strict=True)]


@asynccontextmanager
async def _told(under: Sequence[str], folder: str, port: int, first: int, count: int) -> AsyncIterator[asyncio.StreamReader]:
    """What `crowd` prints in a process of its own, from when its hosts are told of everything, after those that were there before."""
    words = [*under, sys.executable, "-m", "bench.hosts", "crowd", folder, str(port), str(first), str(count)]
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        while b"ready" not in await process.stdout.readline():
            pass
        yield process.stdout
    finally:
        process.terminate()
        await process.wait()


async def _rounds(
    me: _Host, last: asyncio.StreamReader, others: asyncio.StreamReader, store: int
) -> AsyncIterator[tuple[float, float, float, float]]:
    networks = Networks(me.view, me.store, "default", me.view.caught_up)
    for number in range(ROUNDS):
        await asyncio.sleep(0.2)
        spent, began = _cpu_ms(store), time.monotonic()
        await networks.ensure(NetworkRequest(f"net{number}"))
        answered = time.monotonic()
        moments = [await _known(told, f"net{number}") for told in (last, others)]
        yield 1000 * (answered - began), *(1000 * (one - began) for one in moments), _cpu_ms(store) - spent


async def _known(told: asyncio.StreamReader, network: str) -> float:
    while (line := (await told.readline()).split())[0] != network.encode():
        pass
    return float(line[1])


def _puts(records: Sequence[Record]) -> list[Put]:
    return [Put(record_key(record), encode(record)) for record in records]


def _pass_ms(count: int) -> float:
    """What an agent among `count` hosts takes to plan its whole kernel after a network was made in which each host has a block."""
    view = View("h0")
    second = Network("second", IPv4Network("10.29.0.0/16"), IPv4Address("10.29.0.1"), 24)
    blocks = [Block("second", IPv4Network((int(IPv4Address("10.29.0.0")) + 256 * n, 24)), f"h{n}") for n in range(count)]
    records = [*_cluster(count), second, *blocks]
    items = [Item(record_key(r), encode(r), n, n, 0) for n, r in enumerate(records, 1)]
    items += [Item(f"alive/h{n}", b"{}", 1, 1, 0) for n in range(count)]
    view.change([Change("put", item, item.mod_revision) for item in items], len(items))
    local = Local(ipv6="ipv6" in FakeKernel().capabilities())
    times = []
    for _ in range(10):
        began = time.perf_counter()
        plan_node(view.snapshot, local)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def made(count: int) -> None:
    """Prints the milliseconds that the pass of a host among `count` takes for a new network: median of `ROUNDS`, in a kernel of its own."""
    unshare_net()
    subprocess.run(["ip", "-batch", "-"], input=_UNDERLAY, text=True, check=True)
    print(statistics.median(asyncio.run(_passes(count))))


async def _passes(count: int) -> list[float]:
    work, view = KernelWork(LinuxKernel()), View("h0")
    view.change(_changes(_cluster(count)), count)
    view.change([Change("put", Item(f"alive/h{n}", b"{}", 1, 1, 0), count) for n in range(count)], count)
    local, took = Local(underlay="under0", fast_path=True), []
    for number in range(ROUNDS):
        for _ in range(2):
            await work.converge(lambda: plan_node(view.snapshot, local), True)
        network = Network(
            f"n{number}", IPv4Network((f"10.{30 + number}.0.0", 16)), IPv4Address(f"10.{30 + number}.0.1"), 24, vni=100 + number
        )
        view.change(_changes([network]), count + 1 + number)
        report = await work.converge(lambda: plan_node(view.snapshot, local), True, ADDED)
        assert report.writes and not report.failed, report
        took.append(report.took_ms)
    work.close()
    return took


_UNDERLAY = """link set lo up
link add under0 type veth peer name under1
addr add 198.18.0.1/16 dev under0
link set under0 up
link set under1 up
"""


def _changes(records: Sequence[Record]) -> list[Change]:
    return [Change("put", Item(record_key(record), encode(record), n, n, 0), n) for n, record in enumerate(records, 1)]


def _pss_mb() -> float:
    found = re.search(r"^Pss:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found.group(1)) / 1024


async def memory() -> None:
    """Prints the MB that a copy, a view and the names of `ENDPOINTS` containers on another host take, by 1,000 of them."""
    store = MemoryStore()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        replica, view = Replica(store, Path(folder) / "r"), View("h0")
        replica.subscribe(view.change)
        task = asyncio.ensure_future(replica.run())
        await store.txn([], _puts(_cluster(2)))
        await _until(lambda: replica.synced and "h1" in view.snapshot.nodes)
        touched, zone = view.follow(), Zone(view.snapshot)
        gc.collect()
        before = _pss_mb()
        items = [item for number in range(ENDPOINTS) for item in _container(number)]
        view.change([Change("put", item, item.mod_revision) for item in items], 10 + len(items))
        replica._items.update((item.key, item) for item in items)
        zone.advance(view.snapshot, touched)
        del items
        gc.collect()
        print((_pss_mb() - before) / (ENDPOINTS / 1000))
        task.cancel()


def _container(number: int) -> list[Item]:
    address = IPv4Address("10.28.1.0") + number
    labels = {"com.docker.compose.project": f"shop{number // 10}", "com.docker.compose.service": f"web{number}"}
    ident = f"{number:064x}"
    endpoint = Endpoint(
        ident,
        "default",
        "h1",
        address,
        "02:00:00:00:00:09",
        f"pl-e{number}",
        runtime="docker",
        container=ident,
        name=f"web-{number}",
        labels=labels,
    )
    container = Container(ident, f"web-{number}", "h1", "docker", "nginx", "running", labels=labels, addresses={"default": address})
    return [Item(record_key(r), encode(r), number + 10, number + 10, 0) for r in (endpoint, container)]


def run() -> list[Row]:
    (few_answered, few, _, few_cpu), (answered, many, whole, cpu) = asyncio.run(_creation(FEW)), asyncio.run(_creation(MANY))
    kept, few_made, many_made = (float(asyncio.run(_in_another_process(*words))) for words in (["memory"], ["made", FEW], ["made", MANY]))
    settle = 1000 * SETTLE_S
    how = f"store and hosts over loopback with mutual TLS; median of {ROUNDS}"
    return [
        Row(
            f"a new network in the kernel of a host among {MANY}",
            (many + settle + many_made) / (few + settle + few_made),
            f"x among {FEW}",
            1.25,
            True,
            f"known after {many:.1f} ms ({few:.1f}), {settle:.0f} for a burst to end, a pass of {many_made:.1f} ({few_made:.1f})",
        ),
        Row(
            f"a new network known on a host among {MANY}",
            many,
            "ms",
            15,
            True,
            f"{how}; among {FEW}: {few:.1f} ms; all {MANY} have done their work, on one CPU, after {whole:.0f} ms",
        ),
        Row(
            "the store's work for each host that is told",
            (cpu - few_cpu) / (MANY - FEW),
            "ms",
            0.1,
            True,
            f"CPU time for a new network, difference of {FEW} and {MANY} hosts; of these {cpu:.0f} ms for all",
        ),
        Row(f"answer to its creation among {MANY} hosts", answered, "ms", 50, True, f"{how}; among {FEW}: {few_answered:.1f} ms"),
        Row(
            f"an agent's whole plan among {MANY} hosts",
            _pass_ms(MANY),
            "ms",
            20,
            True,
            f"two networks, a block of each on every host; among {FEW} hosts {_pass_ms(FEW):.1f} ms; only what differs is made anew",
        ),
        Row(
            "memory for 1,000 containers on other hosts",
            kept,
            "MB",
            6,
            True,
            f"copy, view and names of {ENDPOINTS:,}, each with two labels; PSS; nothing of each is in the kernel",
        ),
    ]


async def _in_another_process(*words: object) -> str:
    child = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.hosts", *map(str, words), stdout=asyncio.subprocess.PIPE)
    out, _ = await child.communicate()
    return out.decode()


if __name__ == "__main__":
    if sys.argv[1] == "memory":
        asyncio.run(memory())
    elif sys.argv[1] == "made":
        made(int(sys.argv[2]))
    else:
        asyncio.run(crowd(Path(sys.argv[2]), *map(int, sys.argv[3:])))
