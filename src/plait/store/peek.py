# SPDX-License-Identifier: Apache-2.0
"""What a cluster shows to who holds a token of it, before anything is joined: all that may conflict with another cluster's.

Data in: the token's id and secret, on a connection that was verified by the token's pin. Data out: keys and values, in parts; of the
key-value store only a digest of each value. The token is not used up.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator

from plait.store.api import Item
from plait.store.protocol import PART, Message

SHOWN = (
    "nodes/",
    "networks/",
    "blocks/",
    "endpoints/",
    "containers/",
    "assigned/",
    "hostranges/",
    "catalog/",
    "queries/",
    "kv/",
    "policies/",
    "namespaces/",
)
"""Prefixes of the keys that are shown. Nothing that is a secret of the cluster's own lies below them."""
DIGESTED = "kv/"


class Peek(Message, frozen=True, tag="peek"):
    token_id: str
    secret: str


class Peeked(Message, frozen=True, tag="peeked"):
    """A part of the answer; each but the last has `more` set."""

    items: tuple[tuple[str, bytes], ...]
    more: bool = False


def shown(items: Iterable[Item]) -> dict[str, bytes]:
    """What is shown of them, by key."""
    return {item.key: shown_value(item.key, item.value) for item in items if item.key.startswith(SHOWN)}


def shown_value(key: str, value: bytes) -> bytes:
    """The value itself, or a digest of a key's value and flags, whoever has locked it."""
    if not key.startswith(DIGESTED):
        return value
    entry = json.loads(value)
    return hashlib.sha256(f"{entry.get('flags', 0)} {entry.get('value', '')}".encode()).digest()


def peeked_parts(items: Iterable[Item]) -> Iterator[Peeked]:
    """The answers that carry what is shown of `items`: at least one, no frame too large."""
    part: list[tuple[str, bytes]] = []
    size = 0
    for key, value in shown(items).items():
        if size > PART:
            yield Peeked(tuple(part), more=True)
            part, size = [], 0
        part.append((key, value))
        size += len(key) + len(value)
    yield Peeked(tuple(part))
