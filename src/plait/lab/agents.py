# SPDX-License-Identifier: Apache-2.0
"""plait's agents in the hosts of a lab: configured, joined, started, waited for, killed.

Data in: a `State` and a host's name. Data out: running agents. Each is made by the `plait` program as a user would do
it; only the tokens come straight from the first agent's socket, which saves a process per host.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from plait.client.admin import AdminClient
from plait.lab import inside
from plait.lab.process import until
from plait.lab.spec import HostSpec
from plait.lab.state import State
from plait.model.errors import PlaitError

SOCKET = "/run/plait/plait.sock"
READY_TIMEOUT_S = 20.0
COMMAND_TIMEOUT_S = 20.0
TOKEN_TTL_S = 60


def config_text(host: HostSpec) -> str:
    """The text of the host's /etc/plait/plait.toml."""
    engine = str(host.engine).lower()
    return f'[node]\nname = "{host.name}"\naddress = "{host.address}"\n\n[docker]\nenabled = {engine}\ndefault_bridge = {engine}\n'


def log_of(state: State, name: str) -> Path:
    return state.disks / name / "agent.log"


def form_cluster(state: State, started: Callable[[str], None]) -> None:
    """Make the cluster of all hosts with an agent: the first one initialises it, the others join at the same time. Returns when
    every agent is ready; `started` is told each one's name then. PlaitError has the host, the command and the end of its log."""
    hosts = [host for host in state.spec.hosts if host.agent]
    if not hosts:
        return
    first, others = hosts[0], hosts[1:]
    for host in hosts:
        (state.disks / host.name / "own/etc/plait/plait.toml").write_text(config_text(host))
    _plait(state, first.name, "init")
    start(state, first.name)
    started(first.name)

    client = AdminClient(inside.path_of(state.holder(first.name), SOCKET))

    def join(host: HostSpec) -> None:
        token = client.create_token(TOKEN_TTL_S)["token"]
        _plait(state, host.name, "join", str(first.address), "--token", token)
        start(state, host.name)
        started(host.name)

    with ThreadPoolExecutor(max_workers=8) as pool:
        for future in [pool.submit(join, host) for host in others]:
            future.result()


def start(state: State, name: str) -> None:
    """Start the agent of host `name` and wait until it is ready. PlaitError if it runs already or does not become ready."""
    holder = state.holder(name)
    if inside.daemon_pid(holder, "agent") is not None:
        raise PlaitError(f"start the agent of host {name}: it is running already")
    log = log_of(state, name)
    inside.start_daemon(name, holder, "agent", ["plait", "agent"], log)
    end = time.monotonic() + READY_TIMEOUT_S
    while inside.http_status(holder, SOCKET, "/v1/ready") != 200:
        if inside.daemon_pid(holder, "agent") is None:
            raise PlaitError(f"plait agent on host {name}: ended before it was ready; the end of {log}:\n{inside.tail(log)}")
        if time.monotonic() > end:
            raise PlaitError(f"plait agent on host {name}: not ready within {READY_TIMEOUT_S:.0f} s; the end of {log}:\n{inside.tail(log)}")
        time.sleep(0.01)


def wait_for_engine(state: State, name: str) -> None:
    """Wait until the agent of host `name` sees the host's engine. PlaitError if it does not."""
    client = AdminClient(inside.path_of(state.holder(name), SOCKET))

    def sees() -> bool:
        return any(engine["reachable"] for engine in client.status()["engines"])

    until(f"the agent of host {name} sees its engine", sees, READY_TIMEOUT_S, every_s=0.05)


def kill(state: State, name: str) -> None:
    """SIGKILL the agent of host `name`. PlaitError if none runs."""
    holder = state.holder(name)
    pid = inside.daemon_pid(holder, "agent")
    if pid is None:
        raise PlaitError(f"kill the agent of host {name}: none is running; `plait lab start-agent {name}` starts it")
    inside.run(name, holder, ["kill", "-KILL", str(pid)])
    while inside.daemon_pid(holder, "agent") is not None:
        time.sleep(0.002)


def is_running(state: State, name: str) -> bool:
    """Whether the agent's process lives in host `name`."""
    return inside.daemon_pid(state.holder(name), "agent") is not None


def _plait(state: State, name: str, *words: str) -> str:
    try:
        return inside.run(name, state.holder(name), ["plait", *words], timeout_s=COMMAND_TIMEOUT_S).stdout
    except inside.CommandFailed as error:
        end = inside.tail(log_of(state, name))
        raise PlaitError(f"{error}" + (f"\nthe end of its agent's log:\n{end}" if end else "")) from error
