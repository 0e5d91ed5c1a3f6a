# SPDX-License-Identifier: Apache-2.0
"""`plait expose`: an address of the host's own in a network, so that the host reaches what answers nobody outside its subnet.

It is an endpoint of the runtime `HOST`, so it is leased, journalled, published and found again after a restart like a container's.
"""

from __future__ import annotations

from collections.abc import Mapping

from plait.model.cluster import Endpoint
from plait.model.errors import NotFound
from plait.model.labels import DNS_LABEL
from plait.plan.exposed import HOST
from plait.runtimes.api import AttachRequest, Operations


class Exposures:
    """Those of this node, `node`."""

    def __init__(self, node: str, ops: Operations) -> None:
        self._node, self._ops = node, ops

    async def expose(self, network: str) -> Endpoint:
        """Give the host an address in `network`, or find the one that it has. NotFound, PoolExhausted. Its name keeps the address for it
        and is in no DNS: a container may be called like the host."""
        await self.recover()
        name = f"host {self._node}"
        return await self._ops.attach(
            AttachRequest(self._id(network), network, HOST, container="", name=name, labels={DNS_LABEL: "off"}, default_route=False)
        )

    async def hide(self, network: str) -> None:
        """Take the address away. Not exposed: success; NotFound where there is no such network either."""
        if self._id(network) not in self._own():
            if network not in self._ops.networks():
                raise NotFound(f"there is no network {network!r}; `plait network ls` lists them")
            return
        await self._ops.detach(self._id(network))

    async def recover(self) -> None:
        """At start, and before anything is exposed: let go of what was exposed of networks that somebody removed by force, or made anew
        with other addresses."""
        networks = self._ops.networks()
        for endpoint in self._own().values():
            network = networks.get(endpoint.network)
            if network is None or endpoint.address not in network.subnet:
                await self._ops.detach(endpoint.id)

    def _own(self) -> Mapping[str, Endpoint]:
        return self._ops.endpoints(HOST)

    def _id(self, network: str) -> str:
        return f"{HOST}.{self._node}.{network}"
