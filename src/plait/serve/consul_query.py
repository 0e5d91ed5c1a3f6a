# SPDX-License-Identifier: Apache-2.0
"""Prepared queries of the Consul-compatible API: kept, shown, carried out.

There is one datacentre: failover finds instances of another service in it, and none in datacentres or peers that are named. `Failovers`
counts what was tried.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Sequence
from typing import Protocol

from plait.http.message import Answer
from plait.model.query import PreparedQuery
from plait.serve.consul_http import Call, Missing, Route, encoded, json_answer, read_headers, text_answer
from plait.services.queries import Far, Json, carried_out, find_query, parse_query, query_json

_MISSING = "Query not found"


class QueryBackend(Protocol):
    """What this room needs of the agent; see `agent.queries.Queries`."""

    @property
    def index(self) -> int: ...

    def all(self) -> Sequence[PreparedQuery]: ...

    def get(self, query_id: str) -> PreparedQuery | None: ...

    async def put(self, query: PreparedQuery, new: bool) -> bool: ...

    async def delete(self, query_id: str) -> bool: ...


class QueryApi:
    """`entries`: those of a service as `/v1/health/service` shows them; `contact_ms`: since the store was last heard of;
    `near(name)`: how far others are from that node (`_agent`: this one), None if it names none."""

    def __init__(
        self,
        backend: QueryBackend,
        datacenter: str,
        entries: Callable[[str], list[Json]],
        contact_ms: Callable[[], int | None],
        near: Callable[[str], Far | None],
    ) -> None:
        self._backend, self._datacenter = backend, datacenter
        self._entries, self._contact_ms, self._near = entries, contact_ms, near
        one = {"GET": self._get, "PUT": self._update, "DELETE": self._delete}
        self.routes = (
            Route("query", "all prepared queries; POST makes one", {"GET": self._list, "POST": self._create}),
            Route("query/<id>/execute", "what the query of that id or name gives", {"GET": self._execute}),
            Route("query/<id>/explain", "the query that an id or name comes to, filled in", {"GET": self._explain}),
            Route("query/<id>", "one query", one),
        )

    async def _list(self, call: Call) -> Answer:
        return self._read(call, [query_json(query) for query in self._backend.all()])

    async def _create(self, call: Call) -> Answer:
        query = parse_query(call.json(), str(uuid.uuid4()))
        await self._backend.put(query, new=True)
        return json_answer(encoded({"ID": query.id}, call.flag("pretty")))

    async def _get(self, call: Call) -> Answer:
        query = self._backend.get(call.part("query ID"))
        if query is None:
            raise Missing(_MISSING)
        return self._read(call, [query_json(query)])

    async def _update(self, call: Call) -> Answer:
        if not await self._backend.put(parse_query(call.json(), call.part("query ID")), new=False):
            raise Missing(_MISSING)
        return text_answer(200, "")

    async def _delete(self, call: Call) -> Answer:
        if not await self._backend.delete(call.part("query ID")):
            raise Missing(_MISSING)
        return text_answer(200, "")

    async def _explain(self, call: Call) -> Answer:
        return self._read(call, {"Query": query_json(self._found(call))})

    def _found(self, call: Call) -> PreparedQuery:
        query = find_query(self._backend.all(), call.part("query ID"))
        if query is None:
            raise Missing(_MISSING)
        return query

    async def _execute(self, call: Call) -> Answer:
        query, limit = self._found(call), call.number("limit")
        far = self._near(call.one("near") or query.selection.near)
        nodes, failovers = carried_out(query.selection, self._datacenter, self._entries, far, random.shuffle)
        result: Json = {
            "Service": query.selection.service,
            "Nodes": nodes[:limit] if limit else nodes,
            "DNS": {"TTL": query.ttl},
            "Datacenter": self._datacenter,
            "Failovers": failovers,
        }
        return self._read(call, result)

    def _read(self, call: Call, result: object) -> Answer:
        headers = read_headers(self._backend.index, self._contact_ms(), call.consistency())
        return json_answer(encoded(result, call.flag("pretty")), headers)
