# SPDX-License-Identifier: Apache-2.0
"""CNI's ADD and DEL with one published port, beside the reference chain (bridge, host-local, portmap), one host, interleaved.

`run` makes a lab host with an agent and calls this module inside it, so that no way into the host is measured.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.core import Row, interleave, ratio
from plait.lab.lab import Lab
from plait.lab.spec import simple

ROUNDS = 20
PAUSE_S = 0.4
"""Before each call, for all of them: a container lives for a while, and the agent looks at the kernel after what it did."""
ROOT = Path(__file__).resolve().parents[1]
_C = "/var/lib/plait-lab/c"
_PORT = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
_BRIDGE = {
    "type": "bridge",
    "bridge": "cni-bench",
    "isGateway": True,
    "ipMasq": True,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]},
}
_PLAIT = {"type": "plait", "network": "default", "runtimeConfig": {"portMappings": _PORT}}
CHAINS: Mapping[str, tuple[str, Sequence[Mapping[str, Any]]]] = {
    "reference": ("/usr/lib/cni", [_BRIDGE, {"type": "portmap", "snat": True, "runtimeConfig": {"portMappings": _PORT}}]),
    "python": ("/opt/cni/bin", [_PLAIT]),
    "c": (_C, [_PLAIT]),
}
"""Directory of the plug-ins and the chain, by name."""


def run() -> list[Row]:
    subprocess.run(["make", "-s", "build/plait-cni"], cwd=ROOT, check=True)
    lab = Lab.up(simple(1), "bench-cni", owned=True)
    try:
        lab.run("A", "mkdir", "-p", "/etc/cni/net.d", _C)
        lab.kill_agent("A")
        lab.start_agent("A")
        shutil.copy(ROOT / "build/plait-cni", lab.path("A", f"{_C}/plait"))
        done = lab.run("A", "env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "bench.cni", timeout_s=300)
        found = json.loads(done.stdout)
    finally:
        lab.down()
    note = "one container, one port; the plug-ins alone, as a runtime executes them, 0.4 s apart"
    rows = []
    for verb, bars in (("ADD", {"python": 0.5, "c": 0.25}), ("DEL", {"python": 0.35, "c": 0.25})):
        for name, bar in bars.items():
            what = f"CNI {verb} by the plug-in in {name.title()}"
            rows.append(Row(what, ratio(found[verb], name, "reference"), "x bridge + host-local + portmap", bar, True, note))
    return rows


def _inside() -> None:
    """Times of every round by verb and chain, as JSON on standard output."""
    deletions: dict[str, list[float]] = {name: [] for name in CHAINS}
    additions = interleave({name: (lambda name=name: _once(name, deletions[name])) for name in CHAINS}, ROUNDS)
    print(json.dumps({"ADD": additions, "DEL": {name: times[1:] for name, times in deletions.items()}}))


def _once(name: str, deletions: list[float]) -> float:
    """One life of an attachment in a fresh namespace; seconds of its ADD, those of its DEL are appended."""
    folder, chain = CHAINS[name]
    subprocess.run(["ip", "netns", "add", "bench"], check=True)
    try:
        call = _caller(folder, name)
        result: Any = None

        def add() -> None:
            nonlocal result
            for plugin in chain:
                result = call("ADD", plugin, result)

        took = _timed(add)
        deletions.append(_timed(lambda: [call("DEL", plugin, result) for plugin in reversed(chain)]))
    finally:
        subprocess.run(["ip", "netns", "del", "bench"], check=True)
    return took


def _timed(work: Callable[[], object]) -> float:
    time.sleep(PAUSE_S)
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _caller(folder: str, name: str) -> Callable[[str, Mapping[str, Any], Any], Any]:
    environ = {
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/bench",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": folder,
        "PATH": os.environ["PATH"],
    }

    def call(verb: str, plugin: Mapping[str, Any], previous: Any) -> Any:
        config = {"cniVersion": "1.0.0", "name": name, **plugin} | ({"prevResult": previous} if previous else {})
        program = f"{folder}/{plugin['type']}"
        done = subprocess.run([program], env=environ | {"CNI_COMMAND": verb}, input=json.dumps(config), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{program} {verb}: {done.stdout}{done.stderr}")
        return json.loads(done.stdout) if done.stdout else None

    return call


if __name__ == "__main__":
    _inside()
