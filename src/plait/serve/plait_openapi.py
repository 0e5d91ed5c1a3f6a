# SPDX-License-Identifier: Apache-2.0
"""`GET /v1/plait/openapi.json`: what this API takes and answers, for programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from plait import __version__
from plait.http.message import Answer
from plait.serve.consul_http import Call, Route, encoded, json_answer


class OpenApi:
    """`routes` are hung into the API; `served` gives all that it has."""

    def __init__(self, served: Callable[[], Iterable[Route]]) -> None:
        self._served = served
        self.routes = (Route("plait/openapi.json", "this API as OpenAPI 3.1, for programs", {"GET": self._description}),)

    async def _description(self, call: Call) -> Answer:
        from plait.serve.openapi import description  # an agent that nobody asks need not carry it

        return json_answer(encoded(description(self._served(), __version__), call.flag("pretty")))
