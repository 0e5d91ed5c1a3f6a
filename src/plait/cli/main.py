# SPDX-License-Identifier: Apache-2.0
"""The program `plait`: finds the command, imports only its module, and turns every deliberate error into one line.

Data in: command-line words. Data out: the command's output and exit status: 0 done, 1 refused or failed (one line `plait: …` on standard
error), 2 wrong usage, 130 interrupted. A command may end with another status where it passes on that of a program it ran.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence

import click

from plait.cli.common import CommandFailed
from plait.model.errors import PlaitError

COMMANDS: Mapping[str, str] = {
    "init": "plait.cli.node",
    "join": "plait.cli.node",
    "agent": "plait.cli.node",
    "down": "plait.cli.node",
    "token": "plait.cli.node",
    "gateway": "plait.cli.node",
    "status": "plait.cli.status",
    "wait": "plait.cli.status",
    "paths": "plait.cli.paths",
    "routing": "plait.cli.routing",
    "egress": "plait.cli.egress",
    "nodes": "plait.cli.listing",
    "node": "plait.cli.listing",
    "ps": "plait.cli.listing",
    "ports": "plait.cli.listing",
    "publish": "plait.cli.publish",
    "unpublish": "plait.cli.publish",
    "limit": "plait.cli.limit",
    "ipam": "plait.cli.ipam",
    "plan": "plait.cli.listing",
    "network": "plait.cli.network",
    "policy": "plait.cli.policy",
    "service": "plait.cli.service",
    "expose": "plait.cli.network",
    "cluster": "plait.cli.cluster",
    "keys": "plait.cli.keys",
    "run": "plait.cli.sandbox",
    "exec": "plait.cli.sandbox",
    "rm": "plait.cli.sandbox",
    "consul": "plait.cli.consul",
    "lab": "plait.cli.lab",
    "version": "plait.cli.listing",
}
"""Command -> the module that holds it, as an attribute of its name (with "_" after a word of Python's). The order is that of the help."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        names = vars(importlib.import_module(module))
        found = names.get(f"{cmd_name}_", names.get(cmd_name))
        assert isinstance(found, click.Command), f"{module} has no command {cmd_name}"
        return found


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """One network and one service directory for the containers of many Linux hosts."""


def main(args: Sequence[str] | None = None, obj: object = None) -> int:
    """Run one command and return its exit status. `obj` replaces what commands use to reach the agent (an `AdminClient`)."""
    try:
        result = cli.main(args, prog_name="plait", standalone_mode=False, obj=obj)
    except click.UsageError as error:
        where = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
        return _fail(error.format_message() + where, 2)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except PlaitError as error:
        return _fail(str(error), error.status if isinstance(error, CommandFailed) else 1)
    except (KeyboardInterrupt, click.Abort):
        return 130
    except OSError as error:
        return _fail(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""), 1)
    return result if isinstance(result, int) else 0


def _fail(text: str, status: int) -> int:
    click.echo(f"plait: {text}", err=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
