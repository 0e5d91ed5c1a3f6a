# SPDX-License-Identifier: Apache-2.0
"""The Consul-compatible HTTP API: catalogue, health and this agent's services.

Data in: HTTP requests, snapshots of the cluster. Data out: JSON of `services.views`, registrations to the agent. Bodies are read as JSON
whatever their Content-Type says. Reads of the catalogue block with `?index=` until their own result changes (`services.index`,
`serve.http_answers`); what belongs to later versions is refused, not pretended.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from functools import partial

from plait import __version__
from plait.http.message import Answer, Parked
from plait.http.server import HttpServer, Limits
from plait.model.cluster import Instance
from plait.serve.consul_backend import CatalogBackend, CheckOwner, Outside, Read
from plait.serve.consul_checks import ChecksApi, add_checks
from plait.serve.consul_http import (
    Call,
    Handler,
    Missing,
    Repeated,
    Route,
    Unable,
    encoded,
    json_answer,
    read_headers,
    text_answer,
    until,
)
from plait.serve.consul_outside import OutsideApi
from plait.serve.consul_reads import node_of, reads, selected, topics_of
from plait.serve.consul_router import Router
from plait.serve.http_answers import Answers, Found, Indexes
from plait.services.checkrequests import service_checks
from plait.services.directory import CONSUL_VERSION, SERVER_META, Topic
from plait.services.figures import Reading
from plait.services.index import content_hash
from plait.services.requests import BadRequest, parse_service
from plait.services.views import Views, at_container, container_address, seed_answer

_APPEARANCE_S = 1.0
"""How long the seed's form of a registration, which answers with the address, waits for a container that was started a moment ago."""
_RECENT, _RECENT_BYTES = 64, 32 * 1024
"""How many answers are kept as they are sent, and how large they may be."""
_SESSION_TTL_MIN_NS = 10_000_000_000


class ConsulApi:
    """`server()` is started by the agent; `backend` gives snapshots and takes registrations, `more` are the paths of other rooms."""

    def __init__(
        self,
        backend: CatalogBackend,
        node: str,
        datacenter: str,
        more: Iterable[Route] = (),
        checks: CheckOwner | None = None,
        outside: Outside | None = None,
        indexes: Indexes | None = None,
    ) -> None:
        """Without `checks` services are registered without them; without `outside` the catalogue holds only what agents own; without
        `indexes` those of blocking queries may go back when the agent starts again."""
        self._backend, self._node, self._datacenter = backend, node, datacenter
        self._checks = checks
        self._coord: Callable[[], object] = dict
        self._near: Callable[[str], Callable[[str], float] | None] = lambda _: None
        self.answers = Answers(backend, node, indexes=indexes)
        self.directory = self.answers.directory
        self._recent: dict[Hashable, tuple[bytes, int, int | None, Answer]] = {}
        parts = [*ChecksApi(checks, self.directory, node, datacenter).routes] if checks is not None else []
        if outside is not None:
            parts += OutsideApi(outside, self.directory, datacenter).routes
        self._server: HttpServer | None = None
        self.router = Router(datacenter)
        self.router.add((*parts, *self._agent_routes(), *self._catalogue_routes(), *more))
        """The first that matches counts, so exact ones come before those with a variable part."""

    @property
    def routes(self) -> tuple[Route, ...]:
        return self.router.routes

    def add(self, routes: Iterable[Route]) -> None:
        """More paths, of a room that is made after this one. They count before those that are there."""
        self.router.add(routes)

    def set_coordinates(self, own: Callable[[], object], near: Callable[[str], Callable[[str], float] | None]) -> None:
        """`own` is this node's coordinate as JSON; `near(node)` tells how far others are from it, None if it knows no such node."""
        self._coord, self._near = own, near

    def server(self, limits: Limits | None = None) -> HttpServer:
        """A server of all this, to be started."""
        self._server = HttpServer(self.router, limits)
        return self._server

    def figures(self) -> list[Reading]:
        """Of that server."""
        server = self._server
        if server is None:
            return []
        answers = [
            Reading("plait.http.answers", float(count), (("status", f"{digit}xx"),)) for digit, count in enumerate(server.answered) if count
        ]
        return [*answers, Reading("plait.http.connections", float(len(server.connections)))]

    def parked(self) -> int:
        """Reads that wait for a change."""
        return self._server.parked if self._server is not None else 0

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

    # --- reads

    def _local(self, read: Read) -> Handler:
        """A read of what this agent knows by itself: answered at once, without the headers of the catalogue."""

        def answer(call: Call) -> Answer:
            return json_answer(encoded(selected(read, call, self._views(call)), call.flag("pretty")))

        return answer

    def _catalogue(self, read: Read) -> Handler:
        """A read of the replicated catalogue: blocks if it is asked to, and tells index and age of what it answers."""

        def prepare(call: Call) -> Callable[[], Answer | Parked]:
            consistency, after, topics = call.consistency(), call.index(), topics_of(call)
            query = (call.path, tuple(sorted((key, values) for key, values in call.params.items() if key not in ("index", "wait"))))
            make, keep = partial(self._result, call, read), not call.one("near")
            if after:
                call.wait_s()  # which refuses a wrong one

            def look(over: bool) -> Answer | None:
                found = self.answers.get(query, topics, make, keep)
                return self._said(query, call, found) if found[1] > after or over else None

            parked = Parked(call.wait_s, look, partial(self.answers.join, topics), partial(self.answers.leave, topics))

            def answer() -> Answer | Parked:
                if consistency == "consistent" and self._backend.last_contact_ms() is None:
                    raise Unable("No cluster leader")
                return look(not after) or parked

            return answer

        return Repeated(prepare)

    def _said(self, query: Hashable, call: Call, found: Found) -> Answer:
        """The answer that holds what was found; the same as before if it is the same."""
        (body, index), contact = found, self._backend.last_contact_ms()
        known = self._recent.get(query)
        if known is not None and known[0] is body and known[1:3] == (index, contact):
            return known[3]
        headers = read_headers(index, contact, call.consistency())
        if call.flag("cached"):
            headers |= {"X-Cache": "HIT", "Age": str((contact or 0) // 1000)}
        answer = json_answer(body, headers)
        if len(body) <= _RECENT_BYTES:
            if len(self._recent) >= _RECENT:
                self._recent.clear()
            self._recent[query] = body, index, contact, answer
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
        return {i.id: views.agent_service(i) for i in views.instances_on(self._node) if _agents(i)}

    def _agent_checks(self, _: Call, views: Views) -> object:
        return views.agent_checks(self._node)

    def _agent_service(self, call: Call) -> Answer | Parked:
        """One service of this agent; with `?hash=` blocks until it is another than the one that has this hash."""
        wanted, known = call.part("service ID"), call.one("hash")
        topics = frozenset({Topic("instance", f"{self._node}/{wanted}")})

        def look(over: bool) -> Answer | None:
            found = self.directory().instance(self._node, wanted)
            if found is None or not _agents(found):
                raise Missing(f"unknown service ID: {wanted}")
            body = self._views(call).agent_service(found)
            digest = content_hash(encoded(body, False))
            if digest == known and not over:
                return None
            return json_answer(encoded({**body, "ContentHash": digest}, call.flag("pretty")), {"X-Consul-ContentHash": digest})

        if known:
            call.wait_s()  # which refuses a wrong one
        parked = Parked(call.wait_s, look, partial(self.answers.join, topics), partial(self.answers.leave, topics))
        return look(not known) or parked

    async def _seed_register(self, call: Call) -> Answer:
        return json_answer(encoded(seed_answer(await self._put(call, _APPEARANCE_S)), call.flag("pretty")))

    async def _register(self, call: Call) -> Answer:
        await self._put(call)
        return text_answer(200, "")

    async def _put(self, call: Call, wait_s: float = 0.0) -> Instance:
        """Register what `call` describes. If it has no address, wait so long for the container of its name."""
        body = call.json()
        instance = parse_service(body, self._node)
        if instance.id == "consul":
            raise BadRequest("Invalid service ID: consul is the registry itself; choose another")
        checks = list(service_checks(body, instance))
        if checks and self._checks is None:
            raise BadRequest("Invalid check: this agent runs no health checks; register the service without Check and Checks")
        if not instance.address:
            look = partial(self._from_container, instance)
            instance = await until(wait_s, look, lambda found: bool(found.address), self._backend.changed)
        if self._checks is None:
            return await self._backend.register(instance)
        async with self._checks.changing(instance.id):  # and the checks first, so that it never is without them
            await add_checks(self._checks, checks)
            if call.switch("replace-existing-checks"):
                kept = {check.id for check in checks}
                await self._checks.remove([check.id for check in self._checks.of_service(instance.id) if check.id not in kept])
            return await self._backend.register(instance)

    def _from_container(self, instance: Instance) -> Instance:
        """Fill an empty address from the container of that name. One on this node is followed from then on, and stays the one that
        is meant while it does not run."""
        snapshot = self._backend.snapshot()
        if here := container_address(snapshot, instance.name, self._node):
            return at_container(snapshot, replace(instance, container=instance.name), here)
        if elsewhere := container_address(snapshot, instance.name):
            return replace(instance, address=elsewhere)
        known = snapshot.instances.get((self._node, instance.id))
        if known is not None and known.container == instance.name:
            return replace(instance, address=known.address, container=known.container, down=known.down)
        return instance

    async def _deregister(self, call: Call) -> Answer:
        wanted = call.part("service ID")
        if self._checks is None:
            await self._remove(wanted)
            return text_answer(200, "")
        async with self._checks.changing(wanted):
            await self._remove(wanted)
            await self._checks.remove([check.id for check in self._checks.of_service(wanted)])
        return text_answer(200, "")

    async def _remove(self, service_id: str) -> None:
        if not await self._backend.deregister(service_id):
            raise Missing(f'Unknown service ID "{service_id}". Ensure that the service ID is passed, not the service name.')


def _agents(instance: Instance) -> bool:
    """Whether it was registered with the agent of its node."""
    return instance.id != "consul" and instance.origin == "agent"
