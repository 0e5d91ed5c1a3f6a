# SPDX-License-Identifier: Apache-2.0
"""The routes of the admin API about services: each parses, asks the backend once and answers."""

from __future__ import annotations

from ipaddress import IPv4Address

from plait.http.message import Answer
from plait.model.service import ServiceChange, ServiceRequest, parse_service_ports
from plait.serve.admin_backend import AdminBackend
from plait.serve.jsonbody import Body, Call, Handler, json_answer, read_body


def service_routes(backend: AdminBackend) -> dict[str, dict[str, Handler]]:
    routes = _Routes(backend)
    return {
        "services": {"GET": routes.listed, "POST": routes.create},
        "services/*": {"GET": routes.show, "PUT": routes.change, "DELETE": routes.remove},
    }


class _Routes:
    def __init__(self, backend: AdminBackend) -> None:
        self._backend = backend

    async def listed(self, _: Call) -> Answer:
        return json_answer(await self._backend.services())

    async def create(self, call: Call) -> Answer:
        known = ("name", "namespace", "network", "ports", "publish", "selector", "address", "affinity", "local_first", "hosts", "headless")
        body = read_body(call.body, *known)
        wanted = ServiceRequest(
            name=body.text("name"),
            ports=parse_service_ports(body.texts("ports"), body.texts("publish")),
            selector=body.texts_by_name("selector"),
            namespace=body.text("namespace", "default"),
            network=body.text("network", "default"),
            address=body.parsed("address", IPv4Address, "an IPv4 address"),
            affinity=body.flag("affinity"),
            local_first=body.flag("local_first"),
            hosts=body.texts("hosts"),
            headless=body.flag("headless"),
        )
        return json_answer(await self._backend.create_service(wanted), 201)

    async def show(self, call: Call) -> Answer:
        return json_answer(await self._backend.service(call.name))

    async def change(self, call: Call) -> Answer:
        body = read_body(call.body, "ports", "publish", "selector", "affinity", "local_first", "drain", "undrain")
        change = ServiceChange(
            ports=parse_service_ports(body.texts("ports"), body.texts("publish")) if body.has("ports") else None,
            selector=body.texts_by_name("selector") if body.has("selector") else None,
            affinity=_said(body, "affinity"),
            local_first=_said(body, "local_first"),
            drain=body.texts("drain"),
            undrain=body.texts("undrain"),
        )
        return json_answer(await self._backend.change_service(call.name, change))

    async def remove(self, call: Call) -> Answer:
        await self._backend.remove_service(call.name)
        return json_answer({})


def _said(body: Body, key: str) -> bool | None:
    return body.flag(key) if body.has(key) else None
