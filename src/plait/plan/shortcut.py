# SPDX-License-Identifier: Apache-2.0
"""The shortcut: what other hosts send to containers of this one goes from the underlay's link straight into them.

Data in: this node, its networks, its endpoints, the link that carries its address. Data out: one `Shortcut` of that link, and a
`Delivery` for each endpoint that is reached through a VXLAN tunnel of IPv4; one of the encrypted tunnel's device, and a `Delivery` of IPv4
for each endpoint of an encrypted network. It lets pass what the tunnel device's chain of the fast path lets pass (`plan/fastpath.py`),
which has the packet next where it does not know.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from plait.backends import backend_of, on_link
from plait.backends.wireguard import DEVICE
from plait.model.cluster import Endpoint, Network, Snapshot
from plait.model.objects import KernelObject
from plait.model.shortcut import Delivery, Shortcut
from plait.plan.fastpath import TUNNELS, fast_elements, on_fast_path
from plait.plan.frames import switches_fast
from plait.plan.paths import member

_NOTHING_AROUND = IPv4Address(0), 0, 0
CAPABILITY = "shortcut"
"""What the kernel must be able to do (`kernel.api.Kernel.capabilities`)."""


@dataclass(frozen=True, slots=True)
class FastPath:
    """What of it this node has now: the table of `fastpath`, and the shortcut of a link ("" for none, nor of the encrypted tunnel then)."""

    ingress: bool = False
    link: str = ""


def shortcut_objects(
    snapshot: Snapshot, networks: Sequence[Network], endpoints: Iterable[Endpoint], link: str, links: Collection[str] = ()
) -> list[KernelObject]:
    """All of it, on the link of this host that carries its address, and on that of the encrypted tunnel if it is among this host's `links`:
    not every host can encrypt, and a process that does may have crashed. `endpoints` are those of this node."""
    if not link:
        return []
    by_name = {network.name: network for network in networks}
    found = [one for endpoint in endpoints for one in deliveries(snapshot, by_name[endpoint.network], endpoint, link)]
    sealed = DEVICE in links and any(network.encrypted for network in networks)
    made = [Shortcut(link), *([Shortcut(DEVICE, bare=True)] if sealed else [])]
    return [*made, *(one for one in found if sealed or one.dev != DEVICE)]


def deliveries(snapshot: Snapshot, network: Network, endpoint: Endpoint, link: str) -> list[Delivery]:
    """What leads to one endpoint, if `link` has a shortcut. An attach puts it at once: the address may have been another endpoint's a
    moment ago."""
    if link and backend_of(network).device(network) == DEVICE:
        return [Delivery(DEVICE, endpoint.address, network.subnet, endpoint.dev, *_NOTHING_AROUND, endpoint.mac)]
    local, framed = member(snapshot, network).address, switches_fast(network)
    wrapped = framed or (backend_of(network).device(network).startswith(TUNNELS) and not on_link(network))
    if not link or not wrapped or not isinstance(local, IPv4Address):
        return []
    return [Delivery(link, endpoint.address, network.subnet, endpoint.dev, local, network.vni, network.port, endpoint.mac, framed)]


def quick_objects(snapshot: Snapshot, network: Network, endpoint: Endpoint, has: FastPath) -> list[KernelObject]:
    """All that leads packets to one endpoint by the fast path, besides the shared objects that are there already."""
    if not has.ingress or not on_fast_path(network):
        return []
    return [*fast_elements(network, endpoint), *deliveries(snapshot, network, endpoint, has.link)]
