# SPDX-License-Identifier: Apache-2.0
"""Consul's sessions as pure rules: reading a request, whether one may be made, when one has ended, how it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from plait.model.cluster import Snapshot
from plait.model.discovery import SERF_CHECK
from plait.model.kv import Behavior, Session
from plait.services.requests import BadRequest, Refusal, duration_s, fold

LOCK_DELAY_S, MAX_LOCK_DELAY_S = 15.0, 60.0
TTL_S = (10.0, 86_400.0)
_NS = 1_000_000_000


def parse_session(body: object, node: str, session_id: str) -> Session:
    """A body of `PUT /v1/session/create`, which may be empty. BadRequest, or Refusal in Consul's words."""
    raw = fold(body) if body is not None else {}
    behavior = _text(raw, "behavior") or "release"
    if behavior not in ("release", "delete"):
        raise Refusal(f"Invalid Behavior setting '{behavior}'")
    ttl_text = _text(raw, "ttl")
    return Session(
        id=session_id,
        node=_text(raw, "node") or node,
        name=_text(raw, "name"),
        lock_delay=_lock_delay(raw.get("lockdelay")),
        behavior=cast(Behavior, behavior),
        ttl=_ttl(ttl_text),
        ttl_text=ttl_text,
        node_checks=_node_checks(raw),
        service_checks=_service_checks(raw.get("servicechecks")),
    )


def _text(raw: Mapping[str, object], key: str) -> str:
    value = raw.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRequest(f"Request decode failed: {key} must be a text, got {type(value).__name__}")
    return value


def _lock_delay(value: object) -> float:
    """A duration, or a number: nanoseconds, but seconds below 1000, which is what people mean. Absent is the default, 0 is none."""
    if value is None:
        return LOCK_DELAY_S
    try:
        if isinstance(value, str):
            seconds = duration_s(value)
        elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1 << 63:
            seconds = float(value) if value < 1000 else value / _NS
        else:
            raise ValueError(f"got {str(value)[:40]!r}")
    except ValueError as error:
        raise BadRequest(f"Request decode failed: LockDelay must be a duration: {error}") from error
    if seconds < 0:
        raise BadRequest("Request decode failed: LockDelay must not be negative")
    return min(seconds, MAX_LOCK_DELAY_S)


def _ttl(text: str) -> float:
    if not text:
        return 0.0
    try:
        seconds = duration_s(text)
    except ValueError as error:
        raise Refusal(f"Invalid Session TTL '{text}': {error}") from error
    if seconds and not TTL_S[0] <= seconds <= TTL_S[1]:
        raise Refusal(f"Invalid Session TTL '{int(seconds * _NS)}', must be between [10s=24h0m0s]")
    return seconds


def _node_checks(raw: Mapping[str, object]) -> tuple[str, ...]:
    """`NodeChecks`, or the older `Checks`; absent is the node's own check, an empty list is none."""
    for key in ("nodechecks", "checks"):
        value = raw.get(key)
        if value is not None:
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                raise BadRequest(f"Request decode failed: {key} must be a list of texts")
            return tuple(value)
    return (SERF_CHECK,)


def _service_checks(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise BadRequest("Request decode failed: ServiceChecks must be a list")
    return tuple(_text(fold(item), "id") for item in value)


def missing(session: Session, snapshot: Snapshot) -> str:
    """Why this session cannot live in this cluster, in Consul's words; "" if it can."""
    if session.node not in snapshot.nodes:
        return "Missing node registration"
    for check_id in (*session.node_checks, *session.service_checks):
        status = _status(session.node, check_id, snapshot)
        if not status:
            return f"Missing check '{check_id}' registration"
        if status == "critical":
            return f"Check '{check_id}' is in critical state"
    return ""


def _status(node: str, check_id: str, snapshot: Snapshot) -> str:
    if check_id == SERF_CHECK:
        return "passing" if node in snapshot.alive else "critical"
    check = snapshot.checks.get((node, check_id))
    return check.status if check is not None else ""


def session_json(session: Session) -> dict[str, object]:
    """The session as Consul's API shows it; LockDelay in nanoseconds."""
    return {
        "ID": session.id,
        "Name": session.name,
        "Node": session.node,
        "LockDelay": int(session.lock_delay * _NS),
        "Behavior": session.behavior,
        "TTL": session.ttl_text,
        "NodeChecks": list(session.node_checks),
        "ServiceChecks": [{"ID": name, "Namespace": ""} for name in session.service_checks] or None,
        "CreateIndex": session.create_index,
        "ModifyIndex": session.modify_index,
    }
