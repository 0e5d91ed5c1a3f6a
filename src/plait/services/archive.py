# SPDX-License-Identifier: Apache-2.0
"""The archive that `GET /v1/snapshot` gives: what clients wrote, and at which index.

Data in: keys of the store with their values. Data out: gzip (RFC 1952) of one JSON document with `format`, `index` and `items`, which are
pairs of key and value, the value in base64; and back. The same content gives the same bytes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from plait.model.errors import ConfigError

ARCHIVED = {"catalog/": "Register", "kv/": "KVS", "queries/": "PreparedQuery", "settings/": "Autopilot"}
"""What an archive holds, and what Consul calls it. What nodes say of themselves they say again; sessions are bound to what lives now."""
_FORMAT = "plait-snapshot-1"


@dataclass(frozen=True, slots=True)
class Archive:
    """`index` 0: of a version that did not write it down."""

    index: int
    items: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Part:
    """So many entries of one kind, and the bytes of their keys and values."""

    name: str
    count: int
    size: int


def pack(archive: Archive) -> bytes:
    rows = [[key, base64.b64encode(value).decode()] for key, value in archive.items]
    return gzip.compress(json.dumps({"format": _FORMAT, "index": archive.index, "items": rows}).encode(), 6, mtime=0)


def unpack(data: bytes) -> Archive:
    """ConfigError if it is none that plait saved."""
    try:
        document = json.loads(gzip.decompress(data))
        if document["format"] != _FORMAT:
            raise ValueError(f"its format is {document['format']!r}, expected {_FORMAT!r}")
        items = tuple((str(key), base64.b64decode(value, validate=True)) for key, value in document["items"])
        foreign = next((key for key, _ in items if not key.startswith(tuple(ARCHIVED))), None)
        if foreign is not None:
            raise ValueError(f"it holds {foreign!r}, which no snapshot does")
        return Archive(int(document.get("index", 0)), items)
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise ConfigError("snapshot", f"{len(data)} bytes", f"is not one that plait saved: {error}", "nothing was changed") from error


def identity(data: bytes) -> str:
    """What tells one archive from another."""
    return hashlib.sha256(data).hexdigest()[:32]


def parts(archive: Archive) -> list[Part]:
    """By kind, the largest first."""
    return _counted((ARCHIVED[key.partition("/")[0] + "/"], len(key) + len(value)) for key, value in archive.items)


def key_parts(archive: Archive, depth: int, prefix: str) -> list[Part]:
    """Of the keys that begin with `prefix`, by their first `depth` names, the largest first."""
    keys = ((key.removeprefix("kv/"), len(key) + len(value)) for key, value in archive.items if key.startswith("kv/"))
    return _counted(("/".join(key.split("/")[:depth]), size) for key, size in keys if key.startswith(prefix))


def _counted(sizes: Iterable[tuple[str, int]]) -> list[Part]:
    found: dict[str, list[int]] = {}
    for name, size in sizes:
        found.setdefault(name, []).append(size)
    return sorted((Part(name, len(sizes), sum(sizes)) for name, sizes in found.items()), key=lambda part: (-part.size, part.name))
