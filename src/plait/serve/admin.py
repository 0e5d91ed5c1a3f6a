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
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from http import HTTPStatus
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from urllib.parse import parse_qs, unquote

from plait.http import unixsocket
from plait.http.message import Answer, Request
from plait.http.server import HttpServer
from plait.ipam import PoolChange
from plait.model.addr import AddressRange, parse_range
from plait.model.errors import (
    ConfigError,
    Conflict,
    LeaseFailed,
    NotFound,
    NotSupported,
    PlaitError,
    PoolExhausted,
    PortInUse,
    StoreUnavailable,
)
from plait.model.limits import UNSAID, WORDS, limits_of, port_limits_of
from plait.model.policy import LAST_PORT
from plait.model.ports import parse_held, parse_inside, parse_ports, parse_sources
from plait.model.requests import NetworkRequest, NewSandbox
from plait.serve.admin_backend import AdminBackend
from plait.serve.admin_egress import egress_routes
from plait.serve.admin_services import service_routes
from plait.serve.jsonbody import Call as _Call
from plait.serve.jsonbody import Handler as _Handler
from plait.serve.jsonbody import json_answer as _json
from plait.serve.jsonbody import read_body

log = logging.getLogger("plait.admin")

GROUP = "plait"
REQUEST_TIMEOUT_S = 30.0
"""Longest time that one request may take inside the agent."""
BODY_LIMIT, EXPORT_LIMIT, POLICY_LIMIT = 1 << 20, 64 << 20, 8 << 20
"""Bytes of a body; a policy of 10,000 rules has some two million."""
DEFAULT_TOKEN_TTL_S = 3600
MAX_TOKEN_TTL_S = 7 * 86400


class AdminServer:
    """Serves an `AdminBackend` on `path`, for root and the members of `group`, between `start` and `stop`."""

    def __init__(self, backend: AdminBackend, path: Path, timeout_s: float = REQUEST_TIMEOUT_S, group: str = GROUP) -> None:
        self._path, self._group = path, group
        self._server = HttpServer(AdminApp(backend, timeout_s))

    async def start(self) -> None:
        """Listen. Conflict if another agent answers on the socket; a socket that nobody serves is replaced."""
        await self._server.serve(_listen(self._path, self._group))

    async def stop(self) -> None:
        """Stop listening and remove the socket. Requests under way may end within a second or so. Idempotent."""
        await self._server.stop()
        self._path.unlink(missing_ok=True)


def _listen(path: Path, group: str) -> socket.socket:
    """A bound socket at `path`: mode 0660 with `group` if that exists, 0600 otherwise, never wider in between."""
    mode, gid = 0o600, -1
    with contextlib.suppress(KeyError):
        mode, gid = 0o660, grp.getgrnam(group).gr_gid
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlaitError(f"cannot listen on {path}: {error.strerror}; the agent must run as root") from error
    hint = "the agent must run as root and be the only one (`systemctl stop plait` ends it)"
    return unixsocket.bind(path, mode, gid=gid, who="an agent", hint=hint)


class AdminApp:
    """The `App` of the admin API over `backend`."""

    def __init__(self, backend: AdminBackend, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self._routes, self._timeout_s = _Routes(backend).table(), timeout_s

    async def respond(self, request: Request) -> Answer:
        """What the backend says within the time limit."""
        path, _, query = request.target.decode(errors="replace").partition("?")
        _, _, *segments = path.split("/")
        name = unquote(segments[1]) if len(segments) > 1 else ""
        pattern = "/".join([segments[0], "*", *segments[2:]] if name else segments) if path.startswith("/v1/") else ""
        methods = self._routes.get(pattern, {})
        handler = methods.get(request.method)
        if handler is None:
            return self.rejected(405 if methods else 404, f"{request.method} {path}: {HTTPStatus(405 if methods else 404).phrase}")
        async with asyncio.timeout(self._timeout_s):
            return await handler(_Call(name, parse_qs(query), request.body))

    def refused(self, error: Exception, request: Request) -> Answer:
        op = f"{request.method} {request.target.decode(errors='replace').partition('?')[0]}"
        if isinstance(error, PlaitError):
            return _refusal(_status(error), str(error), type(error).__name__)
        if isinstance(error, TimeoutError):
            return _refusal(504, f"{op}: no result within {self._timeout_s:g} s; see the agent's log and `plait status`", "Timeout")
        log.error("request_failed", extra={"op": op}, exc_info=error)
        return _refusal(500, f"{op}: error inside the agent ({error!r}); its log says more", "Internal")

    def rejected(self, status: int, text: str) -> Answer:
        return _refusal(status, text, "HTTP")

    def max_body(self, target: bytes) -> int:
        if target.startswith(b"/v1/policies"):
            return POLICY_LIMIT
        return EXPORT_LIMIT if target.startswith(b"/v1/cluster-conflicts") else BODY_LIMIT


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
        case StoreUnavailable() | LeaseFailed():
            return 503
    return 500


def _refusal(status: int, text: str, kind: str) -> Answer:
    return _json({"error": text, "kind": kind}, status)


class _Routes:
    """One method per route; each parses, asks the backend once and answers."""

    def __init__(self, backend: AdminBackend) -> None:
        self._backend = backend

    def table(self) -> dict[str, dict[str, _Handler]]:
        """By path below /v1/ ("*" for a name), then by method."""
        backend = self._backend
        found: dict[str, dict[str, _Handler]] = {name: {"GET": _listing(ask)} for name, ask in self._listings().items()}
        found |= service_routes(backend) | egress_routes(backend)
        found["networks"]["POST"] = self.create_network
        found["policies"]["POST"] = self.apply_policies
        return found | {
            "ready": {"GET": self.ready},
            "plan": {"GET": self.plan},
            "ipam-reclaim": {"POST": self.reclaim_addresses},
            "cluster-export": {"GET": self.export_cluster},
            "cluster-conflicts": {"POST": self.cluster_conflicts},
            "cluster-join": {"POST": self.join_cluster},
            "nodes/*": {"DELETE": self.forget_node},
            "nodes/*/key": {"POST": self.rotate_key},
            "networks/*/reservations": {"POST": self.reserve_address, "DELETE": self.unreserve_address},
            "networks/*/exposure": {"POST": self.expose, "DELETE": self.hide},
            "networks/*": {"GET": self.network, "PUT": self.change_network, "DELETE": self.remove_network},
            "containers/*/ports": {"POST": self.publish, "DELETE": self.unpublish},
            "limits/*": {"PUT": self.set_limits, "DELETE": self.unset_limits},
            "policies/*": {"GET": self.policy, "DELETE": self.remove_policy},
            "policy-test": {"POST": self.test_policy},
            "tokens": {"POST": self.create_token},
            "gateway": {"POST": self.enable_gateway, "DELETE": self.disable_gateway},
            "sandboxes": {"POST": self.create_sandbox},
            "sandboxes/*": {"GET": self.sandbox, "DELETE": self.remove_sandbox},
            "sandboxes/*/pid": {"POST": self.sandbox_started},
        }

    def _listings(self) -> dict[str, Callable[[], Awaitable[object]]]:
        backend = self._backend
        return {
            "status": backend.status,
            "nodes": backend.nodes,
            "networks": backend.networks,
            "ipam": backend.ipam,
            "paths": backend.paths,
            "routing": backend.routing,
            "ipam-check": backend.check_ipam,
            "ports": backend.ports,
            "limits": backend.limits,
            "ps": backend.ps,
            "policies": backend.policies,
            "policy-drops": backend.policy_drops,
            "namespaces": backend.namespaces,
        }

    async def ready(self, call: _Call) -> Answer:
        waiting = await self._backend.ready()
        return _json({"ready": not waiting, "waiting": waiting}, 503 if waiting else 200)

    async def plan(self, call: _Call) -> Answer:
        return _json(await self._backend.plan(diff=_query_flag(call, "diff")))

    async def forget_node(self, call: _Call) -> Answer:
        await self._backend.forget_node(call.name)
        return _done()

    async def rotate_key(self, call: _Call) -> Answer:
        await self._backend.rotate_key(call.name)
        return _done()

    async def network(self, call: _Call) -> Answer:
        return _json(await self._backend.network(call.name))

    async def create_network(self, call: _Call) -> Answer:
        known = ("name", "subnet", "gateway", "block_prefix", "internal", "labels", "options", "ip_range", "excluded", "force")
        body = read_body(call.body, *known, "ipv6", "subnet6", "gateway6")
        wanted = NetworkRequest(
            name=body.text("name"),
            subnet=body.parsed("subnet", IPv4Network, "an IPv4 network such as 10.29.0.0/16"),
            gateway=body.parsed("gateway", IPv4Address, "an IPv4 address"),
            block_prefix=body.number("block_prefix", 0, 0, 30),
            internal=body.flag("internal"),
            labels=body.texts_by_name("labels"),
            options=body.texts_by_name("options"),
            ip_range=body.parsed("ip_range", IPv4Network, "an IPv4 network such as 10.29.4.0/24"),
            excluded=tuple(_range(text) for text in body.texts("excluded")),
            force=body.flag("force"),
            ipv6=body.flag("ipv6"),
            subnet6=body.parsed("subnet6", IPv6Network, "an IPv6 network such as fd12:3456:789a::/64"),
            gateway6=body.parsed("gateway6", IPv6Address, "an IPv6 address"),
        )
        return _json(await self._backend.create_network(wanted), 201)

    async def change_network(self, call: _Call) -> Answer:
        body = read_body(call.body, "options", "ip_range", "excluded")
        whole = body.text("ip_range", "") == "all"
        pool = PoolChange(
            ip_range=None if whole else body.parsed("ip_range", IPv4Network, "an IPv4 network such as 10.29.4.0/24, or all"),
            whole=whole,
            excluded=tuple(_range(text) for text in body.texts("excluded")) if body.has("excluded") else None,
        )
        asked = pool if pool != PoolChange() else None
        return _json(await self._backend.change_network(call.name, body.texts_by_name("options"), asked))

    async def remove_network(self, call: _Call) -> Answer:
        await self._backend.remove_network(call.name, force=_query_flag(call, "force"))
        return _done()

    async def reserve_address(self, call: _Call) -> Answer:
        body = read_body(call.body, "name", "address")
        address = body.parsed("address", IPv4Address, "an IPv4 address")
        if address is None:
            raise ConfigError("address", None, "is missing")
        await self._backend.reserve_address(call.name, body.text("name"), address)
        return _done()

    async def unreserve_address(self, call: _Call) -> Answer:
        await self._backend.unreserve_address(call.name, call.query.get("name", [""])[-1])
        return _done()

    async def export_cluster(self, call: _Call) -> Answer:
        return Answer(200, await self._backend.export_cluster(), "application/json")

    async def cluster_conflicts(self, call: _Call) -> Answer:
        return _json(await self._backend.cluster_conflicts(call.body))

    async def join_cluster(self, call: _Call) -> Answer:
        body = read_body(call.body, "address", "token", "dry_run", "both_names")
        flags = body.flag("dry_run"), body.flag("both_names")
        return _json(await self._backend.join_cluster(body.text("address"), body.text("token"), *flags))

    async def reclaim_addresses(self, call: _Call) -> Answer:
        return _json(await self._backend.reclaim_addresses(read_body(call.body, "apply").flag("apply")))

    async def create_token(self, call: _Call) -> Answer:
        body = read_body(call.body, "ttl_s")
        token = await self._backend.create_token(body.number("ttl_s", DEFAULT_TOKEN_TTL_S, 1, MAX_TOKEN_TTL_S))
        return _json(token, 201)

    async def enable_gateway(self, call: _Call) -> Answer:
        await self._backend.set_gateway(True)
        return _done()

    async def disable_gateway(self, call: _Call) -> Answer:
        await self._backend.set_gateway(False)
        return _done()

    async def expose(self, call: _Call) -> Answer:
        return _json(await self._backend.expose(call.name))

    async def hide(self, call: _Call) -> Answer:
        await self._backend.hide(call.name)
        return _done()

    async def publish(self, call: _Call) -> Answer:
        body = read_body(call.body, "network", "ports", "from", "nat")
        sources, hidden = parse_sources(body.texts("from")), body.flag("nat")
        wanted = [replace(port, told=True, sources=sources, hidden=hidden) for port in parse_ports(body.texts("ports"))]
        if not wanted:
            raise ConfigError("ports", None, "is missing", "name at least one")
        return _json(await self._backend.publish(call.name, body.text("network", ""), wanted), 201)

    async def unpublish(self, call: _Call) -> Answer:
        held = [parse_held(text) for text in call.query.get("port", [])]
        return _json(await self._backend.unpublish(call.name, call.query.get("network", [""])[-1], held))

    async def set_limits(self, call: _Call) -> Answer:
        body = read_body(call.body, "network", "port", *WORDS)
        said, port = {word: body.text(word) for word in WORDS if body.has(word)}, parse_inside(body.text("port", ""))
        limits = port_limits_of(said, "") if port else limits_of(said, "")
        if limits == UNSAID:
            raise ConfigError("limit", None, "is missing", f"give one of {', '.join(WORDS)}")
        await self._backend.set_limits(call.name, body.text("network", ""), limits, port)
        return _done()

    async def unset_limits(self, call: _Call) -> Answer:
        network, port = (call.query.get(key, [""])[-1] for key in ("network", "port"))
        await self._backend.unset_limits(call.name, network, parse_inside(port))
        return _done()

    async def apply_policies(self, call: _Call) -> Answer:
        asked = self._backend.plan_policies if _query_flag(call, "dry_run") else self._backend.apply_policies
        return _json(await asked(call.body))

    async def policy(self, call: _Call) -> Answer:
        return _json(await self._backend.policy(call.name))

    async def remove_policy(self, call: _Call) -> Answer:
        await self._backend.remove_policy(call.name)
        return _done()

    async def test_policy(self, call: _Call) -> Answer:
        body = read_body(call.body, "from", "to", "protocol", "port")
        port = body.number("port", 0, 0, LAST_PORT)
        return _json(await self._backend.test_policy(body.text("from"), body.text("to"), body.text("protocol", "tcp"), port))

    async def create_sandbox(self, call: _Call) -> Answer:
        body = read_body(call.body, "name", "network", "address", "labels", "ports", "aliases", "address6", "share")
        wanted = NewSandbox(
            name=body.text("name"),
            network=body.text("network", ""),
            address=body.parsed("address", IPv4Address, "an IPv4 address"),
            labels=body.texts_by_name("labels"),
            ports=body.texts("ports"),
            aliases=body.texts("aliases"),
            address6=body.parsed("address6", IPv6Address, "an IPv6 address"),
            share=body.text("share", ""),
        )
        return _json(await self._backend.create_sandbox(wanted), 201)

    async def sandbox(self, call: _Call) -> Answer:
        return _json(await self._backend.sandbox(call.name))

    async def sandbox_started(self, call: _Call) -> Answer:
        body = read_body(call.body, "pid")
        await self._backend.sandbox_started(call.name, body.number("pid", None, 1, 1 << 22))
        return _done()

    async def remove_sandbox(self, call: _Call) -> Answer:
        await self._backend.remove_sandbox(call.name)
        return _done()


def _range(text: str) -> AddressRange:
    try:
        return parse_range(text)
    except ValueError as error:
        raise ConfigError("exclusion", text, f"is no address, network or range: {error}", "write 10.29.0.9, 10.29.0.0/28 or A-B") from error


def _listing(ask: Callable[[], Awaitable[object]]) -> _Handler:
    async def handler(_: _Call) -> Answer:
        return _json(await ask())

    return handler


def _done() -> Answer:
    return _json({})


def _query_flag(call: _Call, name: str) -> bool:
    value = call.query.get(name, ["0"])[-1]
    if value not in ("0", "1"):
        raise ConfigError(f"query parameter {name}", value, "must be 0 or 1")
    return value == "1"
