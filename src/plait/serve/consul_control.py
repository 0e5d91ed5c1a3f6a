# SPDX-License-Identifier: Apache-2.0
"""The part of the Consul-compatible API that steers the agent itself: leave, reload, join, force-leave."""

from __future__ import annotations

from typing import Protocol

from plait.http.message import Answer
from plait.serve.consul_http import Call, Route, text_answer
from plait.services.requests import BadRequest, Refusal


class AgentControl(Protocol):
    async def leave(self) -> None:
        """End the agent soon, after the answer. NotSupported where clients of the API may not."""
        ...

    async def reload(self) -> None:
        """Read the configuration again; what cannot be changed while it runs stays. ConfigError, and nothing has changed."""
        ...

    def members(self) -> frozenset[str]:
        """Names of all nodes."""
        ...


class ControlApi:
    def __init__(self, control: AgentControl, node: str) -> None:
        self._control, self._node = control, node
        self.routes = (
            Route("agent/leave", "end this agent; refused by one that also steers a network", {"PUT": self._leave}),
            Route("agent/reload", "read the configuration again", {"PUT": self._reload}),
            Route("agent/join/<address>", "refused: a host joins by `plait join`", {"PUT": self._join}),
            Route("agent/force-leave/<node>", "no effect (see `plait node rm`); an unknown node is an error", {"PUT": self._force}),
        )

    async def _leave(self, _: Call) -> Answer:
        await self._control.leave()
        return text_answer(200, "")

    async def _reload(self, _: Call) -> Answer:
        await self._control.reload()
        return text_answer(200, "")

    async def _join(self, call: Call) -> Answer:
        raise Refusal(f"error joining {call.part('address')!r}: a host becomes a member by `plait join ADDRESS --token TOKEN`")

    async def _force(self, call: Call) -> Answer:
        name = call.part("node name").partition(".")[0]
        if name not in self._control.members():
            raise Refusal(f"agent: No node found with name '{name}'")
        if name == self._node:
            raise BadRequest("this agent cannot force itself to leave; PUT /v1/agent/leave")
        return text_answer(200, "")
