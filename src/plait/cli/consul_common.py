# SPDX-License-Identifier: Apache-2.0
"""What the commands of `plait consul` share: the options of all of them, tables in Consul's format, failures.

Data in: option texts, rows. Data out: a client, lines.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from itertools import islice
from typing import Any, Concatenate, ParamSpec, TypeVar

import click

from plait.client.steps import Request, call, decoded
from plait.client.sync import Client

P = ParamSpec("P")
R = TypeVar("R")


_VARIABLES = {
    "token-file": "CONSUL_HTTP_TOKEN_FILE",
    "ca-file": "CONSUL_CACERT",
    "client-cert": "CONSUL_CLIENT_CERT",
    "client-key": "CONSUL_CLIENT_KEY",
    "tls-server-name": "CONSUL_TLS_SERVER_NAME",
}
"""Options that say what an environment variable says, and win over it."""


class GoCommand(click.Command):
    """A command whose options may be written as Go's programs have it: -name or --name, with "=" before the value or not, -flag=false
    and -flag=true besides -flag."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        flags = {opt.lstrip("-"): p for p in self.params if isinstance(p, click.Option) for opt in p.opts}
        said: dict[str, bool] = {}
        kept: list[str] = []
        rest = iter(args)
        for word in rest:
            name, equals, value = word.lstrip("-").partition("=")
            option = flags.get(name) if word.startswith("-") else None
            if option is not None and option.is_flag and equals and option.name is not None:
                said[option.name] = _go_bool(value, name, ctx)
                continue
            kept.append(word)
            if option is not None and not option.is_flag and not equals:
                kept += islice(rest, 1)  # its value
            elif word == "--" or not (word.startswith("-") or ctx.allow_interspersed_args):
                kept += rest  # a program of its own
        left = super().parse_args(ctx, kept)
        ctx.params.update(said)
        return left

    def make_parser(self, ctx: click.Context) -> Any:
        parser = super().make_parser(ctx)
        for name, option in list(parser._long_opt.items()):
            parser._long_opt.setdefault(f"-{name}", option)
        for name, option in parser._short_opt.items():
            parser._long_opt.setdefault(name, option)
        return parser


class GoGroup(click.Group):
    """A group of such commands."""

    command_class = GoCommand
    group_class = type


def _go_bool(text: str, name: str, ctx: click.Context) -> bool:
    """As Go's strconv.ParseBool has it."""
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise click.BadOptionUsage(name, f"Option '-{name}' is true or false, not {text!r}.", ctx)


def with_client(command: Callable[Concatenate[Client, P], R]) -> Callable[P, R]:
    """Give the command a client made of the options that all of Consul's commands have."""

    @click.option("-http-addr", "http_addr", default=None, help="The agent: HOST:PORT, a URL or unix:///PATH (CONSUL_HTTP_ADDR).")
    @click.option("-token", "token", default=None, help="The token of the requests (CONSUL_HTTP_TOKEN).")
    @click.option("-datacenter", "datacenter", default="", help="Another datacentre than the agent's.")
    @click.option("-stale", "stale", is_flag=True, help="Reads may be answered from what any agent has.")
    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        address, token, datacenter, stale = (kwargs.pop(name) for name in ("http_addr", "token", "datacenter", "stale"))
        given = {variable: kwargs.pop(name.replace("-", "_")) for name, variable in _VARIABLES.items()}
        environ = {**os.environ, **{variable: str(value) for variable, value in given.items() if value}}
        with Client(address, token=token, datacenter=datacenter, stale=stale, environ=environ) as client:  # type: ignore[arg-type]
            return command(client, *args, **kwargs)

    for name, variable in _VARIABLES.items():
        click.option(f"-{name}", name.replace("-", "_"), default="", help=f"As {variable}.")(wrapped)
    return wrapped


def columns(rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of Consul's tables: cells as wide as the widest, two blanks between them."""
    widths = [max(len(str(row[place])) for row in rows) for place in range(len(rows[0]))]
    return ["  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def show(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)


def failed(text: str) -> int:
    """Say it as Consul does, on standard error; the exit status."""
    click.echo(text, err=True)
    return 1


def read(client: Client, path: str, *params: tuple[str, str]) -> Any:
    """The JSON of a GET below /v1/, as the agent wrote it."""
    request = Request("GET", path, params)
    return decoded(request, client.run(call(request)))
