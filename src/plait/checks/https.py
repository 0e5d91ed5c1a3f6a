# SPDX-License-Identifier: Apache-2.0
"""HTTP checks over TLS and through redirects, by aiohttp: loaded by the first check that needs it. No connection is used twice."""

from __future__ import annotations

import socket

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from plait.checks.dial import CheckFailed, reason, tls_context
from plait.checks.http import ACCEPT, USER_AGENT, Found, given_headers
from plait.checks.resolve import Resolver
from plait.model.discovery import CheckDefinition


class _Names(AbstractResolver):
    """aiohttp's names through the checks' own resolver."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        found = await self._resolver.addresses(host)
        return [
            ResolveResult(hostname=host, host=address, port=port, family=of, proto=socket.IPPROTO_TCP, flags=socket.AI_NUMERICHOST)
            for of, address in found
            if family in (socket.AF_UNSPEC, of)
        ]

    async def close(self) -> None:
        """The resolver belongs to others."""


class Https:
    """Nothing is remembered from one check to the next. `close` when done."""

    def __init__(self, resolver: Resolver) -> None:
        connector = aiohttp.TCPConnector(resolver=_Names(resolver), use_dns_cache=False, force_close=True, limit=0)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            skip_auto_headers=["Accept-Encoding"],
        )

    async def close(self) -> None:
        await self._session.close()

    async def run(self, definition: CheckDefinition, method: str) -> Found:
        """CheckFailed says why there is no answer."""
        try:
            return await self._run(definition, method)
        except aiohttp.ClientConnectorError as error:
            raise CheckFailed(reason(error.os_error)) from error
        except aiohttp.ClientError as error:
            raise CheckFailed(str(error)) from error

    async def _run(self, definition: CheckDefinition, method: str) -> Found:
        given = {name.lower() for name in definition.headers}
        headers = [(name, value) for name, value in (("User-Agent", USER_AGENT), ("Accept", ACCEPT)) if name.lower() not in given]
        async with self._session.request(
            method,
            URL(definition.target),
            headers=[*headers, *given_headers(definition)],
            data=definition.body.encode() or None,
            allow_redirects=definition.follow_redirects,
            ssl=tls_context(definition),
            server_hostname=definition.tls_server_name or None,
        ) as answer:
            body = bytearray()
            while len(body) < definition.output_max and (part := await answer.content.read(definition.output_max - len(body))):
                body += part
            return answer.status, answer.reason or "", bytes(body)
