# SPDX-License-Identifier: Apache-2.0
"""What an attach makes of what it was asked for: the endpoint's record; an IPv6 address that is to be from ranges of its own, where the
one that goes with the IPv4 address is in none of them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from plait.agent.addressing import Addressing
from plait.agent.hostlinks import mac_of
from plait.ipam import Asker, image
from plait.model.cluster import Endpoint, Network
from plait.model.leases import Leased
from plait.model.limits import UNSAID
from plait.plan.desired import device_name
from plait.plan.exposed import HOST, host_link
from plait.runtimes.api import AttachRequest, paired


async def choose6(addresses: Addressing, request: AttachRequest, network: Network, address: IPv4Address) -> IPv6Address | None:
    """What goes with `address` if `request.within6` has that, else with another one, which is reserved for the endpoint as well.
    Idempotent. None on a network without IPv6; PoolExhausted."""
    if not any(address in one for one in request.within6):
        asker = Asker(request.name, request.labels, request.within6)
        address = (await addresses.reserve(network, paired(request.endpoint), None, asker)).ip
    return image(network, address)


def endpoint_of(
    request: AttachRequest,
    network: Network,
    node: str,
    known: Endpoint | None,
    address: IPv4Address,
    address6: IPv6Address | None,
    leased: Leased | None,
) -> Endpoint:
    """The record of what is attached; of what was `known` of it before, its ports stay, and its limits if no others are asked for."""
    limits = request.limits.over((known.limits if known is not None else None) or UNSAID)
    return Endpoint(
        id=request.endpoint,
        network=network.name,
        node=node,
        address=address,
        mac=mac_of(network, request),
        dev=host_link(network) if request.runtime == HOST else device_name(request.endpoint),
        runtime=request.runtime,
        container=request.container,
        name=request.name,
        aliases=request.aliases,
        labels=dict(request.labels),
        ports=known.ports if known is not None else (),
        netns=request.netns,
        ifname=request.ifname,
        default_route=request.default_route,
        address6=address6,
        leased=leased,
        limits=limits if limits != UNSAID else None,
    )
