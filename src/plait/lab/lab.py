# SPDX-License-Identifier: Apache-2.0
"""The lab as one object: many hosts on one machine, for tests, demonstrations and trying things out.

Data in: a `LabSpec` and a name. Data out: running hosts, commands in them, faults on them. Every method reads the written state
anew, so several programs may use one lab.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from plait.lab import agents, build, engines, images, inside
from plait.lab import state as states
from plait.lab.process import is_alive
from plait.lab.spec import LabSpec, lab_name
from plait.lab.state import State

Progress = Callable[[str], None]


def _quiet(_: str) -> None:
    """The progress of nobody who listens."""


class Lab:
    """A lab that is up. `Lab.up` makes one, `Lab(name)` finds one that another program made."""

    def __init__(self, name: str) -> None:
        self.name = lab_name(name)

    @classmethod
    def up(cls, spec: LabSpec, name: str = "lab", *, owned: bool = False, progress: Progress = _quiet) -> Lab:
        """Make the lab of `spec`; returns when its agents and engines are ready. A dead lab of that name is removed first, a living
        one is a Conflict. `owned`: it may be swept away once this process has ended. On an error nothing is left of it."""
        lab = cls(name)
        if any(state.name == name and state.is_dead for state in states.list_labs()):
            lab.down()
        engine_hosts = [host.name for host in spec.hosts if host.engine]
        template = images.template(progress) if engine_hosts else None
        state = states.new_state(name, spec, owned=owned)
        states.create(state)
        try:
            for host in engine_hosts:
                assert template is not None
                images.seed(template, state.disks / host / "own/var/lib/docker")
            state = build.make(state)
            progress(f"{len(spec.hosts)} hosts: {' '.join(host.name for host in spec.hosts)}")
            agents.form_cluster(state, lambda host: progress(f"agent of {host} is ready"))
            lab._start_engines(state, engine_hosts, progress)
            states.update(name, lambda now: replace(now, phase="up"))
        except BaseException:
            lab.down()
            raise
        return lab

    @property
    def state(self) -> State:
        """What is written down about the lab now. NotFound if it is gone."""
        return states.load(self.name)

    @property
    def hosts(self) -> list[str]:
        """Names of the hosts, in the order of the spec."""
        return [host.name for host in self.state.spec.hosts]

    def address(self, host: str) -> str:
        """Underlay address of `host`."""
        return str(self.state.spec.host(host).address)

    def argv(self, host: str, command: Sequence[str]) -> list[str]:
        """What to execute from outside so that `command` runs in `host` (use it with `environment()`)."""
        return inside.argv(self.state.holder(host), command)

    def run(
        self, host: str, *command: str, timeout_s: float = 30.0, check: bool = True, text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` in `host` to its end; see `inside.run`."""
        return inside.run(host, self.state.holder(host), command, timeout_s=timeout_s, check=check, text=text)

    def popen(self, host: str, *command: str, **options: Any) -> subprocess.Popen[Any]:
        """Start `command` in `host` and return at once; `options` are those of subprocess.Popen. SIGKILL of the returned process
        kills the command."""
        return subprocess.Popen(self.argv(host, command), env=inside.environment(), **options)

    def path(self, host: str, path: str) -> Path:
        """Where the host's absolute `path` is found from outside, until the host is rebooted."""
        return inside.path_of(self.state.holder(host), path)

    def cut(self, first: str, second: str) -> None:
        """Drop everything between two hosts, both ways, until `heal`. Idempotent."""
        state = self.state
        state.spec.host(first), state.spec.host(second)
        build.apply_cuts(states.update(self.name, lambda now: states.add_cut(now, first, second)))

    def heal(self) -> None:
        """End every cut. Idempotent."""
        build.apply_cuts(states.update(self.name, lambda now: replace(now, cuts=())))

    def kill_agent(self, host: str) -> None:
        """SIGKILL the agent of `host`."""
        agents.kill(self.state, host)

    def start_agent(self, host: str) -> None:
        """Start the agent of `host` again; returns when it is ready."""
        agents.start(self.state, host)

    def stop_engine(self, host: str, *, kill: bool = False) -> None:
        """End dockerd and its containerd on `host`."""
        engines.stop(self.state, host, kill=kill)

    def start_engine(self, host: str, *options: str) -> None:
        """Start dockerd on `host` with further `options`; returns when it answers, and the host's agent sees it if one is running."""
        _start_engine(self.state, host, options)

    def reboot(self, host: str, *, start: bool = True) -> None:
        """Power loss and return: everything of `host` is killed, its links, routes, nft tables and /run are gone, its disk stays. Its
        agent and engine are started again as far as it had them, unless `start` is False."""
        state = build.remake_host(self.state, host)
        spec = state.spec.host(host)
        if start and spec.agent:
            agents.start(state, host)
        if start and spec.engine:
            _start_engine(state, host)

    def down(self) -> None:
        """Remove the lab and everything of it. Idempotent."""
        for state in states.list_labs():
            if state.name == self.name:
                build.remove(state)

    @staticmethod
    def _start_engines(state: State, hosts: Sequence[str], progress: Progress) -> None:
        def start(host: str) -> None:
            _start_engine(state, host)
            progress(f"engine of {host} is ready")

        with ThreadPoolExecutor(max_workers=4) as pool:
            for future in [pool.submit(start, host) for host in hosts]:
                future.result()


def _start_engine(state: State, host: str, options: Sequence[str] = ()) -> None:
    engines.start(state, host, options)
    if agents.is_running(state, host):
        agents.wait_for_engine(state, host)


def sweep() -> list[str]:
    """Remove every dead lab (`State.is_dead`); returns their names."""
    dead = [state for state in states.list_labs() if state.is_dead]
    for state in dead:
        build.remove(state)
    return [state.name for state in dead]


def overview() -> list[dict[str, object]]:
    """One row per host of every lab: lab, host, switch, address, state ("up", "dead", "making"), agent and engine ("running",
    "stopped", "-" where it has none). Ordered by lab, then as in the spec."""
    rows: list[dict[str, object]] = []
    for state in states.list_labs():
        for host in state.spec.hosts:
            holder = state.holders.get(host.name)
            up = holder is not None and is_alive(holder)
            row: dict[str, object] = {"lab": state.name, "host": host.name, "switch": host.switch, "address": str(host.address)}
            row["state"] = "dead" if state.is_dead or not up else state.phase
            row["agent"] = _running(up and agents.is_running(state, host.name)) if host.agent else "-"
            row["engine"] = _running(up and engines.is_running(state, host.name)) if host.engine else "-"
            rows.append(row)
    return rows


def _running(it_does: bool) -> str:
    return "running" if it_does else "stopped"
