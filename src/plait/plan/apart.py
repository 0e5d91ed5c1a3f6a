# SPDX-License-Identifier: Apache-2.0
"""Networks whose containers are ports of one bridge and shall not reach each other (`isolated=true`), whatever policies say.

In: the networks. Out: what keeps them apart besides the ports themselves, which are isolated ones (bridge(8)). With `layer2=true` there are
neighbours behind the tunnel, whose port is none: a container's frames go to MACs of hosts or to everybody, and what goes to everybody goes
into no tunnel there. And a host that is asked to route from a container to its neighbour on the same bridge does not.
"""

from __future__ import annotations

from collections.abc import Iterable

from plait.backends import backend_of
from plait.model.cluster import Network, Snapshot
from plait.model.objects import NFT_FAST_FAMILY, KernelObject, NftSet
from plait.plan.dual import Family, families
from plait.plan.exposed import HOST

_HOSTS, _SPOKEN = "host_macs", "host_addresses"


def apart_objects(snapshot: Snapshot) -> list[KernelObject]:
    """What hosts are known by: their MACs, where a chain of a link looks for them, and the addresses that they have in networks."""
    apart = [network for network in snapshot.networks.values() if _apart(network)]
    if not apart:
        return []
    macs = frozenset(node.vtep_mac for node in snapshot.nodes.values() if node.vtep_mac)
    sets: list[KernelObject] = [NftSet(_HOSTS, "ether_addr", macs, family=NFT_FAST_FAMILY)] if any(n.layer2 for n in apart) else []
    spoken = [e for e in snapshot.endpoints.values() if e.runtime == HOST]
    for family in families(apart):
        found = [family.tunnel(node) for node in snapshot.nodes.values()] + [family.address(endpoint) for endpoint in spoken]
        sets.append(NftSet(f"{_SPOKEN}{family.end}", family.type, frozenset(str(address) for address in found if address is not None)))
    return sets


def _apart(network: Network) -> bool:
    return network.isolated and network.switched


def apart_rules(network: Network) -> list[str]:
    """Those of the chain of an endpoint's link (`entrance.py`)."""
    if not (network.isolated and network.layer2):
        return []
    return [f"meta pkttype != {{ broadcast, multicast }} ether daddr != @{_HOSTS} drop"]


def not_routed(present: Iterable[Family], networks: Iterable[Network]) -> list[str]:
    """Of the chain `forward`, before what is untracked passes. Who comes back to itself by a published port is none of these."""
    drops = [
        f'iifname "{backend_of(network).bridge(network)}" {_between(family, str(subnet))} drop'
        for network in networks
        for family in present
        if _apart(network) and (subnet := family.subnet(network)) is not None
    ]
    return ["ct status dnat accept", *drops] if drops else []


def _between(family: Family, subnet: str) -> str:
    ip, end = family.ip, family.end
    return f"{ip} saddr {subnet} {ip} saddr != @{_SPOKEN}{end} {ip} daddr {subnet}"
