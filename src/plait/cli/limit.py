# SPDX-License-Identifier: Apache-2.0
"""`plait limit`: how fast the containers of this host may receive and send.

Data in: options, rows of the admin API. Data out: tables, JSON, calls of the agent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from plait.cli.common import json_option, show_json, show_table, with_agent
from plait.model.limits import DIRECTIONS, MANNERS, NO_LIMIT, PORT_WORDS, PRIORITIES, PRIORITY, rate_text

if TYPE_CHECKING:
    from plait.client.admin import AdminClient
    from plait.model.report import LimitRow

_PORT = click.option(
    "--port", default="", metavar="PORT[/udp]", help="Of what comes and goes by this published port of the container alone."
)
_MANNER = (
    "What exceeds the rate waits in a queue, or is lost at once. What waits of --out with --port is all that the container sends from the "
    "port, by a publication or not. [default: shape; with --port: drop]"
)
_NETWORK = click.option("--network", default="", help="On this network. [default: on all that it is attached to]")


@click.group()
def limit() -> None:
    """How fast, and how often, containers of this host may receive and send."""


@limit.command()
@json_option
@with_agent
def ls(client: AdminClient, as_json: bool) -> None:
    """List what holds of the containers of this host, and what is kept for such as do not run."""
    rows = client.limits()
    if as_json:
        show_json(rows)
        return
    show_table(
        ("CONTAINER", "NETWORK", "PORT", "LIMIT", "RATE", "BURST", "MANNER", "DROPPED", "BY", "STATE"),
        (
            (r["container"], r["network"], r["port"], _limit(r), _rate(r), r["burst"] or "-", r["manner"], _dropped(r), r["by"], _state(r))
            for r in rows
        ),
    )


def _limit(row: LimitRow) -> str:
    """As its option is called."""
    return {"rate": row["direction"], PRIORITY: PRIORITY}.get(row["what"], f"{row['what']}-{row['direction']}")


def _rate(row: LimitRow) -> str:
    if row["what"] in ("rate", PRIORITY):
        return rate_text(row["rate"]) if row["what"] == "rate" else "-"
    return f"{row['rate']}/s" if row["rate"] else NO_LIMIT


def _dropped(row: LimitRow) -> str:
    """What is shaped is not counted here."""
    return "-" if row["what"] in ("rate", PRIORITY) or not row["running"] else str(row["dropped"])


def _state(row: LimitRow) -> str:
    if not row["running"]:
        return "kept"
    return "in force" if row["held"] else "not possible"


@limit.command(name="set")
@click.argument("container")
@_NETWORK
@_PORT
@click.option("--in", "in", metavar="RATE", help="What comes to it: 512kbit, 10M, 1G of bits a second; none: not limited.")
@click.option("--out", "out", metavar="RATE", help="What it sends.")
@click.option("--burst", metavar="SIZE", help="Bytes that may pass at once after a rest: 64k, 1m. [default: by the rate]")
@click.option("--shape/--drop", "shape", default=None, help=_MANNER)
@click.option("--packets-in", metavar="NUMBER", help="Packets a second that come to it: 500, 20k; none. What is more is lost.")
@click.option("--packets-out", metavar="NUMBER", help="Packets a second that it sends.")
@click.option("--connections-in", metavar="NUMBER", help="New TCP connections a second to it.")
@click.option("--connections-out", metavar="NUMBER", help="New TCP connections a second from it.")
@click.option("--priority", type=click.Choice(PRIORITIES), help="The class of what it sends, on the host's link. [default: normal]")
@with_agent
def set_(
    client: AdminClient, /, container: str, network: str, port: str, shape: bool | None, burst: str | None, **limits: str | None
) -> None:
    """Limit CONTAINER (name or id) while it runs. It is kept under its name, also when it is started or made anew."""
    words = {word.replace("_", "-"): text for word, text in limits.items() if text is not None}
    if not words:
        raise click.UsageError(
            "say what to limit: --in, --out, --packets-in, --packets-out, --connections-in, --connections-out or --priority"
        )
    if port and (burst is not None or words.keys() - set(PORT_WORDS)):
        raise click.UsageError("of a published port --burst, --connections-out and --priority cannot be said")
    if words.keys() & set(DIRECTIONS):
        words |= {"manner": MANNERS[shape is False]} if shape is not None or not port else {}
        words |= {"burst": burst} if burst is not None else {}
    elif burst is not None:
        raise click.UsageError("--burst is of a rate: give --in or --out too")
    client.set_limits(container, network, words, port)


@limit.command()
@click.argument("container")
@_NETWORK
@_PORT
@with_agent
def rm(client: AdminClient, container: str, network: str, port: str) -> None:
    """Take back what `plait limit set` said of CONTAINER and its ports; what its labels and networks say holds again."""
    client.unset_limits(container, network, port)
