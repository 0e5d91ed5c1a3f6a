# SPDX-License-Identifier: Apache-2.0
"""The prepared queries as names of DNS: name -> the records of the instances that the query of that name gives now."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from ipaddress import ip_network
from typing import cast

from plait.dns.answer import Found, Origin
from plait.dns.records import dotted
from plait.dns.zone import Zone
from plait.model.cluster import Instance, Snapshot
from plait.model.query import PreparedQuery
from plait.services.queries import Far, Json, carried_out, find_query
from plait.services.requests import duration_s

Instances = Callable[[str, str], Instance | None]
"""Node and id -> the instance."""


NEAR_CLIENT = "_ip"
"""Of a query's `Near`: whoever asks."""


def node_at(snapshot: Snapshot, origin: Origin) -> str:
    """The node that has an address in `origin`, itself or for something that runs on it, "" if none has; of several the first by name.
    Who asks over the loopback is on this node."""
    packed, prefix = origin
    if not packed:
        return ""
    subnet = ip_network((packed, prefix), strict=False)
    if subnet.is_loopback:
        return snapshot.me
    held = [(node.name, address) for node in snapshot.nodes.values() for address in (node.address, node.tunnel, node.tunnel6)]
    held += [(endpoint.node, address) for endpoint in snapshot.endpoints.values() for address in (endpoint.address, endpoint.address6)]
    for container in snapshot.containers.values():
        held += [(container.node, address) for address in container.addresses.values()]
        held += [(container.node, address) for address in container.addresses6.values()]
    return min((node for node, address in held if address is not None and address in subnet), default="")


class QueryNames:
    """`queries`: all of them; `entries`: those of a service as `/v1/health/service` shows them; `near(name)`: how far others are from that
    node, None if it names none; `node_at`: the node where something is, "" if none is known; `datacenter`: this one. `zone` is set once
    there is one."""

    def __init__(
        self,
        queries: Callable[[], Iterable[PreparedQuery]],
        entries: Callable[[str], list[Json]],
        instances: Instances,
        near: Callable[[str], Far | None],
        node_at: Callable[[Origin], str],
        datacenter: str,
    ) -> None:
        self._queries, self._entries, self._instances, self._near, self._node_at = queries, entries, instances, near, node_at
        self._datacenter = datacenter
        self.zone: Zone | None = None

    def __call__(self, name: bytes, origin: Origin) -> Found | None:
        """What DNS says of the query with that name or id to who asks from `origin`; None if there is none."""
        query = find_query(self._queries(), name.decode(errors="replace"))
        if query is None or self.zone is None:
            return None
        chosen = query.selection
        far = self._near(self._node_at(origin) if chosen.near == NEAR_CLIENT else chosen.near)
        entries, _ = carried_out(chosen, self._datacenter, self._entries, far, random.shuffle)
        records = [record for entry in entries for record in self.zone.records_of(self._instance(entry))]
        ttl = int(duration_s(query.ttl)) if query.ttl else -1
        return dotted(chosen.service), ttl, far is not None, tuple(dict.fromkeys(records))

    def _instance(self, entry: Json) -> Instance:
        """What the entry is about; the service `consul` is shown and no instance of anybody."""
        node, service = cast(Json, entry["Node"]), cast(Json, entry["Service"])
        name, ident, port = cast(str, node["Node"]), cast(str, service["ID"]), cast(int, service["Port"])
        return self._instances(name, ident) or Instance(ident, cast(str, service["Service"]), name, "", port)
