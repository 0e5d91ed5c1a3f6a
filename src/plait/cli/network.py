# SPDX-License-Identifier: Apache-2.0
"""`plait network`: the networks of the cluster; `plait expose`: whether this host has an address of its own in one.

Data in: options, rows of the admin API. Data out: tables, JSON, calls of the agent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from plait.cli.common import (
    address,
    address6,
    both,
    cidr,
    cidr6,
    json_option,
    limit_options,
    limits_said,
    pairs,
    show_json,
    show_table,
    with_agent,
)
from plait.model.limits import OPTION_PREFIX

MODELS = ("sandbox", "overlay", "hybrid")

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from plait.client.admin import AdminClient
    from plait.model.report import NetworkView


@click.group()
def network() -> None:
    """Networks of the cluster; every node and every engine has all of them."""


@network.command()
@json_option
@with_agent
def ls(client: AdminClient, as_json: bool) -> None:
    """List the networks."""
    rows = client.networks()
    if as_json:
        show_json(rows)
        return
    show_table(
        ("NETWORK", "SUBNET", "GATEWAY", "MODEL", "BACKEND", "VNI", "INTERNAL", "EXPOSED", "ENDPOINTS"),
        (
            (
                r["name"],
                both(r["subnet"], r.get("subnet6", "")),
                both(r["gateway"], r.get("gateway6", "")),
                r["model"],
                r["backend"],
                r["vni"],
                "yes" if r["internal"] else "no",
                r.get("exposed", ""),
                r["endpoints"],
            )
            for r in rows
        ),
    )


@network.command()
@click.argument("name")
@json_option
@with_agent
def inspect(client: AdminClient, name: str, as_json: bool) -> None:
    """Show one network: its settings, who holds which block of it, and what is attached."""
    view = client.network(name)
    if as_json:
        show_json(view)
    else:
        _show(view)


def _show(view: NetworkView) -> None:
    reach = "internal: no way out" if view["internal"] else "with a way out"
    part = f", addresses from {view['ip_range']}" if view["ip_range"] else ""
    part += f" without {', '.join(view['excluded'])}" if view.get("excluded") else ""
    click.echo(f"{view['name']}: {view['subnet']}{part}, gateway {view['gateway']}, {reach}")
    if view.get("exposed"):
        click.echo(f"exposed: this host has {view['exposed']}")
    if view.get("subnet6"):
        click.echo(f"IPv6 {view['subnet6']}" + (f", gateway {view['gateway6']}" if view["gateway6"] else ""))
    tunnel = f"vni {view['vni']}, port {view['port']}"
    click.echo(f"model {view['model']}, backend {view['backend']}, {tunnel}, blocks of /{view['block_prefix']}")
    for title, mapping in (("labels", view["labels"]), ("options", view["options"])):
        if mapping:
            click.echo(f"{title}: " + ", ".join(f"{key}={value}" for key, value in mapping.items()))
    click.echo()
    show_table(
        ("BLOCK", "NODE", "FOR", "USED", "SIZE"),
        ((both(b["cidr"], b.get("cidr6", "")), b["node"], b["purpose"], _used(b["used"]), b["size"]) for b in view["held"]),
    )
    click.echo()
    show_table(
        ("ADDRESS", "NAME", "NODE", "RUNTIME", "PORTS", "ALIASES"),
        (
            (both(e["address"], e.get("address6", "")), e["name"], e["node"], e["runtime"], " ".join(e["ports"]), " ".join(e["aliases"]))
            for e in view["attached"]
        ),
    )


def _used(count: int) -> str:
    return str(count) if count >= 0 else "?"


@network.command()
@click.argument("name")
@click.option("--subnet", type=cidr, help="Its addresses. [default: the next free /16 of 10.28.0.0 and up]")
@click.option("--gateway", type=address, help="Address that every node holds, or a link's router (macvlan). [default: the subnet's first]")
@click.option("--ip-range", type=cidr, help="The part of it that addresses are handed out from, on every host. [default: all]")
@click.option("--exclude", "excluded", multiple=True, metavar="ADDR|CIDR|A-B", help="Addresses that nobody gets; can be repeated.")
@click.option("--force", is_flag=True, help="Although a host uses some of its addresses for something else (routes, Docker networks).")
@click.option("--ipv6", is_flag=True, help="With IPv6 beside IPv4.")
@click.option("--subnet6", type=cidr6, help="Its IPv6 addresses, a /64 or larger; implies --ipv6. [default: a unique local one]")
@click.option("--gateway6", type=address6, help="As --gateway, for IPv6; implies --ipv6. [default: like --gateway]")
@click.option("--model", type=click.Choice(MODELS), help="What it promises. [default: overlay, or that of --backend]")
@click.option(
    "--backend",
    default="",
    metavar="NAME",
    help="How that is kept, such as wireguard (encrypted), macvlan. [default: by the model: bridge, vxlan, hybrid]",
)
@click.option("--ipam", type=click.Choice(("pool", "dhcp")), help="Who gives addresses on a host's link: plait, or a DHCP server there.")
@click.option("--internal", is_flag=True, help="Without a way out to other networks.")
@click.option("--isolated/--open", default=None, help="Whether its containers are kept from each other, unless a policy lets them.")
@limit_options
@click.option("--label", "labels", multiple=True, callback=pairs, metavar="K=V", help="A label; can be repeated.")
@click.option(
    "-o",
    "--opt",
    "options",
    multiple=True,
    callback=pairs,
    metavar="K=V",
    help="An option, such as model=overlay or layer2=true; can be repeated.",
)
@json_option
@with_agent
def create(
    client: AdminClient,
    name: str,
    subnet: IPv4Network | None,
    gateway: IPv4Address | None,
    ip_range: IPv4Network | None,
    excluded: tuple[str, ...],
    force: bool,
    ipv6: bool,
    subnet6: IPv6Network | None,
    gateway6: IPv6Address | None,
    model: str | None,
    backend: str,
    ipam: str | None,
    internal: bool,
    isolated: bool | None,
    limit_in: str | None,
    limit_out: str | None,
    labels: dict[str, str],
    options: dict[str, str],
    as_json: bool,
) -> None:
    """Make the network NAME on every node."""
    options |= limits_said(OPTION_PREFIX, limit_in, limit_out) | _kept_apart(isolated)
    made = client.create_network(
        name,
        subnet=str(subnet) if subnet else None,
        gateway=str(gateway) if gateway else None,
        ip_range=str(ip_range) if ip_range else None,
        excluded=excluded,
        force=force,
        internal=internal,
        labels=labels,
        options=options | {key: value for key, value in (("model", model), ("backend", backend), ("ipam", ipam)) if value},
        ipv6=ipv6,
        subnet6=str(subnet6) if subnet6 else None,
        gateway6=str(gateway6) if gateway6 else None,
    )
    if as_json:
        show_json(made)
    else:
        click.echo(both(f"{made['name']} {made['subnet']}", made.get("subnet6", "")))


@network.command(name="set")
@click.argument("name")
@click.option(
    "-o",
    "--opt",
    "options",
    multiple=True,
    callback=pairs,
    metavar="K=V",
    help="backend, port, vni, isolated, multicast, spoofing, limit-burst, limit-manner, limit-packets-in…; repeatable.",
)
@limit_options
@click.option("--isolated/--open", default=None, help="Whether its containers are kept from each other, unless a policy lets them.")
@click.option("--ip-range", metavar="CIDR|all", help="The part of the subnet that addresses are handed out from, from now on.")
@click.option(
    "--exclude", "excluded", multiple=True, metavar="ADDR|CIDR|A-B|none", help="What nobody gets, instead of what it was; repeatable."
)
@with_agent
def set_(
    client: AdminClient,
    name: str,
    options: dict[str, str],
    limit_in: str | None,
    limit_out: str | None,
    isolated: bool | None,
    ip_range: str | None,
    excluded: tuple[str, ...],
) -> None:
    """Change the network NAME while it is used, on every node. A port changes for all networks of the same VNI.

    With another range containers keep the addresses that they have; new ones get theirs from it, and blocks outside it go back.
    """
    options |= limits_said(OPTION_PREFIX, limit_in, limit_out) | _kept_apart(isolated)
    if not (options or ip_range or excluded):
        raise click.UsageError("say what to change: --opt, --limit-in, --limit-out, --isolated, --open, --ip-range or --exclude")
    parts = None if not excluded else [text for text in excluded if text != "none"]
    for row in client.change_network(name, options, ip_range, parts):
        part = f", addresses from {row['ip_range'] or row['subnet']}" if (ip_range or excluded) and row["name"] == name else ""
        click.echo(f"{row['name']} {row['backend']} vni {row['vni']} port {row['port']}{part}")


def _kept_apart(isolated: bool | None) -> dict[str, str]:
    return {} if isolated is None else {"isolated": str(isolated).lower()}


@network.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@click.option("--force", is_flag=True, help="Even while containers are attached.")
@with_agent
def rm(client: AdminClient, names: tuple[str, ...], force: bool) -> None:
    """Remove networks. Refused while containers are attached, on any node."""
    for name in names:
        client.remove_network(name, force)
        click.echo(name)


@click.command()
@click.argument("name", metavar="NETWORK")
@click.option("--off", is_flag=True, help="Take the address away.")
@json_option
@with_agent
def expose(client: AdminClient, name: str, off: bool, as_json: bool) -> None:
    """Give this host an address of its own in NETWORK, by which its containers and the host reach each other.

    Internal networks are reached from no host without. It is kept over restarts.
    """
    if off:
        client.hide(name)
        return
    made = client.expose(name)
    if as_json:
        show_json(made)
    else:
        click.echo(both(made["address"], made["address6"]))
