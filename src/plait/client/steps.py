# SPDX-License-Identifier: Apache-2.0
"""What the library does, apart from doing it: every operation is a generator of effects that a thin driver performs.

Data in: the answers to effects. Data out: effects (`Request`, `Sleep`, `Clock`) and in the end the operation's result. The blocking driver
(`sync`) and the asyncio one (`aio`) run the same generators, and so do tests under a clock of their own; nothing here does I/O.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote, urlencode

from plait.client.errors import ApiError, BadAnswer

T = TypeVar("T")

Params: TypeAlias = tuple[tuple[str, str], ...]
"""Query parameters in order; a name may occur several times. The value of a mere flag is ""."""

MAX_WAIT_S = 600.0
"""Longest `wait` that the API grants."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `path` comes after /v1/, not yet encoded. `wait_s` > 0: the agent may hold the answer back for that long.

    `again`: the request may be repeated unseen on a new connection, because a second one does no harm (reads, but not blocking ones: if the
    agent was started anew, its index may mean something else now, so the watch has to know).
    """

    method: str
    path: str
    params: Params = ()
    body: bytes | None = None
    wait_s: float = 0.0
    timeout_s: float | None = None

    @property
    def again(self) -> bool:
        return self.method == "GET" and not self.wait_s

    @property
    def what(self) -> str:
        return f"{self.method} /v1/{self.path}"

    @property
    def target(self) -> str:
        """Path and query as they stand in the request line."""
        query = urlencode(self.params, quote_via=quote)
        return f"/v1/{quote(self.path, safe='/')}" + (f"?{query}" if query else "")

    def with_params(self, *more: tuple[str, str]) -> Request:
        return replace(self, params=(*self.params, *more))

    def limit(self, default_s: float) -> float:
        """Seconds to wait for the answer: held-back time, its documented jitter of a sixteenth, and the ordinary limit."""
        return self.wait_s * 17 / 16 + (default_s if self.timeout_s is None else self.timeout_s)


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request; names of headers in lower case, the last of several equal ones counts."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def index(self) -> int:
        """The index that the next blocking query names; 0 where the answer has none."""
        text = self.headers.get("x-consul-index", "")
        return int(text) if text.isascii() and text.isdigit() else 0


@dataclass(frozen=True, slots=True)
class Sleep:
    """Do nothing for `seconds`; answered with None."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Clock:
    """Answered with the seconds of a clock that never goes back."""


Effect: TypeAlias = Request | Sleep | Clock
Steps: TypeAlias = Generator[Effect, Any, T]
"""An operation: yields effects, is sent Answer (Request), None (Sleep) or float (Clock), returns its result. A request that
fails is thrown into it as Unreachable."""


def send(request: Request) -> Steps[Answer]:
    answer: Answer = yield request
    return answer


def sleep(seconds: float) -> Steps[None]:
    yield Sleep(max(0.0, seconds))


def clock() -> Steps[float]:
    now: float = yield Clock()
    return now


def call(request: Request, *fine: int) -> Steps[Answer]:
    """Send and return the answer if its status is 200 or one of `fine`; ApiError otherwise."""
    answer = yield from send(request)
    if answer.status != 200 and answer.status not in fine:
        raise ApiError(request.what, answer.status, _words(answer.body))
    return answer


def call_json(request: Request) -> Steps[Any]:
    """Send and return the decoded JSON of a 200 answer."""
    answer = yield from call(request)
    return decoded(request, answer)


def decoded(request: Request, answer: Answer) -> Any:
    try:
        return json.loads(answer.body)
    except ValueError as error:
        raise BadAnswer(f"{request.what}: the answer is not JSON ({answer.body[:60]!r}); is this an agent's HTTP port?") from error


def get(path: str, *params: tuple[str, str]) -> Request:
    return Request("GET", path, params)


def put(path: str, *params: tuple[str, str], body: object = None) -> Request:
    """A write whose body is the JSON of `body`, or bytes as they are; None: no body."""
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body, ensure_ascii=False).encode()
    return Request("PUT", path, params, raw)


def _words(body: bytes) -> str:
    return " ".join(body[:500].decode(errors="replace").split())
