# SPDX-License-Identifier: Apache-2.0
"""This agent's checks, its maintenance, and what its checks say together: `agent/check/…`, `agent/health/…`, `agent/…maintenance`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from plait.http.message import Answer
from plait.model.cluster import Instance
from plait.model.discovery import NODE_MAINTENANCE, SERVICE_MAINTENANCE, Check, Status
from plait.model.errors import NotFound, NotSupported
from plait.serve.consul_backend import CheckOwner
from plait.serve.consul_http import Call, Missing, Route, encoded, json_answer, text_answer
from plait.services.checkrequests import STATUSES, maintenance_check, of_service, parse_check
from plait.services.directory import Directory
from plait.services.requests import BadRequest, fold, text_of
from plait.services.status import Aggregate, aggregated
from plait.services.views import Views

_STATUS_CODE: dict[Aggregate, int] = {"passing": 200, "warning": 429, "critical": 503, "maintenance": 503}
_WORDS: tuple[tuple[str, Status], ...] = (("pass", "passing"), ("warn", "warning"), ("fail", "critical"))


class ChecksApi:
    """`routes` are hung into the API; `directory` gives the present one."""

    def __init__(self, checks: CheckOwner, directory: Callable[[], Directory], node: str, datacenter: str) -> None:
        self._checks, self._directory, self._node, self._datacenter = checks, directory, node, datacenter

    @property
    def routes(self) -> list[Route]:
        said = [
            Route(f"agent/check/{word}/<id>", f"say that a TTL check is {status}; `note`", {"PUT": partial(self._say, status)})
            for word, status in _WORDS
        ]
        return [
            Route("agent/check/register", "register a check of this node or of one of its services", {"PUT": self._register}),
            Route("agent/check/deregister/<id>", "remove a check", {"PUT": self._deregister}),
            *said,
            Route("agent/check/update/<id>", "say status and output of a TTL check", {"PUT": self._update}),
            Route("agent/maintenance", "take this node out of service, or back; `enable`, `reason`", {"PUT": self._node_maintenance}),
            Route("agent/service/maintenance/<id>", "the same for one service", {"PUT": self._service_maintenance}),
            Route("agent/health/service/name/<name>", "200, 429, 503 by the worst of this agent's instances", {"GET": self._by_name}),
            Route("agent/health/service/id/<id>", "200, 429, 503 by the status of one instance; `format=text`", {"GET": self._by_id}),
        ]

    # --- checks

    async def _register(self, call: Call) -> Answer:
        check = parse_check(call.json(), self._node)
        if not check.service_id:
            await add_checks(self._checks, [check])
            return text_answer(200, "")
        async with self._checks.changing(check.service_id):
            instance = self._directory().instance(self._node, check.service_id)
            if instance is None or instance.origin != "agent":
                raise Missing(f'ServiceID "{check.service_id}" does not exist')
            await add_checks(self._checks, [of_service(check, instance)])
        return text_answer(200, "")

    async def _deregister(self, call: Call) -> Answer:
        wanted = call.part("check ID")
        if self._checks.own(wanted) is None:
            raise Missing(f'Unknown check ID "{wanted}". Ensure that the check ID is passed, not the check name.')
        await self._checks.remove([wanted])
        return text_answer(200, "")

    async def _say(self, status: Status, call: Call) -> Answer:
        return self._told(call, status, call.one("note"))

    async def _update(self, call: Call) -> Answer:
        raw = fold(call.json())
        said = text_of(raw, "status")
        for status in STATUSES:
            if said == status:
                return self._told(call, status, text_of(raw, "output"))
        raise BadRequest(f"Invalid check status: '{said}'")

    def _told(self, call: Call, status: Status, output: str) -> Answer:
        try:
            self._checks.update(call.part("check ID"), status, output)
        except NotFound as error:
            raise Missing(str(error)) from error
        return text_answer(200, "")

    # --- maintenance

    async def _node_maintenance(self, call: Call) -> Answer:
        return await self._maintain(call, NODE_MAINTENANCE, None)

    async def _service_maintenance(self, call: Call) -> Answer:
        wanted = call.part("service ID")
        enable = _enable(call)
        async with self._checks.changing(wanted):
            instance = self._directory().instance(self._node, wanted)
            if instance is None:
                raise Missing(f'Unknown service ID "{wanted}". Ensure that the service ID is passed, not the service name.')
            return await self._maintain(call, f"{SERVICE_MAINTENANCE}{wanted}", instance, enable)

    async def _maintain(self, call: Call, check_id: str, instance: Instance | None, enable: bool | None = None) -> Answer:
        if _enable(call) if enable is None else enable:
            await add_checks(self._checks, [maintenance_check(self._node, instance, call.one("reason"))])
        else:
            await self._checks.remove([check_id])
        return text_answer(200, "")

    # --- what they say together

    async def _by_name(self, call: Call) -> Answer:
        name = call.part("service Name")
        directory = self._directory()
        found = [i for i in directory.by_service.get(name.lower(), ()) if i.node == self._node]
        if not found:
            return _health_answer(call, 404, "critical", f"ServiceName {name} Not Found", None)
        status = aggregated(check for i in found for check in self._of(directory, i))
        return _health_answer(call, _STATUS_CODE[status], status, status, [self._entry(directory, i) for i in found])

    async def _by_id(self, call: Call) -> Answer:
        wanted = call.part("serviceID")
        directory = self._directory()
        instance = directory.instance(self._node, wanted)
        if instance is None:
            empty = {"AggregatedStatus": "critical", "Service": None, "Checks": None}
            return _health_answer(call, 404, "critical", f"ServiceId {wanted} not found", empty)
        status = aggregated(self._of(directory, instance))
        return _health_answer(call, _STATUS_CODE[status], status, status, self._entry(directory, instance))

    def _of(self, directory: Directory, instance: Instance) -> tuple[Check, ...]:
        """What the agent itself knows: all checks of the instance but its own sign of life."""
        return (*directory.checks.get((self._node, ""), ()), *directory.service_checks(instance))

    def _entry(self, directory: Directory, instance: Instance) -> dict[str, object]:
        views, checks = Views(directory, self._datacenter), self._of(directory, instance)
        return {
            "AggregatedStatus": aggregated(checks),
            "Service": views.agent_service(instance),
            "Checks": views.shown(checks),
        }


async def add_checks(owner: CheckOwner, checks: list[Check]) -> None:
    """Have them kept. BadRequest for what the operator does not allow."""
    try:
        await owner.add(checks)
    except NotSupported as error:
        raise BadRequest(f"Invalid check: {error}") from error


def _enable(call: Call) -> bool:
    if not call.one("enable"):
        raise BadRequest("Missing value for enable")
    value = call.one("enable").lower()
    if value not in ("1", "t", "true", "0", "f", "false"):
        raise BadRequest(f'Invalid value for enable: "{call.one("enable")}"')
    return value in ("1", "t", "true")


def _health_answer(call: Call, code: int, status: Aggregate, text: str, body: object) -> Answer:
    headers = {"X-Consul-Reason": status}
    if call.one("format") == "text" or "text/plain" in call.accept:
        return text_answer(code, text, headers)
    answer = json_answer(encoded(body, call.flag("pretty")), headers)
    answer.status = code
    return answer
