# SPDX-License-Identifier: Apache-2.0
"""`plait ipam`: who has which address and why, and what is kept for whom.

Data in: options, rows of the admin API. Data out: tables, JSON.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from plait.cli.common import address, both, json_option, show_json, show_table, with_agent

if TYPE_CHECKING:
    from ipaddress import IPv4Address

    from plait.client.admin import AdminClient


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def ipam(context: click.Context, as_json: bool) -> None:
    """Addresses: which node holds which block of which pool and how full each is, and what is kept for whom."""
    if context.invoked_subcommand is None:
        context.invoke(_blocks, as_json=as_json)


@with_agent
def _blocks(client: AdminClient, as_json: bool) -> None:
    rows = client.ipam()
    if as_json:
        show_json(rows)
        return
    show_table(
        ("NETWORK", "BLOCK", "NODE", "FOR", "USED", "SIZE"),
        (
            (r["network"], both(r["cidr"], r.get("cidr6", "")), r["node"], r["purpose"], r["used"] if r["used"] >= 0 else "?", r["size"])
            for r in rows
        ),
    )


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
