# SPDX-License-Identifier: Apache-2.0
"""`plait routing`: what this host tells routers, and learns of them. Data in: the admin API's view. Data out: a table, or JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from plait.cli.common import json_option, show_json, show_table, with_agent

if TYPE_CHECKING:
    from plait.client.admin import AdminClient


@click.command()
@click.option("--announced", "shown", flag_value="announced", help="Show the prefixes that this host announces.")
@click.option("--learned", "shown", flag_value="learned", help="Show the routes that were learned and are used.")
@click.option("--refused", "shown", flag_value="refused", help="Show announcements that were refused, and why.")
@json_option
@with_agent
def routing(client: AdminClient, shown: str | None, as_json: bool) -> None:
    """Show the routers that this host exchanges routes with, by /etc/plait/routing.toml."""
    view = client.routing()
    if as_json:
        show_json(view)
    elif shown == "announced":
        show_table(("NETWORK", "PREFIX"), ((name, prefix) for name, prefixes in view["announced"].items() for prefix in prefixes))
    elif shown == "learned":
        show_table(("TABLE", "PREFIX", "VIA", "LINK"), ((r["table"], r["prefix"], r["via"], r["dev"]) for r in view["learned"]))
    elif shown == "refused":
        show_table(("ROUTER", "PREFIX", "ORIGIN", "WHY"), ((r["peer"], r["prefix"], r["origin"], r["why"]) for r in view["refused"]))
    else:
        rows = (
            (r["peer"], r["protocol"], r["family"], r["table"], r["state"], r["learned"], r["announced"], r["refused"])
            for r in view["sessions"]
        )
        show_table(("ROUTER", "PROTOCOL", "FAMILY", "TABLE", "STATE", "LEARNED", "ANNOUNCED", "REFUSED"), rows)
