# SPDX-License-Identifier: Apache-2.0
"""A Docker Engine per host: its data directory, its start and its end.

Data in: a `State`, a host's name, and the images' template (`lab/images.py`). Data out: a running dockerd on the host's
/run/docker.sock, with its own containerd, data and cgroup parent. Each engine's containers live in the host's PID namespace, so
they end with the host. dockerd is started with the options that the agent wrote, as a systemd unit would source them.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from plait.lab import inside
from plait.lab.process import Process, until
from plait.lab.state import State
from plait.model.errors import PlaitError

SOCKET = "/run/docker.sock"
OPTIONS = "/run/plait/docker.env"
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


def log_of(state: State, name: str) -> Path:
    return state.disks / name / "docker.log"


def start(state: State, name: str, extra: Sequence[str] = ()) -> None:
    """Start the engine of host `name` and wait until it answers. `extra` are further dockerd options. PlaitError has its log's end."""
    holder = state.holder(name)
    if inside.daemon_pid(holder, "dockerd") is not None:
        raise PlaitError(f"start the engine of host {name}: it is running already")
    for stale in ("/run/docker.pid", "/run/docker/containerd/containerd.pid"):
        inside.path_of(holder, stale).unlink(missing_ok=True)
    log = log_of(state, name)
    inside.start_daemon(name, holder, "dockerd", _command(state, name, holder, extra), log)
    end = time.monotonic() + READY_TIMEOUT_S
    while inside.http_status(holder, SOCKET, "/_ping") != 200:
        if inside.daemon_pid(holder, "dockerd") is None:
            raise PlaitError(f"dockerd on host {name}: ended before it was ready; the end of {log}:\n{inside.tail(log)}")
        if time.monotonic() > end:
            raise PlaitError(f"dockerd on host {name}: not ready within {READY_TIMEOUT_S:.0f} s; the end of {log}:\n{inside.tail(log)}")
        time.sleep(0.02)


def stop(state: State, name: str, *, kill: bool = False) -> None:
    """End the engine of host `name` (SIGTERM, or SIGKILL if `kill`) and wait until its containerd is gone too: a new dockerd that
    meets the old one's containerd waits for half a minute and fails. An engine that does not run is success."""
    holder = state.holder(name)
    pid = inside.daemon_pid(holder, "dockerd")
    if pid is not None:
        inside.run(name, holder, ["kill", "-KILL" if kill else "-TERM", str(pid)])
    until(f"stop dockerd on host {name}", lambda: inside.daemon_pid(holder, "dockerd") is None, STOP_TIMEOUT_S)
    until(f"stop containerd on host {name}", lambda: not _containerd_runs(holder), STOP_TIMEOUT_S)


def is_running(state: State, name: str) -> bool:
    """Whether the engine's process lives in host `name`."""
    return inside.daemon_pid(state.holder(name), "dockerd") is not None


def _command(state: State, name: str, holder: Process, extra: Sequence[str]) -> list[str]:
    fixed = [
        "dockerd",
        "--host=unix:///run/docker.sock",
        "--data-root=/var/lib/docker",
        "--exec-root=/run/docker",
        "--pidfile=/run/docker.pid",
        "--storage-driver=overlay2",
        "--exec-opt=native.cgroupdriver=cgroupfs",
        f"--cgroup-parent=/{state.cgroup}/{name}",
    ]
    return [*fixed, *(_given_options(holder) or [f"--bip=10.27.{_number(state, name)}.1/24"]), *extra]


def _given_options(holder: Process) -> list[str]:
    """PLAIT_DOCKER_OPTS of the file that the agent writes, split as a shell would; [] if there is none."""
    with suppress(FileNotFoundError):
        for line in shlex.split(inside.path_of(holder, OPTIONS).read_text(), comments=True):
            key, _, value = line.partition("=")
            if key == "PLAIT_DOCKER_OPTS":
                return shlex.split(value)
    return []


def _number(state: State, name: str) -> int:
    return [host.name for host in state.spec.hosts].index(name) + 1


def _containerd_runs(holder: Process) -> bool:
    with suppress(OSError, ValueError):
        pid = int(inside.path_of(holder, "/run/docker/containerd/containerd.pid").read_text())
        return inside.path_of(holder, f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False
