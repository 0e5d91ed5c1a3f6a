# SPDX-License-Identifier: Apache-2.0
"""Events: short messages to whoever listens, neither stored for long nor acknowledged.

Data in: a name and a payload (some 500 bytes at most). Data out: operations, and a query that `EventWatch` turns into news.
"""

from __future__ import annotations

from plait.client import types
from plait.client.steps import Answer, Request, Steps, call_json, decoded, put
from plait.client.types import Event
from plait.client.watch import Query, Watch, fetch

REMEMBERED = 4096
"""Ids a watch keeps at least before it forgets those that the agent has forgotten too."""


def fire(name: str, payload: bytes = b"", *, node: str = "", service: str = "", tag: str = "") -> Steps[Event]:
    """Send an event; `node`, `service` and `tag` are regular expressions that narrow down who takes it."""
    given = tuple((key, value) for key, value in {"node": node, "service": service, "tag": tag}.items() if value)
    request = put(f"event/fire/{name}", *given, body=payload)
    return types.record((yield from call_json(request)), types.event, request.what)


def recent(name: str = "") -> Query[tuple[Event, ...]]:
    """The last events (256 at most), oldest first; with a name only those."""
    return Query(Request("GET", "event/list", (("name", name),) if name else ()), _events, ordered=False)


def list_events(name: str = "") -> Steps[tuple[Event, ...]]:
    """The last events (256 at most), oldest first; with a name only those."""
    return (yield from fetch(recent(name)))


class EventWatch(Watch[tuple[Event, ...]]):
    """The events fired after the watch began, each once, in order; several at a time if they came together.

    `replay`: begins with those that the agent still remembers.
    """

    def __init__(self, name: str = "", wait_s: float = 300.0, replay: bool = False) -> None:
        super().__init__(recent(name), wait_s)
        self._known: frozenset[str] | None = frozenset() if replay else None

    def step(self) -> Steps[tuple[Event, ...]]:
        while True:
            events = yield from super().step()
            known, ids = self._known, frozenset(event.id for event in events)
            self._known = ids | known if known is not None and len(known) < REMEMBERED else ids
            fresh = tuple(event for event in events if known is not None and event.id not in known)
            if fresh:
                return fresh


def _events(request: Request, answer: Answer) -> tuple[Event, ...]:
    return types.records(decoded(request, answer), types.event, request.what)
