# SPDX-License-Identifier: Apache-2.0
"""The routes of the admin API about egress rules: each parses, asks the backend once and answers."""

from __future__ import annotations

from plait.http.message import Answer
from plait.model.egress import Egress, parse_gateways
from plait.serve.admin_backend import AdminBackend
from plait.serve.jsonbody import Call, Handler, json_answer, read_body


def egress_routes(backend: AdminBackend) -> dict[str, dict[str, Handler]]:
    async def listed(_: Call) -> Answer:
        return json_answer(await backend.egresses())

    async def put(call: Call) -> Answer:
        body = read_body(call.body, "network", "selector", "via")
        gateways = parse_gateways(body.texts("via"))
        wanted = Egress(call.name, body.text("network", "default"), gateways, body.texts_by_name("selector"))
        return json_answer(await backend.put_egress(wanted))

    async def remove(call: Call) -> Answer:
        await backend.remove_egress(call.name)
        return json_answer({})

    return {"egress": {"GET": listed}, "egress/*": {"PUT": put, "DELETE": remove}}
