# SPDX-License-Identifier: Apache-2.0
"""`plait limit`: how fast the containers of this host may receive and send.

Data in: options, rows of the admin API. Data out: tables, JSON, calls of the agent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from plait.cli.common import json_option, show_json, show_table, with_agent
from plait.model.limits import rate_text

if TYPE_CHECKING:
    from plait.client.admin import AdminClient
    from plait.model.report import LimitRow

_NETWORK = click.option("--network", default="", help="On this network. [default: on all that it is attached to]")


@click.group()
def limit() -> None:
    """How fast containers of this host may receive and send."""


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
        ("CONTAINER", "NETWORK", "DIRECTION", "RATE", "BURST", "MANNER", "BY", "STATE"),
        ((r["container"], r["network"], r["direction"], rate_text(r["rate"]), r["burst"], r["manner"], r["by"], _state(r)) for r in rows),
    )


def _state(row: LimitRow) -> str:
    if not row["running"]:
        return "kept"
    return "in force" if row["held"] else "not possible"


@limit.command(name="set")
@click.argument("container")
@_NETWORK
@click.option("--in", "incoming", metavar="RATE", help="What comes to it: 512kbit, 10M, 1G of bits a second; none: not limited.")
@click.option("--out", "outgoing", metavar="RATE", help="What it sends.")
@click.option("--burst", metavar="SIZE", help="Bytes that may pass at once after a rest: 64k, 1m. [default: by the rate]")
@click.option("--shape/--drop", "shape", default=True, help="What exceeds the rate waits in a queue, or is lost at once. [default: shape]")
@with_agent
def set_(
    client: AdminClient, container: str, network: str, incoming: str | None, outgoing: str | None, burst: str | None, shape: bool
) -> None:
    """Limit CONTAINER (name or id) while it runs. It is kept under its name, also when it is started or made anew."""
    if incoming is None and outgoing is None:
        raise click.UsageError("say what to limit: --in, --out or both")
    words = {"in": incoming, "out": outgoing, "burst": burst, "manner": "shape" if shape else "drop"}
    client.set_limits(container, network, {word: text for word, text in words.items() if text is not None})


@limit.command()
@click.argument("container")
@_NETWORK
@with_agent
def rm(client: AdminClient, container: str, network: str) -> None:
    """Take back what `plait limit set` said of CONTAINER; what its labels and networks say holds again."""
    client.unset_limits(container, network)
