# SPDX-License-Identifier: Apache-2.0
"""Makes and removes the namespaces, wires and disks of a lab.

Data in: a `State`. Data out: the same with holders filled in; what is made in the kernel and on disk. Removal needs nothing but the
written state, works from any half-made state and is idempotent.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from plait.lab import holder as holder_program
from plait.lab import state as states
from plait.lab import wires
from plait.lab.inside import net_argv
from plait.lab.process import Process, boot_id, forbid_machine, identify, kill_namespaces
from plait.lab.spec import HostSpec, LabSpec
from plait.lab.state import CGROUPS, State
from plait.model.errors import PlaitError

MAKE_TIMEOUT_S = 20.0
BATCH_TIMEOUT_S = 20.0


def make(state: State) -> State:
    """Make everything of a lab that `states.create` has written down. On an error the caller removes it with `remove`."""
    spec = state.spec
    described = [{"name": s.name, "kind": "switch"} for s in spec.switches]
    described += [{"name": r.name, "kind": "router"} for r in spec.routers]
    described += [_host(state, host) for host in spec.hosts]
    state = _start_holders(state, described)
    _wire(state, spec.hosts, fresh=True)
    return state


def remake_host(state: State, name: str) -> State:
    """End everything in host `name` and make its namespaces and its link again; its disk stays."""
    host = state.spec.host(name)
    old = state.holders.get(name)
    if old is not None:
        _thaw(f"{state.cgroup}/{name}")
        kill_namespaces([old])
    _run_all({host.switch: f"link del {wires.port(name)}\n"}, state.holders, forgiving=True)
    state = _start_holders(state, [_host(state, host)])
    _wire(state, (host,), fresh=False)
    return state


def apply_cuts(state: State) -> None:
    """Make exactly the cuts of `state` true on its switches. Idempotent."""
    for switch, script in wires.cut_rules(state.spec, state.cuts).items():
        done = subprocess.run(
            net_argv(state.holders[switch], ["nft", "-f", "-"]), input=script, capture_output=True, text=True, timeout=BATCH_TIMEOUT_S
        )
        if done.returncode:
            raise PlaitError(f"cut links on switch {switch}: {done.stderr.strip()}")


def remove(state: State) -> None:
    """Remove the lab: processes, namespaces, cgroups, disks, and last what is written down. Idempotent."""
    if state.boot == boot_id():
        _thaw(state.cgroup)
        kill_namespaces(list(state.holders.values()))
    _remove_cgroups(state.cgroup)
    subprocess.run(["rm", "-rf", "--one-file-system", "--", str(state.disks)], check=True, timeout=120)
    states.forget(state.name)


def host_table(spec: LabSpec) -> str:
    """The text of /etc/hosts: every host of the lab by name."""
    return "127.0.0.1 localhost\n::1 localhost ip6-localhost\n" + "".join(f"{host.address} {host.name}\n" for host in spec.hosts)


def _host(state: State, host: HostSpec) -> dict[str, str]:
    disk = state.disks / host.name
    bin_dir = str(Path(sys.executable).parent)
    return {"name": host.name, "kind": "host", "disk": str(disk), "bin": bin_dir, "hosts": host_table(state.spec)}


def _start_holders(state: State, described: list[dict[str, str]]) -> State:
    """Start a holder for each of `described`; when this returns they are written down and outlive this process."""
    program = [sys.executable, "-I", "-S", holder_program.__file__]
    maker = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/")
    assert maker.stdin is not None and maker.stdout is not None
    with maker:
        try:
            maker.stdin.write(json.dumps(described) + "\n")
            maker.stdin.flush()
            holders = _identify_all(_answer(maker))
            state = states.update(state.name, lambda now: replace(now, holders={**now.holders, **holders}))
            maker.stdin.write("go\n")
        finally:
            maker.stdin.close()
            maker.wait(MAKE_TIMEOUT_S)
    return state


def _answer(maker: subprocess.Popen[str]) -> dict[str, int]:
    assert maker.stdout is not None
    if not select.select([maker.stdout], [], [], MAKE_TIMEOUT_S)[0]:
        maker.kill()
        raise PlaitError(f"make the lab's namespaces: no answer within {MAKE_TIMEOUT_S:.0f} s")
    answer = json.loads(maker.stdout.readline() or '{"": "the maker died"}')
    if "" in answer:
        raise PlaitError(f"make the lab's namespaces: {answer['']}; root and overlay file systems are needed")
    return dict(answer)


def _identify_all(pids: Mapping[str, int]) -> dict[str, Process]:
    found = {}
    for name, pid in pids.items():
        process = identify(pid)
        if process is None:
            raise PlaitError(f"make the lab's namespaces: the holder of {name} died")
        forbid_machine(process.net)
        found[name] = process
    return found


def _wire(state: State, hosts: Iterable[HostSpec], *, fresh: bool) -> None:
    """Plug `hosts` into their switches and give them addresses. `fresh`: make the bridges and the routers' legs first."""
    spec, holders = state.spec, state.holders
    switch_text = {switch.name: wires.switch_batch(switch) if fresh else "" for switch in spec.switches}
    if fresh:
        for router in spec.routers:
            for index, (name, address) in enumerate(zip(router.switches, router.addresses, strict=True)):
                pid, mtu = holders[router.name].pid, spec.switch(name).mtu
                switch_text[name] += wires.plug_batch(router.name, pid, mtu, address, f"eth{index}")
    for host in hosts:
        switch_text[host.switch] += wires.plug_batch(host.name, holders[host.name].pid, host.mtu, host.address)
    _run_all(switch_text, holders)
    inside = {host.name: wires.host_batch(spec, host) for host in hosts}
    if fresh:
        inside |= {router.name: wires.router_batch(spec, router) for router in spec.routers}
    _run_all(inside, holders)


def _run_all(batches: Mapping[str, str], holders: Mapping[str, Process], *, forgiving: bool = False) -> None:
    """Run each `ip -batch` text in its member's network namespace, all at once. `forgiving`: what fails is skipped."""
    command = ["ip", "-force", "-batch", "-"] if forgiving else ["ip", "-batch", "-"]
    running = []
    for name, text in batches.items():
        if text:
            child = subprocess.Popen(
                net_argv(holders[name], command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            assert child.stdin is not None
            child.stdin.write(text)
            child.stdin.flush()
            running.append((name, child))
    failed = []
    for name, child in running:
        said, _ = child.communicate(timeout=BATCH_TIMEOUT_S)
        if child.returncode and not forgiving:
            failed.append(f"{name}: {said.strip()}")
    if failed:
        raise PlaitError(f"wire the lab: {'; '.join(failed)}")


def _thaw(cgroup: str) -> None:
    """Thaw whatever is frozen in `cgroup` (a paused container): under cgroup v1 a frozen process does not even die when it is killed."""
    for path in CGROUPS.glob(f"freezer/{cgroup}/**/freezer.state"):
        with suppress(OSError):
            path.write_text("THAWED")


def _remove_cgroups(cgroup: str, timeout_s: float = 5.0) -> None:
    """Remove `cgroup` and what is below it in every hierarchy (one below CGROUPS, or CGROUPS itself)."""
    end = time.monotonic() + timeout_s
    for root in (*CGROUPS.glob(f"*/{cgroup}"), CGROUPS / cgroup):
        while root.is_dir():
            for path, _, _ in os.walk(root, topdown=False):
                with suppress(OSError):
                    Path(path).rmdir()
            if time.monotonic() > end:
                raise PlaitError(f"remove cgroup {root}: a process is still in it")
