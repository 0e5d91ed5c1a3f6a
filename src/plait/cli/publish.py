# SPDX-License-Identifier: Apache-2.0
"""`plait publish` and `unpublish`: ports of containers of this host, while they run.

Data in: options. Data out: calls of the agent, and what is published now, or no longer, one line each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from plait.cli.common import with_agent

if TYPE_CHECKING:
    from plait.client.admin import AdminClient

_NETWORK = click.option("--network", default="", help="By this network. [default: the one by which it publishes already, or leaves]")


@click.command()
@click.argument("container")
@click.argument("ports", nargs=-1, required=True, metavar="PORT…")
@_NETWORK
@click.option(
    "--from", "sources", multiple=True, metavar="CIDR", help="Only from here, and from this host. May be repeated. [default: all]"
)
@click.option("--nat", is_flag=True, help="This host reaches the container's port by the published one alone.")
@with_agent
def publish(client: AdminClient, container: str, ports: tuple[str, ...], network: str, sources: tuple[str, ...], nat: bool) -> None:
    """Publish ports of CONTAINER (name or id) of this host while it runs, until it ends or `plait unpublish`. PORT is
    [ADDRESS:][HOST:]CONTAINER[/PROTO] as with `docker run -p`, also with ranges; without HOST any free port is taken."""
    for line in client.publish(container, ports, network, sources, nat):
        click.echo(line)


@click.command()
@click.argument("container")
@click.argument("ports", nargs=-1, metavar="[PORT]…")
@_NETWORK
@with_agent
def unpublish(client: AdminClient, container: str, ports: tuple[str, ...], network: str) -> None:
    """Give up published ports of CONTAINER: those named by their host side, [ADDRESS:]HOST[/PROTO] (a range will do), or all that were
    published by command. What its engine published comes back when the container starts anew."""
    for line in client.unpublish(container, ports, network):
        click.echo(line)
