# SPDX-License-Identifier: Apache-2.0
"""Runs one check of any kind: a definition in, a result out, whatever happens, within its timeout."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING

from plait.checks.command import Commands, ContainerRuns
from plait.checks.dial import CheckFailed
from plait.checks.http import Found, run_http
from plait.checks.http2 import run_grpc, run_h2ping
from plait.checks.net import run_tcp, run_udp
from plait.checks.process import run_os_service, run_script
from plait.checks.resolve import Resolver
from plait.model.discovery import OUTPUT_MAX, CheckDefinition
from plait.services.health import RUN_KINDS, Result, clipped_head

if TYPE_CHECKING:
    from plait.checks.https import Https

log = logging.getLogger("plait.checks")


class Runners:
    """Make and use it within one loop; `close` when done. `commands`: who runs commands in containers, if anybody does."""

    def __init__(self, commands: Commands | None, resolver: Resolver | None = None) -> None:
        self._resolver = resolver or Resolver()
        self._containers = ContainerRuns(commands) if commands is not None else None
        self._https: Https | None = None
        self.runs: Counter[str] = Counter()
        """How many ended with which status."""

    async def close(self) -> None:
        self._resolver.close()
        if self._https is not None:
            await self._https.close()

    async def run(self, definition: CheckDefinition) -> Result:
        """Run it once. Never raises but when cancelled: what goes wrong is a critical result whose output says so."""
        result = await self._judge(definition)
        self.runs[result.status] += 1
        return result

    async def _judge(self, definition: CheckDefinition) -> Result:
        try:
            async with asyncio.timeout(definition.timeout):
                return await self._run(definition)
        except CheckFailed as error:
            return Result("critical", clipped_head(str(error).encode(), OUTPUT_MAX))
        except TimeoutError:
            return Result("critical", f"{_subject(definition)}: no answer within {definition.timeout:g} s", timed_out=True)
        except Exception as error:
            log.exception("check_broke", extra={"kind": definition.kind})
            return Result("critical", f"{_subject(definition)}: the agent could not run the check ({type(error).__name__}); see its log")

    async def _run(self, definition: CheckDefinition) -> Result:
        match definition.kind:
            case "http":
                return await run_http(definition, self._resolver, self._full)
            case "tcp":
                return await run_tcp(definition, self._resolver)
            case "udp":
                return await run_udp(definition, self._resolver)
            case "grpc":
                return await run_grpc(definition, self._resolver)
            case "h2ping":
                return await run_h2ping(definition, self._resolver)
            case "script":
                return await run_script(definition)
            case "os_service":
                return await run_os_service(definition)
            case "docker" if self._containers is not None:
                return await self._containers.run(definition)
            case "docker":
                raise CheckFailed("this node runs no Docker Engine (docker.enabled is false)")
        raise CheckFailed(f"checks of kind {definition.kind!r} are not run; {', '.join(sorted(RUN_KINDS))} are")

    async def _full(self, definition: CheckDefinition, method: str) -> Found:
        if self._https is None:
            from plait.checks.https import Https

            self._https = Https(self._resolver)
        return await self._https.run(definition, method)


def _subject(definition: CheckDefinition) -> str:
    """What was checked, in a few words."""
    if definition.kind == "http":
        return f"HTTP {definition.method or 'GET'} {definition.target}"
    return f"{definition.kind} check {definition.target or ' '.join(definition.args[:1])}"
