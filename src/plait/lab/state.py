# SPDX-License-Identifier: Apache-2.0
"""What is written down about a lab: /run/plait-lab/<lab>.json, and where its files are.

The file exists from before the first namespace is made until after the last thing is removed, so a lab whose maker was killed
can be cleaned. Data in and out: `State`. The directory /run/plait-lab, that of the disks and the cgroups that labs share exist only while
there is a lab; the last lab's end removes them, under the same lock under which a new lab is written down.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any, TypeVar

from plait.lab.process import Process, boot_id, identify, is_alive
from plait.lab.spec import HostSpec, LabSpec, RouterSpec, SwitchSpec
from plait.model.errors import Conflict, NotFound, PlaitError

RUN = Path("/run/plait-lab")
DISKS = Path("/var/lib/plait-lab")
CGROUPS = Path("/sys/fs/cgroup")
_Record = TypeVar("_Record", Process, HostSpec, SwitchSpec)


@dataclass(frozen=True, slots=True)
class State:
    """One lab. `phase` "making" until `up` has ended well; `maker` is the process that does it.

    `owner` is a process whose death makes the lab rubbish (a test run); None: the lab stays until `down`. `holders` is by member
    name (hosts, switches, routers), `cuts` holds pairs of hosts in alphabetical order.
    """

    name: str
    spec: LabSpec
    boot: str
    maker: Process
    owner: Process | None = None
    phase: str = "making"
    holders: dict[str, Process] = field(default_factory=dict)
    cuts: tuple[tuple[str, str], ...] = ()

    @property
    def disks(self) -> Path:
        return DISKS / self.name

    @property
    def cgroup(self) -> str:
        """The lab's cgroup, relative to each hierarchy's root."""
        return f"plait-lab/{self.name}"

    @property
    def is_dead(self) -> bool:
        """Nobody will finish or remove it: it is from an earlier boot, its maker died halfway, or its owner is gone."""
        if self.boot != boot_id():
            return True
        if self.phase == "making":
            return not is_alive(self.maker)
        return self.owner is not None and not is_alive(self.owner)

    def holder(self, name: str) -> Process:
        """The living holder of member `name`. PlaitError if it has been killed."""
        self.spec.host(name)
        holder = self.holders.get(name)
        if holder is None or not is_alive(holder):
            raise PlaitError(f"host {name} of lab {self.name} is not running: its holder process is gone; `plait lab reboot {name}`")
        return holder


def new_state(name: str, spec: LabSpec, *, owned: bool) -> State:
    """A state as `create` wants it. `owned`: the lab is rubbish once this process has ended."""
    me = identify(os.getpid())
    assert me is not None
    return State(name=name, spec=spec, boot=boot_id(), maker=me, owner=me if owned else None)


def create(state: State) -> None:
    """Write down a new lab and make the directory of its disks. Conflict if one of that name is there."""
    path = _path(state.name)
    with locked():
        if path.exists():
            raise Conflict(f"lab {state.name} is there already; `plait lab down --name {state.name}` removes it")
        _write(path, state)
        state.disks.mkdir(parents=True, exist_ok=True)


def update(name: str, change: Callable[[State], State]) -> State:
    """Write down `change` of what is written down about a lab now, whoever else changes it meanwhile; returns it. NotFound without it."""
    with locked():
        state = change(load(name))
        _write(_path(name), state)
    return state


def load(name: str) -> State:
    """The lab of that name. NotFound names the labs there are."""
    try:
        return _decode(json.loads(_path(name).read_text()))
    except FileNotFoundError:
        there = ", ".join(state.name for state in list_labs()) or "none"
        raise NotFound(f"lab {name} does not exist (there: {there}); `plait lab up --name {name}` makes it") from None


def list_labs() -> list[State]:
    """Every lab that is written down, by name."""
    found = []
    for path in sorted(RUN.glob("*.json")):
        with contextlib.suppress(FileNotFoundError):
            found.append(_decode(json.loads(path.read_text())))
    return found


def forget(name: str) -> None:
    """Remove what is written down about a lab, and what labs share if it was the last one; absent is success."""
    with locked():
        if all(path.stem == name for path in RUN.glob("*.json")):
            for shared in (DISKS, *CGROUPS.glob("*/plait-lab"), CGROUPS / "plait-lab"):
                with contextlib.suppress(OSError):
                    shared.rmdir()
        for suffix in (".new", ".json"):
            _path(name).with_suffix(suffix).unlink(missing_ok=True)


def add_cut(state: State, first: str, second: str) -> State:
    """`state` with the two hosts parted."""
    a, b = sorted((first, second))
    return replace(state, cuts=tuple(sorted({*state.cuts, (a, b)})))


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Keep other lab commands from writing meanwhile. The directory is made for it, and removed after it if it is empty."""
    while True:
        RUN.mkdir(mode=0o755, exist_ok=True)
        fd = os.open(RUN, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), RUN.stat()):
                break
        os.close(fd)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            RUN.rmdir()
        os.close(fd)


def _path(name: str) -> Path:
    return RUN / f"{name}.json"


def _write(path: Path, state: State) -> None:
    scratch = path.with_suffix(".new")
    scratch.write_text(json.dumps(dataclasses.asdict(state), default=str, indent=1))
    scratch.rename(path)


def _decode(raw: dict[str, Any]) -> State:
    spec = raw["spec"]
    return State(
        name=raw["name"],
        boot=raw["boot"],
        phase=raw["phase"],
        maker=_known(Process, raw["maker"]),
        owner=_known(Process, raw["owner"]) if raw["owner"] else None,
        holders={name: _known(Process, holder) for name, holder in raw["holders"].items()},
        cuts=tuple((a, b) for a, b in raw["cuts"]),
        spec=LabSpec(
            switches=tuple(_known(SwitchSpec, switch) for switch in spec["switches"]),
            hosts=tuple(_host(host) for host in spec["hosts"]),
            routers=tuple(
                RouterSpec(r["name"], tuple(r["switches"]), tuple(ip_address(a) for a in r["addresses"])) for r in spec["routers"]
            ),
        ),
    )


def _host(raw: dict[str, Any]) -> HostSpec:
    second = raw.get("second")
    return _known(HostSpec, {**raw, "address": ip_address(raw["address"]), "second": IPv6Address(second) if second else None})


def _known(record: type[_Record], raw: dict[str, Any]) -> _Record:
    """The record of what is known here of `raw`: another version may have written down more."""
    names = {f.name for f in dataclasses.fields(record)}
    return record(**{name: value for name, value in raw.items() if name in names})
