# SPDX-License-Identifier: Apache-2.0
"""What a reload changes of the names that a node shows."""

import asyncio
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any

from plait.agent.config import parse_config
from plait.agent.node import NodeLoops
from plait.dns.table import Table
from plait.model.cluster import Instance, Node, Snapshot
from plait.model.discovery import Check


class Dns:
    """Keeps the table that is shown."""

    def __init__(self) -> None:
        self.table: Any = None
        self.bind_errors: list[object] = []

    async def set_table(self, table: Table) -> None:
        self.table = table

    async def change_table(self, table: Table, changes: object) -> None:
        self.table = table

    async def set_listen(self, addresses: object) -> None:
        pass


async def test_only_passing_is_taken_from_the_file_again() -> None:
    snapshot = Snapshot(
        me="a",
        nodes={"a": Node("a", "1", IPv4Address("192.0.2.1"))},
        instances={("a", "web"): Instance("web", "web", "a", "10.28.0.1", 80)},
        checks={("a", "c"): Check("c", "a", "c", service_id="web", status="warning")},
    )
    dns, zones = Dns(), list[object]()
    view = SimpleNamespace(snapshot=snapshot, follow=set, subscribe=lambda tell: None)
    parts: Any = SimpleNamespace(
        capabilities=frozenset(),
        kernel=None,
        underlay=None,
        journal=SimpleNamespace(load=lambda kind: {}),
        view=view,
        config=parse_config({}, "f"),
        dns=dns,
        on_zone=zones.append,
        addresses=SimpleNamespace(bridge_block=lambda: None),
        health=SimpleNamespace(clear=lambda *what: None, replace=lambda *what: None),
    )
    loops = NodeLoops(parts, "default")
    serving = asyncio.create_task(loops.serve_names())
    for only_passing, shown in ((False, True), (True, False), (True, False), (False, True)):
        loops.set_only_passing(only_passing)
        await loops.names_settled()
        assert (b"web.service.consul" in dns.table.names) is shown
    assert len(zones) == 3, "prepared queries are told of each new zone"
    serving.cancel()
