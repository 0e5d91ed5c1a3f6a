# SPDX-License-Identifier: Apache-2.0
"""Ports that are published, and given up, by command while containers run.

Data in: words of `plait publish` and `plait unpublish`. Data out: endpoints with other ports. A publication is part of its endpoint's
record, so that it outlives the agent and goes with the container; what engines ask for of the same container later leaves it alone.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

from plait.agent.called import called_here
from plait.agent.kernelwork import PassReport
from plait.agent.operations import AgentOperations
from plait.agent.view import View
from plait.model.cluster import Endpoint, PortMapping, published_text
from plait.model.errors import NotFound
from plait.model.ports import HostPorts, same_place

log = logging.getLogger("plait.publications")


class Publications:
    """`full_pass` makes the kernel what the view says."""

    def __init__(self, view: View, ops: AgentOperations, full_pass: Callable[[], Awaitable[PassReport]]) -> None:
        self._view, self._ops, self._full_pass = view, ops, full_pass

    async def publish(self, container: str, network: str, ports: Sequence[PortMapping]) -> list[str]:
        """Publish them besides what is; a publication of the same host port to the same port of the container is taken over, with other
        sources. Durable, and in force when it returns. NotFound, NotSupported, PortInUse with the holder; KernelError if the kernel
        refused it, then it is tried again at every pass."""
        endpoint = self._chosen(container, network)
        before, after = await self._ops.change_ports(endpoint.id, lambda known: with_ports(known.ports, ports))
        fresh = [published_text(port) for port in after.ports if port not in before.ports or port in ports]
        log.info("ports_published", extra={"container": container, "network": endpoint.network, "ports": ", ".join(fresh)})
        await self._enforce()
        return fresh

    async def unpublish(self, container: str, network: str, held: Sequence[HostPorts]) -> list[str]:
        """Give up these, by whomever they were published, or (none given) all that were by command. NotFound."""
        found = [e for e in called_here(self._view.snapshot, container, network, _TODO) if any(_goes(p, held) for p in e.ports)]
        missed = [one for one in held if not any(port in one for e in found for port in e.ports)]
        if missed or not found:
            raise NotFound(self._nothing(container, network, missed))
        gone: list[str] = []
        for endpoint in found:
            before, after = await self._ops.change_ports(endpoint.id, lambda known: [p for p in known.ports if not _goes(p, held)])
            gone += [published_text(port) for port in before.ports if port not in after.ports]
        log.info("ports_unpublished", extra={"container": container, "ports": ", ".join(gone)})
        await self._enforce()
        return gone

    def _chosen(self, container: str, network: str) -> Endpoint:
        """The endpoint by which the container answers: the one that publishes already, else one with the way out."""
        found = called_here(self._view.snapshot, container, network, _TODO)
        return min(found, key=lambda e: (not e.ports, not e.default_route, e.network))

    def _nothing(self, container: str, network: str, missed: Sequence[HostPorts]) -> str:
        own = called_here(self._view.snapshot, container, network, _TODO)
        has = ", ".join(published_text(port) for endpoint in own for port in endpoint.ports)
        what = ", ".join(map(str, missed)) if missed else "anything by command"
        return f"container {container!r} does not publish {what}: " + (f"it publishes {has}" if has else "it publishes nothing")

    async def _enforce(self) -> None:
        for key, error in (await self._full_pass()).failed.items():
            if key[0] in ("pass", "nft"):
                raise error


_TODO = "publish and unpublish its ports"


def with_ports(known: Sequence[PortMapping], new: Sequence[PortMapping]) -> list[PortMapping]:
    """What is published, with those of `new` in the place of what is at theirs."""
    return [*(port for port in known if not any(same_place(port, other) for other in new)), *new]


def _goes(port: PortMapping, held: Sequence[HostPorts]) -> bool:
    return any(port in one for one in held) if held else port.told
