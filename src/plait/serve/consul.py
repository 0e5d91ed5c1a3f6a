# SPDX-License-Identifier: Apache-2.0
"""The Consul-compatible HTTP API: requests in, JSON of `services.views` out.

Every path is percent-decoded before it is routed; bodies are read as JSON whatever their Content-Type says; errors are plain text
with Consul's words. Reads block with `?index=` until their own result changes (see `services.index`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol
from urllib.parse import unquote

from aiohttp import web

from plait import __version__
from plait.model.cluster import Instance, Snapshot
from plait.model.errors import NotFound, PlaitError, StoreUnavailable
from plait.services.index import QueryIndex
from plait.services.requests import BadRequest, duration_s, parse_service
from plait.services.views import Views, container_address, seed_answer

log = logging.getLogger("plait.consul")
CONSUL_VERSION = "1.22.0"
MAX_BODY = 512 * 1024
_DEFAULT_WAIT_S, _MAX_WAIT_S = 300.0, 600.0
_BAD_PATH = "Invalid URL path: if attempting to use the HTTP API, ensure the path starts with '/v1/'"
_BAD_API_PATH = "Invalid URL path: not a recognized HTTP API endpoint"


class CatalogBackend(Protocol):
    """What the API needs of the agent."""

    def snapshot(self) -> Snapshot: ...

    async def register(self, instance: Instance) -> Instance:
        """Durable on this node, then published; returns it with its indexes. Idempotent."""
        ...

    async def deregister(self, service_id: str) -> bool:
        """False if this node has no such service."""
        ...

    async def changed(self, timeout_s: float) -> None:
        """Return when the snapshot may have changed, or after the timeout."""
        ...

    def last_contact_ms(self) -> int | None:
        """Milliseconds since the store was last heard of; 0 on the node that carries it, None = it is out of reach."""
        ...


@dataclass(frozen=True, slots=True)
class Call:
    """One request after routing: the variable parts of the path, the query's parameters, the body."""

    parts: tuple[str, ...]
    params: Mapping[str, list[str]]
    body: bytes

    def flag(self, name: str) -> bool:
        return name in self.params

    def one(self, name: str) -> str:
        return self.params.get(name, [""])[-1]

    def json(self) -> object:
        try:
            return json.loads(self.body or b"null")
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"Request decode failed: {error}") from error


class Missing(PlaitError):
    """Answered with status 404 and this text."""


Read = Callable[[Call, Views], object]
Write = Callable[[Call], Awaitable[object]]


class ConsulApi:
    """`app` is served by the agent; `backend` gives snapshots and takes registrations."""

    def __init__(self, backend: CatalogBackend, node: str, datacenter: str) -> None:
        self._backend, self._node, self._datacenter = backend, node, datacenter
        self._index = QueryIndex()
        self._reads: list[tuple[re.Pattern[str], Read]] = [
            (re.compile(pattern), read)
            for pattern, read in (
                (r"status/leader", self._leader),
                (r"status/peers", lambda _, views: views.servers()),
                (r"agent/self", self._self),
                (r"agent/members", lambda _, views: views.members()),
                (r"agent/version", lambda _, __: {"SHA": "", "BuildDate": "", "HumanVersion": CONSUL_VERSION, "FIPS": ""}),
                (r"agent/services", self._agent_services),
                (r"agent/service/(.+)", self._agent_service),
                (r"agent/checks", lambda _, views: {c["CheckID"]: c for c in views.node_checks(node) if c["ServiceID"]}),
                (r"catalog/datacenters", lambda _, __: [datacenter]),
                (r"catalog/nodes", lambda _, views: views.nodes()),
                (r"catalog/services", lambda _, views: views.services()),
                (r"catalog/service/(.*)", self._catalog_service),
                (r"catalog/node/(.+)", self._catalog_node),
                (r"health/service/(.*)", self._health_service),
                (r"health/node/(.+)", self._health_node),
                (r"health/checks/(.+)", lambda call, views: views.service_checks(call.parts[0])),
                (r"health/state/(\w+)", lambda call, views: views.checks(call.parts[0])),
            )
        ]
        self._writes: list[tuple[re.Pattern[str], Write]] = [
            (re.compile(pattern), write)
            for pattern, write in (
                (r"agent/services", self._seed_register),
                (r"agent/service/register", self._register),
                (r"agent/service/deregister/(.+)", self._deregister),
            )
        ]
        self.app = web.Application(client_max_size=MAX_BODY)
        self.app.router.add_route("*", "/{path:.*}", self._handle)

    # --- routing

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            path = unquote(request.rel_url.raw_path)
            if not path.isprintable():
                return _text(400, "Invalid URL path: it holds characters that cannot be printed")
            if not path.startswith("/v1/"):
                return _text(404, _BAD_PATH)
            params = {key: request.query.getall(key) for key in request.query}
            return await self._route(request.method, path[4:], params, await request.read(), "pretty" in params)
        except (BadRequest, UnicodeDecodeError) as error:
            return _text(400, str(error))
        except (Missing, NotFound) as error:
            return _text(404, str(error))
        except (StoreUnavailable, TimeoutError) as error:
            return _text(500, f"No cluster leader: {error}")

    async def _route(self, method: str, path: str, params: Mapping[str, list[str]], body: bytes, pretty: bool) -> web.Response:
        reads = [(match, read) for pattern, read in self._reads if (match := pattern.fullmatch(path))]
        writes = [(match, write) for pattern, write in self._writes if (match := pattern.fullmatch(path))]
        allowed = ["OPTIONS", *(["GET"] if reads else []), *(["PUT"] if writes else [])]
        if not reads and not writes:
            return _text(404, _BAD_API_PATH)
        if method == "OPTIONS":
            return web.Response(headers={"Allow": ",".join(allowed)})
        if method == "GET" and reads:
            match, read = reads[0]
            return await self._answer_read(path, Call(match.groups(), params, body), read, pretty)
        if method == "PUT" and writes:
            match_w, write = writes[0]
            self._check_params(params)
            answer = await write(Call(match_w.groups(), params, body))
            return web.Response(headers=_COMMON) if answer is None else _json(answer, pretty)
        return web.Response(status=405, text=f"method {method} not allowed", headers={"Allow": ",".join(allowed)})

    def _check_params(self, params: Mapping[str, list[str]]) -> None:
        if "stale" in params and "consistent" in params:
            raise BadRequest("Cannot specify ?stale with ?consistent, conflicting semantics.")
        wanted = params.get("dc", [""])[-1]
        if wanted and wanted.lower() != self._datacenter:
            raise StoreUnavailable("No path to datacenter")
        for name in ("ns", "partition"):
            value = params.get(name, ["default"])[-1]
            if value not in ("", "default"):
                raise BadRequest(f'Invalid query parameter: "{name}" - Namespaces are a Consul Enterprise feature')

    # --- reads

    async def _answer_read(self, path: str, call: Call, read: Read, pretty: bool) -> web.Response:
        self._check_params(call.params)
        contact = self._backend.last_contact_ms()
        if call.flag("consistent") and contact is None:
            raise StoreUnavailable("the store is out of reach, so a consistent read is not possible")
        after, wait = _blocking(call)
        query = (path, tuple(sorted((k, tuple(v)) for k, v in call.params.items() if k not in ("index", "wait", "pretty"))))
        deadline = asyncio.get_running_loop().time() + wait
        while True:
            snapshot = self._backend.snapshot()
            result = read(call, Views(snapshot, self._datacenter))
            index = self._index.index_of(query, json.dumps(result, sort_keys=True).encode(), snapshot.revision)
            left = deadline - asyncio.get_running_loop().time()
            if not after or index > after or left <= 0:
                break
            await self._backend.changed(left)
        headers = {
            "X-Consul-Index": str(index),
            "X-Consul-KnownLeader": "true" if contact is not None else "false",
            "X-Consul-LastContact": str(contact or 0),
            "X-Consul-Effective-Consistency": "consistent" if call.flag("consistent") else "stale" if call.flag("stale") else "leader",
            "X-Consul-Query-Backend": "blocking-query",
        }
        return _json(result, pretty, headers)

    def _leader(self, _: Call, views: Views) -> object:
        servers = views.servers()
        return servers[0] if servers and self._backend.last_contact_ms() is not None else ""

    def _self(self, _: Call, views: Views) -> object:
        node = views.find_node(self._node)
        member = next((m for m in views.members() if m["Name"] == self._node), {})
        config = {
            "Datacenter": self._datacenter,
            "PrimaryDatacenter": self._datacenter,
            "NodeName": self._node,
            "NodeID": node.id if node is not None else "",
            "Revision": "",
            "Server": bool(node is not None and "server" in node.meta),
            "Version": CONSUL_VERSION,
            "BuildDate": "",
        }
        return {
            "Config": config,
            "DebugConfig": {"SessionTTLMin": "10s"},
            "Member": member,
            "Stats": {"agent": {}, "consul": {}, "raft": {}, "serf_lan": {}, "runtime": {}},
            "Meta": {"plait-version": __version__},
        }

    def _agent_services(self, _: Call, views: Views) -> object:
        return {i.id: views.agent_service(i) for i in self._own(views)}

    def _agent_service(self, call: Call, views: Views) -> object:
        for instance in self._own(views):
            if instance.id == call.parts[0]:
                return views.agent_service(instance)
        raise Missing(f"unknown service ID: {call.parts[0]}")

    def _own(self, views: Views) -> list[Instance]:
        return [i for i in views.instances(node=self._node) if i.id != "consul"]

    def _catalog_service(self, call: Call, views: Views) -> object:
        return [views.catalog_service(i) for i in views.instances(_service_name(call), tags=call.params.get("tag", []))]

    def _catalog_node(self, call: Call, views: Views) -> object:
        node = views.find_node(call.parts[0])
        if node is None:
            return None
        return {"Node": views.node(node), "Services": {i.id: views.node_service(i) for i in views.instances(node=node.name)}}

    def _health_service(self, call: Call, views: Views) -> object:
        passing = _bool_param(call, "passing")
        found = views.instances(_service_name(call), tags=call.params.get("tag", []))
        return [views.health_entry(i) for i in found if not passing or views.healthy(i)]

    def _health_node(self, call: Call, views: Views) -> object:
        node = views.find_node(call.parts[0])
        return views.node_checks(node.name) if node is not None else []

    # --- writes

    async def _seed_register(self, call: Call) -> object:
        return seed_answer(await self._put(call))

    async def _register(self, call: Call) -> None:
        await self._put(call)

    async def _put(self, call: Call) -> Instance:
        instance = parse_service(call.json(), self._node)
        if not instance.address:
            instance = self._from_container(instance)
        return await self._backend.register(instance)

    def _from_container(self, instance: Instance) -> Instance:
        """Fill an empty address from the container of that name. One on this node is followed from then on."""
        snapshot = self._backend.snapshot()
        here = container_address(snapshot, instance.name, self._node)
        if here:
            return replace(instance, address=here, container=instance.name)
        return replace(instance, address=container_address(snapshot, instance.name))

    async def _deregister(self, call: Call) -> None:
        name = call.parts[0]
        if not await self._backend.deregister(name):
            raise Missing(f'Unknown service ID "{name}". Ensure that the service ID is passed, not the service name.')


_COMMON = {"Vary": "Accept-Encoding", "X-Consul-Default-Acl-Policy": "allow"}


def _text(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text, headers=_COMMON)


def _json(value: object, pretty: bool, headers: Mapping[str, str] | None = None) -> web.Response:
    body = json.dumps(value, indent=4) + "\n" if pretty else json.dumps(value, separators=(",", ":"))
    return web.Response(text=body, content_type="application/json", headers={**_COMMON, **(headers or {})})


def _service_name(call: Call) -> str:
    if not call.parts[0]:
        raise BadRequest("Missing service name")
    return call.parts[0]


def _bool_param(call: Call, name: str) -> bool:
    """`?passing`, `?passing=1`, `?passing=true` are true; absent, 0, false are not."""
    if not call.flag(name):
        return False
    value = call.one(name).lower()
    if value in ("", "1", "t", "true"):
        return True
    if value in ("0", "f", "false"):
        return False
    raise BadRequest(f"Invalid value for ?{name}")


def _blocking(call: Call) -> tuple[int, float]:
    """(index, seconds to wait). Index 0 = do not block. A sixteenth of the wait is added at random, as clients expect."""
    text = call.one("index") or "0"
    if not text.isdigit():
        raise BadRequest("Invalid index")
    wait = _DEFAULT_WAIT_S
    if call.one("wait"):
        try:
            wait = duration_s(call.one("wait"))
        except ValueError as error:
            raise BadRequest("Invalid wait time") from error
    wait = min(wait, _MAX_WAIT_S)
    return int(text), wait + random.uniform(0, wait / 16)
