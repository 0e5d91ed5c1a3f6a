# SPDX-License-Identifier: Apache-2.0
"""`plait paths`: how packets leave this host for each other one. Data in: rows of the admin API. Data out: a table, or the rows as JSON."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from plait.cli.common import both, json_option, show_json, show_table, span, with_agent

if TYPE_CHECKING:
    from plait.client.admin import AdminClient
    from plait.model.report import PathRow


@click.command()
@json_option
@with_agent
def paths(client: AdminClient, as_json: bool) -> None:
    """Show by which path each other node is reached, why and since when, and what was measured of it."""
    rows = client.paths()
    if as_json:
        show_json(rows)
        return
    now = time.time()
    show_table(
        ("NODE", "NETWORKS", "PATH", "SINCE", "MTU", "RTT", "LOSS", "WHY"),
        (
            (r["node"], ",".join(r["networks"]), _path(r), span(max(0.0, now - r["since"])), r["mtu"] or "", _rtt(r), _loss(r), r["why"])
            for r in rows
        ),
    )


def _path(row: PathRow) -> str:
    return f"relay {row['relay']} ({row['first']})" if row["kind"] == "relay" else row["kind"]


def _rtt(row: PathRow) -> str:
    """Of IPv4, and of IPv6 where that was asked by itself."""
    return both(_time(row["rtt_ms"]), _time(row.get("rtt6_ms")))


def _loss(row: PathRow) -> str:
    return both(_part(row["loss"]), _part(row.get("loss6")))


def _time(rtt_ms: float | None) -> str:
    return f"{rtt_ms:.2f} ms" if rtt_ms is not None else ""


def _part(loss: float | None) -> str:
    return f"{loss:.0%}" if loss is not None else ""
