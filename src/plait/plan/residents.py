# SPDX-License-Identifier: Apache-2.0
"""Which endpoints a node's plan looks at one by one, from one Snapshot to the next: what of 15,000 did not change is known by identity,
so that a pass costs what differs.

Data in: Snapshots. Data out: the endpoints of this node and the hosts' own, and those outside their nodes' blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from plait.ipam import strays_among
from plait.model.cluster import Endpoint, Snapshot
from plait.model.objects import KernelObject
from plait.plan.exposed import HOST
from plait.policy.roster import differing


class Made:
    """What is made of endpoints one by one; what was made of the same the last time is taken."""

    def __init__(self) -> None:
        self._frame: tuple[object, ...] = ()
        self._made: dict[str, tuple[tuple[Any, ...], list[KernelObject]]] = {}

    def of(
        self, frame: tuple[object, ...], asked: Iterable[tuple[Any, ...]], make: Callable[..., list[KernelObject]]
    ) -> list[KernelObject]:
        """What `make` makes of each of `asked`, an endpoint and what else is said of it; `frame` is all that it depends on besides."""
        before, self._made = self._made if frame == self._frame else {}, {}
        self._frame = frame
        for each in asked:
            known = before.get(each[0].id)
            self._made[each[0].id] = known if known is not None and known[0] == each else (each, make(*each))
        return [obj for _, made in self._made.values() for obj in made]


class Residents:
    """What it says depends on its arguments alone, whatever it was asked before."""

    def __init__(self) -> None:
        self.links, self.chains = Made(), Made()
        """The objects of the endpoints of this node that are routed, and the chains of their links."""
        self._frame: tuple[object, ...] = ()
        """What all that was found depends on: the node, networks, blocks."""
        self._seen: Mapping[str, Endpoint] = {}
        self._near: Mapping[str, Endpoint] = {}
        self._strays: Mapping[str, Endpoint] = {}

    def of(self, snapshot: Snapshot) -> tuple[Snapshot, list[Endpoint]]:
        """`snapshot` with no other endpoints than this node's and those that are a host's own, and what `stray_endpoints` says of the whole
        of it."""
        frame = snapshot.me, snapshot.networks, snapshot.blocks
        if frame != self._frame:
            self._seen, self._near, self._strays = {}, {}, {}
        if touched := set(differing(self._seen, snapshot.endpoints)):
            fresh = [snapshot.endpoints[key] for key in touched if key in snapshot.endpoints]
            self._near = _with(self._near, touched, (one for one in fresh if one.node == snapshot.me or one.runtime == HOST))
            self._strays = _with(self._strays, touched, strays_among(fresh, snapshot))
        self._frame, self._seen = frame, snapshot.endpoints
        return replace(snapshot, endpoints=self._near), list(self._strays.values())


def _with(before: Mapping[str, Endpoint], touched: Collection[Hashable], fresh: Iterable[Endpoint]) -> dict[str, Endpoint]:
    """By id, in its order."""
    kept = [one for key, one in before.items() if key not in touched]
    return {one.id: one for one in sorted((*kept, *fresh), key=lambda one: one.id)}
