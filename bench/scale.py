# SPDX-License-Identifier: Apache-2.0
"""One embedded store with 100,000 instances under 1,000 simulated agents: memory, CPU, propagation. Not part of `make bench`.

`python -m bench.scale [AGENTS [INSTANCES]]`. The store and its server are a process of their own; the agents are connections of another
one, over loopback, with the real protocol and mutual TLS: each watches everything, pings every second and keeps a sign of life (lease of
six seconds, renewed every two). What an agent does with a change (its replica, view, DNS) is not simulated: `bench.propagation` has that.
docs/scale.md has the figures.
"""

from __future__ import annotations

import asyncio
import re
import resource
import statistics
import sys
import tempfile
import time
from ipaddress import ip_address
from pathlib import Path

from plait.model.cluster import Instance
from plait.store.api import Put
from plait.store.codec import encode
from plait.store.pki import init_cluster
from plait.store.remote import RemoteStore
from plait.store.server import StoreServer
from plait.store.sqlite import SqliteStore
from plait.store.tls import ssl_context_client, ssl_context_server

TTL_S, RENEW_S, CONNECTING, ROUNDS, PART = 6.0, 2.0, 8, 20, 500


async def serve(folder: Path) -> None:
    """The store's process: prints its port, ends when its input does."""
    store = await SqliteStore.open(folder / "store.db")
    server = StoreServer(store, "127.0.0.1", 0, ssl_context_server(folder))
    server.open()
    print(server.port, flush=True)
    task = asyncio.ensure_future(server.run())
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    task.cancel()


def _pss_mb(pid: int) -> float:
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found.group(1)) / 1024


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


class Agents:
    """The simulated agents. `seen` gets the time at which each has a revision of the measured key."""

    def __init__(self, folder: Path, port: int, count: int) -> None:
        self.stores = [RemoteStore("127.0.0.1", port, ssl_context_client(folder)) for _ in range(count)]
        self.seen: list[float] = []
        self.all_told = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []
        self._gate = asyncio.Semaphore(CONNECTING)

    async def start(self, number: int, revision: int) -> None:
        store = self.stores[number]
        async with self._gate:
            lease = await store.grant(TTL_S)
        await store.txn([], [Put(f"alive/a{number}", b"{}", lease)])
        self.tasks += [asyncio.ensure_future(self._watch(store, revision)), asyncio.ensure_future(self._renew(store, lease))]

    async def _watch(self, store: RemoteStore, revision: int) -> None:
        async for changes in store.watch("", revision):
            if any(change.item.key == "instances/measured" for change in changes):
                self.seen.append(time.perf_counter())
                if len(self.seen) == len(self.stores):
                    self.all_told.set()

    async def _renew(self, store: RemoteStore, lease: int) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            assert await store.keepalive(lease), "a lease was lost"


async def measure(folder: Path, agents: int, instances: int) -> None:
    init_cluster(folder, "A", "id-a", ip_address("127.0.0.1"))
    arguments = [sys.executable, "-m", "bench.scale", "serve", str(folder)]
    child = await asyncio.create_subprocess_exec(*arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    assert child.stdout is not None and child.stdin is not None
    port = int(await child.stdout.readline())
    print(f"empty store: {_pss_mb(child.pid):.0f} MB", flush=True)
    crowd = Agents(folder, port, agents)
    first = crowd.stores[0]
    puts = [
        Put(f"instances/n{n % 1000}/i{n}", encode(Instance(f"i{n}", f"s{n % 2000}", f"n{n % 1000}", "192.0.2.9", 80)))
        for n in range(instances)
    ]
    start, cpu = time.perf_counter(), _cpu_s(child.pid)
    for at in range(0, instances, PART):
        await first.txn([], puts[at : at + PART])
    print(
        f"{instances} instances put: {time.perf_counter() - start:.1f} s, {_cpu_s(child.pid) - cpu:.1f} s CPU, {_pss_mb(child.pid):.0f} MB",
        flush=True,
    )
    start, cpu = time.perf_counter(), _cpu_s(child.pid)
    revision = (await first.list("")).revision
    print(f"one agent reads all: {time.perf_counter() - start:.2f} s, {_cpu_s(child.pid) - cpu:.2f} s CPU of the store", flush=True)
    start, cpu = time.perf_counter(), _cpu_s(child.pid)
    await asyncio.gather(*(crowd.start(number, revision) for number in range(agents)))
    print(
        f"{agents} agents connected: {time.perf_counter() - start:.1f} s, {_cpu_s(child.pid) - cpu:.1f} s CPU, {_pss_mb(child.pid):.0f} MB",
        flush=True,
    )
    await asyncio.sleep(3)
    start, cpu = time.perf_counter(), _cpu_s(child.pid)
    await asyncio.sleep(10)
    print(f"signs of life only: {100 * (_cpu_s(child.pid) - cpu) / (time.perf_counter() - start):.0f} % of a core", flush=True)
    await changes(crowd, first, child.pid)
    for task in crowd.tasks:
        task.cancel()
    child.stdin.close()
    await child.wait()


async def changes(crowd: Agents, first: RemoteStore, pid: int) -> None:
    """One change at a time until all agents have it."""
    medians, last, cpu = [], [], _cpu_s(pid)
    for number in range(ROUNDS):
        crowd.seen.clear()
        crowd.all_told.clear()
        start = time.perf_counter()
        await first.txn([], [Put("instances/measured", str(number).encode())])
        async with asyncio.timeout(30):
            await crowd.all_told.wait()
        medians.append(1000 * (statistics.median(crowd.seen) - start))
        last.append(1000 * (crowd.seen[-1] - start))
    spent = (_cpu_s(pid) - cpu) / ROUNDS
    half, whole = statistics.median(medians), statistics.median(last)
    print(f"a change reaches half of them in {half:.0f} ms, all in {whole:.0f} ms (worst {max(last):.0f})", flush=True)
    print(f"{1000 * spent:.0f} ms CPU of the store a change, signs of life meanwhile included; {_pss_mb(pid):.0f} MB", flush=True)


def main(arguments: list[str]) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if arguments[:1] == ["serve"]:
        asyncio.run(serve(Path(arguments[1])))
        return
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        asyncio.run(measure(Path(folder), *map(int, [*arguments, *("1000", "100000")[len(arguments) :]])))


if __name__ == "__main__":
    main(sys.argv[1:])
