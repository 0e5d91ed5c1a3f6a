# SPDX-License-Identifier: Apache-2.0
"""Client side. For programs: `Client` and `AsyncClient`, for the discovery API of plait and of Consul (docs/client.md). `admin`: for the
CLI.

The names below are imported when they are first used, so that a command which needs only `admin` starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plait.client.aio import AsyncClient
    from plait.client.balance import Ejection, Zone
    from plait.client.discovery import Check, Service
    from plait.client.errors import (
        ApiError,
        BadAnswer,
        ClientError,
        Closed,
        LockLost,
        NoInstances,
        NotAcquired,
        Unreachable,
    )
    from plait.client.sync import Client
    from plait.client.txn import CheckOp, NodeOp, Op, ServiceOp, TxnFailed
    from plait.client.types import CatalogService, CheckState, Entry, Event, Instance, Member, Node, Port, Session

_PLACES = {
    "sync": ("Client",),
    "aio": ("AsyncClient",),
    "balance": ("Ejection", "Zone"),
    "discovery": ("Check", "Service"),
    "errors": ("ApiError", "BadAnswer", "ClientError", "Closed", "LockLost", "NoInstances", "NotAcquired", "Unreachable"),
    "txn": ("CheckOp", "NodeOp", "Op", "ServiceOp", "TxnFailed"),
    "types": ("CatalogService", "CheckState", "Entry", "Event", "Instance", "Member", "Node", "Port", "Session"),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "ApiError",
    "AsyncClient",
    "BadAnswer",
    "CatalogService",
    "Check",
    "CheckOp",
    "CheckState",
    "Client",
    "ClientError",
    "Closed",
    "Ejection",
    "Entry",
    "Event",
    "Instance",
    "LockLost",
    "Member",
    "NoInstances",
    "Node",
    "NodeOp",
    "NotAcquired",
    "Op",
    "Port",
    "Service",
    "ServiceOp",
    "Session",
    "TxnFailed",
    "Unreachable",
    "Zone",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"plait.client.{_MODULES[name]}"), name)
