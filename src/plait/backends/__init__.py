# SPDX-License-Identifier: Apache-2.0
"""How traffic goes between nodes. One file a backend; `BACKENDS` is the only place that lists them."""

from plait.backends.base import BOTH, DIRECT, LAST_METRIC, LEAST_MTU6, MODELS, Backend, Child, OnHostLink, Path, Peer, outer_growth
from plait.backends.bridge import BridgeBackend
from plait.backends.direct import DirectBackend
from plait.backends.hybrid import HybridBackend
from plait.backends.ipvlan import IpvlanBackend
from plait.backends.layer2 import Layer2Backend
from plait.backends.macvlan import MacvlanBackend
from plait.backends.none import NoneBackend
from plait.backends.settings import HOST_LINK, PER_ENDPOINT, Settings, changed, has_tunnel, settle
from plait.backends.settings import OPTIONS as SETTINGS
from plait.backends.vlan import VlanBackend
from plait.backends.vxlan import VxlanBackend
from plait.backends.wireguard import PORT, SPARE_PORT, WireguardBackend
from plait.model.cluster import Network

_VXLAN = VxlanBackend()
_ALL: tuple[Backend, ...] = (
    _VXLAN,
    BridgeBackend(),
    NoneBackend(),
    HybridBackend(_VXLAN),
    DirectBackend(),
    WireguardBackend(),
    MacvlanBackend(),
    IpvlanBackend(),
    VlanBackend(),
)
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in _ALL}
"""Of each model the first is the one that is taken where none is asked for, of all of them the first where no model is either."""

ENCRYPTED_PORTS = (PORT, SPARE_PORT)
"""Of UDP, those that the encrypted tunnel and its spare have on each host."""
_LAYER2: Backend = Layer2Backend(_VXLAN)

__all__ = [
    "BACKENDS",
    "BOTH",
    "DIRECT",
    "ENCRYPTED_PORTS",
    "HOST_LINK",
    "LAST_METRIC",
    "LEAST_MTU6",
    "MODELS",
    "PER_ENDPOINT",
    "SETTINGS",
    "Backend",
    "Child",
    "OnHostLink",
    "Path",
    "Peer",
    "Settings",
    "backend_of",
    "changed",
    "child_of",
    "has_tunnel",
    "needs",
    "on_link",
    "outer_growth",
    "own_mac",
    "settle",
    "tunnel_port",
]


def backend_of(network: Network) -> Backend:
    """How the traffic of this network goes between nodes, which its options say too."""
    return _LAYER2 if network.layer2 else BACKENDS[network.backend]


def on_link(network: Network) -> bool:
    """Whether the network's containers on one host are neighbours on one link; else each of them is alone with the gateway on its own."""
    return bool(backend_of(network).bridge(network)) or child_of(network) is not None


def tunnel_port(network: Network) -> str:
    """The tunnel device that is a port of the network's bridge, "" where there is none."""
    return _VXLAN.device(network) if network.layer2 else ""


def child_of(network: Network) -> Child | None:
    """What its endpoints are if the network lies on a link of its hosts; None: the host itself is their router."""
    backend = BACKENDS[network.backend]
    return backend.child(network) if isinstance(backend, OnHostLink) else None


def needs(network: Network) -> frozenset[str]:
    """Kernel capabilities without which the network cannot work."""
    backend = BACKENDS[network.backend]
    return backend.needs_of(network) if isinstance(backend, OnHostLink) else backend_of(network).needs()


def own_mac(network: Network) -> bool:
    """Whether each of its endpoints has a MAC of its own, which may be chosen."""
    backend = BACKENDS[network.backend]
    return backend.own_mac if isinstance(backend, OnHostLink) else True
