# SPDX-License-Identifier: Apache-2.0
"""Virtual addresses of services for one Snapshot after another: what one event changes is worked out at the cost of the services that it
is about, and sets that nothing changed are the same objects, so that a pass compares pointers.

Data in: Snapshots. Data out: `Vips`. Made anew is what `Backing.follow` names, and everything where the node, the names or the IPv6
of networks, or the silent nodes are others than before.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import replace

from plait.model.cluster import Network, Node, Snapshot
from plait.model.objects import NftSet
from plait.model.service import Service
from plait.plan.backing import Backend, Backing
from plait.plan.dual import Family, families
from plait.plan.vips import Entries, Table, Vips, declared, entries_of, own_set, vip_objects


class Balancing:
    """What services want of a node's kernel. What it says depends on its arguments alone, whatever it was asked before."""

    def __init__(self) -> None:
        self._frame: tuple[Hashable, ...] = ()
        self._backing: Backing | None = None
        self._begin()

    def _begin(self) -> None:
        self._made: dict[tuple[str, str], tuple[Service, Network, list[Backend]]] = {}
        self._sets: dict[str, NftSet] = {}
        self._counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._draws: Counter[tuple[Table, int, bool]] = Counter()
        self._networks: Counter[str] = Counter()
        self._own: tuple[tuple[object, ...], dict[Family, NftSet]] | None = None

    def of(self, snapshot: Snapshot, near: Snapshot, me: Node, guarded: bool = False, silent: frozenset[str] = frozenset()) -> Vips:
        """All of it; nothing while no network that this host carries has a service. `near`: see `Residents`, `guarded`: `vip_objects`.
        `silent`: lost nodes whose hosts do not answer."""
        if not snapshot.services:
            self._backing = None
            return Vips()
        frame = (snapshot.me, frozenset((name, network.subnet6) for name, network in snapshot.networks.items()), silent)
        if self._backing is None or frame != self._frame:
            self._begin()
            self._frame, self._backing, touched = frame, Backing(snapshot), set(snapshot.services)
        else:
            touched = self._backing.follow(snapshot)
        self._replace(touched, snapshot, self._backing, silent)
        if not self._made:
            return Vips()
        asked = near.endpoints, near.blocks, near.networks, me, families(near.networks[name] for name in self._networks)
        if self._own is None or self._own[0] != asked:
            self._own = asked, {family: own_set(near, me, family) for family in asked[-1]}
        return replace(vip_objects(near, self._own[1], me, self._sets, self._draws, guarded), networks=frozenset(self._networks))

    def _replace(self, idents: Iterable[tuple[str, str]], snapshot: Snapshot, backing: Backing, silent: frozenset[str]) -> None:
        touched: defaultdict[str, set[str]] = defaultdict(set)
        for ident in idents:
            before, service = self._made.pop(ident, None), snapshot.services.get(ident)
            now = None
            if service is not None and service.address is not None and service.network in snapshot.networks:
                now = self._made[ident] = service, snapshot.networks[service.network], backing.of(service)
            if now == before:
                continue
            gone, fresh = (entries_of(*one, snapshot.me, silent) if one is not None else Entries() for one in (before, now))
            for name, element in gone.elements ^ fresh.elements:
                self._counts[name][element] += 1 if (name, element) in fresh.elements else -1
                touched[name].add(element)
            self._draws.update(fresh.draws)
            self._draws.subtract(gone.draws)
            self._networks.update([service.network] if service is not None and now is not None else [])
            self._networks.subtract([before[0].network] if before is not None else [])
        for name, elements in touched.items():
            self._settle(name, elements)
        self._draws, self._networks = +self._draws, +self._networks

    def _settle(self, name: str, elements: set[str]) -> None:
        """Have in a set what is counted."""
        counts, held = self._counts[name], self._sets.pop(name, None) or declared(name)
        turned = frozenset(element for element in elements if bool(counts[element]) != (element in held.elements))
        for element in elements:
            if not counts[element]:
                del counts[element]
        now = replace(held, elements=turned ^ held.elements) if turned else held  # what is on the right is copied whole
        if now.elements:
            self._sets[name] = now
