# SPDX-License-Identifier: Apache-2.0
"""How traffic goes between nodes. One file a backend; `BACKENDS` is the only place that lists them."""

from plait.backends.base import DIRECT, MODELS, Backend, Path, Peer, outer_growth
from plait.backends.bridge import BridgeBackend
from plait.backends.direct import DirectBackend
from plait.backends.hybrid import HybridBackend
from plait.backends.layer2 import Layer2Backend
from plait.backends.none import NoneBackend
from plait.backends.settings import OPTIONS as SETTINGS
from plait.backends.settings import Settings, changed, has_tunnel, settle
from plait.backends.vxlan import VxlanBackend
from plait.backends.wireguard import WireguardBackend
from plait.model.cluster import Network

_VXLAN = VxlanBackend()
_ALL: tuple[Backend, ...] = (_VXLAN, BridgeBackend(), NoneBackend(), HybridBackend(_VXLAN), DirectBackend(), WireguardBackend())
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in _ALL}
"""Of each model the first is the one that is taken where none is asked for, of all of them the first where no model is either."""

_LAYER2: Backend = Layer2Backend(_VXLAN)
DUAL = frozenset({"vxlan", "bridge", "none"})
"""Backends of networks that may have IPv6 beside IPv4."""

__all__ = [
    "BACKENDS",
    "DIRECT",
    "DUAL",
    "MODELS",
    "SETTINGS",
    "Backend",
    "Path",
    "Peer",
    "Settings",
    "backend_of",
    "changed",
    "has_tunnel",
    "on_link",
    "outer_growth",
    "settle",
]


def backend_of(network: Network) -> Backend:
    """How the traffic of this network goes between nodes, which its options say too."""
    return _LAYER2 if network.layer2 else BACKENDS[network.backend]


def on_link(network: Network) -> bool:
    """Whether the network's containers on one host are neighbours on one link; else each of them is alone with the gateway on its own."""
    return bool(backend_of(network).bridge(network))
