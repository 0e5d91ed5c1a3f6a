# SPDX-License-Identifier: Apache-2.0
"""`plait ipam`: who has which address and why, and what is kept for whom.

Data in: options, rows of the admin API. Data out: tables, JSON.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from plait.cli.common import address, both, json_option, show_json, show_table, span, with_agent

if TYPE_CHECKING:
    from ipaddress import IPv4Address

    from plait.client.admin import AdminClient
    from plait.model.report import AddressRow


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def ipam(context: click.Context, as_json: bool) -> None:
    """Addresses: how full each pool is, which node holds which block of it, and what is kept for whom."""
    if context.invoked_subcommand is None:
        context.invoke(_pools, as_json=as_json)


@with_agent
def _pools(client: AdminClient, as_json: bool) -> None:
    view = client.ipam()
    if as_json:
        show_json(view)
        return
    show_table(
        ("NETWORK", "POOL", "SIZE", "USED", "RESERVED", "REMEMBERED", "FREE", "EXCLUDED", "USED BY"),
        (
            (
                row["network"],
                row["pool"],
                row["size"],
                row["used"],
                row["reserved"],
                row["remembered"],
                row["free"],
                " ".join(row["excluded"]),
                " ".join(f"{node}={count}" for node, count in row["used_by"].items()),
            )
            for row in view["pools"]
        ),
    )
    click.echo()
    show_table(
        ("NETWORK", "BLOCK", "NODE", "FOR", "USED", "SIZE"),
        (
            (r["network"], both(r["cidr"], r.get("cidr6", "")), r["node"], r["purpose"], r["used"] if r["used"] >= 0 else "?", r["size"])
            for r in view["blocks"]
        ),
    )


@ipam.command()
@click.argument("network", default="")
@json_option
@with_agent
def ls(client: AdminClient, network: str, as_json: bool) -> None:
    """List every address, of NETWORK or of all, that somebody has or that is kept: who, where, and why.

    What is held or remembered without a container is known only of this node.
    """
    rows = [row for row in client.ipam()["addresses"] if network in ("", row["network"])]
    if as_json:
        show_json(rows)
        return
    show_table(
        ("NETWORK", "ADDRESS", "STATE", "NODE", "NAME", "RUNTIME", "AGE", "WHY"),
        (
            (r["network"], both(r["address"], r["address6"]), r["state"], r["node"], _names(r), r["runtime"], _age(r["started"]), _why(r))
            for r in rows
        ),
    )


def _names(row: AddressRow) -> str:
    return ", ".join([row["name"], *row["shared_by"]])


def _age(started: float) -> str:
    return span(max(0.0, time.time() - started)) if started else ""


def _why(row: AddressRow) -> str:
    """What there is to say besides the state."""
    parts = [f"reserved for {row['reserved_for']}"] if row["reserved_for"] else []
    parts += [f"lent by {row['lent_by']}"] if row["lent_by"] else []
    parts += [f"endpoint {row['endpoint'][:20]}"] if row["endpoint"] else []
    return ", ".join(parts)


@ipam.command()
@json_option
@with_agent
def check(client: AdminClient, as_json: bool) -> int:
    """Compare reservations, endpoints, containers, blocks and this host's kernel; list what differs. Exit status 0 only if nothing does."""
    rows = client.check_ipam()
    if as_json:
        show_json(rows)
    elif rows:
        show_table(
            ("KIND", "NODE", "NETWORK", "ADDRESS", "WHAT"), ((r["kind"], r["node"], r["network"], r["address"], r["text"]) for r in rows)
        )
    else:
        click.echo("no differences")
    return 1 if rows else 0


@ipam.command()
@click.option("--apply", is_flag=True, help="Free it; without this it is only listed.")
@with_agent
def reclaim(client: AdminClient, apply: bool) -> None:
    """List what is dead beyond doubt: records of nodes that do not exist, and of this host what nothing stands behind. Safe to repeat."""
    lines = client.reclaim_addresses(apply)
    for line in lines:
        click.echo(f"{'freed' if apply else 'would free'} {line}")
    if not lines:
        click.echo("nothing to reclaim", err=True)


@ipam.command()
@click.argument("network")
@click.argument("name")
@click.argument("ip", type=address, metavar="ADDRESS")
@with_agent
def reserve(client: AdminClient, network: str, name: str, ip: IPv4Address) -> None:
    """Keep ADDRESS of NETWORK for containers called NAME, on every node: they get it, and nobody else does."""
    client.reserve_address(network, name, str(ip))


@ipam.command()
@click.argument("network")
@click.argument("name")
@with_agent
def unreserve(client: AdminClient, network: str, name: str) -> None:
    """Keep the address of NETWORK for NAME no longer; a container that has it keeps it until it goes."""
    client.unreserve_address(network, name)
