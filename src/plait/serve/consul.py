# SPDX-License-Identifier: Apache-2.0
"""The Consul-compatible HTTP API: catalogue, health and this agent's services.

Data in: HTTP requests, snapshots of the cluster. Data out: JSON of `services.views`, registrations to the agent. Every path is
percent-decoded before it is routed and bodies are read as JSON whatever their Content-Type says. Reads of the catalogue block with
`?index=` until their own result changes (`services.index`, `serve.http_answers`); what belongs to later versions is refused, not pretended.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from urllib.parse import unquote

from aiohttp import web

from plait import __version__
from plait.model.cluster import Instance
from plait.model.errors import PlaitError
from plait.serve.consul_backend import CatalogBackend, CheckOwner, Outside, Read
from plait.serve.consul_checks import ChecksApi, add_checks
from plait.serve.consul_http import (
    Call,
    Handler,
    Missing,
    Route,
    StreamAnswer,
    Unable,
    compress,
    encoded,
    json_answer,
    read_headers,
    set_within,
    status_of,
    text_answer,
    until,
)
from plait.serve.consul_outside import OutsideApi
from plait.serve.consul_reads import FILTERED, node_of, reads, selected, topics_of
from plait.serve.http_answers import Answers
from plait.services.checkrequests import service_checks
from plait.services.directory import CONSUL_VERSION, SERVER_META
from plait.services.index import content_hash
from plait.services.requests import BadRequest, parse_service
from plait.services.views import Views, container_address, seed_answer

log = logging.getLogger("plait.consul")
MAX_BODY = 512 * 1024
SHUTDOWN_S = 1.0
"""How long a stop waits for requests; blocking queries would otherwise hold it for minutes."""
_APPEARANCE_S = 1.0
"""How long the seed's form of a registration, which answers with the address, waits for a container that was started a moment ago."""
_SESSION_TTL_MIN_NS = 10_000_000_000
_UI_OFF = "Consul Agent: UI disabled. This is plait: see `plait status` and `plait ps`."
_BAD_PATH = "Invalid URL path: if attempting to use the HTTP API, ensure the path starts with '/v1/'"
_BAD_API_PATH = "Invalid URL path: not a recognized HTTP API endpoint"
_UNPRINTABLE = "Invalid URL path: it holds characters that cannot be printed"
_ACL = re.compile(r"acl/.*|agent/token/.*")


class ConsulApi:
    """`runner()` is served by the agent; `backend` gives snapshots and takes registrations, `more` are the paths of other rooms."""

    def __init__(
        self,
        backend: CatalogBackend,
        node: str,
        datacenter: str,
        more: Iterable[Route] = (),
        checks: CheckOwner | None = None,
        outside: Outside | None = None,
    ) -> None:
        """Without `checks` services are registered without them; without `outside` the catalogue holds only what agents own."""
        self._backend, self._node, self._datacenter = backend, node, datacenter
        self._checks = checks
        self._coord: Callable[[], object] = dict
        self._near: Callable[[str], Callable[[str], float] | None] = lambda _: None
        self.answers = Answers(backend, node)
        self.directory = self.answers.directory
        parts = [*ChecksApi(checks, self.directory, node, datacenter).routes] if checks is not None else []
        if outside is not None:
            parts += OutsideApi(outside, self.directory, datacenter).routes
        self.routes = (*parts, *self._agent_routes(), *self._catalogue_routes(), *more)
        """The first that matches counts, so exact ones come before those with a variable part."""
        self._routes: dict[str, list[Route]] = {}
        """By the first segment of their path."""
        self._sort_routes()
        self.app = web.Application(client_max_size=MAX_BODY)
        self.app.router.add_route("*", "/{path:.*}", self._handle)

    def add(self, routes: Iterable[Route]) -> None:
        """More paths, of a room that is made after this one."""
        self.routes = (*routes, *self.routes)
        self._sort_routes()

    def _sort_routes(self) -> None:
        self._routes = {}
        for route in self.routes:
            self._routes.setdefault(route.path.partition("/")[0], []).append(route)

    def set_coordinates(self, own: Callable[[], object], near: Callable[[str], Callable[[str], float] | None]) -> None:
        """`own` is this node's coordinate as JSON; `near(node)` tells how far others are from it, None if it knows no such node."""
        self._coord, self._near = own, near

    def runner(self) -> web.AppRunner:
        """Serves `app` so that a client that hangs up ends its blocking query, and a stop does not wait for those that do not."""
        return web.AppRunner(self.app, access_log=None, handle_signals=False, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S)

    def _agent_routes(self) -> list[Route]:
        local = self._local
        version = {"SHA": "", "BuildDate": "", "HumanVersion": CONSUL_VERSION, "FIPS": ""}
        return [
            Route("status/leader", "the node that carries the store", {"GET": local(self._leader)}),
            Route("status/peers", "the same in a list", {"GET": local(lambda _, views: views.servers())}),
            Route("agent/self", "this agent", {"GET": local(self._self)}),
            Route("agent/members", "all nodes and whether they live", {"GET": local(self._members)}),
            Route("agent/version", "the version whose API is answered", {"GET": local(lambda _, __: version)}),
            Route(
                "agent/services",
                "this agent's services; PUT registers one, fills an empty address from the container of that name, and shows it",
                {"GET": local(self._agent_services), "PUT": self._seed_register},
            ),
            Route("agent/checks", "this agent's checks", {"GET": local(self._agent_checks)}),
            Route("agent/service/register", "register a service with its checks; `replace-existing-checks`", {"PUT": self._register}),
            Route("agent/service/deregister/<id>", "remove a service", {"PUT": self._deregister}),
            Route("agent/service/<id>", "one service of this agent; blocks with `hash`", {"GET": self._agent_service}),
        ]

    def _catalogue_routes(self) -> list[Route]:
        return [
            Route(path, about, {"GET": (self._catalogue if blocks else self._local)(read)})
            for path, about, blocks, read in reads(self._datacenter)
        ]

    # --- routing

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            answer = await self._route(request)
            return await answer.send(request) if isinstance(answer, StreamAnswer) else compress(request, answer)
        except (PlaitError, UnicodeError) as error:
            return text_answer(status_of(error), str(error))
        except web.HTTPException as error:
            return text_answer(error.status, error.text or error.reason)
        except Exception as error:
            log.exception("request_failed", extra={"op": f"{request.method} {request.path}"})
            return text_answer(500, f"error inside the agent ({error!r}); its log says more")

    async def _route(self, request: web.Request) -> web.Response:
        path = unquote(request.rel_url.raw_path)
        if not path.isprintable():
            return text_answer(400, _UNPRINTABLE)
        if not path.startswith("/v1/"):
            return text_answer(200, _UI_OFF) if path == "/" else text_answer(404, _BAD_PATH)
        path = path.removeprefix("/v1/")
        candidates = self._routes.get(path.partition("/")[0], ())
        found = next(((parts, route) for route in candidates if (parts := route.match(path)) is not None), None)
        if found is None:
            return text_answer(401, "ACL support disabled") if _ACL.fullmatch(path) else text_answer(404, _BAD_API_PATH)
        parts, route = found
        allow = {"Allow": ",".join(["OPTIONS", *route.methods])}
        if request.method == "OPTIONS":
            return text_answer(200, "", allow)
        if request.method not in route.methods:
            return text_answer(405, f"method {request.method} not allowed", allow)
        params = {key: tuple(request.query.getall(key)) for key in request.query}
        sized = request.clone(client_max_size=route.max_body) if route.max_body else request
        head = request.headers
        call = Call(path, parts, params, await sized.read(), head.get("Accept", ""), head.get("Last-Event-ID", ""))
        call.check_scope(self._datacenter)
        if call.one("filter") and not route.path.startswith(FILTERED):
            raise BadRequest(f"filter does not apply to /v1/{route.path}")
        return await route.methods[request.method](call)

    # --- reads

    def _local(self, read: Read) -> Handler:
        """A read of what this agent knows by itself: answered at once, without the headers of the catalogue."""

        async def answer(call: Call) -> web.Response:
            return json_answer(encoded(selected(read, call, self._views(call)), call.flag("pretty")))

        return answer

    def _catalogue(self, read: Read) -> Handler:
        """A read of the replicated catalogue: blocks if it is asked to, and tells index and age of what it answers."""

        async def answer(call: Call) -> web.Response:
            consistency, after = call.consistency(), call.index()
            if consistency == "consistent" and self._backend.last_contact_ms() is None:
                raise Unable("No cluster leader")
            topics = topics_of(call)
            query = (call.path, tuple(sorted((key, values) for key, values in call.params.items() if key not in ("index", "wait"))))
            look = partial(self.answers.get, query, topics, partial(self._result, call, read), not call.one("near"))
            body, index = look()
            wait_s = call.wait_s() if after else 0.0
            if index <= after:
                with self.answers.waiting(topics) as event:
                    body, index = await until(wait_s, look, lambda found: found[1] > after, partial(set_within, event))
            contact = self._backend.last_contact_ms()
            headers = read_headers(index, contact, consistency)
            if call.flag("cached"):
                headers |= {"X-Cache": "HIT", "Age": str((contact or 0) // 1000)}
            return json_answer(body, headers)

        return answer

    def _result(self, call: Call, read: Read) -> bytes:
        return encoded(self._ordered(call, selected(read, call, self._views(call))), call.flag("pretty"))

    def _ordered(self, call: Call, found: object) -> object:
        """A list by the distance of its nodes from the one that `near` names; as it is if that is unknown."""
        name = self._node if call.one("near") == "_agent" else call.one("near")
        far = self._near(name) if name else None
        return sorted(found, key=lambda row: far(node_of(row))) if far is not None and isinstance(found, list) else found

    def _views(self, call: Call) -> Views:
        return Views(self.directory(), self._datacenter, call.every("node-meta"))

    # --- this agent

    def _leader(self, _: Call, views: Views) -> object:
        servers = views.servers()
        return servers[0] if servers and self._backend.last_contact_ms() is not None else ""

    def _members(self, call: Call, views: Views) -> object:
        return views.members(f".{self._datacenter}" if call.flag("wan") else "")

    def _self(self, call: Call, views: Views) -> object:
        node = self._backend.snapshot().nodes.get(self._node)
        config = {
            "Datacenter": self._datacenter,
            "PrimaryDatacenter": self._datacenter,
            "NodeName": self._node,
            "NodeID": node.id if node is not None else "",
            "Revision": "",
            "Server": node is not None and SERVER_META in node.meta,
            "Version": CONSUL_VERSION,
            "BuildDate": "",
        }
        return {
            "Config": config,
            "DebugConfig": {"SessionTTLMin": _SESSION_TTL_MIN_NS},
            "Member": next((member for member in views.members() if member["Name"] == self._node), {}),
            "Stats": {"agent": {}, "consul": {"leader_addr": self._leader(call, views)}, "raft": {}, "serf_lan": {}, "runtime": {}},
            "Coord": self._coord(),
            "Meta": {"plait-version": __version__},
            "xDS": {"SupportedProxies": {}, "Port": -1, "Ports": {"Plaintext": -1, "TLS": -1}},
        }

    def _agent_services(self, _: Call, views: Views) -> object:
        own = (i for i in views.instances_on(self._node) if i.id != "consul" and i.origin == "agent")
        return {i.id: views.agent_service(i) for i in own}

    def _agent_checks(self, _: Call, views: Views) -> object:
        return views.agent_checks(self._node)

    async def _agent_service(self, call: Call) -> web.Response:
        """One service of this agent; with `?hash=` blocks until it is another than the one that has this hash."""
        wanted, known = call.part("service ID"), call.one("hash")

        def look() -> tuple[dict[str, object], str]:
            found = self._backend.snapshot().instances.get((self._node, wanted))
            if found is None:
                raise Missing(f"unknown service ID: {wanted}")
            body = self._views(call).agent_service(found)
            return body, content_hash(encoded(body, False))

        body, digest = look()
        if known:
            body, digest = await until(call.wait_s(), look, lambda found: found[1] != known, self._backend.changed)
        return json_answer(encoded({**body, "ContentHash": digest}, call.flag("pretty")), {"X-Consul-ContentHash": digest})

    async def _seed_register(self, call: Call) -> web.Response:
        return json_answer(encoded(seed_answer(await self._put(call, _APPEARANCE_S)), call.flag("pretty")))

    async def _register(self, call: Call) -> web.Response:
        await self._put(call)
        return text_answer(200, "")

    async def _put(self, call: Call, wait_s: float = 0.0) -> Instance:
        """Register what `call` describes. If it has no address, wait so long for the container of its name."""
        body = call.json()
        instance = parse_service(body, self._node)
        if instance.id == "consul":
            raise BadRequest("Invalid service ID: consul is the registry itself; choose another")
        checks = service_checks(body, instance)
        if self._checks is None:
            if checks:
                raise BadRequest("Invalid check: this agent runs no health checks; register the service without Check and Checks")
        else:  # before the service, which so is never without them
            await add_checks(self._checks, list(checks))
            if call.switch("replace-existing-checks"):
                kept = {check.id for check in checks}
                await self._checks.remove([check.id for check in self._checks.of_service(instance.id) if check.id not in kept])
        if not instance.address:
            look = partial(self._from_container, instance)
            instance = await until(wait_s, look, lambda found: bool(found.address), self._backend.changed)
        return await self._backend.register(instance)

    def _from_container(self, instance: Instance) -> Instance:
        """Fill an empty address from the container of that name. One on this node is followed from then on, and stays the one that
        is meant while it does not run."""
        snapshot = self._backend.snapshot()
        if here := container_address(snapshot, instance.name, self._node):
            return replace(instance, address=here, container=instance.name)
        if elsewhere := container_address(snapshot, instance.name):
            return replace(instance, address=elsewhere)
        known = snapshot.instances.get((self._node, instance.id))
        if known is not None and known.container == instance.name:
            return replace(instance, address=known.address, container=known.container, down=known.down)
        return instance

    async def _deregister(self, call: Call) -> web.Response:
        wanted = call.part("service ID")
        if not await self._backend.deregister(wanted):
            raise Missing(f'Unknown service ID "{wanted}". Ensure that the service ID is passed, not the service name.')
        if self._checks is not None:
            await self._checks.remove([check.id for check in self._checks.of_service(wanted)])
        return text_answer(200, "")
