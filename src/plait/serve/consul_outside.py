# SPDX-License-Identifier: Apache-2.0
"""What others put into the catalogue: nodes without an agent, their services and checks (`catalog/register`, `catalog/deregister`).

What an agent registered of its own node stays as that agent says: a registration of the same name is kept beside it and comes to light
if the agent's goes; the condition `catalog-conflict` shows it. Only tags are taken over, if the agent registered with EnableTagOverride.
"""

from __future__ import annotations

from collections.abc import Callable

from plait.http.message import Answer
from plait.model.cluster import Instance
from plait.model.discovery import CatalogNode, Check
from plait.serve.consul_backend import Outside
from plait.serve.consul_http import Call, Route, json_answer
from plait.services.catalogrequests import parse_registration, parse_removal
from plait.services.directory import Directory
from plait.services.requests import BadRequest


class OutsideApi:
    """`routes` are hung into the API; `directory` gives the present one."""

    def __init__(self, outside: Outside, directory: Callable[[], Directory], datacenter: str) -> None:
        self._outside, self._directory, self._datacenter = outside, directory, datacenter

    @property
    def routes(self) -> list[Route]:
        return [
            Route("catalog/register", "put a node without an agent, a service or checks into the catalogue", {"PUT": self._register}),
            Route("catalog/deregister", "remove them", {"PUT": self._deregister}),
        ]

    async def _register(self, call: Call) -> Answer:
        call.check_body_scope(self._datacenter)
        wanted = parse_registration(call.json())
        directory = self._directory()
        if wanted.node is None and wanted.name not in directory.nodes:
            raise BadRequest(f"Must provide address if SkipNodeUpdate is not set: there is no node {wanted.name!r} yet")
        records: list[CatalogNode | Instance | Check] = []
        if wanted.node is not None and not directory.has_agent(wanted.name):
            records.append(wanted.node)
        if wanted.instance is not None:
            records.append(wanted.instance)
        for check in wanted.checks:
            known = directory.instance(check.node, check.service_id)
            if check.service_id and known is None and (wanted.instance is None or wanted.instance.id != check.service_id):
                raise BadRequest(f'Invalid check: ServiceID "{check.service_id}" does not exist on node {check.node!r}')
            records.append(check)
        await self._outside.put(records)
        return json_answer(b"true")

    async def _deregister(self, call: Call) -> Answer:
        call.check_body_scope(self._datacenter)
        wanted = parse_removal(call.json())
        await self._outside.drop(wanted.node, wanted.service_id, wanted.check_id)
        return json_answer(b"true")
