# SPDX-License-Identifier: Apache-2.0
"""Client of the Docker Engine API over its Unix socket.

Data in: method calls. Data out: records of `enginetypes.py`. The API version is the newest that both sides know. Every call is bounded
in time; what fails is EngineUnavailable (no answer: what the engine holds is unknown), NotFound, Conflict or PlaitError with the
engine's words.

While dockerd starts it accepts connections and answers none of them, but starts containers and asks the plug-in. So after a call that
was not answered in time, `quick` calls fail at once for a while instead of making every container wait.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec

from plait.model.errors import Conflict, EngineUnavailable, NotFound, PlaitError
from plait.runtimes.docker.enginetypes import (
    ContainerDetails,
    ContainerRow,
    CreatedExec,
    CreatedNetwork,
    EngineEvent,
    EngineNetwork,
    EngineVersion,
    ExecState,
)

T = TypeVar("T")
NEWEST_API = (1, 48)
TIMEOUT_S = 10.0
QUICK_S = 1.0
SILENCE_S = 10.0
_LINE_LIMIT = 1 << 20
_PART = 1 << 16

EVENT_FILTER: Mapping[str, list[str]] = {
    "type": ["container", "network"],
    "event": [
        "create", "start", "restart", "die", "destroy", "rename", "update", "health_status", "pause", "unpause", "kill", "stop",
        "connect", "disconnect", "remove",
    ],
}  # fmt: skip
"""exec_* events are left out: health checks make them by the hundred."""


class DockerEngine:
    """One engine. Use from one loop; `close` when done."""

    def __init__(self, socket: Path, timeout_s: float = TIMEOUT_S, quick_s: float = QUICK_S) -> None:
        self.socket = socket
        self._timeout_s, self._quick_s = timeout_s, quick_s
        self._session: aiohttp.ClientSession | None = None
        self._api = ""
        self._silent_until = 0.0

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    # --- questions

    async def version(self) -> EngineVersion:
        """Of the engine that answers now; the API version is agreed upon anew."""
        return await self._agree(quick=False)

    async def containers(self, quick: bool = False) -> list[ContainerRow]:
        """All containers in every state. Never waits for a container that is being started."""
        return await self._get("/containers/json", list[ContainerRow], quick, all="1")

    async def container(self, key: str) -> ContainerDetails:
        """One container by id. Waits while it is being started or stopped: never to be asked from inside Join."""
        return await self._get(f"/containers/{key}/json", ContainerDetails)

    async def networks(self) -> list[EngineNetwork]:
        """All networks, without their endpoints."""
        return await self._get("/networks", list[EngineNetwork])

    async def network(self, key: str, quick: bool = False) -> EngineNetwork:
        """One network by id, with its endpoints."""
        return await self._get(f"/networks/{key}", EngineNetwork, quick)

    # --- changes

    async def create_network(self, body: Mapping[str, Any]) -> str:
        """Make a network (the body of `POST /networks/create`); its id."""
        return _decoded(await self._call("POST", "/networks/create", json=body), CreatedNetwork, "/networks/create").id

    async def remove_network(self, key: str) -> None:
        """NotFound if there is none, Conflict while containers are attached."""
        await self._call("DELETE", f"/networks/{key}")

    async def start_container(self, key: str) -> None:
        """Start a container by id; one that runs stays as it is. Returns when its process runs."""
        await self._call("POST", f"/containers/{key}/start")

    # --- commands in containers (`checks.command.Commands`)

    async def exec_start(self, container: str, args: Sequence[str]) -> str:
        """Make a command ready, its id. NotFound if there is no such container, Conflict if it does not run."""
        body = {"AttachStdout": True, "AttachStderr": True, "Cmd": list(args)}
        path = f"/containers/{quote(container, safe='')}/exec"
        return _decoded(await self._call("POST", path, json=body), CreatedExec, path).id

    async def exec_output(self, key: str, keep: int) -> tuple[bytes, int]:
        """Run the command until it closes its outputs: the last `keep` bytes of both and how many there were. Takes as long as the command:
        to be given a timeout, after which the command goes on, since the engine cannot end it."""
        what = f"POST /exec/{key}/start"
        try:
            async with self._http().post(f"http://docker{self._api}/exec/{key}/start", json={"Detach": False, "Tty": False}) as answer:
                if answer.status >= 400:
                    raise _refusal(answer.status, f"{what} on the Docker Engine: {await _message(answer)}")
                tail, total = bytearray(), 0
                async for part in _frames(answer.content):
                    total += len(part)
                    tail += part
                    del tail[:-keep]
                return bytes(tail), total
        except (aiohttp.ClientError, asyncio.IncompleteReadError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise self._unavailable(what, error) from error

    async def exec_code(self, key: str) -> int | None:
        """A command's exit status, None while it runs. NotFound once its container is gone."""
        state = await self._get(f"/exec/{key}/json", ExecState)
        return None if state.running else state.exit_code

    # --- events

    @asynccontextmanager
    async def events(self, since: str = "") -> AsyncIterator[AsyncIterator[EngineEvent]]:
        """`async with engine.events(…) as stream`: on entry the engine listens, so that a list asked for afterwards and the stream together
        miss nothing. `since` ("seconds.nanoseconds") also gives what happened from then on. The stream ends with EngineUnavailable."""
        params = {"filters": json.dumps(EVENT_FILTER)} | ({"since": since} if since else {})
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout_s)
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._http().get(f"http://docker{self._api}/events", params=params, timeout=timeout)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise self._unavailable("GET /events", error) from error
        try:
            if answer.status != 200:
                raise PlaitError(f"the Docker Engine on {self.socket} refused its events: {answer.status} {await _message(answer)}")
            yield self._events(answer)
        finally:
            answer.close()

    async def _events(self, answer: aiohttp.ClientResponse) -> AsyncIterator[EngineEvent]:
        rest = b""
        try:
            async for chunk in answer.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line.strip():
                        yield msgspec.json.decode(line, type=EngineEvent)
                if len(rest) > _LINE_LIMIT:
                    raise EngineUnavailable(f"the Docker Engine on {self.socket} sent an event of more than {_LINE_LIMIT} bytes")
        except (aiohttp.ClientError, OSError, msgspec.DecodeError) as error:
            raise self._unavailable("GET /events", error) from error
        raise EngineUnavailable(f"the Docker Engine on {self.socket} ended its event stream")

    # --- one call

    async def _get(self, path: str, wanted: type[T], quick: bool = False, **params: str) -> T:
        return _decoded(await self._call("GET", path, quick, params=params), wanted, path)

    async def _call(self, method: str, path: str, quick: bool = False, **options: Any) -> bytes:
        """The body of the answer to a call of the agreed version."""
        if not self._api:
            await self._agree(quick)
        return await self._exchange(method, self._api + path, quick, options)

    async def _agree(self, quick: bool) -> EngineVersion:
        found = _decoded(await self._exchange("GET", "/version", quick, {}), EngineVersion, "/version")
        theirs = [int(part) for part in found.api.split(".") if part.isdigit()]
        if len(theirs) != 2:
            raise PlaitError(f"the Docker Engine on {self.socket} tells an API version that is none: {found.api!r}")
        self._api = "/v{}.{}".format(*min((theirs[0], theirs[1]), NEWEST_API))
        return found

    async def _exchange(self, method: str, path: str, quick: bool, options: Mapping[str, Any]) -> bytes:
        loop = asyncio.get_running_loop()
        if quick and loop.time() < self._silent_until:
            raise EngineUnavailable(f"the Docker Engine on {self.socket} did not answer a moment ago")
        try:
            async with asyncio.timeout(self._quick_s if quick else self._timeout_s):
                async with self._http().request(method, f"http://docker{path}", **options) as answer:
                    raw = await answer.read()
        except TimeoutError as error:
            if quick:
                self._silent_until = loop.time() + SILENCE_S
            raise self._unavailable(f"{method} {path}", error) from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._unavailable(f"{method} {path}", error) from error
        self._silent_until = 0.0
        if answer.status >= 400:
            raise _refusal(answer.status, f"{method} {path} on the Docker Engine: {_text(raw)}")
        return raw

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.UnixConnector(path=str(self.socket), limit=0)
            self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
        return self._session

    def _unavailable(self, what: str, error: BaseException) -> EngineUnavailable:
        self._api = ""
        why = str(error) or type(error).__name__
        return EngineUnavailable(f"{what}: the Docker Engine on {self.socket} does not answer ({why}); is dockerd running?")


async def _frames(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Parts of what a command without a terminal writes: each comes behind its stream's number, three zeros and its length (4 bytes)."""
    while head := await content.read(1):
        head += await content.readexactly(7)
        left = int.from_bytes(head[4:], "big")
        while left:
            part = await content.read(min(left, _PART))
            if not part:
                return
            left -= len(part)
            yield part


def _decoded(raw: bytes, wanted: type[T], path: str) -> T:
    try:
        return msgspec.json.decode(raw, type=wanted)
    except msgspec.DecodeError as error:
        raise PlaitError(f"{path} on the Docker Engine: the answer cannot be read: {error}") from error


def _refusal(status: int, text: str) -> PlaitError:
    if status == 404:
        return NotFound(text)
    return Conflict(text) if status in (403, 409) else PlaitError(text)


def _text(raw: bytes) -> str:
    try:
        return str(json.loads(raw)["message"])
    except (ValueError, KeyError, TypeError):
        return raw[:200].decode("utf-8", "replace")


async def _message(answer: aiohttp.ClientResponse) -> str:
    return _text(await answer.content.read(4096))
