# SPDX-License-Identifier: Apache-2.0
"""`GET /v1/plait/events`: changes of the catalogue as server-sent events, to whoever watches."""

from __future__ import annotations

from plait.http.message import Answer
from plait.serve.consul_http import Call, Route, StreamAnswer
from plait.serve.event_hub import EventHub
from plait.services.changes import Wanted
from plait.services.selector import parse_selector


class PlaitEventsApi:
    """`routes` are hung into the API."""

    def __init__(self, hub: EventHub) -> None:
        self._hub = hub
        about = (
            "changes of nodes, services, instances and checks as they occur (server-sent events); `service`, `selector`, header "
            "`Last-Event-ID`: see [events](events.md)"
        )
        self.routes = (Route("plait/events", about, {"GET": self._events}),)

    async def _events(self, call: Call) -> Answer:
        wanted = Wanted(call.one("service").lower(), parse_selector(call.one("selector")))
        answer = StreamAnswer(self._hub.stream(wanted, call.last_event_id), "text/event-stream")
        answer.headers["Cache-Control"] = "no-cache"
        return answer
