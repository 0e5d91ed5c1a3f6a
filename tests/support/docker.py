# SPDX-License-Identifier: Apache-2.0
"""A Docker Engine's API on a Unix socket, as far as plait uses it, without an engine behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from plait.runtimes.docker.plugin import listen


async def _nothing(key: str) -> None:
    del key


class FakeEngine:
    """`containers` and `networks` are the API's own JSON. `silent`: nothing is answered (dockerd is starting). `locked`: ids whose
    inspection is held back; `inspected`: the networks that an inspection shows, `details`: what else it shows, both by id.
    `refuse`: status and text of an answer, by path. `on_delete` is awaited with the id of a network that is being removed, as dockerd
    asks its driver; `on_create` with that of a new one, which is there already, before the request to make it is answered.
    `commands` were to be run in containers; each writes `command_output` (framed as the API does) and ends with `command_code`, None: not.
    `started` has the ids of the containers that were started. `asked` has method and path of every request, without the version, `since`
    that of every event stream."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.api = "1.41"
        self.containers: list[dict[str, Any]] = []
        self.networks: dict[str, dict[str, Any]] = {}
        self.silent = False
        self.locked: set[str] = set()
        self.inspected: dict[str, dict[str, Any]] = {}
        self.details: dict[str, dict[str, Any]] = {}
        self.on_delete: Callable[[str], Awaitable[None]] = _nothing
        self.on_create: Callable[[str], Awaitable[None]] = _nothing
        self.asked: list[str] = []
        self.since: list[str] = []
        self.refuse: dict[str, tuple[int, str]] = {}
        self.started: list[str] = []
        self.commands: list[list[str]] = []
        self.command_output = b""
        self.command_code: int | None = 0
        self._streams: set[asyncio.Queue[bytes | None]] = set()
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.SockSite(self._runner, listen(self.path)).start()

    async def stop(self) -> None:
        for stream in self._streams:
            stream.put_nowait(None)
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def emit(self, kind: str, action: str, actor: str = "", nano: int = 0, **attributes: str) -> None:
        event = {"Type": kind, "Action": action, "Actor": {"ID": actor, "Attributes": attributes}, "timeNano": nano}
        for stream in self._streams:
            stream.put_nowait(json.dumps(event).encode() + b"\n")

    @property
    def listeners(self) -> int:
        return len(self._streams)

    def add_container(self, name: str, state: str, network: str = "mesh", endpoint: str = "", **more: Any) -> dict[str, Any]:
        settings = {"NetworkID": f"{network}-id", "EndpointID": endpoint, "IPAddress": more.pop("address", "")}
        row = {
            "Id": f"{name}-id",
            "Names": [f"/{name}"],
            "Image": "nginx",
            "State": state,
            "Created": len(self.containers) + 1,
            "Labels": {},
            "Ports": [],
            "NetworkSettings": {"Networks": {network: settings}},
        }
        self.containers.append(row | more)
        return self.containers[-1]

    def add_network(self, name: str, subnet: str, driver: str = "plait", **more: Any) -> dict[str, Any]:
        config = {"Subnet": subnet, "Gateway": more.pop("gateway", "")} | more.pop("config", {})
        row = {
            "Id": f"{name}-id",
            "Name": name,
            "Driver": driver,
            "Options": {},
            "Labels": {},
            "Internal": False,
            "IPAM": {"Driver": driver, "Config": [config]},
            "Containers": {},
        }
        self.networks[row["Id"]] = row | more
        return self.networks[row["Id"]]

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        version, _, rest = path[1:].partition("/")
        if version.startswith("v1."):
            path = f"/{rest}"
        self.asked.append(f"{request.method} {path}")
        if self.silent:
            await asyncio.sleep(30)
        if path in self.refuse:
            status, text = self.refuse[path]
            return web.json_response({"message": text}, status=status)
        if path == "/version":
            return web.json_response({"Version": "20.10.24", "ApiVersion": self.api})
        if path == "/events":
            return await self._events(request)
        return await self._answer(request, path.strip("/").split("/"))

    async def _answer(self, request: web.Request, parts: list[str]) -> web.Response:
        match [request.method, *parts]:
            case ["GET", "containers", "json"]:
                return web.json_response(self.containers)
            case ["GET", "containers", key, "json"]:
                if key in self.locked:
                    await asyncio.sleep(30)
                state = {"Pid": 4711, "Running": True, "StartedAt": "2026-11-23T05:00:00.123456789Z"}
                networks = {"Networks": self.inspected.get(key)}
                return web.json_response({"Id": key, "State": state, "NetworkSettings": networks} | self.details.get(key, {}))
            case ["GET", "networks"]:
                return web.json_response([n | {"Containers": {}} for n in self.networks.values()])
            case ["GET", "networks", key] if key in self.networks:
                return web.json_response(self.networks[key])
            case ["POST", "networks", "create"]:
                body = await request.json()
                config = body["IPAM"]["Config"][0]
                made = self.add_network(body["Name"], config["Subnet"], Options=body["Options"], config=config)
                await self.on_create(made["Id"])
                return web.json_response({"Id": made["Id"]}, status=201)
            case ["POST", "containers", key, "start"]:
                self.started.append(key)
                for row in self.containers:
                    row["State"] = "running" if row["Id"] == key else row["State"]
                return web.Response(status=204)
            case ["POST", "containers", key, "exec"] if any(row["Id"] == key for row in self.containers):
                self.commands.append((await request.json())["Cmd"])
                return web.json_response({"Id": f"e{len(self.commands)}"}, status=201)
            case ["POST", "exec", _, "start"]:
                return web.Response(body=self.command_output)
            case ["GET", "exec", _, "json"]:
                return web.json_response({"Running": self.command_code is None, "ExitCode": self.command_code})
            case ["DELETE", "networks", key] if key in self.networks:
                await self.on_delete(key)
                del self.networks[key]
                return web.Response(status=204)
        return web.json_response({"message": "no such thing"}, status=404)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        self.since.append(request.query.get("since", ""))
        stream: asyncio.Queue[bytes | None] = asyncio.Queue()
        answer = web.StreamResponse()
        await answer.prepare(request)
        self._streams.add(stream)
        try:
            while (line := await stream.get()) is not None:
                await answer.write(line)
        finally:
            self._streams.discard(stream)
        return answer


class Dockerd:
    """What dockerd is to the plug-in: `call` posts a body and gives the answer's JSON."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def call(self, name: str, **body: Any) -> dict[str, Any]:
        status, answer = await self.post(name, json.dumps(body).encode())
        assert status == 200, answer
        return json.loads(answer)

    async def post(self, name: str, body: bytes) -> tuple[int, bytes]:
        async with self.session.post(f"http://plugin/{name}", data=body) as answer:
            return answer.status, await answer.read()


@asynccontextmanager
async def dockerd(path: Path) -> AsyncIterator[Dockerd]:
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
        yield Dockerd(session)


class Conditions:
    """Health conditions that hold, by (code, subject)."""

    def __init__(self) -> None:
        self.active: dict[tuple[str, str], str] = {}

    def set(self, code: str, subject: str, text: str) -> None:
        self.active[code, subject] = text

    def clear(self, code: str, subject: str = "") -> None:
        self.active.pop((code, subject), None)

    def replace(self, code: str, texts: dict[str, str]) -> None:
        self.active = {key: text for key, text in self.active.items() if key[0] != code}
        self.active |= {(code, subject): text for subject, text in texts.items()}


async def until(condition: Any, timeout_s: float = 3.0) -> None:
    """Wait until `condition()` is true."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)
