# SPDX-License-Identifier: Apache-2.0
"""Limits of this node's containers: what was told of them while they run, and what holds of each.

Data in: words of `plait limit`, labels and requests of engines, options of networks. Data out: `Limiting` for the plan, rows for people,
the conditions `kernel-lacks` and `limit-void`. What is told of a container is kept by its network and name, like its address: the container
may be started anew, or made anew under its name, and has it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

from plait.agent.called import called_here, is_called
from plait.agent.journal import Journal, Write
from plait.agent.kernelwork import PassReport
from plait.agent.spoofing import Counters
from plait.agent.view import View
from plait.model.cluster import Endpoint, Network
from plait.model.errors import NotFound, NotSupported
from plait.model.limits import DIRECTIONS, LABEL_PREFIX, MANNERS, UNSAID, Limits, limits_of, read_or_unsaid
from plait.model.report import LimitRow
from plait.model.tc import Tbf
from plait.plan import member
from plait.plan.limits import endpoint_limits, has_chain, limitable
from plait.runtimes.api import AttachRequest
from plait.shaping import Limiting, Means, ifb_name, known_as, set_name, unmet
from plait.store.codec import decode, encode

log = logging.getLogger("plait.limits")
_KIND = "limit"
_WHATS = ("rate", "packets", "connections")
_METERS = "sets of the family netdev whose elements have limits (Linux 5.7, nf_tables_netdev, nft_limit)"
_ENTRY = f"numbers of what comes to it need chains at a link's egress (Linux 5.16, CONFIG_NETFILTER_EGRESS) and {_METERS}"
_SENT = f"numbers of what it sends need {_METERS}"
_NEEDED = {
    "in": "what comes to it needs sch_tbf",
    "out": "what it sends needs sch_tbf, ifb and nft_fwd_netdev, or cls_u32 and act_mirred",
    "packets-in": _ENTRY,
    "connections-in": _ENTRY,
    "packets-out": _SENT,
    "connections-out": _SENT,
}


@dataclass(frozen=True, slots=True)
class Kept:
    """What was told of containers called `name` on `network`, as journalled."""

    network: str
    name: str
    limits: Limits

    @property
    def id(self) -> str:
        return f"{self.network}/{self.name}"


class LimitBook:
    """`able` is what the kernel can do by now, `full_pass` makes it what the plan says, `counters`: what it has dropped."""

    def __init__(
        self,
        view: View,
        journal: Journal,
        able: Callable[[], frozenset[str]],
        full_pass: Callable[[], Awaitable[PassReport]],
        counters: Counters,
    ) -> None:
        self._view, self._journal, self._able, self._full_pass, self._counters = view, journal, able, full_pass, counters
        kept = (decode(Kept, body, key) for key, body in journal.load(_KIND).items())
        self._kept = {(one.network, one.name): one for one in kept}

    @property
    def limiting(self) -> Limiting:
        return Limiting({key: one.limits for key, one in self._kept.items()}, Means.of(self._able()))

    # --- while containers run

    async def tell(self, container: str, network: str, limits: Limits) -> None:
        """From now on these hold of the container (its name, or the beginning of its id), on `network` or ("") all of its networks; a
        direction of which nothing is said stays as it is. Durable, and in force when it returns. NotFound, NotSupported; KernelError if the
        kernel refused it, then it is tried again at every pass."""
        found = called_here(self._view.snapshot, container, network, "set its limit")
        for endpoint in found:
            self._permit(endpoint, limits)
        merged = [Kept(*known_as(e), limits.over(self.limiting.told_of(e))) for e in found]
        self._kept |= {(one.network, one.name): one for one in merged}
        await self._journal.write([Write(_KIND, one.id, encode(one)) for one in merged])
        log.info("limit_told", extra={"container": container, "network": ", ".join(sorted(e.network for e in found))})
        await self._enforce(found)

    async def forget(self, container: str, network: str) -> None:
        """What was told of the container holds no longer, whether it runs or not; what its labels and networks say does. NotFound."""
        names = {known_as(e)[1] for e in self._own() if is_called(e, container)} | {container}
        gone = [one for one in self._kept.values() if one.name in names and network in ("", one.network)]
        if not gone:
            on = f" on network {network!r}" if network else ""
            raise NotFound(
                f"nothing was set for container {container!r}{on}: `plait limit ls` shows what holds and who says so; labels and "
                f"networks are changed where they are said"
            )
        for one in gone:
            del self._kept[one.network, one.name]
        await self._journal.write([Write(_KIND, one.id, None) for one in gone])
        log.info("limit_forgotten", extra={"container": container, "network": ", ".join(sorted(one.network for one in gone))})
        keys = {(one.network, one.name) for one in gone}
        await self._enforce([e for e in self._own() if known_as(e) in keys])

    async def _enforce(self, endpoints: Iterable[Endpoint]) -> None:
        failed = (await self._full_pass()).failed
        touched = {dev for e in endpoints for dev in (e.dev, ifb_name(e.dev))}
        for key, error in failed.items():
            if key[1] in touched or key[0] == "nft":
                raise error

    def _permit(self, endpoint: Endpoint, limits: Limits) -> None:
        """NotSupported if the endpoint cannot be held to that."""
        network = self._view.snapshot.networks[endpoint.network]
        _check_place(network, endpoint.runtime, limits)
        if lacks := unmet(limits.holding(), Means.of(self._able())):
            raise NotSupported(f"limiting container {endpoint.name!r} on network {network.name}: {_lacking(lacks)}")

    # --- what there is

    async def rows(self) -> list[LimitRow]:
        """What holds of this node's containers, and what is kept for such as do not run, by container, network, what is limited and
        direction."""
        own = self._own()
        dropped = await asyncio.to_thread(self._dropped, {w for e in own for w in self._asked(e).counts()}) if own else {}
        rows = [row for endpoint in own for row in self._rows_of(endpoint, dropped)]
        present = set(map(known_as, own))
        for key, kept in self._kept.items():
            if key not in present:
                rows += [_row(kept.name, kept.network, word, kept.limits, "command") for word in kept.limits.words()]
        return sorted(rows, key=lambda row: (row["container"], row["network"], _WHATS.index(row["what"]), row["direction"]))

    def _dropped(self, words: Iterable[str]) -> dict[tuple[str, str], int]:
        """Packets by word and link."""
        return {(word, link): count for word in words for link, count in self._counters.counted_links(set_name(word)).items()}

    def _asked(self, endpoint: Endpoint) -> Limits:
        network = self._view.snapshot.networks.get(endpoint.network)
        return self.limiting.asked(endpoint, network) if network is not None and limitable(network, endpoint.runtime) else UNSAID

    def _rows_of(self, endpoint: Endpoint, dropped: Mapping[tuple[str, str], int]) -> list[LimitRow]:
        snapshot, limiting = self._view.snapshot, self.limiting
        network = snapshot.networks.get(endpoint.network)
        if network is None or not limitable(network, endpoint.runtime):
            return []
        told, asked = limiting.told_of(endpoint), limiting.asked(endpoint, network)
        started = (endpoint.limits or UNSAID).over(read_or_unsaid(endpoint.labels, LABEL_PREFIX))
        objects = endpoint_limits(member(snapshot, network), network, endpoint, limiting)
        buckets = {obj.dev: obj.burst for obj in objects if isinstance(obj, Tbf)}
        devs = dict(zip(DIRECTIONS, (endpoint.dev, ifb_name(endpoint.dev)), strict=True))
        held, freed = limiting.of(endpoint, network).words(), set(told.words()) - set(told.holding().words())
        rows: list[LimitRow] = []
        shown = told.only(freed).over(asked)
        for word in shown.words():
            source = "command" if word in told.words() else "container" if word in started.words() else "network"
            row = _row(known_as(endpoint)[1], network.name, word, shown, source)
            row["burst"] = buckets.get(devs.get(word, ""), row["burst"])
            rows.append({**row, "running": True, "held": word in held or word in freed, "dropped": dropped.get((word, endpoint.dev), 0)})
        return rows

    def lacking(self) -> dict[str, str]:
        """Containers whose limits this host's kernel cannot keep, with what to say of each."""
        limiting, found = self.limiting, {}
        for endpoint in self._own():
            network = self._view.snapshot.networks.get(endpoint.network)
            if network is None or not limitable(network, endpoint.runtime):
                continue
            if lacks := unmet(limiting.asked(endpoint, network), limiting.means):
                name = known_as(endpoint)[1]
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
        _check_place(network, request.runtime, request.limits.over(limits_of(request.labels, LABEL_PREFIX)))


def _check_place(network: Network, runtime: str, limits: Limits) -> None:
    if limits.counts() and limitable(network, runtime) and not has_chain(network):
        raise NotSupported(
            f"limits of packets or connections in network {network.name}: its switch is not plait's; limit them there (a rate can be "
            f"limited here), or use a network of another backend"
        )
    if limits != UNSAID and not limitable(network, runtime):
        raise NotSupported(
            f"limits of a container of network {network.name}: it is on the link {network.options.get('parent', '')} by itself, and "
            f"nothing of it lies on the host; limit it on the switch, or use a network of another backend"
        )


def _lacking(words: Iterable[str]) -> str:
    """What to say where a kernel cannot limit these."""
    return "this host's kernel lacks something (" + "; ".join(dict.fromkeys(_NEEDED[word] for word in words)) + "); load the modules"


def _row(container: str, network: str, word: str, limits: Limits, by: str) -> LimitRow:
    what, _, direction = word.rpartition("-")
    limit = limits.by_direction().get(word)
    return {
        "container": container,
        "network": network,
        "what": cast(Literal["rate", "packets", "connections"], what or "rate"),
        "direction": direction,
        "rate": limit.rate if limit is not None else limits.counts()[word],
        "burst": limit.burst if limit is not None else 0,
        "manner": MANNERS[limit is None or limit.drop],
        "by": by,
        "running": False,
        "held": False,
        "dropped": 0,
    }
