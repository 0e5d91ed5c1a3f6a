# SPDX-License-Identifier: Apache-2.0
"""The plug-in's socket: HTTP POST of JSON by dockerd -> the two drivers.

Data in: requests on a Unix socket that only root can open (mode 0600), or on one that systemd opened before the agent ran. Data out: JSON
with status 200, also for a refusal, which is `{"Err": text}` for the network driver and `{"Error": text}` for the IPAM driver. A call that
plait does not know is 404, which dockerd takes for "not implemented". Nothing that a client sends ends the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from plait.http.message import Answer, Request
from plait.http.server import HttpServer, Limits
from plait.model.errors import NotSupported, PlaitError
from plait.runtimes.api import Operations
from plait.runtimes.docker import wire
from plait.runtimes.docker.driver import NetworkDriver
from plait.runtimes.docker.engine import DockerEngine
from plait.runtimes.docker.ipam import GLOBAL_SPACE, SPACE, IpamDriver
from plait.runtimes.docker.known import KnownContainers
from plait.runtimes.docker.names import StartingNames
from plait.runtimes.docker.networks import DockerNetworks

log = logging.getLogger("plait.docker")
CONTENT_TYPE = "application/vnd.docker.plugins.v1.2+json"
BODY_LIMIT = 1 << 20
CALL_S, NETWORK_S = 5.0, 15.0
"""Longest time of a call about an endpoint, and of one that writes to the shared store or waits for a DHCP server.
dockerd itself would wait for ever."""
_FIRST_INHERITED_FD = 3
_LIMITS = Limits(idle_s=math.inf)
"""dockerd keeps its connections, and repeats a call that meets the end of one without its body: none ends before the agent does."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the protocol: its body, what it does, the key of a refusal, its time limit."""

    body: type[wire.Body]
    handler: Callable[[Any], Awaitable[Mapping[str, object]]]
    error_key: str
    limit_s: float


class DockerPlugin:
    """Both drivers on one socket. `call_s` bounds every call, but `network_s` those that make or remove networks, and the
    one that may wait for a DHCP server."""

    def __init__(
        self,
        ops: Operations,
        engine: DockerEngine,
        networks: DockerNetworks,
        known: KnownContainers,
        call_s: float = CALL_S,
        network_s: float = NETWORK_S,
    ) -> None:
        self.names = StartingNames(engine, known)
        self.ipam = IpamDriver(ops, networks, self.names)
        self.driver = NetworkDriver(ops, engine, networks, self.ipam, self.names)
        self._calls = _plugin_calls(call_s) | _network_calls(self.driver, call_s, network_s) | _ipam_calls(self.ipam, call_s, network_s)
        self._server: HttpServer | None = None
        self._made: Path | None = None

    async def start(self, path: Path, inherited: socket.socket | None = None) -> None:
        """Serve on `inherited`, else on a new socket at `path` (what lies there is replaced)."""
        self._server = HttpServer(self, _LIMITS, lambda sock: self.names.called_by(_peer(sock)))
        if inherited is None:
            self._made = path
        await self._server.serve(inherited or listen(path))

    async def close(self) -> None:
        """Stop serving. A socket file that `start` made goes, an inherited one stays with systemd."""
        if self._server is not None:
            await self._server.stop()
            self._server = None
        if self._made is not None:
            self._made.unlink(missing_ok=True)
            self._made = None

    async def respond(self, request: Request) -> Answer:
        """Of the `App` of the server: what a call gives within its time limit, always as the protocol says it."""
        name = unquote(request.target.decode(errors="replace").partition("?")[0]).removeprefix("/")
        call = self._calls.get(name)
        if call is None:
            return _answer({"Err": f"plait has no call {name!r}"}, 404)
        if request.method != "POST":
            return _answer({call.error_key: f"{name} is to be called by POST"}, 405)
        began = time.monotonic()
        try:
            if not request.body and call.body is not wire.Nothing:
                raise NotSupported(
                    f"dockerd repeated {name} without saying for what, as it does when the agent ends while it is being asked; try again"
                )
            body = wire.parse(call.body, request.body, name)
            async with asyncio.timeout(call.limit_s):
                return _answer(await call.handler(body))
        except PlaitError as error:
            log.warning("docker_call_refused", extra={"call": name, "error": str(error)})
            return _answer({call.error_key: f"plait: {error}"})
        except TimeoutError:
            log.warning("docker_call_slow", extra={"call": name, "limit_s": call.limit_s})
            return _answer({call.error_key: f"plait: {name} was not done within {call.limit_s:g} s; see `plait status` on this host"})
        except Exception:
            log.exception("docker_call_failed", extra={"call": name})
            return _answer({call.error_key: f"plait: {name} failed inside the agent; its log has the details"})
        finally:
            log.debug("docker_call", extra={"call": name, "took_ms": round((time.monotonic() - began) * 1000, 1)})

    def refused(self, error: Exception, request: Request) -> Answer:
        log.error("docker_call_failed", extra={"call": request.target.decode(errors="replace")}, exc_info=error)
        return self.rejected(500, "the call failed inside the agent; its log has the details")

    def rejected(self, status: int, text: str) -> Answer:
        return _answer({"Err": f"plait: {text}", "Error": f"plait: {text}"}, status)

    def max_body(self, target: bytes) -> int:
        return BODY_LIMIT


def _plugin_calls(call_s: float) -> dict[str, Call]:
    return {"Plugin.Activate": Call(wire.Nothing, _constant({"Implements": ["NetworkDriver", "IpamDriver"]}), "Err", call_s)}


def _network_calls(driver: NetworkDriver, call_s: float, network_s: float) -> dict[str, Call]:
    calls: dict[str, tuple[type[wire.Body], Callable[[Any], Awaitable[Mapping[str, object]]]]] = {
        "GetCapabilities": (wire.Nothing, _constant({"Scope": "local", "ConnectivityScope": "global", "GwAllocChecker": True})),
        "GwAllocCheck": (wire.GwAllocCheck, driver.gateways_needed),
        "CreateEndpoint": (wire.CreateEndpoint, driver.create_endpoint),
        "Join": (wire.EndpointOnly, driver.join),
        "ProgramExternalConnectivity": (wire.EndpointOnly, driver.program),
        "RevokeExternalConnectivity": (wire.EndpointOnly, driver.revoke),
        "EndpointOperInfo": (wire.EndpointOnly, driver.oper_info),
        "Leave": (wire.EndpointOnly, driver.leave),
        "DeleteEndpoint": (wire.EndpointOnly, driver.delete_endpoint),
        "DiscoverNew": (wire.Nothing, _constant({})),
        "DiscoverDelete": (wire.Nothing, _constant({})),
    }
    slow = {
        "CreateNetwork": Call(wire.CreateNetwork, driver.create_network, "Err", network_s),
        "DeleteNetwork": Call(wire.NetworkOnly, driver.delete_network, "Err", network_s),
    }
    return {f"NetworkDriver.{name}": Call(*call, "Err", call_s) for name, call in calls.items()} | {
        f"NetworkDriver.{name}": call for name, call in slow.items()
    }


def _ipam_calls(ipam: IpamDriver, call_s: float, lease_s: float) -> dict[str, Call]:
    spaces = {"LocalDefaultAddressSpace": SPACE, "GlobalDefaultAddressSpace": GLOBAL_SPACE}
    calls: dict[str, tuple[type[wire.Body], Callable[[Any], Awaitable[Mapping[str, object]]]]] = {
        "GetCapabilities": (wire.Nothing, _constant({"RequiresMACAddress": True, "RequiresRequestReplay": True})),
        "GetDefaultAddressSpaces": (wire.Nothing, _constant(spaces)),
        "RequestPool": (wire.RequestPool, ipam.request_pool),
        "ReleasePool": (wire.ReleasePool, ipam.release_pool),
        "RequestAddress": (wire.RequestAddress, ipam.request_address),
        "ReleaseAddress": (wire.ReleaseAddress, ipam.release_address),
    }
    slow = {"RequestAddress": lease_s}
    return {f"IpamDriver.{name}": Call(*call, "Error", slow.get(name, call_s)) for name, call in calls.items()}


def _constant(answer: Mapping[str, object]) -> Callable[[Any], Awaitable[Mapping[str, object]]]:
    async def handler(_: Any) -> Mapping[str, object]:
        return answer

    return handler


def _peer(sock: socket.socket) -> int:
    """The process at the other end, 0 if it cannot be seen from here. Source: unix(7), SO_PEERCRED."""
    pid, _, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII")))
    return int(pid)


def _answer(value: Mapping[str, object], status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), CONTENT_TYPE)


def listen(path: Path) -> socket.socket:
    """A listening Unix socket at `path`, mode 0600 from its first moment, in the place of whatever lay there."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    sock = socket.socket(socket.AF_UNIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.unlink(missing_ok=True)
        sock.bind(str(fresh))
        fresh.chmod(0o600)
        sock.listen(128)
        sock.setblocking(False)
        fresh.rename(path)
    except OSError as error:
        sock.close()
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise PlaitError(f"cannot listen on {path} for dockerd: {error.strerror}; the agent must run as root") from error
    return sock


def inherited_socket(path: Path, environ: Mapping[str, str], pid: int) -> socket.socket | None:
    """The socket for `path` among those that systemd passed (sd_listen_fds(3): LISTEN_PID, LISTEN_FDS, descriptors from 3 on), if any."""
    if environ.get("LISTEN_PID") != str(pid) or not environ.get("LISTEN_FDS", "").isdigit():
        return None
    for fd in range(_FIRST_INHERITED_FD, _FIRST_INHERITED_FD + int(environ["LISTEN_FDS"])):
        try:
            found = socket.socket(fileno=fd)
        except OSError:
            continue
        if found.family == socket.AF_UNIX and found.getsockname() in (str(path), str(path.resolve())):
            found.setblocking(False)
            return found
        found.detach()
    return None
