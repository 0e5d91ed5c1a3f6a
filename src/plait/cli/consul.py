# SPDX-License-Identifier: Apache-2.0
"""`plait consul …`: the commands of Consul's own program that scripts call, with its options and its output.

Data in: the words after `plait consul`, the environment variables that Consul's program reads. Data out: lines in Consul's formats;
failures are one line on standard error and exit status 1. The work is done by `plait.client` over the HTTP API, so it serves
Consul's agents as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from plait import __version__
from plait.cli.consul_agent import agent
from plait.cli.consul_common import GoGroup, columns, failed, read, show, with_client
from plait.cli.consul_inspect import as_json, as_table
from plait.cli.consul_kv import kv
from plait.cli.consul_run import run_locked, run_watch, shell_words
from plait.client import types
from plait.client.errors import ClientError
from plait.client.steps import Request, call
from plait.client.sync import Client
from plait.model.addr import at_port
from plait.model.errors import ConfigError
from plait.services.archive import key_parts, unpack

IMITATED = "1.22.0"
"""The version of Consul whose formats these are; scripts compare it."""


@click.group(cls=GoGroup)
def consul() -> None:
    """What Consul's own program does, with its options and output, for scripts that call it."""


@consul.command()
@click.option("-format", "form", default="pretty", type=click.Choice(("pretty", "json")), help="pretty or json.")
def version(form: str) -> None:
    """Print the version of Consul whose formats these are, and plait's."""
    if form == "json":
        click.echo(json.dumps({"Version": IMITATED, "Revision": f"plait-{__version__}", "Prerelease": "", "FIPS": ""}, indent=4))
        return
    show([f"Consul v{IMITATED}", f"Revision plait-{__version__}"])


@consul.command()
@click.option("-status", "status", default="", help="Only members whose status matches this regular expression.")
@click.option("-detailed", "detailed", is_flag=True, help="With all tags.")
@click.option("-wan", "wan", is_flag=True, help="The servers of all datacentres, of which there is one.")
@click.option("-filter", "filter_", default="", help="Only members that this expression is true of.")
@with_client
def members(client: Client, status: str, detailed: bool, wan: bool, filter_: str) -> None:
    """List the agents of the cluster."""
    params = [("wan", "1")] * wan + [("filter", filter_)] * bool(filter_)
    listed = [types.member(raw) for raw in read(client, "agent/members", *params)]
    try:
        found = [member for member in listed if re.search(status, member.status)]
    except re.error as error:
        raise ConfigError("-status", status, f"is no regular expression: {error}") from error
    if detailed:
        rows = [(m.name, at_port(m.address, m.port), m.status, ",".join(f"{k}={v}" for k, v in sorted(m.tags.items()))) for m in found]
        show(columns([("Node", "Address", "Status", "Tags"), *rows]))
        return
    show(
        columns(
            [
                ("Node", "Address", "Status", "Type", "Build", "Protocol", "DC", "Partition", "Segment"),
                *(_member(m.name, at_port(m.address, m.port), m.status, m.tags) for m in found),
            ]
        )
    )


def _member(name: str, address: str, status: str, tags: Mapping[str, str]) -> tuple[str, ...]:
    server = tags.get("role") == "consul"
    build, protocol = tags.get("build", "").partition(":")[0] or IMITATED, tags.get("vsn", "2")
    segment = "<all>" if server else "<default>"
    return name, address, status, "server" if server else "client", build, protocol, tags.get("dc", ""), "default", segment


@consul.group()
def catalog() -> None:
    """Show what the catalogue holds."""


@catalog.command()
@with_client
def datacenters(client: Client) -> None:
    """List the datacentres."""
    show(read(client, "catalog/datacenters"))


@catalog.command()
@click.option("-service", "service", default="", help="Only nodes with an instance of this service.")
@click.option("-near", "near", default="", help="Sort by round trip from this node.")
@click.option("-node-meta", "node_meta", multiple=True, help="Only nodes with this KEY=VALUE; may be repeated.")
@click.option("-filter", "filter_", default="", help="Only nodes that this expression is true of.")
@click.option("-detailed", "detailed", is_flag=True, help="With tagged addresses and meta.")
@with_client
def nodes(client: Client, service: str, near: str, node_meta: tuple[str, ...], filter_: str, detailed: bool) -> None:
    """List the nodes."""
    params = [("near", near), ("filter", filter_), *(("node-meta", pair.replace("=", ":", 1)) for pair in node_meta)]
    path = f"catalog/service/{service}" if service else "catalog/nodes"
    found = read(client, path, *(pair for pair in params if pair[1]))
    by_name = {raw["Node"]: raw for raw in found}
    if not by_name:
        click.echo("No nodes match the given query - try expanding your search.")
        return
    rows = [
        (raw["Node"], (raw.get("ID") or "")[: 36 if detailed else 8], raw["Address"], raw.get("Datacenter", "")) for raw in by_name.values()
    ]
    if not detailed:
        show(columns([("Node", "ID", "Address", "DC"), *rows]))
        return
    more = [(_pairs(raw.get("TaggedAddresses")), _pairs(raw.get("NodeMeta" if service else "Meta"))) for raw in by_name.values()]
    table = [(*row, *extra) for row, extra in zip(rows, more, strict=True)]
    show(columns([("Node", "ID", "Address", "DC", "TaggedAddresses", "Meta"), *table]))


@catalog.command()
@click.option("-tags", "tags", is_flag=True, help="With the tags of each.")
@click.option("-node", "node", default="", help="Only services of this node.")
@with_client
def services(client: Client, tags: bool, node: str) -> None:
    """List the services."""
    found: dict[str, set[str]] = {}
    if node:
        for raw in ((read(client, f"catalog/node/{node}") or {}).get("Services") or {}).values():
            found.setdefault(raw["Service"], set()).update(raw.get("Tags") or ())
    else:
        found = {name: set(given) for name, given in client.catalog.services().items()}
    if not found:
        click.echo("No services match the given query - try expanding your search.")
        return
    show(columns([(name, ",".join(sorted(found[name]))) for name in sorted(found)]) if tags else sorted(found))


@consul.command()
@click.option("-name", "name", required=True, help="The event's name.")
@click.option("-node", "node", default="", help="Only nodes whose name matches this regular expression.")
@click.option("-service", "service", default="", help="Only nodes with a service that matches.")
@click.option("-tag", "tag", default="", help="Only such services with a tag that matches.")
@click.argument("payload", default="")
@with_client
def event(client: Client, name: str, node: str, service: str, tag: str, payload: str) -> None:
    """Fire an event."""
    fired = client.events.fire(name, payload.encode(), node=node, service=service, tag=tag)
    click.echo(f"Event ID: {fired.id}")


@consul.group()
def snapshot() -> None:
    """Save, look at and restore the cluster's state."""


@snapshot.command()
@click.argument("file", type=click.Path(path_type=Path))
@with_client
def save(client: Client, file: Path) -> int:
    """Write a snapshot to FILE, which is replaced only once the snapshot is whole."""
    request = Request("GET", "snapshot", timeout_s=300)
    answer = client.run(call(request))
    unfinished = file.with_name(file.name + ".unverified")
    unfinished.write_bytes(answer.body)
    unfinished.replace(file)
    click.echo(f"Saved and verified snapshot to index {answer.index}")
    return 0


@snapshot.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@with_client
def restore(client: Client, file: Path) -> None:
    """Replace the cluster's state by the snapshot in FILE."""
    client.run(call(Request("PUT", "snapshot", body=file.read_bytes(), timeout_s=300)))
    click.echo("Restored snapshot")


@snapshot.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("-format", "form", default="pretty", type=click.Choice(("pretty", "json")), help="pretty or json.")
@click.option("-kvdetails", "details", is_flag=True, help="What the keys take, by their first names.")
@click.option("-kvdepth", "depth", default=2, show_default=True, type=click.IntRange(min=1), help="So many names of a key.")
@click.option("-kvfilter", "prefix", default="", help="Only of keys that begin so.")
def inspect(file: Path, form: str, details: bool, depth: int, prefix: str) -> None:
    """Tell what the snapshot in FILE holds; no agent is asked."""
    data = file.read_bytes()
    archive = unpack(data)
    keys = key_parts(archive, depth, prefix) if details or prefix else None
    show(as_json(data, archive, keys) if form == "json" else as_table(data, archive, keys))


@consul.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "-type",
    "kind",
    required=True,
    help="key, keyprefix, services, nodes, service, checks, event, agent_service, connect_roots, connect_leaf.",
)
@click.option("-key", "key", default="", help="The key (type key).")
@click.option("-prefix", "prefix", default="", help="The prefix (type keyprefix).")
@click.option("-service", "service", default="", help="The service (types service, checks, connect_leaf), its id (agent_service).")
@click.option("-tag", "tag", multiple=True, help="Only instances with this tag (type service); may be repeated.")
@click.option("-passingonly", "passingonly", is_flag=True, help="Only instances that pass (type service).")
@click.option("-state", "state", default="any", help="Only checks with this status (type checks).")
@click.option("-name", "name", default="", help="The event's name (type event).")
@click.option("-shell", "shell", is_flag=True, default=True, help="Run one word in a shell, which is so unless -shell=false.")
@click.argument("child", nargs=-1, type=click.UNPROCESSED)
@with_client
def watch(client: Client, /, kind: str, shell: bool, child: tuple[str, ...], **given: Any) -> int:
    """Print what is watched once, or run CHILD at the start and at each change, with the JSON on its standard input."""
    try:
        return run_watch(client, kind, shell_words(child) if shell else list(child), given)
    except ConfigError as error:
        return failed(f"Failed to parse watch: {error}")


@consul.command(context_settings={"allow_interspersed_args": False})
@click.option("-n", "limit", default=1, type=click.IntRange(1), help="How many may hold the lock at a time.")
@click.option("-name", "name", default="", help="Taken for compatibility; the session is named after the prefix.")
@click.option("-child-exit-code", "pass_on", is_flag=True, help="End with 2 if the child fails.")
@click.option("-timeout", "timeout", default="", help="Give up after this time, such as 10s.")
@click.option("-try", "attempt", default="", help="Give up after this time, as -timeout, and print why.")
@click.option("-shell", "shell", is_flag=True, default=True, help="Run one word in a shell, which is so unless -shell=false.")
@click.option(
    "-monitor-retry", "retries", default=3, help="Taken for compatibility: the agent's absences are borne while the session lives."
)
@click.option("-verbose", "verbose", is_flag=True, help="Say what is being done.")
@click.option("-pass-stdin", "stdin", is_flag=True, help="Taken for compatibility: the child has the standard input.")
@click.argument("prefix")
@click.argument("child", nargs=-1, required=True, type=click.UNPROCESSED)
@with_client
def lock(client: Client, /, prefix: str, child: tuple[str, ...], **given: Any) -> int:
    """Run CHILD while holding the lock below PREFIX; it is ended if the lock is lost."""
    if given["verbose"]:
        click.echo(f"Setting up {'lock' if given['limit'] == 1 else 'semaphore'} at path: {prefix}\nAttempting lock acquisition")
    words = shell_words(child) if given["shell"] else list(child)
    try:
        return run_locked(client, prefix, words, given["limit"], given["attempt"] or given["timeout"], given["pass_on"])
    except ClientError as error:
        return failed(f"Lock acquisition failed: {error}")


def _pairs(raw: Mapping[str, str] | None) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted((raw or {}).items()))


consul.add_command(kv)
consul.add_command(agent)
