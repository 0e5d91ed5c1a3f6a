# SPDX-License-Identifier: Apache-2.0
"""The local admin API: HTTP + JSON on a Unix socket that only root and the group `plait` can open.

Data in: requests of the command line (`plait.client.admin`). Data out: calls of an `AdminBackend`, whose answers are sent as JSON in the
shapes of `plait.model.report`. A deliberate error becomes `{"error": text, "kind": class name}` with a status that fits its kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from plait.model.errors import ConfigError, Conflict, NotFound, NotSupported, PlaitError, PoolExhausted, PortInUse, StoreUnavailable
from plait.model.report import (
    BlockRow,
    ContainerRow,
    NetworkRow,
    NetworkView,
    NodeRow,
    PlanEntry,
    PortRow,
    SandboxView,
    StatusView,
    TokenView,
)
from plait.model.requests import NetworkRequest
from plait.serve.jsonbody import read_body

log = logging.getLogger("plait.admin")

GROUP = "plait"
REQUEST_TIMEOUT_S = 30.0
"""Longest time that one request may take inside the agent."""
STOP_TIMEOUT_S = 1.0
"""How long `stop` lets requests under way end, then (aiohttp waits twice) how long their cancellation may take."""
BODY_LIMIT = 1 << 20
DEFAULT_TOKEN_TTL_S = 3600
MAX_TOKEN_TTL_S = 7 * 86400


@dataclass(frozen=True, slots=True)
class NewSandbox:
    """A sandbox to be made. `network` "" is the cluster's default one; `ports` are texts as `docker run -p` spells them."""

    name: str
    network: str = ""
    address: IPv4Address | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


class AdminBackend(Protocol):
    """What the agent offers to its own host. Every method may raise a PlaitError whose text is shown to the user as it is."""

    async def ready(self) -> str:
        """ "" when the node serves containers; otherwise what it still waits for."""
        ...

    async def status(self) -> StatusView: ...

    async def nodes(self) -> list[NodeRow]: ...

    async def forget_node(self, name: str) -> None:
        """Remove a dead node with its blocks, endpoints, containers and instances. Conflict while it gives signs of life."""
        ...

    async def networks(self) -> list[NetworkRow]: ...

    async def network(self, name: str) -> NetworkView: ...

    async def create_network(self, request: NetworkRequest) -> NetworkRow: ...

    async def remove_network(self, name: str, force: bool) -> None: ...

    async def ipam(self) -> list[BlockRow]: ...

    async def ports(self) -> list[PortRow]: ...

    async def ps(self) -> list[ContainerRow]: ...

    async def plan(self, diff: bool) -> list[PlanEntry]:
        """The whole desired state of this node, or (`diff`) only what a pass would change now; in the order of application."""
        ...

    async def create_token(self, ttl_s: int) -> TokenView: ...

    async def set_gateway(self, enabled: bool) -> None:
        """Whether this node forwards for hosts without an agent. Idempotent; kept over restarts."""
        ...

    async def create_sandbox(self, request: NewSandbox) -> SandboxView: ...

    async def sandbox(self, name: str) -> SandboxView: ...

    async def sandbox_started(self, name: str, pid: int) -> None:
        """The sandbox's command runs as `pid`; when that ends the sandbox is removed."""
        ...

    async def remove_sandbox(self, name: str) -> None: ...


class AdminServer:
    """Serves an `AdminBackend` on `path`, for root and the members of `group`, between `start` and `stop`."""

    def __init__(self, backend: AdminBackend, path: Path, timeout_s: float = REQUEST_TIMEOUT_S, group: str = GROUP) -> None:
        self._path, self._group = path, group
        app = application(backend, timeout_s)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=STOP_TIMEOUT_S)

    async def start(self) -> None:
        """Listen. Conflict if another agent answers on the socket; a socket that nobody serves is replaced."""
        sock = _listen(self._path, self._group)
        await self._runner.setup()
        await web.SockSite(self._runner, sock).start()

    async def stop(self) -> None:
        """Stop listening and remove the socket. Idempotent."""
        await self._runner.cleanup()
        self._path.unlink(missing_ok=True)


def _listen(path: Path, group: str) -> socket.socket:
    """A bound socket at `path`: mode 0660 with `group` if that exists, 0600 otherwise, never wider in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
        probe.settimeout(1.0)
        probe.connect(str(path))
        raise Conflict(f"cannot listen on {path}: an agent answers there already; stop it first (`systemctl stop plait`)")
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX)
    try:
        os.fchmod(sock.fileno(), 0o600)  # bind(2) gives the file this mode (unix(7)), so it is never open to others
        sock.bind(str(path))
        with contextlib.suppress(KeyError):
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
            path.chmod(0o660)
    except OSError as error:
        sock.close()
        raise PlaitError(f"cannot listen on {path}: {error.strerror}; the agent must run as root") from error
    return sock


def application(backend: AdminBackend, timeout_s: float = REQUEST_TIMEOUT_S) -> web.Application:
    """The routes of the API over `backend`."""
    app = web.Application(middlewares=[_errors(timeout_s)], client_max_size=BODY_LIMIT)
    _Routes(backend).register(app.router)
    return app


def _errors(timeout_s: float) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            async with asyncio.timeout(timeout_s):
                return await handler(request)
        except PlaitError as error:
            return _refusal(_status(error), str(error), type(error).__name__)
        except TimeoutError:
            text = f"{request.method} {request.path}: no result within {timeout_s:g} s; see the agent's log and `plait status`"
            return _refusal(504, text, "Timeout")
        except web.HTTPException as error:
            return _refusal(error.status, f"{request.method} {request.path}: {error.reason}", "HTTP")
        except Exception as error:
            log.exception("request_failed", extra={"op": f"{request.method} {request.path}"})
            return _refusal(500, f"{request.method} {request.path}: error inside the agent ({error!r}); its log says more", "Internal")

    return guard


def _status(error: PlaitError) -> int:
    """The HTTP status of a deliberate error: 4xx where the caller can do something about it."""
    match error:
        case ConfigError():
            return 400
        case NotFound():
            return 404
        case Conflict() | PortInUse() | PoolExhausted():
            return 409
        case NotSupported():
            return 501
        case StoreUnavailable():
            return 503
    return 500


def _refusal(status: int, text: str, kind: str) -> web.Response:
    return web.json_response({"error": text, "kind": kind}, status=status)


class _Routes:
    """One method per route; each parses, asks the backend once and answers."""

    def __init__(self, backend: AdminBackend) -> None:
        self._backend = backend

    def register(self, router: web.UrlDispatcher) -> None:
        backend = self._backend
        listings: dict[str, Callable[[], Awaitable[object]]] = {
            "status": backend.status,
            "nodes": backend.nodes,
            "networks": backend.networks,
            "ipam": backend.ipam,
            "ports": backend.ports,
            "ps": backend.ps,
        }
        for name, ask in listings.items():
            router.add_get(f"/v1/{name}", _listing(ask))
        router.add_get("/v1/ready", self.ready)
        router.add_get("/v1/plan", self.plan)
        router.add_delete("/v1/nodes/{name}", self.forget_node)
        router.add_get("/v1/networks/{name}", self.network)
        router.add_post("/v1/networks", self.create_network)
        router.add_delete("/v1/networks/{name}", self.remove_network)
        router.add_post("/v1/tokens", self.create_token)
        router.add_post("/v1/gateway", self.enable_gateway)
        router.add_delete("/v1/gateway", self.disable_gateway)
        router.add_post("/v1/sandboxes", self.create_sandbox)
        router.add_get("/v1/sandboxes/{name}", self.sandbox)
        router.add_post("/v1/sandboxes/{name}/pid", self.sandbox_started)
        router.add_delete("/v1/sandboxes/{name}", self.remove_sandbox)

    async def ready(self, request: web.Request) -> web.Response:
        waiting = await self._backend.ready()
        return web.json_response({"ready": not waiting, "waiting": waiting}, status=503 if waiting else 200)

    async def plan(self, request: web.Request) -> web.Response:
        return web.json_response(await self._backend.plan(diff=_query_flag(request, "diff")))

    async def forget_node(self, request: web.Request) -> web.Response:
        await self._backend.forget_node(request.match_info["name"])
        return _done()

    async def network(self, request: web.Request) -> web.Response:
        return web.json_response(await self._backend.network(request.match_info["name"]))

    async def create_network(self, request: web.Request) -> web.Response:
        body = await read_body(request, "name", "subnet", "gateway", "block_prefix", "internal", "labels", "options", "ip_range")
        wanted = NetworkRequest(
            name=body.text("name"),
            subnet=body.parsed("subnet", IPv4Network, "an IPv4 network such as 10.29.0.0/16"),
            gateway=body.parsed("gateway", IPv4Address, "an IPv4 address"),
            block_prefix=body.number("block_prefix", 0, 0, 30),
            internal=body.flag("internal"),
            labels=body.texts_by_name("labels"),
            options=body.texts_by_name("options"),
            ip_range=body.parsed("ip_range", IPv4Network, "an IPv4 network such as 10.29.4.0/24"),
        )
        return web.json_response(await self._backend.create_network(wanted), status=201)

    async def remove_network(self, request: web.Request) -> web.Response:
        await self._backend.remove_network(request.match_info["name"], force=_query_flag(request, "force"))
        return _done()

    async def create_token(self, request: web.Request) -> web.Response:
        body = await read_body(request, "ttl_s")
        token = await self._backend.create_token(body.number("ttl_s", DEFAULT_TOKEN_TTL_S, 1, MAX_TOKEN_TTL_S))
        return web.json_response(token, status=201)

    async def enable_gateway(self, request: web.Request) -> web.Response:
        await self._backend.set_gateway(True)
        return _done()

    async def disable_gateway(self, request: web.Request) -> web.Response:
        await self._backend.set_gateway(False)
        return _done()

    async def create_sandbox(self, request: web.Request) -> web.Response:
        body = await read_body(request, "name", "network", "address", "labels", "ports", "aliases")
        wanted = NewSandbox(
            name=body.text("name"),
            network=body.text("network", ""),
            address=body.parsed("address", IPv4Address, "an IPv4 address"),
            labels=body.texts_by_name("labels"),
            ports=body.texts("ports"),
            aliases=body.texts("aliases"),
        )
        return web.json_response(await self._backend.create_sandbox(wanted), status=201)

    async def sandbox(self, request: web.Request) -> web.Response:
        return web.json_response(await self._backend.sandbox(request.match_info["name"]))

    async def sandbox_started(self, request: web.Request) -> web.Response:
        body = await read_body(request, "pid")
        await self._backend.sandbox_started(request.match_info["name"], body.number("pid", None, 1, 1 << 22))
        return _done()

    async def remove_sandbox(self, request: web.Request) -> web.Response:
        await self._backend.remove_sandbox(request.match_info["name"])
        return _done()


def _listing(ask: Callable[[], Awaitable[object]]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response(await ask())

    return handler


def _done() -> web.Response:
    return web.json_response({})


def _query_flag(request: web.Request, name: str) -> bool:
    value = request.query.get(name, "0")
    if value not in ("0", "1"):
        raise ConfigError(f"query parameter {name}", value, "must be 0 or 1")
    return value == "1"
