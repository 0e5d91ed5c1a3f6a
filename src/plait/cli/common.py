# SPDX-License-Identifier: Apache-2.0
"""What the commands share: the way to the agent, option types, tables and JSON.

Data in: option texts, rows of the admin API. Data out: typed values, lines on standard output.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import click

from plait.model.errors import PlaitError

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from plait.client.admin import AdminClient
    from plait.model.addr import IPAddress

P = ParamSpec("P")
R = TypeVar("R")

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

json_option = click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")


def limit_options(command: Callable[P, R]) -> Callable[P, R]:
    """The options `--limit-in` and `--limit-out`."""
    out = click.option("--limit-out", metavar="RATE", help="How fast each container may send: 10M, 512kbit of bits a second; none.")
    into = click.option("--limit-in", metavar="RATE", help="How fast each container may receive.")
    return into(out(command))


def limits_said(prefix: str, incoming: str | None, outgoing: str | None) -> dict[str, str]:
    """What these options say, as labels or options that begin with `prefix`."""
    said = {f"{prefix}in": incoming, f"{prefix}out": outgoing}
    return {key: text for key, text in said.items() if text is not None}


class CommandFailed(PlaitError):
    """A command ends with another exit status than 1: that of a program it ran, or could not run."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def with_agent(command: Callable[Concatenate[AdminClient, P], R]) -> Callable[P, R]:
    """Give the command the client of this host's agent as its first argument (the context's object, if the caller set one)."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        from plait.client.admin import AdminClient

        context = click.get_current_context()
        client = context.find_object(AdminClient) or AdminClient()
        return command(client, *args, **kwargs)

    return wrapped


def need_root(what: str) -> None:
    """PlaitError unless this process may do what only root can."""
    if os.geteuid() != 0:
        raise PlaitError(f"{what} enters a namespace, which only root may do; run it with sudo")


def address(text: str) -> IPv4Address:
    """Option type: an IPv4 address; a wrong one is a usage error."""
    from ipaddress import IPv4Address

    try:
        return IPv4Address(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not an IPv4 address") from error


def host_address(text: str) -> IPAddress:
    """Option type: an address of either family; anything else is a usage error."""
    from ipaddress import ip_address

    try:
        return ip_address(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not an IP address") from error


def cidr(text: str) -> IPv4Network:
    """Option type: an IPv4 network; host bits or a wrong prefix are a usage error."""
    from ipaddress import IPv4Network

    try:
        return IPv4Network(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not an IPv4 network such as 10.28.0.0/16: {error}") from error


def address6(text: str) -> IPv6Address:
    """Option type: an IPv6 address; a wrong one is a usage error."""
    from ipaddress import IPv6Address

    try:
        return IPv6Address(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not an IPv6 address") from error


def cidr6(text: str) -> IPv6Network:
    """Option type: an IPv6 network; host bits or a wrong prefix are a usage error."""
    from ipaddress import IPv6Network

    try:
        return IPv6Network(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not an IPv6 network such as fd12:3456:789a::/64: {error}") from error


def both(four: str, six: str, between: str = " ") -> str:
    """What there is of one thing in both families, in one cell."""
    return between.join(filter(None, (four, six)))


def duration(text: str) -> int:
    """Option type: a time such as 90s, 15m, 1h or 2d -> whole seconds; anything else is a usage error."""
    number, unit = text[:-1], text[-1:]
    if not (number.isascii() and number.isdigit() and unit in _SECONDS and int(number)):
        raise click.BadParameter(f"{text!r} is not a duration such as 90s, 15m, 1h or 2d")
    return int(number) * _SECONDS[unit]


def pairs(context: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Callback of repeated KEY=VALUE options; KEY alone means an empty value. A missing key is a usage error."""
    found = {}
    for text in values:
        key, _, value = text.partition("=")
        if not key:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE", context, param)
        found[key] = value
    return found


def show_json(value: object) -> None:
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a table with a heading; columns as wide as their widest cell, two blanks between them. Empty cells are shown as "-"."""
    lines = [tuple(columns), *(tuple(str(cell) if cell not in ("", None) else "-" for cell in row) for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    for line in table(columns, rows):
        click.echo(line)


def span(seconds: float) -> str:
    """A duration in its two largest units, such as "3h 12m"."""
    rest = int(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if rest >= size or (unit == "s" and not parts):
            parts.append(f"{rest // size}{unit}")
        rest %= size
    return " ".join(parts[:2])
