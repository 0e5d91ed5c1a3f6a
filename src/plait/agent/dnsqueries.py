# SPDX-License-Identifier: Apache-2.0
"""The prepared queries as names of DNS: name -> the records of the instances that the query of that name gives now."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import cast

from plait.dns.answer import Found
from plait.dns.records import dotted
from plait.dns.zone import Zone
from plait.model.cluster import Instance
from plait.model.query import PreparedQuery
from plait.services.queries import Far, Json, carried_out, find_query
from plait.services.requests import duration_s

Instances = Callable[[str, str], Instance | None]
"""Node and id -> the instance."""


class QueryNames:
    """`queries`: all of them; `entries`: those of a service as `/v1/health/service` shows them; `near(name)`: how far others are
    from that node, None if it names none; `datacenter`: this one. `zone` is set once there is one."""

    def __init__(
        self,
        queries: Callable[[], Iterable[PreparedQuery]],
        entries: Callable[[str], list[Json]],
        instances: Instances,
        near: Callable[[str], Far | None],
        datacenter: str,
    ) -> None:
        self._queries, self._entries, self._instances, self._near = queries, entries, instances, near
        self._datacenter = datacenter
        self.zone: Zone | None = None

    def __call__(self, name: bytes) -> Found | None:
        """What DNS says of the query with that name or id; None if there is none."""
        query = find_query(self._queries(), name.decode(errors="replace"))
        if query is None or self.zone is None:
            return None
        chosen = query.selection
        far = self._near(chosen.near)
        entries, _ = carried_out(chosen, self._datacenter, self._entries, far, random.shuffle)
        records = [record for entry in entries for record in self.zone.records_of(self._instance(entry))]
        ttl = int(duration_s(query.ttl)) if query.ttl else -1
        return dotted(chosen.service), ttl, far is not None, tuple(dict.fromkeys(records))

    def _instance(self, entry: Json) -> Instance:
        """What the entry is about; the service `consul` is shown and no instance of anybody."""
        node, service = cast(Json, entry["Node"]), cast(Json, entry["Service"])
        name, ident, port = cast(str, node["Node"]), cast(str, service["ID"]), cast(int, service["Port"])
        return self._instances(name, ident) or Instance(ident, cast(str, service["Service"]), name, "", port)
