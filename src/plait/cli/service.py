# SPDX-License-Identifier: Apache-2.0
"""`plait service`: one address and name for what many containers do.

Data in: options, rows of the admin API. Data out: tables, JSON, calls of the agent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from plait.cli.common import json_option, show_json, show_table, with_agent

if TYPE_CHECKING:
    from plait.client.admin import AdminClient
    from plait.model.servicereport import BackendRow, ServiceRow, ServiceView

_PORT = click.option("--port", "ports", multiple=True, metavar="[NAME=]PORT[:TARGET][/PROTO]", help="A port of it, and of its containers.")
_PUBLISH = click.option(
    "--publish", "published", multiple=True, metavar="HOSTPORT[:PORT][/PROTO]", help="Reach PORT by HOSTPORT of every host as well."
)
_SELECTOR = click.option("--selector", "selectors", multiple=True, metavar="KEY=VALUE", help="A label that its containers have; all count.")


@click.group()
def service() -> None:
    """Services: one virtual address and name for what many containers do, on whatever hosts they are."""


@service.command()
@click.argument("name")
@_PORT
@_SELECTOR
@_PUBLISH
@click.option("--namespace", default="default", show_default=True, help="Of the service, and of its containers (label plait.namespace).")
@click.option("--network", default="default", show_default=True, help="Where its containers and its clients are.")
@click.option("--ip", "address", help="Its virtual address. [default: chosen by its name]")
@click.option("--headless", is_flag=True, help="No virtual address: its name leads to the containers themselves.")
@click.option("--affinity", is_flag=True, help="One client, told by its address, keeps to one container.")
@click.option("--local-first", is_flag=True, help="Hosts with containers of it send to these alone.")
@click.option("--publish-on", "hosts", multiple=True, metavar="NODE", help="Publish on these hosts only.")
@json_option
@with_agent
def create(
    client: AdminClient,
    name: str,
    ports: tuple[str, ...],
    selectors: tuple[str, ...],
    published: tuple[str, ...],
    namespace: str,
    network: str,
    address: str | None,
    headless: bool,
    affinity: bool,
    local_first: bool,
    hosts: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make service NAME of all containers with certain labels, present and future. Its IPv4 address is printed."""
    view = client.create_service(
        {
            "name": name,
            "ports": list(ports),
            "selector": _pairs(selectors),
            "publish": list(published),
            "namespace": namespace,
            "network": network,
            "address": address,
            "headless": headless,
            "affinity": affinity,
            "local_first": local_first,
            "hosts": list(hosts),
        }
    )
    if as_json:
        show_json(view)
    else:
        click.echo(view["address"] or view["dns"])


@service.command()
@json_option
@with_agent
def ls(client: AdminClient, as_json: bool) -> None:
    """List the services, and how many of their containers are ready."""
    rows = client.services()
    if as_json:
        show_json(rows)
        return
    listed = (
        (row["namespace"], row["name"], _addresses(row), _ports(row["ports"], row["published"]), f"{row['ready']}/{row['backends']}")
        for row in rows
    )
    show_table(("NAMESPACE", "NAME", "ADDRESS", "PORTS", "READY"), listed)


def _addresses(row: ServiceRow | BackendRow) -> str:
    return " ".join(filter(None, (row["address"], row["address6"])))


def _ports(ports: list[str], published: list[str]) -> str:
    return " ".join([*ports, *(f"{one} (hosts)" for one in published)])


@service.command()
@click.argument("name", metavar="[NAMESPACE/]NAME")
@json_option
@with_agent
def show(client: AdminClient, name: str, as_json: bool) -> None:
    """Show a service, and each container behind it with its state."""
    view = client.service(name)
    if as_json:
        show_json(view)
        return
    for label, value in _facts(view):
        click.echo(f"{label:<12}{value}")
    rows = ((one["node"], one["name"], _addresses(one), one["weight"], one["state"]) for one in view["containers"])
    show_table(("NODE", "CONTAINER", "ADDRESS", "WEIGHT", "STATE"), rows)


def _facts(view: ServiceView) -> list[tuple[str, str]]:
    manner = [word for word, said in (("affinity", view["affinity"]), ("local first", view["local_first"])) if said]
    facts = [
        ("name", view["dns"]),
        ("address", f"{_addresses(view) or 'none'} (network {view['network']})"),
        ("ports", _ports(view["ports"], view["published"])),
        ("selector", " ".join(f"{key}={value}" for key, value in sorted(view["selector"].items()))),
    ]
    facts += [("on hosts", " ".join(view["hosts"]))] if view["hosts"] else []
    return [*facts, ("manner", ", ".join(manner))] if manner else facts


@service.command(name="set")
@click.argument("name", metavar="[NAMESPACE/]NAME")
@_PORT
@_SELECTOR
@_PUBLISH
@click.option("--affinity/--no-affinity", default=None, help="Whether a client keeps to one container.")
@click.option("--local-first/--no-local-first", default=None, help="Whether hosts with containers of it send to these alone.")
@click.option("--drain", multiple=True, metavar="CONTAINER", help="No new connections to it; those that it has live on.")
@click.option("--undrain", multiple=True, metavar="CONTAINER", help="New connections again.")
@with_agent
def set_(
    client: AdminClient,
    name: str,
    ports: tuple[str, ...],
    selectors: tuple[str, ...],
    published: tuple[str, ...],
    affinity: bool | None,
    local_first: bool | None,
    drain: tuple[str, ...],
    undrain: tuple[str, ...],
) -> None:
    """Change a service. Ports and selectors that are given take the place of all before; what is published goes with its ports."""
    if published and not ports:
        raise click.UsageError("say all ports of the service anew with --port when you change what is published")
    said: dict[str, object] = {"affinity": affinity, "local_first": local_first, "drain": list(drain), "undrain": list(undrain)}
    said |= {"ports": list(ports), "publish": list(published)} if ports else {}
    client.change_service(name, said | ({"selector": _pairs(selectors)} if selectors else {}))


@service.command()
@click.argument("names", nargs=-1, required=True, metavar="[NAMESPACE/]NAME…")
@with_agent
def rm(client: AdminClient, names: tuple[str, ...]) -> None:
    """Remove services; their containers stay, connections by the virtual address end."""
    for name in names:
        client.remove_service(name)
        click.echo(name)


def _pairs(texts: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in (part for one in texts for part in one.split(",")):
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE")
        found[key] = value
    return found
