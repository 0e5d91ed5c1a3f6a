# SPDX-License-Identifier: Apache-2.0
"""Records by key -> a Snapshot, at the cost of what changed: a map of the snapshot is copied only if one of its records did.

Data in: records with the keys of the store. Data out: Snapshots that share unchanged maps, by identity, with the one before.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

from plait.agent.keys import TYPES, Record, kind_of
from plait.model.cluster import Assigned, Block, Container, Endpoint, Ghosts, HostRanges, Instance, Network, Node, Reach, Snapshot
from plait.model.discovery import CatalogNode, Check, OtherTags
from plait.model.egress import Egress
from plait.model.policy import Namespace, Policy
from plait.model.service import Service

_LAYERED = {"instances": "catalog/instances", "checks": "catalog/checks"}
"""Kinds below which another one lies: its records are seen where the upper kind has none under the same name."""
_TAGS = "catalog/tags"
_SHOWN_IN = {lower: upper for upper, lower in _LAYERED.items()} | {_TAGS: "instances"}


class Merged:
    """What counts, by kind. Not thread-safe."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._kinds: dict[str, dict[Hashable, Record]] = {kind: {} for kind in TYPES}
        self._idents: dict[str, Hashable] = {}
        self._frozen: dict[str, Mapping[Any, Any]] = {}
        self._followers: list[set[tuple[str, Hashable]]] = []

    def follow(self) -> set[tuple[str, Hashable]]:
        """A set that gets (kind, key in the snapshot) of every record that changes from now on; whoever asked for it empties it."""
        touched: set[tuple[str, Hashable]] = set()
        self._followers.append(touched)
        return touched

    def put(self, key: str, record: Record) -> None:
        kind, ident = kind_of(key), _ident(record)
        self._idents[key] = ident
        if self._kinds[kind].get(ident) != record:
            self._kinds[kind][ident] = record
            self._thaw(kind, ident)

    def drop(self, key: str) -> None:
        """Absent ones are no matter."""
        ident = self._idents.pop(key, None)
        if ident is not None:
            kind = kind_of(key)
            del self._kinds[kind][ident]
            self._thaw(kind, ident)

    def snapshot(self, revision: int, alive: frozenset[str]) -> Snapshot:
        """The records as they are now."""
        return Snapshot(
            self._me,
            revision,
            self._map("nodes"),
            alive,
            self._map("networks"),
            self._map("blocks"),
            self._map("endpoints"),
            self._map("containers"),
            self._map("instances"),
            self._map("checks"),
            self._map("catalog/nodes"),
            self._map("reach"),
            assigned=self._map("assigned"),
            host_ranges=self._map("hostranges"),
            ghosts=self._map("ghosts"),
            policies=self._map("policies"),
            namespaces=self._map("namespaces"),
            services=self._map("services"),
            egress=self._map("egress"),
        )

    def _thaw(self, kind: str, ident: Hashable) -> None:
        upper = _SHOWN_IN.get(kind, kind)
        self._frozen.pop(upper, None)
        for touched in self._followers:
            touched.add((upper, ident))

    def _map(self, kind: str) -> Mapping[Any, Any]:
        found = self._frozen.get(kind)
        if found is None:
            lower = _LAYERED.get(kind)
            found = {**self._kinds[lower], **self._kinds[kind]} if lower else dict(self._kinds[kind])
            if kind == "instances":
                self._tag(found)
            self._frozen[kind] = found
        return found

    def _tag(self, instances: dict[Hashable, Any]) -> None:
        """Give them the tags that others gave them, if they still stand."""
        for ident, other in self._kinds[_TAGS].items():
            known = instances.get(ident)
            if isinstance(other, OtherTags) and isinstance(known, Instance) and _stands(other, known):
                index = max(known.modify_index, other.modify_index)
                instances[ident] = replace(known, tags=other.tags, modify_index=index)


def _stands(other: OtherTags, known: Instance) -> bool:
    asked = known.origin == "agent" and known.enable_tag_override
    return asked and (known.create_index, known.tags) == (other.since, other.instead_of)


def _ident(record: Record) -> Hashable:
    """What a record is known by in its map of the snapshot."""
    match record:
        case Block():
            return record.network, record.cidr
        case HostRanges() | Ghosts():
            return record.node
        case Assigned():
            return record.network, record.address
        case Endpoint():
            return record.id
        case Container() | Instance() | Check() | OtherTags():
            return record.node, record.id
        case Reach():
            return record.node
        case Policy() | Service():
            return record.ident
        case Node() | Network() | CatalogNode() | Namespace() | Egress():
            return record.name
