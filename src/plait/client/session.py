# SPDX-License-Identifier: Apache-2.0
"""Sessions: what locks belong to, bound to a node's life, to checks, and to a time to live.

Data in: ids, times in seconds. Data out: operations.
"""

from __future__ import annotations

from typing import Any, Literal

from plait.client import durations, types
from plait.client.steps import Request, Steps, call, call_json, decoded, get, put
from plait.client.types import Session
from plait.model.errors import ConfigError

Behavior = Literal["release", "delete"]
TTL_S = (10.0, 86400.0)
LOCK_DELAY_MAX_S = 60.0


def create(
    *,
    name: str = "",
    ttl_s: float = 0.0,
    lock_delay_s: float = 15.0,
    behavior: Behavior = "release",
    checks: tuple[str, ...] | None = None,
    node: str = "",
) -> Steps[str]:
    """A new session's id. `ttl_s` 0: it lives as long as its checks (None: the node's own check) pass.

    `lock_delay_s`: for so long nobody can take a lock that was lost. `behavior`: what becomes of its keys when it ends.
    """
    if ttl_s and not TTL_S[0] <= ttl_s <= TTL_S[1]:
        raise ConfigError("ttl_s", ttl_s, f"is not within {TTL_S[0]:g} and {TTL_S[1]:g} seconds")
    if not 0 <= lock_delay_s <= LOCK_DELAY_MAX_S:
        raise ConfigError("lock_delay_s", lock_delay_s, f"is not within 0 and {LOCK_DELAY_MAX_S:g} seconds")
    body: dict[str, Any] = {"LockDelay": durations.text(lock_delay_s), "Behavior": behavior}
    body |= {name: value for name, value in {"Name": name, "Node": node, "TTL": durations.text(ttl_s) if ttl_s else ""}.items() if value}
    body |= {} if checks is None else {"Checks": list(checks)}
    request = put("session/create", body=body)
    return types.record((yield from call_json(request)), lambda raw: str(raw["ID"]), request.what)


def renew(session: str, *, timeout_s: float | None = None) -> Steps[Session | None]:
    """Start the session's time to live anew; None if the session is gone."""
    path = put(f"session/renew/{session}")
    request = Request(path.method, path.path, timeout_s=timeout_s)
    answer = yield from call(request, 404)
    if answer.status == 404:
        return None
    found = types.records(decoded(request, answer), types.session, request.what)
    return found[0] if found else None


def destroy(session: str) -> Steps[None]:
    """End a session; its locks are released. An unknown one is a success."""
    yield from call(put(f"session/destroy/{session}"))


def info(session: str) -> Steps[Session | None]:
    """One session, None if there is none of this id."""
    request = get(f"session/info/{session}")
    found = types.records((yield from call_json(request)), types.session, request.what)
    return found[0] if found else None


def list_sessions(node: str = "") -> Steps[tuple[Session, ...]]:
    """All sessions, or those of one node."""
    request = get(f"session/node/{node}" if node else "session/list")
    return types.records((yield from call_json(request)), types.session, request.what)
