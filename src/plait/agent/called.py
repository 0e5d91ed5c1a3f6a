# SPDX-License-Identifier: Apache-2.0
"""Endpoints by what people call their container: its name, or the beginning of its id."""

from __future__ import annotations

from plait.model.cluster import Endpoint, Snapshot
from plait.model.errors import NotFound

_ID_CHARACTERS = 12
"""So many of a container's id name it, as engines show it."""


def is_called(endpoint: Endpoint, container: str) -> bool:
    by_id = len(container) >= _ID_CHARACTERS and endpoint.container.startswith(container)
    return bool(container) and (endpoint.name == container or by_id)


def called_here(snapshot: Snapshot, container: str, network: str, todo: str) -> list[Endpoint]:
    """This node's endpoints of the container, on `network` or ("") all of its networks, by network. NotFound says where it is, and that
    one can `todo` there."""
    called = [e for e in snapshot.endpoints.values() if is_called(e, container) and network in ("", e.network)]
    own = [e for e in called if e.node == snapshot.me]
    if own:
        return sorted(own, key=lambda e: e.network)
    on = f" on network {network!r}" if network else " on a network of plait's"
    where = ", ".join(sorted({e.node for e in called}))
    raise NotFound(
        f"this host has no container {container!r}{on}: "
        + (f"it runs on {where}, {todo} there" if where else "`plait ps` lists what runs where")
    )
