# SPDX-License-Identifier: Apache-2.0
"""The fast path of networks of layer 2: a frame goes from link to link as it is, past the bridge, told by the MAC that it is for.

Data in: the network, its endpoints on this node, the rows of its tunnel that the backend planned. Data out: what the chains of links and of
the tunnel device do (`fastpath.py` puts them there), and two sets a network: the map `frames_here` (MAC -> link of an endpoint of this
node) and the set `frames_there` (MACs behind the tunnel).

A bridge costs each frame more than that: measured, with these and the shortcut 1.35 times flannel's round trips between two hosts, by the
bridges not even as many. What these do not know (broadcast, multicast, the gateway, the host, questions to neighbours, whose destination
became everybody's before) the bridge has as ever. What comes out of the tunnel never goes back into it, whatever two hosts believe of each
other.
"""

from __future__ import annotations

from collections.abc import Iterable

from plait.backends import tunnel_port
from plait.model.cluster import Endpoint, Network
from plait.model.objects import NFT_FAST_FAMILY, Fdb, KernelObject, NftElement, NftSet

_MAC = "ether_addr"


def switches_fast(network: Network) -> bool:
    """Whether frames of this network may go past its bridge. Ports that are isolated are kept apart by that."""
    return network.layer2 and not network.isolated


def frame_sets(networks: Iterable[Network], endpoints: Iterable[Endpoint], rows: Iterable[Fdb]) -> list[KernelObject]:
    """The sets of those `networks` that have such frames. `endpoints`: those of this node that may be given any; `rows` all that are
    planned."""
    own, planned = list(endpoints), list(rows)
    found: list[KernelObject] = []
    for network in filter(switches_fast, networks):
        port = tunnel_port(network)
        found.append(_here(network, (e for e in own if e.network == network.name)))
        found.append(NftSet(_there(network), _MAC, frozenset(row.mac for row in planned if row.dev == port), family=NFT_FAST_FAMILY))
    return found


def frame_element(network: Network, endpoint: Endpoint) -> NftElement:
    """What leads to one endpoint of this node."""
    return NftElement(_here(network, ()), _element(endpoint))


def frame_rules(network: Network) -> tuple[str, str]:
    """Those of the chain of an endpoint's link: to other hosts, then to its neighbours on this one."""
    return f'ether daddr @{_there(network)} fwd to "{tunnel_port(network)}"', to_neighbours(network)


def to_neighbours(network: Network) -> str:
    """The rule that gives a frame to an endpoint of this node."""
    return f"fwd to ether daddr map @{_map(network)}"


def _here(network: Network, endpoints: Iterable[Endpoint]) -> NftSet:
    elements = frozenset(_element(endpoint) for endpoint in endpoints)
    return NftSet(_map(network), f"{_MAC} : iface_index", elements, kind="map", family=NFT_FAST_FAMILY)


def _element(endpoint: Endpoint) -> str:
    return f'{endpoint.mac.lower()} : "{endpoint.dev}"'


def _map(network: Network) -> str:
    return f"frames_here{network.vni}"


def _there(network: Network) -> str:
    return f"frames_there{network.vni}"
