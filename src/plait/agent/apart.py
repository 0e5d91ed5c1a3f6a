# SPDX-License-Identifier: Apache-2.0
"""An IPv6 address that is to be from ranges of its own, where the one that goes with the IPv4 address is in none of them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from plait.agent.addresses import Addresses
from plait.ipam import Asker, image
from plait.model.cluster import Network
from plait.runtimes.api import AttachRequest, paired


async def choose6(addresses: Addresses, request: AttachRequest, network: Network, address: IPv4Address) -> IPv6Address | None:
    """What goes with `address` if `request.within6` has that, else with another one, which is reserved for the endpoint as well.
    Idempotent. None on a network without IPv6; PoolExhausted."""
    if not any(address in one for one in request.within6):
        asker = Asker(request.name, request.labels, request.within6)
        address = (await addresses.reserve(network, paired(request.endpoint), None, asker)).ip
    return image(network, address)
