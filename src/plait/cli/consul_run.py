# SPDX-License-Identifier: Apache-2.0
"""`plait consul watch` and `plait consul lock`: programs that are run when something changes, or while a lock is held.

Data in: what is watched or locked, the words of the child. Data out: JSON on standard output or the child's standard input; exit statuses.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from plait.client.steps import Answer, Params, Request, decoded
from plait.client.sync import Client
from plait.client.sync_parts import Changes
from plait.client.watch import Query, Watch, fetch
from plait.model.errors import ConfigError, PlaitError

KILL_AFTER_S = 5.0
"""Between asking a child to end and killing it."""
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Seen:
    """An answer as JSON; the index goes to the child but is no change by itself."""

    value: Any
    index: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Seen) and self.value == other.value

    def __hash__(self) -> int:
        return hash(json.dumps(self.value, sort_keys=True))


def run_watch(client: Client, kind: str, child: Sequence[str], given: Mapping[str, Any]) -> int:
    """Print the present value, or run the child with it now and at each change until interrupted. ClientError if even the first read
    fails, which later ones may."""
    query = _query(kind, given)
    first = client.run(fetch(query))
    if not child:
        click.echo(_text(first))
        return 0
    with Changes(client, Watch(query, client.wait_s)) as changes:
        for seen in changes:
            environment = {**os.environ, "CONSUL_INDEX": str(seen.index)}
            try:
                subprocess.run(child, input=_text(seen).encode(), env=environment, check=False)
            except OSError as error:
                raise PlaitError(f"{child[0]} cannot be run: {error.strerror}") from error
    return 0


def _text(seen: Seen) -> str:
    return json.dumps(seen.value, indent=4, ensure_ascii=False)


def run_locked(client: Client, prefix: str, child: Sequence[str], limit: int, timeout: str, pass_on: bool) -> int:
    """Run the child while the lock is held. 0, or 1 if the lock was lost, or with `pass_on` 2 if the child failed."""
    ended: list[subprocess.Popen[bytes]] = []

    def lose(why: str) -> None:
        click.echo(f"Lock lost: {why}", err=True)
        for process in ended:
            process.terminate()

    wait_s = seconds(timeout) if timeout else None
    taken = (
        client.lock(f"{prefix.strip('/')}/.lock", timeout_s=wait_s, on_loss=lose)
        if limit == 1
        else client.semaphore(prefix, limit, timeout_s=wait_s, on_loss=lose)
    )
    with taken:
        try:
            process = subprocess.Popen(child, env={**os.environ, "CONSUL_LOCK_HELD": "true"})
        except OSError as error:
            raise PlaitError(f"{child[0]} cannot be run: {error.strerror}") from error
        ended.append(process)
        try:
            while process.poll() is None:
                if taken.lost.is_set():
                    _end(process)
                _wait(process, 0.5)
        finally:
            _end(process)
    return 2 if process.returncode and pass_on else 0


def seconds(text: str) -> float:
    """A duration such as 10s, 1.5m or 500ms; ConfigError for anything else."""
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    number = text.removesuffix(unit)
    if not unit or not number.replace(".", "", 1).isdigit() or not number.isascii():
        raise ConfigError("duration", text, "is not a time such as 500ms, 10s or 1m")
    return float(number) * _UNITS[unit]


def shell_words(child: Sequence[str]) -> list[str]:
    """The words of the program to run: one word is a line for the shell, several are a program and its arguments, as Consul has it."""
    return ["/bin/sh", "-c", child[0]] if len(child) == 1 else list(child)


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> None:
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        pass  # it goes on


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        _wait(process, KILL_AFTER_S)
    if process.poll() is None:
        process.kill()
        process.wait()


def _query(kind: str, given: Mapping[str, Any]) -> Query[Seen]:
    needed = {"key": "key", "keyprefix": "prefix", "service": "service", "agent_service": "service", "connect_leaf": "service"}
    if kind in needed and not given[needed[kind]]:
        raise ConfigError("watch", kind, f"needs -{needed[kind]}")
    service, flags = given["service"], tuple(("tag", tag) for tag in given["tag"])
    wanted: dict[str, tuple[str, Params]] = {
        "key": (f"kv/{given['key']}", ()),
        "keyprefix": (f"kv/{given['prefix']}", (("recurse", ""),)),
        "services": ("catalog/services", ()),
        "nodes": ("catalog/nodes", ()),
        "service": (f"health/service/{service}", (*flags, *((("passing", "1"),) if given["passingonly"] else ()))),
        "checks": (f"health/checks/{service}" if service else f"health/state/{given['state']}", ()),
        "agent_service": (f"agent/service/{service}", ()),
        "connect_roots": ("agent/connect/ca/roots", ()),  # an agent of plait refuses these two with words: it has no Connect
        "connect_leaf": (f"agent/connect/ca/leaf/{service}", ()),
        "event": ("event/list", (("name", given["name"]),) if given["name"] else ()),
    }
    if kind not in wanted:
        raise ConfigError("watch", kind, "is no type", f"choose one of {', '.join(wanted)}")
    path, params = wanted[kind]

    def parse(request: Request, answer: Answer) -> Seen:
        value = None if answer.status == 404 else decoded(request, answer)
        return Seen(value[0] if kind == "key" and value else value, answer.index)

    may_be_none = kind in ("key", "keyprefix", "agent_service")
    return Query(Request("GET", path, params), parse, (404,) if may_be_none else (), ordered=kind != "event")
