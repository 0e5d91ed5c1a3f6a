# SPDX-License-Identifier: Apache-2.0
"""`plait join --merge`: the cluster of this host becomes part of another one. Data in: options. Data out: what conflicts, what was done."""

from __future__ import annotations

import click

from plait.cli.common import show_table, with_agent
from plait.client.admin import AdminClient
from plait.model.report import ClashRow, JoinView


@with_agent
def merge_clusters(client: AdminClient, addr: str, token: str, dry_run: bool, both_names: bool) -> int:
    """Exit status: 0 when the clusters are one, or could be."""
    found = client.join_cluster(addr, token, dry_run, both_names)
    stops = [row for row in found["clashes"] if row["stops"]]
    if stops:
        show_clashes(stops)
        click.echo("conflicts; nothing was changed, and the token is still good", err=True)
        return 1
    show_clashes(found["clashes"], "WHAT HAPPENS")
    _tell(found, addr)
    return 0


def show_clashes(rows: list[ClashRow], last: str = "TO DO") -> None:
    if rows:
        show_table(("KIND", "HERE", "THERE", last), ((row["kind"], row["here"], row["there"], row["todo"]) for row in rows))


def _tell(found: JoinView, addr: str) -> None:
    if found["locks"]:
        click.echo(f"sessions end, and with them the locks of: {', '.join(found['locks'])}")
    nodes = ", ".join(found["nodes"])
    if found["joined"]:
        click.echo(f"nodes {nodes} are of the cluster at {addr} from now on; their agents start anew (`plait status`)")
    else:
        click.echo(f"nothing stands against it: nodes {nodes} would become nodes of the cluster at {addr}; nothing was changed")
