# SPDX-License-Identifier: Apache-2.0
"""Transactions of the Consul-compatible API: keys, nodes, services and checks, all operations or none.

Data in: a list of operations. Data out: their results at one index, or status 409 and every reason why not. One that only reads is, with
`stale`, answered from the replica; else the store says that what was read holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from plait.http.message import Answer
from plait.serve.consul_http import Call, Route, Unable, encoded, json_answer, read_headers
from plait.services.txn import Outcome, TxnOp, parse_ops

_READ_HEADERS = ("X-Consul-KnownLeader", "X-Consul-LastContact")


class TxnBackend(Protocol):
    """What this room needs of the agent; see `agent.transactions.Transactions`."""

    def last_contact_ms(self) -> int | None: ...

    def seen(self, ops: Sequence[TxnOp]) -> Outcome: ...

    async def transact(self, ops: Sequence[TxnOp]) -> Outcome: ...


class TxnApi:
    """`routes` are hung into the API."""

    def __init__(self, backend: TxnBackend, datacenter: str) -> None:
        self._backend, self._datacenter = backend, datacenter
        self.routes = (Route("txn", "up to 128 operations on keys, nodes, services and checks, all or none", {"PUT": self._txn}),)

    async def _txn(self, call: Call) -> Answer:
        consistency, contact = call.consistency(), self._backend.last_contact_ms()
        ops = parse_ops(call.json("Failed to parse body"), self._datacenter)
        reads = all(op.reads for op in ops)
        if reads and consistency == "consistent" and contact is None:
            raise Unable("No cluster leader")
        outcome = self._backend.seen(ops) if reads and consistency == "stale" else await self._backend.transact(ops)
        headers = read_headers(0, self._backend.last_contact_ms(), consistency) if reads else {}
        body = encoded(outcome.answer(self._datacenter), call.flag("pretty"))
        answer = json_answer(body, {name: headers[name] for name in _READ_HEADERS} if reads else None)
        if outcome.errors:
            answer.status = 409
        return answer
