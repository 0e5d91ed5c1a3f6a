# SPDX-License-Identifier: Apache-2.0
"""`plait keys`: the WireGuard keys of the nodes. Data in: node names. Data out: public keys."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from plait.cli.common import json_option, show_json, show_table, with_agent
from plait.model.errors import NotFound, PlaitError

if TYPE_CHECKING:
    from plait.client.admin import AdminClient
    from plait.model.report import NodeRow

LOOK_EVERY_S = 0.1


@click.group()
def keys() -> None:
    """Keys of encrypted networks."""


@keys.command()
@json_option
@with_agent
def ls(client: AdminClient, as_json: bool) -> None:
    """List the nodes' public keys."""
    rows = [{"node": row["name"], "key": row["key"], "rotating": row["rotating"]} for row in client.nodes()]
    if as_json:
        show_json(rows)
    else:
        show_table(("NODE", "KEY", "STATE"), ((r["node"], r["key"] or "-", "rotating" if r["rotating"] else "in use") for r in rows))


@keys.command()
@click.argument("node", required=False)
@click.option("--timeout", type=click.FloatRange(min=0), default=90.0, show_default=True, help="Longest wait, in seconds; 0: do not wait.")
@with_agent
def rotate(client: AdminClient, node: str | None, timeout: float) -> None:
    """Have NODE (this one if none is given) change its key. No connection is lost; ends when every node uses the new key."""
    before = _row(client, node)
    client.rotate_key(before["name"])
    end = time.monotonic() + timeout
    while timeout:
        row = _row(client, before["name"])
        if row["key"] != before["key"] and not row["rotating"]:
            click.echo(f"{row['name']} {row['key']}")
            return
        if time.monotonic() > end:
            raise PlaitError(
                f"node {row['name']} has not changed its key within {timeout:g} s; `plait keys ls` and its log say how far it is"
            )
        time.sleep(LOOK_EVERY_S)


def _row(client: AdminClient, node: str | None) -> NodeRow:
    found = next((row for row in client.nodes() if (row["name"] == node if node else row["me"])), None)
    if found is None:
        raise NotFound(f"there is no node {node!r}; `plait nodes` lists them")
    return found
