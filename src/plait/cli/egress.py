# SPDX-License-Identifier: Apache-2.0
"""`plait egress`: by which hosts containers leave for the outside. Data in: options, rows of the admin API. Data out: a table, JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from plait.cli.common import json_option, pairs, show_json, show_table, with_agent

if TYPE_CHECKING:
    from plait.client.admin import AdminClient


@click.group()
def egress() -> None:
    """By which hosts containers leave for the outside, and under which address."""


@egress.command(name="set")
@click.argument("name")
@click.option("--network", default="default", show_default=True, help="Whose containers.")
@click.option("--selector", "selectors", multiple=True, callback=pairs, metavar="KEY=VALUE", help="Only those with this label; all count.")
@click.option("--via", multiple=True, required=True, metavar="NODE[=ADDRESS]", help="A gateway, and what the outside sees. In their order.")
@with_agent
def set_(client: AdminClient, name: str, network: str, selectors: dict[str, str], via: tuple[str, ...]) -> None:
    """Let containers out by the first of some hosts that is reached, and by nothing else. Takes the place of a rule of that NAME."""
    row = client.put_egress(name, network, selectors, list(via))
    click.echo(f"{row['by']} {row['address']}" if row["by"] else "no gateway is reached: nothing leaves")


@egress.command()
@json_option
@with_agent
def ls(client: AdminClient, as_json: bool) -> None:
    """List the rules, and by which gateway this host sends."""
    rows = client.egresses()
    if as_json:
        show_json(rows)
        return
    listed = (
        (r["name"], r["network"], _labels(r["selector"]), r["containers"], " ".join(r["gateways"]), r["by"] or "none", r["address"])
        for r in rows
    )
    show_table(("NAME", "NETWORK", "SELECTOR", "CONTAINERS", "GATEWAYS", "BY", "SEEN AS"), listed)


def _labels(selector: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(selector.items()))


@egress.command()
@click.argument("names", nargs=-1, required=True)
@with_agent
def rm(client: AdminClient, names: tuple[str, ...]) -> None:
    """Remove rules; their containers leave by their own hosts then."""
    for name in names:
        client.remove_egress(name)
