# SPDX-License-Identifier: Apache-2.0
"""`plait run`, `exec` and `rm`: programs in a network namespace of their own, without a container engine.

Data in: options and a command. Data out: a sandbox made by the agent, the command running in it, its exit status.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from plait.cli.common import address, address6, limit_options, limits_said, need_root, pairs, with_agent
from plait.model.errors import PlaitError
from plait.model.limits import LABEL_PREFIX

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

    from plait.client.admin import AdminClient
    from plait.model.report import SandboxView

PATIENCE_S = 5.0
"""How long `plait rm` lets processes end by themselves."""
_NO_MIX = {"allow_interspersed_args": False}  # what follows the first plain word belongs to the command that is run


@click.command(context_settings=_NO_MIX)
@click.option("--name", required=True, help="Its name; other containers find it by this.")
@click.option("--network", default="", help="Which network. [default: the cluster's first]")
@click.option("--ip", type=address, help="This address. [default: any; the same one for the same name if it is free]")
@click.option("--ip6", type=address6, help="This IPv6 address. [default: what goes with the IPv4 one, on a network with IPv6]")
@click.option("--label", "labels", multiple=True, callback=pairs, metavar="K=V", help="A label; can be repeated.")
@limit_options
@click.option("--share", default="", metavar="NAME", help="The network namespace and address of the sandbox NAME of this host.")
@click.option("-p", "--publish", "ports", multiple=True, metavar="HOST:CONT[/udp]", help="Publish a port; can be repeated.")
@click.option("-d", "--detach", is_flag=True, help="Run the command in the background, without input and output.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[--] [CMD…]")
@with_agent
def run(
    client: AdminClient,
    name: str,
    network: str,
    ip: IPv4Address | None,
    ip6: IPv6Address | None,
    labels: dict[str, str],
    limit_in: str | None,
    limit_out: str | None,
    share: str,
    ports: tuple[str, ...],
    detach: bool,
    command: tuple[str, ...],
) -> int:
    """Run CMD in a sandbox, with its exit status; the sandbox ends with it. Without CMD the sandbox stays until `plait rm`."""
    if detach and not command:
        raise click.UsageError("--detach needs a command; without one the sandbox stays anyway")
    if command:
        need_root("plait run")
    labels |= limits_said(LABEL_PREFIX, limit_in, limit_out)
    view = client.create_sandbox(name, network, str(ip) if ip else None, labels, ports, share=share, address6=str(ip6) if ip6 else None)
    if command and not detach:
        return _execute(client, view, command)
    if command:
        _launch(client, view, command, detach=True)
    click.echo(name)
    return 0


def _execute(client: AdminClient, view: SandboxView, command: tuple[str, ...]) -> int:
    """Run the command in the sandbox, wait for it and return its exit status. The sandbox is gone afterwards."""
    from plait.cli import inside

    with inside.Foreground() as foreground:
        status = foreground.wait(_launch(client, view, command, detach=False))
        _remove(client, view["name"])
    return status


def _launch(client: AdminClient, view: SandboxView, command: tuple[str, ...], detach: bool) -> int:
    """Start the command in the sandbox and return its pid; the agent knows it then. On an error the sandbox is removed."""
    from plait.cli import inside

    name = view["name"]
    try:
        client.sandbox_started(name, os.getpid())  # so that it does not stay if this process is killed right now
        inside.enter(view["netns"], view["dns"], view["search"])
        pid = inside.start(command, detach)
        client.sandbox_started(name, pid)
    except PlaitError:
        _remove(client, name)
        raise
    return pid


def _remove(client: AdminClient, name: str) -> None:
    """Remove the sandbox at once; the agent itself may have been faster, and does it at its next start if it is not running."""
    from plait.client.admin import AgentNotRunning, Refused

    try:
        client.remove_sandbox(name)
    except AgentNotRunning:
        return
    except Refused as error:
        if error.kind != "NotFound":
            click.echo(f"plait: the sandbox {name} could not be removed: {error}", err=True)


@click.command(name="exec", context_settings=_NO_MIX)
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] CMD…")
@with_agent
def exec_(client: AdminClient, name: str, command: tuple[str, ...]) -> None:
    """Run CMD inside the sandbox NAME of this host, with its exit status."""
    from plait.cli import inside

    need_root("plait exec")
    words = command[1:] if command[0] == "--" else command
    if not words:
        raise click.UsageError("no command: plait exec NAME -- CMD…")
    view = client.sandbox(name)
    inside.enter(view["netns"], view["dns"], view["search"])
    inside.become(words)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@with_agent
def rm(client: AdminClient, names: tuple[str, ...]) -> int:
    """Remove sandboxes of this host; processes in them are ended. Goes on after a failure."""
    status = 0
    for name in names:
        try:
            _take_down(client, name)
            click.echo(name)
        except PlaitError as error:
            click.echo(f"plait: {error}", err=True)
            status = 1
    return status


def _take_down(client: AdminClient, name: str) -> None:
    from plait.cli import inside
    from plait.client.admin import Refused

    view = client.sandbox(name)
    inside.stop_all(view["netns"], PATIENCE_S)
    try:
        client.remove_sandbox(name)
    except Refused as error:
        if error.kind != "NotFound":  # the agent saw its command end and was faster
            raise
