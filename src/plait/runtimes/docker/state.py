# SPDX-License-Identifier: Apache-2.0
"""What plait must remember of Docker over restarts of either: small JSON documents behind a write-through cache.

Kept: which network of the cluster a Docker network is (`NETWORKS`, by Docker's NetworkID, which differs on every host). dockerd does not
tell it again after a restart. And who each container is (`CONTAINERS`, by id), for the time when an engine that starts answers nobody,
and which link leads to it from the engine's default bridge (`PORTS`, by id).
Endpoints need no documents: the agent's journal keeps them by EndpointID.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

Document = Mapping[str, str]
NETWORKS, CONTAINERS, PORTS = "docker-network", "docker-container", "docker-port"


class DockerState(Protocol):
    """Documents by (kind, key). Writes are durable when they return."""

    def all(self, kind: str) -> Mapping[str, Document]: ...

    def get(self, kind: str, key: str) -> Document | None: ...

    async def put(self, kind: str, key: str, document: Document) -> None: ...

    async def delete(self, kind: str, key: str) -> None:
        """Absent: success."""
        ...


class CachedState:
    """Implements `DockerState` on any durable map: `load(kind)` is asked once per kind, `write(kind, key, body)` deletes on None."""

    def __init__(self, load: Callable[[str], Mapping[str, bytes]], write: Callable[[str, str, bytes | None], Awaitable[None]]) -> None:
        self._load, self._write = load, write
        self._kinds: dict[str, dict[str, Document]] = {}

    def all(self, kind: str) -> Mapping[str, Document]:
        return dict(self._kind(kind))

    def get(self, kind: str, key: str) -> Document | None:
        return self._kind(kind).get(key)

    async def put(self, kind: str, key: str, document: Document) -> None:
        documents = self._kind(kind)
        if documents.get(key) != document:
            await self._write(kind, key, json.dumps(dict(document), sort_keys=True).encode())
            documents[key] = dict(document)

    async def delete(self, kind: str, key: str) -> None:
        if key in self._kind(kind):
            await self._write(kind, key, None)
            self._kind(kind).pop(key, None)

    def _kind(self, kind: str) -> dict[str, Document]:
        if kind not in self._kinds:
            self._kinds[kind] = {key: json.loads(body) for key, body in self._load(kind).items()}
        return self._kinds[kind]


def memory_state() -> CachedState:
    """A state that forgets everything with the process."""

    async def nowhere(kind: str, key: str, body: bytes | None) -> None:
        del kind, key, body

    return CachedState(lambda _: {}, nowhere)
