# SPDX-License-Identifier: Apache-2.0
"""`plait status`: whether all is well, on one screen; `plait wait`: the same question for scripts, until the answer is good enough.

Data in: the agent's `StatusView`, or what it still waits for. Data out: lines, one or two per part however large the cluster is, and
everything that is wrong with what to do about it; exit status 0 only if all is well (`wait`: if the agent is ready).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from plait.cli.common import both, json_option, show_json, span, with_agent
from plait.model.errors import PlaitError

if TYPE_CHECKING:
    from plait.client.admin import AdminClient
    from plait.model.report import PathState, StatusView

NAMED = 8
"""How many things of a kind are named one by one; of more, the count is shown."""
WAIT_EVERY_S = 0.1
"""Pause between two questions of `plait wait`; a start takes about ten times as long."""


@click.command()
@json_option
@with_agent
def status(client: AdminClient, as_json: bool) -> int:
    """Show whether all is well. Exit status 0 only if it is."""
    view = client.status()
    if as_json:
        show_json(view)
    else:
        for line in page(view):
            click.echo(line)
    return 0 if view["well"] else 1


@click.command()
@click.option("--timeout", type=click.FloatRange(min=0), default=60.0, show_default=True, help="Longest wait, in seconds.")
@with_agent
def wait(client: AdminClient, timeout: float) -> None:
    """Wait until the agent of this host is ready: it has addresses, its first pass is made and names are answered."""
    from plait.client.admin import AgentNotRunning

    end = time.monotonic() + timeout
    while True:
        left = end - time.monotonic()
        try:
            waiting = client.ready(timeout_s=max(left, WAIT_EVERY_S))
        except AgentNotRunning:
            waiting = "its process: nobody answers on its socket (see `journalctl -u plait`)"
        if not waiting:
            return
        if left <= WAIT_EVERY_S:
            raise PlaitError(f"the agent of this host is not ready after {timeout:g} s; it waits for {waiting}")
        time.sleep(WAIT_EVERY_S)


def page(view: StatusView) -> Iterator[str]:
    """The lines of the screen."""
    yield f"{view['node']}: {_verdict(view)}  (plait {view['version']}, up {span(view['uptime_s'])})"
    yield ""
    for title, lines in (
        ("store", _store(view)),
        ("nodes", _nodes(view)),
        ("networks", _networks(view)),
        ("engines", _engines(view)),
        ("blocks", _blocks(view)),
        ("paths", _paths(view)),
    ):
        for index, line in enumerate(lines):
            yield f"{title if index == 0 else '':<10}{line}"
    for condition in view["conditions"]:
        about = f" [{condition['subject']}]" if condition["subject"] else ""
        yield ""
        yield f"{condition['severity'].upper()} {condition['code']}{about}: {condition['title']}"
        yield f"    {condition['text']}"
        yield f"    -> {condition['todo']}"


def _verdict(view: StatusView) -> str:
    if view["well"]:
        return "all is well"
    count = len(view["conditions"])
    parts = [f"not ready, waits for {view['waiting']}"] if view["waiting"] else []
    parts += [f"{count} thing{'s need' if count > 1 else ' needs'} attention"] if count else []
    return "; ".join(parts)


def _store(view: StatusView) -> list[str]:
    store = view["store"]
    state = "reachable" if store["reachable"] else "OUT OF REACH"
    where = "in this agent" if store["role"] == "embedded" else f"at {store['address']}"
    return [f"{where}, {state}, revision {store['revision']}"]


def _nodes(view: StatusView) -> list[str]:
    rows = view["nodes"]
    lost = [row["name"] for row in rows if not row["alive"]]
    line = f"{len(rows) - len(lost)} of {len(rows)} alive: {_some([row['name'] for row in rows if row['alive']])}"
    return [line, *([f"LOST: {_some(lost)}"] if lost else [])]


def _networks(view: StatusView) -> list[str]:
    subnets = [(row, both(row["subnet"], row.get("subnet6", ""))) for row in view["networks"]]
    shown = [
        f"{row['name']} {subnet} ({row['backend']}, {_plural(row['endpoints'], 'endpoint')}{', exposed' if row.get('exposed') else ''})"
        for row, subnet in subnets
    ]
    return [_some(shown) or "none"]


def _engines(view: StatusView) -> list[str]:
    lines = []
    for engine in view["engines"]:
        name = f"{engine['runtime']} {engine['version']}".rstrip()
        lines.append(
            f"{name}, {_plural(engine['containers'], 'container')}" if engine["reachable"] else f"{name} UNREACHABLE: {engine['error']}"
        )
    return lines or ["none on this host"]


def _blocks(view: StatusView) -> list[str]:
    """This node's blocks, summed per network."""
    mine = [block for block in view["blocks"] if block["node"] == view["node"]]
    lines = []
    for network in dict.fromkeys(block["network"] for block in mine):
        held = [block for block in mine if block["network"] == network]
        pool = [block for block in held if block["used"] >= 0]
        used, size = sum(block["used"] for block in pool), sum(block["size"] for block in pool)
        filled = f"; {used} of {size} addresses used" if pool else ", the engine's own"
        lines.append(f"{network}: {_some([block['cidr'] for block in held])}{filled}")
    return lines[:NAMED] + ([f"and {len(lines) - NAMED} networks more"] if len(lines) > NAMED else []) or ["none"]


def _paths(view: StatusView) -> list[str]:
    rows = view["paths"]
    broken = [f"to {row['node']} ({row['address']}): {row['error']}" for row in rows if row["error"]]
    usable = [f"{row['node']} ({_how(row)})" for row in rows if not row["error"]]
    if not rows:
        return ["no other node"]
    more = [f"and {len(broken) - NAMED} more"] if len(broken) > NAMED else []
    return [f"{len(usable)} of {len(rows)} usable: {_some(usable)}".rstrip(": "), *broken[:NAMED], *more]


def _how(row: PathState) -> str:
    """One usable path: its backend, what fits through it and, of an encrypted one, what is known of that."""
    line = f"{row['backend']}, mtu {row['mtu']}{'' if row['probed'] else ' not probed'}"
    if not row.get("encrypted"):
        return line
    if row["relay"]:
        line += f", by way of {row['relay']}"
    handshake = f"handshake {span(max(0.0, time.time() - row['handshake']))} ago" if row["handshake"] else "no handshake yet"
    return f"{line}, encrypted {'proved' if row['encrypted'] == 'proved' else 'NOT PROVED'}, {handshake}"


def _some(names: list[str]) -> str:
    """The names joined; from `NAMED` on only how many more there are."""
    extra = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {extra} more" if extra > 0 else "")


def _plural(count: int, thing: str) -> str:
    return f"{count} {thing}" + ("" if count == 1 else "s")
