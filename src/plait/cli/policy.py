# SPDX-License-Identifier: Apache-2.0
"""`plait policy`: who may talk to whom.

Data in: files, options, rows of the admin API. Data out: tables, JSON, documents, explanations. `test` ends with 1 where nothing passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, BinaryIO

import click

from plait.cli.common import json_option, show_json, show_table, with_agent
from plait.model.policy import LAST_PORT, Tier

if TYPE_CHECKING:
    from plait.client.admin import AdminClient
    from plait.model.policyreport import DropRow, PolicySide

_DENIED = 1
_KINDS: dict[Tier, str] = {"Admin": "Cluster, Admin", "NetworkPolicy": "Network", "Baseline": "Cluster, Baseline"}


@click.group()
def policy() -> None:
    """Policies: who may talk to whom, by labels, namespaces, addresses and ports, in the words of Kubernetes."""


@policy.command()
@click.option("-f", "--file", "source", type=click.File("rb"), required=True, metavar="FILE", help="YAML or JSON; - is standard input.")
@json_option
@with_agent
def apply(client: AdminClient, source: BinaryIO, as_json: bool) -> None:
    """Take over all policies of a file, on every node, or none of them if one is wrong.

    It may hold documents of kind NetworkPolicy, ClusterNetworkPolicy, and Namespace for its labels. What is in force on this host when the
    command ends reaches the others within a second.
    """
    rows = client.apply_policies(source.read())
    if as_json:
        show_json(rows)
        return
    for row in rows:
        click.echo(f"{row['kind']} {row['name']} {row['change']}")


@policy.command()
@click.option("-f", "--file", "source", type=click.File("rb"), required=True, metavar="FILE", help="YAML or JSON; - is standard input.")
@json_option
@with_agent
def plan(client: AdminClient, source: BinaryIO, as_json: bool) -> None:
    """Say what applying a file would change, and change nothing.

    Which containers policies select from then on or no longer, what passes between whom that does not now or the other way round, and how
    many elements of this host's tables that is.
    """
    found = client.plan_policies(source.read())
    if as_json:
        show_json(found)
        return
    for row in found["applied"]:
        change = row["change"] if row["change"] == "unchanged" else f"would be {row['change']}"
        click.echo(f"{row['kind']} {row['name']} {change}")
    for word, names in (("selected", found["selected"]), ("no longer selected", found["released"])):
        for name in names:
            click.echo(f"{word}: {name}")
    if found["pairs"]:
        show_table(
            ("FROM", "TO", "PASSES NOW", "WOULD PASS"), ((p["source"], p["destination"], p["before"], p["after"]) for p in found["pairs"])
        )
    if found["compared"] < found["concerned"]:
        click.echo(f"compared {found['compared']} of {found['concerned']} pairs of containers")
    click.echo(f"on this host: {found['added']} elements more, {found['removed']} fewer")


@policy.command()
@click.option("--counters", is_flag=True, help="How many connections each let in and dropped on this host since its agent started.")
@json_option
@with_agent
def ls(client: AdminClient, counters: bool, as_json: bool) -> None:
    """List the policies in the order in which they are known, and how many containers each is about."""
    rows = client.policies()
    if as_json:
        show_json(rows)
        return
    show_table(
        ("NAMESPACE", "NAME", "KIND", "PRIORITY", "INGRESS", "EGRESS", "SELECTS", *(("ALLOWED", "DENIED") if counters else ())),
        (
            (
                row["namespace"] if row["tier"] == "NetworkPolicy" else "",
                row["name"],
                f"{_KINDS[row['tier']]}{' (audit)' if row['audit'] else ''}",
                "" if row["tier"] == "NetworkPolicy" else row["priority"],
                _count(row["ingress"]),
                _count(row["egress"]),
                row["selects"],
                *((row["allowed"], row["denied"]) if counters else ()),
            )
            for row in rows
        ),
    )


def _count(rules: int) -> str:
    return "" if rules < 0 else f"{rules} rule{'' if rules == 1 else 's'}"


@policy.command()
@click.argument("name", metavar="[NAMESPACE/]NAME")
@json_option
@with_agent
def show(client: AdminClient, name: str, as_json: bool) -> None:
    """Show a policy, the containers that it is about, and how many connections each rule decided on this host since its agent started."""
    view = client.policy(name)
    if as_json:
        show_json(view)
        return
    for workload in view["workloads"]:
        click.echo(f"# about {workload}")
    for rule in view["rules"]:
        place = rule["rule"] or f"isolation of {rule['direction']}"
        click.echo(f"# {place}: {rule['allowed']} allowed, {rule['denied']} denied")
    click.echo(view["document"], nl=False)


@policy.command()
@click.argument("names", nargs=-1, required=True, metavar="[NAMESPACE/]NAME…")
@with_agent
def rm(client: AdminClient, names: tuple[str, ...]) -> None:
    """Remove policies, on every node."""
    for name in names:
        client.remove_policy(name)
        click.echo(name)


@policy.command()
@json_option
@with_agent
def namespaces(client: AdminClient, as_json: bool) -> None:
    """List the namespaces, their labels, and how many containers each has."""
    rows = client.namespaces()
    if as_json:
        show_json(rows)
        return
    labelled = ((row["name"], row["workloads"], " ".join(f"{k}={v}" for k, v in sorted(row["labels"].items()))) for row in rows)
    show_table(("NAME", "CONTAINERS", "LABELS"), labelled)


@policy.command()
@json_option
@with_agent
def drops(client: AdminClient, as_json: bool) -> None:
    """List what policies dropped on this host since its agent started, the latest first: who, to whom, and by which policy."""
    _show_drops([row for row in client.policy_drops() if not row["audit"]], as_json)


@policy.command()
@json_option
@with_agent
def audit(client: AdminClient, as_json: bool) -> None:
    """List what policies to audit would have dropped on this host, the latest first.

    A policy with the annotation `plait.audit: "true"` drops nothing.
    """
    _show_drops([row for row in client.policy_drops() if row["audit"]], as_json)


def _show_drops(rows: Sequence[DropRow], as_json: bool) -> None:
    if as_json:
        show_json(rows)
        return
    show_table(
        ("LAST", "FROM", "TO", "PORT", "BY", "COUNT"),
        (
            (
                f"{datetime.fromtimestamp(row['last']):%Y-%m-%d %H:%M:%S}",
                row["source"],
                row["destination"],
                f"{row['protocol']} {row['port']}" if row["port"] else row["protocol"],
                f"{', '.join(row['policies'])} {row['rule'] or row['direction']}",
                row["count"],
            )
            for row in rows
        ),
    )


@policy.command()
@click.argument("source", metavar="FROM")
@click.argument("destination", metavar="TO[:PORT]")
@click.option("--udp", "protocol", flag_value="udp", help="UDP instead of TCP.")
@click.option("--sctp", "protocol", flag_value="sctp", help="SCTP instead of TCP.")
@json_option
@with_agent
def test(client: AdminClient, source: str, destination: str, protocol: str | None, as_json: bool) -> None:
    """Say whether a new connection FROM may reach TO, and which rule decides; the exit status is 1 if not.

    Each is a container, a node or an address (one of IPv6 with a port in brackets). Without a port it is about ping. Nothing is sent.
    """
    to, port = _place(destination)
    if port is None and protocol is not None:
        raise click.UsageError(f"say which port of {to}: {to}:53")
    found = client.test_policy(source, to, protocol or ("tcp" if port is not None else "icmp"), port or 0)
    if as_json:
        show_json(found)
    else:
        click.echo(f"{found['source']} -> {found['destination']}: {'allowed' if found['allowed'] else 'denied'}")
        for side in found["sides"] or ():
            click.echo(f"  {_told(side)}")
        if not found["sides"]:
            click.echo("  neither is a container of this cluster, so no policy is about them")
        if found["note"]:
            click.echo(f"  {found['note']}")
    if not found["allowed"]:
        raise click.exceptions.Exit(_DENIED)


def _told(side: PolicySide) -> str:
    by = f"by policy {side['policy']}, {side['rule']} ({side['why']})" if side["rule"] else side["why"]
    return f"{side['direction']} of {side['workload']}: {'allowed' if side['allowed'] else 'denied'}, {by}"


def _place(text: str) -> tuple[str, int | None]:
    """`HOST`, `HOST:PORT`, `[ADDRESS]:PORT` -> host and port."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise click.BadParameter(f"{text!r} is not [ADDRESS]:PORT")
        number = rest[1:]
    elif text.count(":") == 1:
        host, _, number = text.partition(":")
    else:
        return text, None
    if not number and text.startswith("["):
        return host, None
    if not (number.isascii() and number.isdigit() and 0 < int(number) <= LAST_PORT):
        raise click.BadParameter(f"{number!r} is no port from 1 to {LAST_PORT}")
    return host, int(number)
