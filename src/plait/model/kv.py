# SPDX-License-Identifier: Apache-2.0
"""Keys with values, and the sessions that lock them. Immutable; sessions are stored like the records of `cluster`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Behavior = Literal["release", "delete"]


class Entry(NamedTuple):
    """One key: up to 512 KiB of any bytes, 64 bits of the client's own in `flags`. `session` holds the lock ("" = nobody),
    `lock_index` counts how often it was taken. The indexes are the store's revisions of the key's creation and of its last change. Every
    write makes two of these, and a frozen dataclass takes several times as long."""

    key: str
    value: bytes = b""
    flags: int = 0
    session: str = ""
    lock_index: int = 0
    create_index: int = 0
    modify_index: int = 0


@dataclass(frozen=True, slots=True)
class Session:
    """Something that holds locks while it lives: until it is destroyed, its node or one of its checks fails, or nobody renewed it for
    its time to live. Durations are seconds; `ttl` 0: it needs no renewal. `lease`: the store's, of its sign of life; 0 without ttl."""

    id: str
    node: str
    name: str = ""
    lock_delay: float = 15.0
    behavior: Behavior = "release"
    ttl: float = 0.0
    ttl_text: str = ""
    node_checks: tuple[str, ...] = ("serfHealth",)
    service_checks: tuple[str, ...] = ()
    lease: int = 0
    create_index: int = 0
    modify_index: int = 0


@dataclass(frozen=True, slots=True)
class UserEvent:
    """Something that a client told everybody (Consul: a user event). Filters are the sender's words, for receivers to judge."""

    id: str
    name: str
    payload: bytes = b""
    node_filter: str = ""
    service_filter: str = ""
    tag_filter: str = ""


@dataclass(frozen=True, slots=True)
class Coordinate:
    """Where a node is in the space of round trips, in seconds; the default is the origin, of which nothing is known."""

    node: str
    segment: str = ""
    vec: tuple[float, ...] = (0.0,) * 8
    error: float = 1.5
    adjustment: float = 0.0
    height: float = 1e-05
