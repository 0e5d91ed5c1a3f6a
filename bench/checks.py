# SPDX-License-Identifier: Apache-2.0
"""Health checks: CPU time of the agent's parts that run, judge, journal and publish 5,000 HTTP checks every 10 s, by wall time.

They are in a process of their own (this module run as a program), over the real journal, view, store and publisher; the target is nginx on
ten loopback addresses, in processes of its own. The body that the checks read is the time of day, so that every output changes.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from bench.core import Row

CHECKS, INTERVAL_S, SECONDS = 5000, 10.0, 40.0
PORT = 18080
NGINX = """
daemon off; worker_processes 1; error_log {folder}/error; pid {folder}/pid; worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;
  scgi_temp_path {folder}/s;
  server {{ listen {port}; server_name _; location / {{ return 200 "$msec\\n"; }} }}
}}
"""


def run() -> list[Row]:
    if shutil.which("nginx") is None:
        return []
    steady = _measure("http")
    ttl = _measure("ttl")
    return [
        Row(
            "5,000 HTTP checks every 10 s",
            100 * steady["cpu"],
            "% of a core",
            20,
            True,
            f"agent's CPU time by wall time over {SECONDS:.0f} s, plain HTTP to nginx, each answer different; "
            f"{steady['runs']:.0f} runs, {steady['failed']:.0f} failed, {steady['published']:.0f} transactions of the publisher",
        ),
        Row("5,000 TTL checks with a heartbeat every 10 s", 100 * ttl["cpu"], "% of a core", 5, True, "same parts; heartbeats from inside"),
    ]


def _measure(kind: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "nginx.conf")
        config.write_text(NGINX.format(folder=folder, port=f"127.0.0.1:{PORT}").replace("listen", _listens(), 1))
        server = subprocess.Popen(["nginx", "-p", folder, "-e", f"{folder}/start", "-c", config])
        try:
            time.sleep(0.5)
            done = subprocess.run(
                [sys.executable, "-m", "bench.checks", kind, folder], capture_output=True, text=True, timeout=SECONDS + INTERVAL_S + 60
            )
            if done.returncode:
                raise RuntimeError(done.stderr)
            found: dict[str, float] = json.loads(done.stdout)
            return found
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(10)


def _listens() -> str:
    """Further addresses of loopback, so that no pair of addresses runs out of ports."""
    return "".join(f"listen 127.0.0.{number}:{PORT}; " for number in range(2, 11)) + "listen"


async def _child(kind: str, folder: Path) -> dict[str, float]:
    from plait.agent.checkup import CheckPolicy, Checkup
    from plait.agent.journal import Journal
    from plait.agent.publisher import Publisher
    from plait.agent.view import View
    from plait.checks.runners import Runners
    from plait.model.discovery import Check, CheckDefinition
    from plait.services.health import Result
    from plait.store.replica import Replica
    from plait.store.sqlite import SqliteStore

    view, journal, store = View("A"), Journal(folder / "journal.db"), await SqliteStore.open(folder / "store.db")
    replica, publisher = Replica(store, folder / "replica.bin"), Publisher(view, store, view.caught_up)
    replica.subscribe(view.change)
    view.subscribe(lambda _: publisher.wake())

    runs = 0

    class Counted(Runners):
        async def run(self, definition: CheckDefinition) -> Result:
            nonlocal runs
            runs += 1
            return await super().run(definition)

    async def stays(service: str) -> object:
        raise AssertionError(service)

    runners = Counted(None)
    definition = CheckDefinition(kind="http", interval=INTERVAL_S, timeout=10.0)
    if kind == "ttl":
        definition = CheckDefinition(kind="ttl", ttl=3 * INTERVAL_S)
    checkup = Checkup(view, journal, runners, CheckPolicy(), stays, time.monotonic, random.random)
    checks = [
        Check(f"c{n}", "A", f"check {n}", "passing", definition=replace(definition, target=f"http://127.0.0.{n % 10 + 1}:{PORT}/{n}"))
        for n in range(CHECKS)
    ]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(loop) for loop in (replica.run(), publisher.run(), checkup.run())]
        await checkup.add(checks)
        beats = [group.create_task(_beat(checkup))] if kind == "ttl" else []
        await asyncio.sleep(INTERVAL_S + 2)
        before, revision, began, cpu = runs, view.revision, time.monotonic(), time.process_time()
        await asyncio.sleep(SECONDS)
        used, took = time.process_time() - cpu, time.monotonic() - began
        result = {
            "cpu": used / took,
            "runs": runs - before,
            "failed": sum((found := checkup.own(c.id)) is None or found.status != "passing" for c in checks),
            "published": view.revision - revision,
            "late": checkup.overdue()[0],
            "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        for task in (*tasks, *beats):
            task.cancel()
    await runners.close()
    await store.close()
    journal.close()
    return result


async def _beat(checkup: object) -> None:
    """A heartbeat for every check each interval, in 100 portions."""
    from plait.agent.checkup import Checkup

    assert isinstance(checkup, Checkup)
    while True:
        for portion in range(100):
            for number in range(portion, CHECKS, 100):
                checkup.update(f"c{number}", "passing", "well")
            await asyncio.sleep(INTERVAL_S / 100)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_child(sys.argv[1], Path(sys.argv[2])))))
    sys.stdout.flush()
    os._exit(0)
