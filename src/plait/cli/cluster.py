# SPDX-License-Identifier: Apache-2.0
"""`plait cluster`: what this cluster uses, and what of it another cluster uses too. Data in: an export. Data out: JSON, tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from plait.cli.common import json_option, show_json, with_agent
from plait.cli.merge import show_clashes

if TYPE_CHECKING:
    from plait.client.admin import AdminClient


@click.group()
def cluster() -> None:
    """Compare two clusters that grew apart, before they become one."""


@cluster.command()
@with_agent
def export(client: AdminClient) -> None:
    """Print nodes, networks, blocks, addresses and reservations of this cluster, as JSON for `plait cluster conflicts` in another one."""
    show_json(client.export_cluster())


@cluster.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
@with_agent
def conflicts(client: AdminClient, file: Path, as_json: bool) -> int:
    """List what this cluster and that of the export FILE both use, were this one to join that one. Exit status 0 if nothing stops it.

    Nothing is changed. `plait join --merge` looks for itself and joins.
    """
    rows = client.cluster_conflicts(file.read_bytes())
    if as_json:
        show_json(rows)
    elif rows:
        show_clashes(rows)
    else:
        click.echo("no conflicts")
    return 1 if any(row["stops"] for row in rows) else 0
