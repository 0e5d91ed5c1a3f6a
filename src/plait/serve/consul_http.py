# SPDX-License-Identifier: Apache-2.0
"""What every call of the Consul API has in common: parameters, errors, answers.

Data in: one HTTP request. Data out: a `Call` with decoded parts, or an answer with Consul's headers. Errors are plain texts in Consul's
words, because clients compare them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from aiohttp import web

from plait.model.errors import PlaitError
from plait.services.requests import BadRequest, duration_s

DEFAULT_WAIT_S, MAX_WAIT_S = 300.0, 600.0
_MAX_INDEX = (1 << 64) - 1
_COMPRESS_FROM = 1024
"""Bytes of a body from which compressing it pays."""
_COMMON = {"Vary": "Accept-Encoding", "X-Consul-Default-Acl-Policy": "allow"}

Consistency = Literal["leader", "stale", "consistent"]


class Missing(PlaitError):
    """Answered with status 404 and this text."""


class Unable(PlaitError):
    """Answered with status 500 and this text: Consul's way to say that the cluster cannot do it now."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request after routing: the variable parts of its path (decoded), the parameters of its query in their order, its body."""

    path: str
    parts: tuple[str, ...]
    params: Mapping[str, tuple[str, ...]]
    body: bytes

    def flag(self, name: str) -> bool:
        """Whether the parameter is there, with or without a value."""
        return name in self.params

    def one(self, name: str) -> str:
        """The parameter's last value, "" if it is not there."""
        return self.params.get(name, ("",))[-1]

    def every(self, name: str) -> tuple[str, ...]:
        return self.params.get(name, ())

    def part(self, what: str) -> str:
        """The first variable part of the path. BadRequest with "Missing <what>" if it is empty."""
        if not self.parts[0]:
            raise BadRequest(f"Missing {what}")
        return self.parts[0]

    def switch(self, name: str) -> bool:
        """`?passing`, `?passing=1`, `?passing=true` are true; absent, 0, false are not (Go: strconv.ParseBool)."""
        if not self.flag(name):
            return False
        value = self.one(name).lower()
        if value in ("", "1", "t", "true"):
            return True
        if value in ("0", "f", "false"):
            return False
        raise BadRequest(f"Invalid value for ?{name}")

    def json(self) -> object:
        """The body as JSON whatever its Content-Type says, None if it is empty. Every text in it can be written as UTF-8."""
        try:
            value: object = json.loads(self.body or b"null")
            json.dumps(value, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"Request decode failed: {error}") from error
        return value

    def index(self) -> int:
        """The index that a blocking query waits to pass; 0 = answer at once."""
        text = self.one("index") or "0"
        if not (text.isascii() and text.isdecimal() and len(text) <= 20) or int(text) > _MAX_INDEX:
            raise BadRequest("Invalid index")
        return int(text)

    def wait_s(self) -> float:
        """How long a blocking query may wait. Up to a sixteenth is added at random, which clients expect and which spreads them."""
        wait = 0.0
        if self.one("wait"):
            try:
                wait = duration_s(self.one("wait"))
            except ValueError as error:
                raise BadRequest("Invalid wait time") from error
        wait = min(wait or DEFAULT_WAIT_S, MAX_WAIT_S)
        return wait + random.uniform(0, wait / 16)

    def consistency(self) -> Consistency:
        """Which consistency the client asked for. BadRequest if it asked for two that exclude each other."""
        consistent = self.flag("consistent")
        for other in ("stale", "cached"):
            if consistent and self.flag(other):
                raise BadRequest(f"Cannot specify ?{other} with ?consistent, conflicting semantics.")
        if self.flag("max_stale"):
            try:
                duration_s(self.one("max_stale"))
            except ValueError as error:
                raise BadRequest(f'Invalid max_stale value "{self.one("max_stale")}"') from error
        return "consistent" if consistent else "stale" if self.flag("stale") or self.flag("max_stale") else "leader"

    def check_scope(self, datacenter: str) -> None:
        """The only datacentre and the only namespace are this cluster's: anything else is refused as Consul does it."""
        if self.one("dc").lower() not in ("", datacenter.lower()):
            raise Unable("No path to datacenter")
        for name in ("ns", "partition"):
            if self.one(name) not in ("", "default"):
                raise BadRequest(f'Invalid query parameter: "{name}" - Namespaces are a Consul Enterprise feature')


def text_answer(status: int, text: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(status=status, text=text, headers={**_COMMON, **(headers or {})})


def json_answer(body: bytes, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer whose body is JSON already."""
    return web.Response(body=body, content_type="application/json", headers={**_COMMON, **(headers or {})})


def encoded(value: object, pretty: bool) -> bytes:
    """JSON in the order of the value's keys; `pretty`: indented by four blanks, with a line feed at its end."""
    return (json.dumps(value, indent=4) + "\n" if pretty else json.dumps(value, separators=(",", ":"))).encode()


def compress(request: web.Request, answer: web.Response) -> web.Response:
    """Let the answer be sent with gzip if it is large and the client said that it takes that."""
    if len(answer.body or b"") >= _COMPRESS_FROM and "gzip" in request.headers.get("Accept-Encoding", ""):  # type: ignore[arg-type]
        answer.enable_compression(web.ContentCoding.gzip)
    return answer
