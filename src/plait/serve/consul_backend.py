# SPDX-License-Identifier: Apache-2.0
"""What the Consul API needs of the agent, and how its reads are made: shared by the modules that answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from plait.model.cluster import Instance, Snapshot
from plait.model.discovery import CatalogNode, Check, Status
from plait.serve.consul_http import Call
from plait.services.views import Views

Read = Callable[[Call, Views], object]


class CatalogBackend(Protocol):
    """The cluster as this agent knows it, and this agent's services."""

    def snapshot(self) -> Snapshot:
        """The present one. The same object as before as long as nothing has changed."""
        ...

    async def register(self, instance: Instance) -> Instance:
        """Durable on this node, then published; returns it with its indexes. Idempotent."""
        ...

    async def deregister(self, service_id: str) -> bool:
        """False if this node has no such service."""
        ...

    async def changed(self, timeout_s: float) -> None:
        """Return when the snapshot may have changed since the call, or after the timeout."""
        ...

    def last_contact_ms(self) -> int | None:
        """Milliseconds since the store was last heard of; 0 on the node that carries it, None = it is out of reach."""
        ...


class CheckOwner(Protocol):
    """Who keeps and runs this agent's checks."""

    def changing(self, service_id: str) -> AbstractAsyncContextManager[None]:
        """Held while a service and its checks come or go together, or a check is added to a service that is there."""
        ...

    async def add(self, checks: Sequence[Check]) -> None:
        """All or none, durable when it returns. NotSupported for what the operator does not allow."""
        ...

    async def remove(self, check_ids: Iterable[str]) -> None:
        """Unknown ids are no matter."""
        ...

    def update(self, check_id: str, status: Status, output: str) -> None:
        """A client's word about its TTL check. NotFound, or Conflict if it is of another kind."""
        ...

    def own(self, check_id: str) -> Check | None: ...

    def of_service(self, service_id: str) -> list[Check]:
        """By id; "" those of the node itself."""
        ...


class Outside(Protocol):
    """The part of the catalogue that no agent owns."""

    async def put(self, records: Sequence[CatalogNode | Instance | Check]) -> None:
        """All or none. StoreUnavailable."""
        ...

    async def drop(self, node: str, service_id: str = "", check_id: str = "") -> None:
        """Remove one service with its checks, one check, or (neither is given) the whole node. What is absent is no matter."""
        ...
