# SPDX-License-Identifier: Apache-2.0
"""Commands that make, run and unmake this host's part of a cluster: init, join, agent, down, token, gateway.

Data in: options. Data out: calls of `plait.agent.main` (imported by the command that needs it) or of the running agent.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from plait.cli.common import cidr, duration, host_address, json_option, show_json, with_agent

if TYPE_CHECKING:
    from ipaddress import IPv4Network

    from plait.client.admin import AdminClient
    from plait.model.addr import IPAddress

_START = "start the agent with `systemctl start plait` or `plait agent`"
_name = click.option("--name", help="Name of this node. [default: node.name of the configuration, or the host name]")
_address = click.option(
    "--address",
    type=host_address,
    help="Address that other nodes reach this one at. [default: node.address of the configuration, or that of the default route]",
)


@click.command()
@_name
@_address
@click.option("--pool", type=cidr, default="10.28.0.0/16", show_default=True, help="Addresses of the network `default`.")
def init(name: str | None, address: IPAddress | None, pool: IPv4Network) -> None:
    """Make a new cluster with this host as its first node. Start the agent afterwards."""
    from plait.agent import main as agent

    made = agent.init(name=name, address=str(address) if address else None, pool=str(pool))
    click.echo(f"node {made.name} at {made.address} is the first of a new cluster; {_START}")


@click.command()
@click.argument("addr", metavar="ADDR")
@click.option("--token", required=True, help="What `plait token create` printed on a node of the cluster.")
@_name
@_address
@click.option("--merge", is_flag=True, help="The cluster that this host is in joins, with all its nodes.")
@click.option("--dry-run", is_flag=True, help="With --merge: only list what conflicts, and what would be done.")
@click.option("--both-names", is_flag=True, help="With --merge: names that containers of both clusters have are to answer with both.")
def join(addr: str, token: str, name: str | None, address: IPAddress | None, merge: bool, dry_run: bool, both_names: bool) -> int | None:
    """Join the cluster whose first node is at ADDR. Start the agent afterwards.

    With --merge the running cluster whose store this host carries becomes a part of the other one: nodes, networks, addresses, services and
    keys. Conflicts are listed with what to do, and then nothing is changed (exit status 1). Agents start anew by themselves; containers are
    not disturbed.
    """
    if merge:
        if name or address:
            raise click.UsageError("with --merge nodes keep their names and addresses: leave out --name and --address")
        from plait.cli.merge import merge_clusters

        return merge_clusters(addr, token, dry_run, both_names)
    if dry_run or both_names:
        raise click.UsageError("--dry-run and --both-names go with --merge")
    from plait.agent import main as agent

    made = agent.join(addr, token, name=name, address=str(address) if address else None)
    click.echo(f"node {made.name} at {made.address} joined the cluster at {addr}; {_START}")
    return None


@click.command()
def agent() -> None:
    """Run the agent in the foreground, as the systemd unit does. Ends at SIGTERM; containers keep their network."""
    from plait.agent import main as agent

    agent.run()


@click.command()
@click.option("--purge", is_flag=True, help="Also leave the cluster and delete this node's keys and data.")
def down(purge: bool) -> None:
    """Stop the agent and take plait's links, routes and rules off this host."""
    from plait.agent import main as agent

    for line in agent.down(purge=purge):
        click.echo(line)


@click.group()
def token() -> None:
    """Tokens that let a new host join."""


@token.command()
@click.option("--ttl", type=duration, default="1h", show_default=True, help="How long it is good for, such as 90s, 15m or 1h.")
@json_option
@with_agent
def create(client: AdminClient, ttl: int, as_json: bool) -> None:
    """Print a token that one host can use once."""
    made = client.create_token(ttl)
    if as_json:
        show_json(made)
        return
    click.echo(made["token"])
    if sys.stdout.isatty():
        until = time.strftime("%H:%M:%S", time.localtime(made["expires"]))
        click.echo(f"on the new host, before {until}: plait join {made['address']} --token {made['token']}", err=True)


@click.group()
def gateway() -> None:
    """Whether this node forwards packets for hosts without an agent."""


@gateway.command()
@with_agent
def enable(client: AdminClient) -> None:
    """Let hosts without an agent reach containers through this node (they need a route to the pool by this host)."""
    client.set_gateway(True)


@gateway.command()
@with_agent
def disable(client: AdminClient) -> None:
    """Forward for no other host."""
    client.set_gateway(False)
