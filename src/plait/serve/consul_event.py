# SPDX-License-Identifier: Apache-2.0
"""User events of the Consul-compatible API: fired by one client, listed by all, the last 256 of the cluster.

The index of the list is made of the last event's id, as Consul's clients expect: it is not ordered, and a blocking query waits while it is
the same.
"""

from __future__ import annotations

import asyncio
import base64
import uuid
from contextlib import AbstractContextManager
from typing import Protocol

from plait.http.message import Answer
from plait.model.kv import UserEvent
from plait.serve.consul_http import MAX_WAIT_S, Call, Route, encoded, json_answer, read_headers, set_within, until
from plait.services.requests import TooLarge

MAX_PAYLOAD = 64 * 1024
Row = tuple[str, UserEvent, int]


class EventLog(Protocol):
    def items(self) -> list[Row]: ...

    def waiting(self) -> AbstractContextManager[asyncio.Event]: ...


class EventBackend(Protocol):
    @property
    def events(self) -> EventLog: ...

    def last_contact_ms(self) -> int | None: ...

    async def fire(self, event: UserEvent) -> None: ...


class EventApi:
    def __init__(self, backend: EventBackend) -> None:
        self._backend = backend
        self.routes = (
            Route("event/fire/<name>", "tell all agents something; `node`, `service`, `tag`", {"PUT": self._fire}),
            Route("event/list", "the last 256 events; `name`", {"GET": self._list}),
        )

    async def _fire(self, call: Call) -> Answer:
        if len(call.body) > MAX_PAYLOAD:
            raise TooLarge(f"The event's payload is too large ({len(call.body)} > {MAX_PAYLOAD} bytes)")
        name = call.part("name")
        event = UserEvent(str(uuid.uuid4()), name, call.body, call.one("node"), call.one("service"), call.one("tag"))
        await self._backend.fire(event)
        return json_answer(encoded(event_json(event, 0), call.flag("pretty")))

    async def _list(self, call: Call) -> Answer:
        after, wanted = call.index(), call.one("name")

        def look() -> tuple[list[Row], int]:
            rows = [row for row in self._backend.events.items() if wanted in ("", row[1].name)]
            return rows, event_index(rows[-1][1].id) if rows else 1

        rows, index = look()
        if after and index == after:
            with self._backend.events.waiting() as event:

                async def changed(timeout_s: float) -> None:
                    await set_within(event, timeout_s)

                wait_s = call.wait_s() if call.one("wait") else MAX_WAIT_S
                rows, index = await until(wait_s, look, lambda seen: seen[1] != after, changed)
        shown = [event_json(event, at) for _, event, at in rows]
        return json_answer(encoded(shown, call.flag("pretty")), read_headers(index, self._backend.last_contact_ms(), "leader"))


def event_index(event_id: str) -> int:
    """The two halves of the id, one over the other; never 0."""
    number = uuid.UUID(event_id).int
    return (number >> 64) ^ (number & (1 << 64) - 1) or 1


def event_json(event: UserEvent, at: int) -> dict[str, object]:
    """The event as Consul's API shows it; an empty payload is null."""
    return {
        "ID": event.id,
        "Name": event.name,
        "Payload": base64.b64encode(event.payload).decode() if event.payload else None,
        "NodeFilter": event.node_filter,
        "ServiceFilter": event.service_filter,
        "TagFilter": event.tag_filter,
        "Version": 1,
        "LTime": at,
    }
