# SPDX-License-Identifier: Apache-2.0
"""What is different between two directories of the cluster, one later than the other: what event streams tell.

Data in: two directories. Data out: differences of nodes, services, instances and checks, in this order, each side with what it can be
selected by. An instance differs if its record, its labels or its status (its node's checks count) do; a service if its tags do; a node
that dies has a critical check and critical instances. The cost is that of what differs, and one comparison by identity of each map.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from plait.model.cluster import Instance
from plait.model.discovery import Check
from plait.services.checkviews import Json, health_check
from plait.services.directory import Directory, Key, changes, relabelled
from plait.services.selector import Selector
from plait.services.views import Views

Kind = Literal["node", "service", "instance", "check"]
Change = Literal["added", "changed", "removed"]
_NOTHING: Mapping[str, str] = {}


class Side(NamedTuple):
    """What there was, or is. `service` in lower case, "" for a node and its checks; `labels` are those of the instance."""

    body: Json
    service: str = ""
    labels: Mapping[str, str] = _NOTHING


class Difference(NamedTuple):
    """`before` None: it is new; `after` None: it is gone."""

    kind: Kind
    before: Side | None
    after: Side | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which differences somebody wants to know: all, or those of instances of one service (lower case) or with certain labels."""

    service: str = ""
    selector: Selector = Selector(())

    def seen(self, difference: Difference) -> tuple[Change, Side] | None:
        """What the difference is to whoever sees only what is wanted; None: nothing. What comes to fit is added, what no longer fits is
        removed."""
        before, after = (side if side is not None and self._fits(difference.kind, side) else None for side in difference[1:])
        if after is not None:
            return ("changed" if before is not None else "added"), after
        return ("removed", before) if before is not None else None

    def _fits(self, kind: Kind, side: Side) -> bool:
        chosen = bool(self.selector.requirements)
        if kind == "service":
            return not chosen and self.service in ("", side.service)
        if not side.service:
            return not chosen and not self.service
        return self.service in ("", side.service) and (not chosen or self.selector.matches(side.labels))


@dataclass(slots=True)
class _Touched:
    """Keys of what may differ: (node, service id; "" = the node itself)."""

    nodes: set[str] = field(default_factory=set)
    services: set[str] = field(default_factory=set)
    instances: set[Key] = field(default_factory=set)
    checks: set[Key] = field(default_factory=set)


def differences(before: Directory, after: Directory, datacenter: str) -> Iterator[Difference]:
    """In a fixed order: by kind, then key."""
    touched = _touched(before, after)
    old, new = Views(before, datacenter), Views(after, datacenter)
    for name in sorted(touched.nodes):
        yield from _difference("node", _node(old, name), _node(new, name))
    for name in sorted(touched.services):
        yield from _difference("service", _service(old, name), _service(new, name))
    for key in sorted(touched.instances):
        yield from _difference("instance", _instance(old, key), _instance(new, key))
    for key in sorted(touched.checks):
        then, now = _checks(before, key), _checks(after, key)
        for check_id in sorted(then.keys() | now.keys()):
            if then.get(check_id) != now.get(check_id):
                yield from _difference("check", _check(before, then.get(check_id)), _check(after, now.get(check_id)))


def _difference(kind: Kind, before: Side | None, after: Side | None) -> Iterator[Difference]:
    if before != after:
        yield Difference(kind, before, after)


def _touched(before: Directory, after: Directory) -> _Touched:
    found = _Touched(nodes={name for name, _, _ in changes(before.nodes, after.nodes)})
    judged = found.nodes | (before.snapshot.alive ^ after.snapshot.alive)
    judged |= before.snapshot.nodes.keys() ^ after.snapshot.nodes.keys()
    for key, *both in changes(before.instances, after.instances):
        found.instances.add(key)
        found.services.update(instance.name.lower() for instance in both if instance is not None)
    for _, old, new in changes(before.snapshot.checks, after.snapshot.checks):
        told = old is not None and new is not None and (old.node, old.service_id, old.status) == (new.node, new.service_id, new.status)
        for check in (old, new):
            if check is not None:
                found.checks.add((check.node, check.service_id))
                if not told and check.service_id:
                    found.instances.add((check.node, check.service_id))
                elif not told:
                    judged.add(check.node)
    found.checks |= found.instances | {(name, "") for name in judged}
    found.instances.update((i.node, i.id) for i in relabelled(before, after))
    found.instances.update((i.node, i.id) for directory in (before, after) for name in judged for i in directory.by_node.get(name, ()))
    return found


def _node(views: Views, name: str) -> Side | None:
    node = views.directory.nodes.get(name)
    return Side({"Node": views.node(node)}) if node is not None else None


def _service(views: Views, name: str) -> Side | None:
    found = views.directory.by_service.get(name, ())
    if not found:
        return None
    return Side({"Service": found[0].name, "Tags": sorted({tag for instance in found for tag in instance.tags})}, name)


def _instance(views: Views, key: Key) -> Side | None:
    instance = views.directory.instance(*key)
    if instance is None:
        return None
    labels = views.labels(instance)
    body = {**views.health_entry(instance), "Labels": dict(labels), "Status": views.status(instance)}
    return Side(body, instance.name.lower(), labels)


def _checks(directory: Directory, key: Key) -> Mapping[str, Check]:
    node, service_id = key
    instance: Instance | None = directory.instance(node, service_id) if service_id else None
    if instance is not None:
        found = directory.service_checks(instance)
    else:
        found = directory.checks.get(key, ()) if service_id else directory.node_checks(node)
    return {check.id: check for check in found}


def _check(directory: Directory, check: Check | None) -> Side | None:
    if check is None:
        return None
    instance = directory.instance(check.node, check.service_id) if check.service_id else None
    name = instance.name if instance is not None else check.service_name or check.service_id
    return Side({"Check": health_check(check)}, name.lower(), directory.labels(instance) if instance is not None else _NOTHING)
