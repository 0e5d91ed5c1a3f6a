# SPDX-License-Identifier: Apache-2.0
"""The cluster's prepared queries: served from the replica, written by compare-and-set. Implements `serve.consul_query.QueryBackend`.

Store keys: `queries/<id>`, and `settings/queries`, which every write touches, so that two nodes never give one name twice.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

from plait.agent.documents import Documents
from plait.agent.kv import Contended, Kv
from plait.agent.view import View
from plait.model.query import PreparedQuery
from plait.services.requests import Refusal
from plait.store.api import Change, Compare, Delete, Put, Store
from plait.store.codec import encode

log = logging.getLogger("plait.queries")
KINDS = frozenset({"queries"})
_KEY, _GUARD = "queries/", "settings/queries"
_TRIES = 20


class Queries:
    """`kv` knows the sessions that queries may be bound to."""

    def __init__(self, view: View, store: Store, kv: Kv) -> None:
        self._view, self._store, self._kv = view, store, kv
        self._documents = Documents("queries", PreparedQuery)
        self._created: dict[str, int] = {}
        self._guard = 0

    def change(self, changes: Iterable[Change]) -> None:
        """Replicated changes in their order; those of other kinds are passed over."""
        told = list(changes)
        for change in told:
            key = change.item.key
            if key == _GUARD:
                self._guard = change.item.mod_revision if change.kind == "put" else 0
            elif key.startswith(_KEY):
                name = key.removeprefix(_KEY)
                self._created.pop(name, None)
                if change.kind == "put":
                    self._created[name] = change.item.create_revision
        self._documents.change(told)

    @property
    def index(self) -> int:
        """Of a query for all of them."""
        return self._documents.index

    def start_at(self, revision: int) -> None:
        """Not every change up to this revision was seen."""
        self._documents.start_at(revision)

    def all(self) -> list[PreparedQuery]:
        """By id."""
        return [replace(query, create_index=self._created[name], modify_index=at) for name, query, at in sorted(self._documents.items())]

    def get(self, query_id: str) -> PreparedQuery | None:
        found = self._documents.get(query_id)
        return replace(found[0], create_index=self._created[query_id], modify_index=found[1]) if found is not None else None

    async def put(self, query: PreparedQuery, new: bool) -> bool:
        """Make the query, or change it; False if there is none to change. Durable and seen on this node when it returns.
        Refusal for a name that another has, or a session that is none; Contended, StoreUnavailable."""
        for _ in range(_TRIES):
            conditions = [Compare(_GUARD, self._guard)]
            known = self.get(query.id)
            if known is None and not new:
                return False
            if query.session:
                conditions.append(await self._session(query.session))
            self._check_name(query)
            if await self._commit(conditions, [Put(_KEY + query.id, encode(query)), Put(_GUARD, b"{}")]):
                return True
        raise Contended(f"cannot write query {query.name or query.id!r}: too many others write queries at once; try again")

    async def _session(self, session_id: str) -> Compare:
        if session_id not in self._kv.sessions:
            await self._kv.current()  # it may have been made on another node a moment ago
        if session_id not in self._kv.sessions:
            raise Refusal(f'invalid session "{session_id}"')
        return Compare(f"sessions/{session_id}", self._kv.sessions[session_id].modify_index)

    def _check_name(self, query: PreparedQuery) -> None:
        """Names are unique in any case among queries, and among templates, of which one may have the empty name."""
        for other in self.all():
            same = other.id != query.id and bool(other.template) == bool(query.template) and other.name.lower() == query.name.lower()
            if same and (query.name or query.template):
                raise Refusal(f"name {query.name!r} is that of another query ({other.id}); choose another or change that one")

    async def delete(self, query_id: str) -> bool:
        """False if there is none. StoreUnavailable."""
        known = self.get(query_id) is not None
        await self._commit([], [Delete(_KEY + query_id)])
        return known

    async def drop_unbound(self) -> int:
        """Delete the queries whose session is no more; how many it were. StoreUnavailable."""
        ended = [query for query in self.all() if query.session and query.session not in self._kv.sessions]
        for query in ended:
            if await self._commit([Compare(_KEY + query.id, query.modify_index)], [Delete(_KEY + query.id)]):
                log.info("query_ended", extra={"id": query.id})
        return len(ended)

    async def _commit(self, conditions: list[Compare], ops: list[Put | Delete]) -> bool:
        result = await self._store.txn(conditions, ops)
        await self._view.caught_up(result.revision)
        return result.ok
