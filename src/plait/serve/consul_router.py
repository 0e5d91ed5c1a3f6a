# SPDX-License-Identifier: Apache-2.0
"""Which room answers a request of the Consul API: the `App` of its HTTP server.

Data in: requests, routes. Data out: what their handlers say, errors in Consul's words. Every path is percent-decoded before it is routed.
Which handler a target means, and with what parameters, is kept: clients ask the same again and again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import parse_qsl, unquote

from plait.http.message import Answer, Parked, Request, Response
from plait.model.errors import PlaitError
from plait.serve.consul_http import NO_ENDPOINT, Call, Handler, Repeated, Route, check_fields, status_of, text_answer
from plait.serve.consul_reads import FILTERED
from plait.services.requests import BadRequest

log = logging.getLogger("plait.consul")
MAX_BODY = 512 * 1024
_UI_OFF = "Consul Agent: UI disabled. This is plait: see `plait status` and `plait ps`."
_BAD_PATH = "Invalid URL path: if attempting to use the HTTP API, ensure the path starts with '/v1/'"
_UNPRINTABLE = "Invalid URL path: it holds characters that cannot be printed"
_ACL = re.compile(r"acl/.*|agent/token/.*")
_KEPT, _KEPT_BYTES = 1024, 512
"""How many targets are kept at least, and how long they may be."""
_PARAMS = 1000
K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True)
class _Found:
    """What a method and a target mean. `call`: the last one that had no body."""

    handler: Handler
    path: str
    parts: tuple[str, ...]
    params: Mapping[str, tuple[str, ...]]
    call: Call | None = None
    again: Callable[[], Answer | Parked] | None = None
    """Answers that call."""


class _Kept(Generic[K, V]):
    """The values of `_KEPT` to twice as many keys, those that were asked for last. A key costs little when it is new and nothing while it
    is asked for often, however many others come once: a blocking query has another target with each index."""

    def __init__(self) -> None:
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        found = self._young.get(key)
        if found is None and (found := self._old.get(key)) is not None:
            self.put(key, found)
        return found

    def put(self, key: K, value: V) -> None:
        if len(self._young) >= _KEPT:
            self._young, self._old = {}, self._young
        self._young[key] = value


class Router:
    """Of all routes that were added the first that matches counts, the last ones added before the others."""

    def __init__(self, datacenter: str) -> None:
        self._datacenter = datacenter
        self.routes: tuple[Route, ...] = ()
        self.pretty = False
        """Whether every answer is indented, asked for or not."""
        self._blocked: tuple[str, ...] = ()
        self._by_segment: dict[str, list[Route]] = {}
        """By the first segment of their path."""
        self._kept: _Kept[tuple[str, bytes], _Found] = _Kept()
        self._limits: _Kept[bytes, int] = _Kept()

    def add(self, routes: Iterable[Route]) -> None:
        self.routes = (*routes, *self.routes)
        self._by_segment = {}
        for route in self.routes:
            self._by_segment.setdefault(route.path.partition("/")[0], []).append(route)
        self._kept, self._limits = _Kept(), _Kept()

    def block(self, beginnings: tuple[str, ...]) -> None:
        """Refuse every path that begins with one of these, such as /v1/snapshot, and no other any more."""
        self._blocked = beginnings
        self._kept = _Kept()

    def respond(self, request: Request) -> Response:
        """PlaitError and whatever the handler raises."""
        headers = request.headers
        if b"cache-control" in headers or b"x-consul-namespace" in headers or b"x-consul-partition" in headers:
            check_fields(headers)
        found = self._kept.get((request.method, request.target)) or self._find(request)
        if isinstance(found, Answer):
            return found
        accept = request.header(b"accept") if b"accept" in headers else ""
        last_id = request.header(b"last-event-id") if b"last-event-id" in headers else ""
        if request.body:
            return found.handler(Call(found.path, found.parts, found.params, request.body, accept, last_id))
        call = found.call
        if call is not None and call.accept == accept and call.last_event_id == last_id:
            return found.handler(call) if found.again is None else found.again()
        call = Call(found.path, found.parts, found.params, b"", accept, last_id)
        if not isinstance(found.handler, Repeated):
            found.call, found.again = call, None
            return found.handler(call)
        found.call, found.again = call, found.handler.prepare(call)
        return found.again()

    def refused(self, error: Exception, request: Request) -> Answer:
        """Consul's words for an error of the request; anything else is a fault of the agent, which is logged."""
        if isinstance(error, PlaitError | UnicodeError):
            return text_answer(status_of(error), str(error))
        log.error("request_failed", extra={"op": f"{request.method} {_path(request.target)}"}, exc_info=error)
        return text_answer(500, f"error inside the agent ({error!r}); its log says more")

    def rejected(self, status: int, text: str) -> Answer:
        return text_answer(status, text)

    def max_body(self, target: bytes) -> int:
        known = self._limits.get(target)
        if known is not None:
            return known
        found = self._match(_path(target).removeprefix("/v1/"))
        limit = found[1].max_body or MAX_BODY if found is not None else MAX_BODY
        if len(target) <= _KEPT_BYTES:
            self._limits.put(target, limit)
        return limit

    def _match(self, path: str) -> tuple[tuple[str, ...], Route] | None:
        for route in self._by_segment.get(path.partition("/")[0], ()):
            parts = route.match(path)
            if parts is not None:
                return parts, route
        return None

    def _find(self, request: Request) -> _Found | Answer:
        path = _path(request.target)
        if not path.isprintable():
            return text_answer(400, _UNPRINTABLE)
        if not path.startswith("/v1/"):
            return text_answer(200, _UI_OFF) if path == "/" else text_answer(404, _BAD_PATH)
        if path.startswith(self._blocked):
            return text_answer(403, "Endpoint is blocked by agent configuration")
        path = path.removeprefix("/v1/")
        matched = self._match(path)
        if matched is None:
            return text_answer(401, "ACL support disabled") if _ACL.fullmatch(path) else text_answer(404, NO_ENDPOINT)
        parts, route = matched
        handler = route.methods.get(request.method)
        if handler is None:
            allow = {"Allow": ",".join(["OPTIONS", *route.methods])}
            options = request.method == "OPTIONS"
            return text_answer(200, "", allow) if options else text_answer(405, f"method {request.method} not allowed", allow)
        params = self._params(request.target)
        if params:
            call = Call(path, parts, params, b"")
            call.check_scope(self._datacenter)
            if call.one("filter") and not route.path.startswith(FILTERED):
                raise BadRequest(f"filter does not apply to /v1/{route.path}")
        found = _Found(handler, path, parts, params)
        if len(request.target) <= _KEPT_BYTES:
            self._kept.put((request.method, request.target), found)
        return found

    def _params(self, target: bytes) -> dict[str, tuple[str, ...]]:
        params = _params(target) if b"?" in target else {}
        return params | {"pretty": ("",)} if self.pretty else params


def _path(target: bytes) -> str:
    """The decoded path of a target in origin or absolute form (RFC 9112, section 3.2). What is no UTF-8 becomes U+FFFD."""
    text = target.decode(errors="replace").partition("?")[0]
    if not text.startswith("/") and "://" in text:
        text = "/" + text.partition("://")[2].partition("/")[2]
    return unquote(text)


def _params(target: bytes) -> dict[str, tuple[str, ...]]:
    """By name, in the order in which they were sent. BadRequest if there are too many."""
    found: dict[str, tuple[str, ...]] = {}
    try:
        pairs = parse_qsl(target.decode(errors="replace").partition("?")[2], keep_blank_values=True, max_num_fields=_PARAMS)
    except ValueError as error:
        raise BadRequest(f"Invalid query: {error}") from error
    for name, value in pairs:
        found[name] = (*found.get(name, ()), value)
    return found
