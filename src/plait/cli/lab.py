# SPDX-License-Identifier: Apache-2.0
"""`plait lab`: many hosts on this machine, to try plait out without more machines.

Data in: command-line words. Data out: calls of `plait.lab`, which is imported by the command that needs it, so that the other commands
start fast. Every error is shown as its text, without a traceback, with exit status 1.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click

from plait.model.errors import PlaitError

if TYPE_CHECKING:
    from plait.lab.lab import Lab
    from plait.lab.spec import LabSpec

P = ParamSpec("P")
R = TypeVar("R")
DEFAULT_HOSTS = 3


def _plainly(command: Callable[P, R]) -> Callable[P, R]:
    """Show a deliberate error as its text, and say at once who may use the lab."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        if os.geteuid() != 0:
            raise click.ClickException("the lab makes namespaces and mounts: run it as root")
        try:
            return command(*args, **kwargs)
        except PlaitError as error:
            raise click.ClickException(str(error)) from error

    return wrapped


_name = click.option("--name", "lab_name", default="lab", show_default=True, envvar="PLAIT_LAB", help="Which lab.")


def _lab(name: str) -> Lab:
    from plait.lab.lab import Lab

    return Lab(name)


def _say(line: str) -> None:
    click.echo(line, err=True)


@click.group()
def lab() -> None:
    """Many hosts on this machine, each with its own network, files, agent and engine."""


@lab.command()
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--hosts", type=int, help=f"How many hosts, on one switch. [default: {DEFAULT_HOSTS}]")
@click.option("--docker", is_flag=True, help="A Docker Engine on every host, with the images nginx and mysql.")
@click.option("--no-agents", is_flag=True, help="Bare hosts.")
@_name
@_plainly
def up(file: Path | None, hosts: int | None, docker: bool, no_agents: bool, lab_name: str) -> None:
    """Make a lab: of FILE (docs/lab.md), or of some hosts on one switch. Ready when it returns."""
    if file is not None and hosts is not None:
        raise click.UsageError("give FILE or --hosts, not both: the file lists its hosts")
    spec = _spec(file, hosts or DEFAULT_HOSTS, agents=not no_agents, engines=docker)
    from plait.lab.lab import Lab

    began = time.monotonic()
    Lab.up(spec, lab_name, progress=_say)
    _say(f"lab {lab_name} is up ({time.monotonic() - began:.1f} s); try `plait lab exec {spec.hosts[0].name} -- bash`")


def _spec(file: Path | None, hosts: int, *, agents: bool, engines: bool) -> LabSpec:
    from plait.lab import spec

    if file is None:
        return spec.simple(hosts, agents=agents, engines=engines)
    return spec.parse_toml(file.read_text(), agents=agents, engines=engines, where=str(file))


@lab.command()
@click.option("--json", "as_json", is_flag=True, help="As one JSON array.")
@_plainly
def ls(as_json: bool) -> None:
    """List the hosts of all labs."""
    from plait.lab.lab import overview

    rows = overview()
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    columns = ("lab", "host", "switch", "address", "state", "agent", "engine")
    table = [tuple(column.upper() for column in columns), *(tuple(str(row[column]) for column in columns) for row in rows)]
    widths = [max(len(line[index]) for line in table) for index in range(len(columns))]
    for line in table:
        click.echo("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip())


@lab.command(name="exec", context_settings={"allow_interspersed_args": False})
@click.argument("host")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@_name
@_plainly
def exec_(host: str, command: tuple[str, ...], lab_name: str) -> None:
    """Run COMMAND in HOST, with this terminal or pipe and the command's exit status."""
    from plait.lab import inside

    if command[0] == "--":
        command = command[1:]
    if not command:
        raise click.UsageError("no command: plait lab exec HOST -- CMD…")
    words = _lab(lab_name).argv(host, command)
    sys.stdout.flush()
    os.execvpe(words[0], words, inside.environment())


@lab.command()
@click.argument("first")
@click.argument("second")
@_name
@_plainly
def cut(first: str, second: str, lab_name: str) -> None:
    """Let nothing pass between two hosts, until `heal`."""
    _lab(lab_name).cut(first, second)


@lab.command()
@_name
@_plainly
def heal(lab_name: str) -> None:
    """End every cut."""
    _lab(lab_name).heal()


@lab.command(name="kill-agent")
@click.argument("host")
@_name
@_plainly
def kill_agent(host: str, lab_name: str) -> None:
    """Kill the agent of HOST the hard way (SIGKILL)."""
    _lab(lab_name).kill_agent(host)


@lab.command(name="start-agent")
@click.argument("host")
@_name
@_plainly
def start_agent(host: str, lab_name: str) -> None:
    """Start the agent of HOST; ready when it returns."""
    _lab(lab_name).start_agent(host)


@lab.command()
@click.argument("host")
@_name
@_plainly
def reboot(host: str, lab_name: str) -> None:
    """Power HOST off and on: only its disk stays. Its agent and engine are started again."""
    _lab(lab_name).reboot(host)


@lab.command()
@click.option("--all", "every", is_flag=True, help="Every lab of this machine, whoever made it.")
@_name
@_plainly
def down(every: bool, lab_name: str) -> None:
    """Remove the lab with everything of it. One that is not there is success."""
    from plait.lab.state import list_labs

    for name in [state.name for state in list_labs()] if every else [lab_name]:
        _lab(name).down()


@lab.command()
@click.option("--fresh", is_flag=True, help="Build them even if they are there.")
@_plainly
def images(fresh: bool) -> None:
    """Build the images nginx and mysql from Debian packages; nothing is pulled."""
    from plait.lab import images as recipes

    click.echo(recipes.template(_say, fresh=fresh))


@lab.command()
@_plainly
def demo() -> None:
    """Play the four-host case and check every step. Exit status 0 only if all of it holds."""
    from plait.lab import demo as case

    # A polite kill must not leave the lab behind either.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if not case.run(click.echo).is_good:
        sys.exit(1)


if __name__ == "__main__":
    lab(prog_name="plait lab")
