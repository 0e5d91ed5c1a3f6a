# SPDX-License-Identifier: Apache-2.0
"""How traffic goes between nodes. One file a backend; `BACKENDS` is the only place that lists them."""

from plait.backends.base import MODELS, Backend, Peer
from plait.backends.none import NoneBackend
from plait.backends.settings import OPTIONS as SETTINGS
from plait.backends.settings import check_names, choose_backend
from plait.backends.vxlan import VxlanBackend

BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (VxlanBackend(), NoneBackend())}
"""Of each model the first is the one that is taken where none is asked for, of all of them the first where no model is either."""

DUAL = frozenset({"vxlan", "none"})
"""Backends of networks that may have IPv6 beside IPv4."""

__all__ = ["BACKENDS", "DUAL", "MODELS", "SETTINGS", "Backend", "Peer", "check_names", "choose_backend"]
