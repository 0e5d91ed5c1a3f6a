# SPDX-License-Identifier: Apache-2.0
"""By which path each other node is reached now, since when and why; what of that somebody should look at.

Data in: snapshots, whenever something changed, and what was measured. Data out: rows for people, the texts of conditions, and a log line
for each path that changed. The choice itself is `plan.choose`, the same that the kernel's routes are made by.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from plait.agent.lanes import LINK, LINK6, Lanes
from plait.backends import BOTH, DIRECT, Path, backend_of
from plait.backends.wireguard import relay_of
from plait.model.cluster import Network, Node, Snapshot
from plait.model.report import PathRow
from plait.plan import choose, inner_mtu, member

log = logging.getLogger("plait.paths")
BEHIND_NAT = "both are behind address translation"


@dataclass(frozen=True, slots=True)
class Held:
    """A path that is taken since `since`, seconds of the agent's clock."""

    path: Path | None
    since: float


class Paths:
    """`clock` gives seconds since the epoch; `path_mtu` what was measured of the underlay, bytes by node."""

    def __init__(self, lanes: Lanes, path_mtu: Callable[[], Mapping[str, int]], clock: Callable[[], float]) -> None:
        self._lanes, self._path_mtu, self._clock = lanes, path_mtu, clock
        self._held: dict[tuple[str, str], Held] = {}
        self._snapshot: Snapshot | None = None

    def observe(self, snapshot: Snapshot) -> None:
        """See what has changed with this snapshot."""
        self._snapshot = snapshot
        fresh: dict[tuple[str, str], Held] = {}
        for name, network in snapshot.networks.items():
            if backend_of(network).ways:
                for node, path in choose(snapshot, network).items():
                    fresh[node, name] = self._follow((node, name), _passed_on(snapshot, node, path) if network.encrypted else path)
        self._held = fresh

    def _follow(self, key: tuple[str, str], path: Path | None) -> Held:
        before = self._held.get(key)
        if before is not None and before.path == path:
            return Held(path, before.since)
        node, network = key
        log.info("path_taken", extra={"node": node, "network": network, "kind": kind_of(path), "reason": path.why if path else ""})
        return Held(path, self._clock())

    def troubles(self) -> tuple[dict[str, str], dict[str, str]]:
        """What to say of living nodes, by node: that they are reached by another path than the backend wants, that they are not at all."""
        detours: dict[str, str] = {}
        lost: dict[str, str] = {}
        for (node, network), held in self._sorted():
            if self._snapshot is None or node not in self._snapshot.alive:
                continue
            found = self._snapshot.networks[network]
            if held.path is None or not held.path.works:
                lost[node] = f"no packet of network {network} comes to {node}" + _no_help(found)
            elif (missing := _missing(found, held.path)) and node not in lost:
                lost[node] = f"no {missing} packet of network {network} comes to {node}: {held.path.why}"
            elif not self._as_wanted(network, held.path):
                detours[node] = f"to {node} by {shown(held.path)}: {held.path.why}"
        return detours, lost

    def _as_wanted(self, network: str, path: Path) -> bool:
        """Whether nobody need look: the first of the backend's ways or its tunnel, without a third node where that can be."""
        assert self._snapshot is not None
        found = self._snapshot.networks[network]
        return path.kind in _wanted(found) and (path.relay is None or found.encrypted)

    def rows(self) -> list[PathRow]:
        """A row per node and path; networks that share it are in one."""
        snapshot = self._snapshot
        if snapshot is None or snapshot.me not in snapshot.nodes:
            return []
        grouped: dict[tuple[str, ...], list[str]] = {}
        for (node, network), held in self._sorted():
            found = snapshot.networks[network]
            path = (shown(held.path), held.path.why) if held.path is not None else ()
            both = "6" if found.subnet6 is not None else ""
            grouped.setdefault((node, found.backend, backend_of(found).device(found), both, *path), []).append(network)
        return [self._row(snapshot, snapshot.nodes[key[0]], [snapshot.networks[name] for name in names]) for key, names in grouped.items()]

    def _sorted(self) -> list[tuple[tuple[str, str], Held]]:
        return sorted(self._held.items(), key=lambda item: item[0])

    def _row(self, snapshot: Snapshot, node: Node, networks: list[Network]) -> PathRow:
        first = networks[0]
        held = self._held[node.name, first.name]
        path = held.path
        hop = path.relay.name if path is not None and path.relay is not None else node.name
        plain = path is None or path.kind == DIRECT
        lane = self._lanes.of(hop, LINK if plain else backend_of(first).device(first))
        lane6 = self._lanes.of(hop, LINK6) if plain and first.subnet6 is not None else None
        return {
            "node": node.name,
            "networks": [network.name for network in networks],
            "kind": kind_of(path),
            "relay": path.relay.name if path is not None and path.relay is not None else "",
            "first": path.kind if path is not None else "",
            "why": path.why if path is not None else "they share no link, and this backend has no tunnel",
            "since": round(held.since, 3),
            "mtu": inner_mtu(member(snapshot, first), node, first, path, self._path_mtu()) if path is not None else 0,
            "rtt_ms": round(lane.rtt_s * 1000, 3) if lane is not None and lane.rtt_s is not None else None,
            "loss": round(lane.loss, 3) if lane is not None else None,
            "rtt6_ms": round(lane6.rtt_s * 1000, 3) if lane6 is not None and lane6.rtt_s is not None else None,
            "loss6": round(lane6.loss, 3) if lane6 is not None else None,
            "works": path is not None and path.works,
        }


def _passed_on(snapshot: Snapshot, node: str, path: Path | None) -> Path | None:
    """A path of encrypted networks with the node that carries what two behind address translation send each other."""
    own, alive = snapshot.nodes[snapshot.me].wireguard, [n for name, n in snapshot.nodes.items() if name in snapshot.alive - {snapshot.me}]
    relay = relay_of(own, snapshot.nodes[node], alive) if own is not None else None
    return path if path is None or relay is None else replace(path, relay=relay, why=f"{BEHIND_NAT}; {relay.name} reaches both")


def kind_of(path: Path | None) -> str:
    """One word for people: direct, the tunnel's, relay, or none."""
    if path is None or not path.works:
        return "none"
    return "relay" if path.relay is not None else path.kind


def shown(path: Path) -> str:
    """A path in a few words."""
    return f"relay {path.relay.name}" if path.relay is not None else path.kind


def _missing(network: Network, path: Path) -> str:
    """The families of the network that have no path, "" if none is missing."""
    has = BOTH if network.subnet6 is not None else BOTH[:1]
    return " and ".join(f"IPv{family}" for family in has if family not in path.families)


def _no_help(network: Network) -> str:
    return "; frames are not relayed" if network.layer2 else ", nor did one by a third node"


def _wanted(network: Network) -> tuple[str, ...]:
    """Kinds of path that nobody need look at: the first of the backend's ways, and its tunnel."""
    ways = backend_of(network).ways
    return (*ways[:1], *(way for way in ways if way != DIRECT))
