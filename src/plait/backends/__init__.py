# SPDX-License-Identifier: Apache-2.0
"""How traffic goes between nodes. One file a backend; `BACKENDS` is the only place that lists them."""

from plait.backends.base import Backend, Peer
from plait.backends.none import NoneBackend
from plait.backends.vxlan import VxlanBackend

BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (VxlanBackend(), NoneBackend())}

DUAL = frozenset({"vxlan", "none"})
"""Backends of networks that may have IPv6 beside IPv4."""

__all__ = ["BACKENDS", "DUAL", "Backend", "Peer"]
