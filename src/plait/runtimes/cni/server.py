# SPDX-License-Identifier: Apache-2.0
"""The socket that the shim talks to: HTTP on a Unix socket that only root can open; and what was left for the agent while it was away.

Data in: the shim's requests. Data out: what it prints, with status 200, or 500 with an error as the protocol (CNI or netavark) says it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from plait.http import unixsocket
from plait.http.message import Answer, Request
from plait.http.server import HttpServer
from plait.model.errors import PlaitError
from plait.runtimes.cni import wire
from plait.runtimes.cni.plugin import CniPlugin
from plait.runtimes.netavark.plugin import NetavarkPlugin

log = logging.getLogger("plait.cni")
CALL_S = 30.0
"""Longest time of one call; the shim waits twice as long."""
BODY_LIMIT = 4 << 20
_NETAVARK = "NETAVARK_COMMAND"


class PluginServer:
    """Serves on `path` between `start` and `stop`; `spool` is the directory of removals that came while nobody answered."""

    def __init__(self, cni: CniPlugin, netavark: NetavarkPlugin, path: Path, spool: Path, call_s: float = CALL_S) -> None:
        self._cni, self._netavark, self._path, self._spool, self._call_s = cni, netavark, path, spool, call_s
        self._server = HttpServer(self)
        self._draining = asyncio.Lock()

    async def start(self) -> None:
        await self.drain()
        hint = "the agent must run as root and be the only one"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        await self._server.serve(unixsocket.bind(self._path, who="an agent", hint=hint))

    async def stop(self) -> None:
        await self._server.stop()
        self._path.unlink(missing_ok=True)

    # --- what was left

    async def drain(self) -> bool:
        """Carry out what was left, the oldest first; whether nothing is left. What fails for now stays, what cannot be read is dropped with
        a word in the log."""
        async with self._draining:
            for file in self._left():
                try:
                    variables, given = wire.split_body(file.read_bytes())
                    async with asyncio.timeout(self._call_s):
                        await self._carry_out(variables, given)
                    log.info("removal_carried_out", extra={"container": _of_whom(variables)})
                except (wire.CniError, msgspec.DecodeError) as error:
                    log.warning("removal_dropped", extra={"path": str(file), "error": str(error)})
                except (PlaitError, TimeoutError) as error:
                    log.warning("removal_waits", extra={"path": str(file), "error": str(error) or "it took too long"})
                    return False
                file.unlink(missing_ok=True)
        return True

    def _left(self) -> list[Path]:
        return sorted(p for p in self._spool.iterdir() if p.name[0] != ".") if self._spool.is_dir() else []

    # --- the App of the HTTP server

    async def respond(self, request: Request) -> Answer:
        if request.method != "POST" or request.target != b"/cni":
            return self.rejected(404, "only the plug-in's calls (POST /cni) are answered here")
        began = time.monotonic()
        variables: Mapping[str, str] = {}
        version = wire.VERSIONS[-1]
        try:
            variables, given = wire.split_body(request.body)
            version = _version(given)
            if not await self.drain() and _verb(variables) in ("ADD", "setup"):  # what is left may be about this container
                raise wire.CniError(wire.TRY_AGAIN, "a removal that was left while the agent was away cannot be carried out; see its log")
            async with asyncio.timeout(self._call_s):
                return _answer(await self._carry_out(variables, given))
        except PlaitError as error:
            log.warning("cni_call_refused", extra={"call": _verb(variables), "container": _of_whom(variables), "error": str(error)})
            return _refusal(variables, version, wire.code_of(error), str(error), getattr(error, "details", ""))
        except TimeoutError:
            text = f"{_verb(variables)} was not done within {self._call_s:g} s; see `plait status` on this host"
            log.warning("cni_call_refused", extra={"call": _verb(variables), "container": _of_whom(variables), "error": text})
            return _refusal(variables, version, wire.TRY_AGAIN, text)
        except Exception:
            log.exception("cni_call_failed", extra={"call": _verb(variables)})
            return _refusal(variables, version, wire.INTERNAL, "the call failed inside the agent; its log has the details")
        finally:
            log.debug("cni_call", extra={"call": _verb(variables), "took_ms": round((time.monotonic() - began) * 1000, 1)})

    async def _carry_out(self, variables: Mapping[str, str], given: bytes) -> object:
        if _NETAVARK in variables:
            return await self._netavark.call(variables[_NETAVARK], variables.get("NETAVARK_NETNS", ""), given)
        return await self._cni.call(wire.read_call(variables, given))

    def refused(self, error: Exception, request: Request) -> Answer:
        log.error("cni_call_failed", extra={"call": request.method}, exc_info=error)
        return self.rejected(500, "the call failed inside the agent; its log has the details")

    def rejected(self, status: int, text: str) -> Answer:
        return _refusal({}, wire.VERSIONS[-1], wire.DECODE, text, status=status)

    def max_body(self, target: bytes) -> int:
        return BODY_LIMIT


def _verb(variables: Mapping[str, str]) -> str:
    return variables.get(_NETAVARK) or variables.get("CNI_COMMAND", "")


def _of_whom(variables: Mapping[str, str]) -> str:
    return variables.get("CNI_CONTAINERID", "")[:12] or variables.get("NETAVARK_NETNS", "")


def _version(given: bytes) -> str:
    """That of the configuration, as far as it can be read: an error is told in it."""
    try:
        version = msgspec.json.decode(given, type=wire.Config).cni_version
    except (msgspec.DecodeError, RecursionError):
        version = ""
    return version if version in wire.VERSIONS else wire.VERSIONS[-1]


def _answer(value: object) -> Answer:
    return Answer(200, b"" if value is None else msgspec.json.encode(value) + b"\n", "application/json")


def _refusal(variables: Mapping[str, str], version: str, code: int, text: str, details: str = "", status: int = 500) -> Answer:
    body: dict[str, object] = {"cniVersion": version, "code": code, "msg": f"plait: {text}"} | ({"details": details} if details else {})
    if _NETAVARK in variables:
        body = {"error": f"plait: {text}"}
    return Answer(status, msgspec.json.encode(body) + b"\n", "application/json")
