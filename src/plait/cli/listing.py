# SPDX-License-Identifier: Apache-2.0
"""Commands that show one list of the cluster: nodes, ps, ports, plan; and `node rm`, which takes one off the first.

Data in: rows of the admin API. Data out: a table, or the rows as JSON.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from plait import __version__
from plait.cli.common import both, json_option, show_json, show_table, with_agent
from plait.model.addr import at_port

if TYPE_CHECKING:
    from plait.client.admin import AdminClient
    from plait.model.report import NodeRow


@click.command()
@json_option
@with_agent
def nodes(client: AdminClient, as_json: bool) -> None:
    """List the nodes of the cluster; `*` marks this one."""
    rows = client.nodes()
    if as_json:
        show_json(rows)
        return
    show_table(
        ("NODE", "STATE", "ADDRESS", "TUNNEL", "MTU", "VERSION", "BLOCKS"),
        ((r["name"] + "*" * r["me"], _state(r), r["address"], r["tunnel"], r["mtu"], r["version"], " ".join(r["blocks"])) for r in rows),
    )


def _state(row: NodeRow) -> str:
    alive = "alive" if row["alive"] else "lost"
    return f"{alive}, gateway" if row["gateway"] else alive


@click.group()
def node() -> None:
    """Care for the list of nodes."""


@node.command()
@click.argument("name")
@with_agent
def rm(client: AdminClient, name: str) -> None:
    """Forget the dead node NAME: its blocks become free, its containers and services vanish from every list."""
    client.forget_node(name)


@click.command()
@json_option
@with_agent
def ps(client: AdminClient, as_json: bool) -> None:
    """List the containers and sandboxes of the whole cluster."""
    rows = client.ps()
    if as_json:
        show_json(rows)
        return
    show_table(
        ("NODE", "NAME", "ADDRESSES", "STATE", "RUNTIME", "IMAGE", "PORTS", "LABELS"),
        (
            (
                r["node"],
                r["name"],
                " ".join(f"{network}={both(address, six.get(network, ''), ',')}" for network, address in r["addresses"].items()),
                r["state"],
                r["runtime"],
                r["image"],
                " ".join(r["ports"]),
                ",".join(f"{key}={value}" for key, value in r["labels"].items()),
            )
            for r, six in ((row, row.get("addresses6", {})) for row in rows)
        ),
    )


@click.command()
@json_option
@with_agent
def ports(client: AdminClient, as_json: bool) -> None:
    """List the published ports of the cluster."""
    rows = client.ports()
    if as_json:
        show_json(rows)
        return
    show_table(
        ("NODE", "HOST", "PROTO", "CONTAINER", "NETWORK", "TO", "FROM", "NAT", "BY"),
        (
            (
                r["node"],
                at_port(r["host_ip"], r["host_port"]),
                r["proto"],
                r["container"],
                r["network"],
                at_port(r["address"], r["container_port"]),
                ",".join(r.get("sources", ())),
                "yes" if r.get("nat") else "",
                r.get("by", ""),
            )
            for r in rows
        ),
    )


@click.command()
@click.option("--diff", is_flag=True, help="Only what the kernel does not hold as planned.")
@json_option
@with_agent
def plan(client: AdminClient, diff: bool, as_json: bool) -> None:
    """Print what this host's kernel shall hold, as ip, bridge, nft and sysctl commands. Nothing is changed."""
    entries = client.plan(diff)
    if as_json:
        show_json(entries)
        return
    for entry in entries:
        for line in entry["commands"]:
            click.echo(line)
    if diff and not entries:
        click.echo("nothing to do: the kernel is as planned", err=True)


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Print the version of this program."""
    if as_json:
        show_json({"version": __version__})
    else:
        click.echo(f"plait {__version__}")
