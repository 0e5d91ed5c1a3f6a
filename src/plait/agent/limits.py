# SPDX-License-Identifier: Apache-2.0
"""Limits of this node's containers: what was told of them while they run, and what holds of each.

Data in: words of `plait limit`, labels and requests of engines, options of networks. Data out: `Limiting` for the plan, rows for people,
the conditions `kernel-lacks` and `limit-void`. What is told of a container is kept by its network and name, like its address: the container
may be started anew, or made anew under its name, and has it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from plait.agent.called import called_here, is_called
from plait.agent.journal import Journal, Write
from plait.agent.kernelwork import PassReport
from plait.agent.limitrows import Counters, limit_rows
from plait.agent.view import View
from plait.model.cluster import Endpoint, Network, published_text
from plait.model.errors import NotFound, NotSupported
from plait.model.limits import LABEL_PREFIX, PORT_PREFIX, PRIORITY, UNSAID, Limits, limits_of, port_limits_of, read_or_unsaid
from plait.model.report import LimitRow
from plait.plan.limits import has_chain, limitable
from plait.runtimes.api import AttachRequest
from plait.shaping import Limiting, Means, ifb_name, known_as, port_name, port_names, port_unmet, unmet
from plait.store.codec import decode, encode

log = logging.getLogger("plait.limits")
_KIND = "limit"
_METERS = "sets of the family netdev whose elements have limits (Linux 5.7, nf_tables_netdev, nft_limit)"
_PORT, _QUEUE = "port", "queue"
_ENTRY = f"numbers of what comes to it need chains at a link's egress (Linux 5.16, CONFIG_NETFILTER_EGRESS) and {_METERS}"
_SENT = f"numbers of what it sends need {_METERS}"
_NEEDED = {
    "in": "what comes to it needs sch_tbf",
    "out": "what it sends needs sch_tbf, ifb and nft_fwd_netdev, or cls_u32 and act_mirred",
    "packets-in": _ENTRY,
    "connections-in": _ENTRY,
    "packets-out": _SENT,
    "connections-out": _SENT,
    PRIORITY: "marks in what it sends need rules of the family netdev that change frames (nft_payload)",
    f"{_QUEUE} in": "a queue for what comes to a port needs sch_htb",
    f"{_QUEUE} out": "a queue for what a port answers needs sch_htb, ifb and nft_fwd_netdev",
    _PORT: "it needs sets whose elements have limits (Linux 5.7, nft_limit)",
}


@dataclass(frozen=True, slots=True)
class Kept:
    """What was told of containers called `name` on `network`, or of a published `port` of theirs ("80/tcp"), as journalled."""

    network: str
    name: str
    limits: Limits
    port: str = ""

    @property
    def id(self) -> str:
        return f"{self.network}/{self.name}{self.port and '/'}{self.port}"


class LimitBook:
    """`able` is what the kernel can do by now, `full_pass` makes it what the plan says, `counters`: what it has dropped;
    `honours`: whether queues of this host go by priorities."""

    def __init__(
        self,
        view: View,
        journal: Journal,
        able: Callable[[], frozenset[str]],
        full_pass: Callable[[], Awaitable[PassReport]],
        counters: Counters,
        honours: bool = False,
    ) -> None:
        self._honours = honours
        self._view, self._journal, self._able, self._full_pass, self._counters = view, journal, able, full_pass, counters
        kept = (decode(Kept, body, key) for key, body in journal.load(_KIND).items())
        self._kept = {one.id: one for one in kept}

    @property
    def limiting(self) -> Limiting:
        whole = {(one.network, one.name): one.limits for one in self._kept.values() if not one.port}
        ports = {(one.network, one.name, one.port): one.limits for one in self._kept.values() if one.port}
        return Limiting(whole, Means.of(self._able()), ports, self._honours)

    # --- while containers run

    async def tell(self, container: str, network: str, limits: Limits, port: str = "") -> None:
        """From now on these hold of the container (its name, or the beginning of its id), on `network` or ("") all of its networks, or of
        its published `port` alone; a direction of which nothing is said stays as it is. Durable, and in force when it returns. NotFound,
        NotSupported; KernelError if the kernel refused it, then it is tried again at every pass."""
        found = called_here(self._view.snapshot, container, network, "set its limit")
        if port:
            found = _publishing(found, port, container)
        for endpoint in found:
            self._permit(endpoint, limits, port)
        known = self.limiting
        merged = [Kept(*known_as(e), limits.over(known.port_told(e, port) if port else known.told_of(e)), port) for e in found]
        self._kept |= {one.id: one for one in merged}
        await self._journal.write([Write(_KIND, one.id, encode(one)) for one in merged])
        log.info("limit_told", extra={"container": container, "network": ", ".join(sorted(e.network for e in found)), "ports": port})
        await self._enforce(found)

    async def forget(self, container: str, network: str, port: str = "") -> None:
        """What was told of the container, or of its `port` alone, holds no longer, whether it runs or not; what its labels and networks say
        does. NotFound."""
        names = {known_as(e)[1] for e in self._own() if is_called(e, container)} | {container}
        gone = [one for one in self._kept.values() if one.name in names and network in ("", one.network) and port in ("", one.port)]
        if not gone:
            on = f" on network {network!r}" if network else ""
            what = f"port {port} of container {container!r}" if port else f"container {container!r}"
            raise NotFound(
                f"nothing was set for {what}{on}: `plait limit ls` shows what holds and who says so; labels and "
                f"networks are changed where they are said"
            )
        for one in gone:
            del self._kept[one.id]
        await self._journal.write([Write(_KIND, one.id, None) for one in gone])
        log.info("limit_forgotten", extra={"container": container, "network": ", ".join(sorted({one.network for one in gone}))})
        keys = {(one.network, one.name) for one in gone}
        await self._enforce([e for e in self._own() if known_as(e) in keys])

    async def _enforce(self, endpoints: Iterable[Endpoint]) -> None:
        failed = (await self._full_pass()).failed
        touched = {dev for e in endpoints for dev in (e.dev, ifb_name(e.dev))}
        for key, error in failed.items():
            if key[1] in touched or key[0] == "nft":
                raise error

    def _permit(self, endpoint: Endpoint, limits: Limits, port: str) -> None:
        """NotSupported if the endpoint, or its `port`, cannot be held to that."""
        network, means = self._view.snapshot.networks[endpoint.network], Means.of(self._able())
        if port:
            if missing := _port_lacks(limits.holding(), means):
                raise NotSupported(f"limiting port {port} of container {endpoint.name!r}: {_lacking(missing)}")
            return
        _check_place(network, endpoint.runtime, limits)
        if lacks := unmet(limits.holding(), means):
            raise NotSupported(f"limiting container {endpoint.name!r} on network {network.name}: {_lacking(lacks)}")

    # --- what there is

    async def rows(self) -> list[LimitRow]:
        """What holds of this node's containers, and what is kept for such as do not run, by container, network, port, what is limited and
        direction."""
        return await asyncio.to_thread(limit_rows, self._view.snapshot, self.limiting, list(self._kept.values()), self._counters)

    def with_priority(self) -> list[str]:
        """Containers of this host with a priority."""
        snapshot, limiting = self._view.snapshot, self.limiting
        own = ((e, snapshot.networks.get(e.network)) for e in self._own())
        return [known_as(e)[1] for e, network in own if network is not None and limiting.of(e, network).priority is not None]

    def lacking(self) -> dict[str, str]:
        """Containers whose limits this host's kernel cannot keep, with what to say of each."""
        limiting, found = self.limiting, {}
        for endpoint in self._own():
            network = self._view.snapshot.networks.get(endpoint.network)
            if network is None or not limitable(network, endpoint.runtime):
                continue
            name = known_as(endpoint)[1]
            asked = (limiting.port_asked(endpoint, port) for port in port_names(endpoint))
            if missing := sorted({lack for limits in asked for lack in _port_lacks(limits, limiting.means)}):
                subject = f"ports of container {name} on network {network.name}"
                found[f"limit of ports {network.name}/{name}"] = f"{subject} are not limited: {_lacking(missing)}"
            if lacks := unmet(limiting.asked(endpoint, network), limiting.means):
                found[f"limit {network.name}/{name}"] = f"container {name} on network {network.name} is not limited: {_lacking(lacks)}"
        return found

    def void(self) -> dict[str, str]:
        """Running containers whose labels ask for limits although they are on no network of plait's, or on one with links of the host."""
        snapshot, found = self._view.snapshot, {}
        held = {e.container for e in self._own() if (n := snapshot.networks.get(e.network)) and limitable(n, e.runtime)}
        running = (c for c in snapshot.containers.values() if c.node == self._view.me and c.state == "running")
        for container in running:
            if not {container.id, container.shares} & held and read_or_unsaid(container.labels, LABEL_PREFIX) != UNSAID:
                found[container.name] = f"container {container.name} asks for a limit, and nothing of it lies on a network that limits it"
        return found

    def _own(self) -> list[Endpoint]:
        return [e for e in self._view.snapshot.endpoints.values() if e.node == self._view.me]


def check_asked(network: Network, request: AttachRequest, known: Endpoint | None) -> None:
    """ConfigError or NotSupported for limits that a container cannot have. One that is `known` has started: its limits were judged then."""
    if known is None:
        port_limits_of(request.labels, PORT_PREFIX)
        _check_place(network, request.runtime, request.limits.over(limits_of(request.labels, LABEL_PREFIX)))


def _publishing(found: Sequence[Endpoint], port: str, container: str) -> list[Endpoint]:
    """Those of `found` that publish the container's port of that name. NotFound."""
    publishing = [endpoint for endpoint in found if port in map(port_name, endpoint.ports)]
    if not publishing:
        has = ", ".join(published_text(one) for endpoint in found for one in endpoint.ports)
        published = f"it publishes {has}" if has else "it publishes nothing"
        raise NotFound(f"container {container!r} does not publish its port {port}: {published}; `plait publish` does")
    return publishing


def _check_place(network: Network, runtime: str, limits: Limits) -> None:
    if (limits.counts() or limits.priority) and limitable(network, runtime) and not has_chain(network):
        raise NotSupported(
            f"limits of packets or connections, and priorities, in network {network.name}: its switch is not plait's; limit them there "
            f"(a rate can be limited here), or use a network of another backend"
        )
    if limits != UNSAID and not limitable(network, runtime):
        raise NotSupported(
            f"limits of a container of network {network.name}: it is on the link {network.options.get('parent', '')} by itself, and "
            f"nothing of it lies on the host; limit it on the switch, or use a network of another backend"
        )


def _port_lacks(limits: Limits, means: Means) -> list[str]:
    """What of `_NEEDED` a kernel of these means lacks for limits of a published port."""
    rates = limits.by_direction()
    return [f"{_QUEUE} {word}" if word in rates and not rates[word].drop else _PORT for word in port_unmet(limits, means)]


def _lacking(words: Iterable[str]) -> str:
    """What to say where a kernel cannot limit these."""
    return "this host's kernel lacks something (" + "; ".join(dict.fromkeys(_NEEDED[word] for word in words)) + "); load the modules"
