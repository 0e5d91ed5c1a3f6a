# SPDX-License-Identifier: Apache-2.0
"""The catalogue of a Snapshot, grouped as it is asked for, and what of it a change touched.

Data in: Snapshots, one after another. Data out: instances by service and by node, checks by what they are about, and the topics whose
answers may have changed. The next directory is made from the one before at the cost of what differs: maps that are identical are not
looked at, records that are identical are only compared by identity.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import NamedTuple, TypeVar

from plait.model.cluster import Instance, Node, Snapshot
from plait.model.discovery import CatalogNode, Check
from plait.model.labels import Labels
from plait.services.status import Aggregate, aggregated, container_check, serf_check

SERVER_META = "server"
"""Key of a node's meta that marks the node that carries the store; it also runs the pseudo-service `consul`."""
SERVER_PORT = 8300
CONSUL_VERSION = "1.22.0"
"""The version of Consul whose API is answered; some clients compare it."""

Key = tuple[str, str]
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
R = TypeVar("R", Instance, Check)


class Topic(NamedTuple):
    """Something that queries are about. `kind`: service or node (of that name, in lower case), instance (its node and id, joined by "/"),
    or nodes, services, checks: any of them; homes: any node that has instances. Whatever touches a node or an instance touches checks."""

    kind: str
    name: str = ""


class Directory:
    """Immutable once made. `nodes` holds every node, with or without an agent; instances and checks of unknown nodes are left out."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.nodes: Mapping[str, CatalogNode] = {}
        self.by_service: Mapping[str, tuple[Instance, ...]] = {}
        """By name in lower case; instances by node, then id."""
        self.by_node: Mapping[str, tuple[Instance, ...]] = {}
        self.checks: Mapping[Key, tuple[Check, ...]] = {}
        """By (node, service id; "" = the node itself), as registered, by id."""
        self._instances: Mapping[Key, Instance] = {}
        self._alive: frozenset[str] = frozenset()
        self._labels: Labels | None = None

    @staticmethod
    def of(snapshot: Snapshot) -> Directory:
        return Directory(Snapshot(snapshot.me)).advance(snapshot)[0]

    def advance(self, snapshot: Snapshot) -> tuple[Directory, frozenset[Topic]]:
        """The directory of a later snapshot, and the topics that it says something else about than this one."""
        made = Directory(snapshot)
        before = self.snapshot
        same_nodes = before.nodes is snapshot.nodes and before.catalog_nodes is snapshot.catalog_nodes
        made.nodes = self.nodes if same_nodes else _all_nodes(snapshot)
        nodes = {name for name, _, _ in changes(self.nodes, made.nodes)}
        made._alive = snapshot.alive
        nodes |= snapshot.alive ^ self._alive
        if not same_nodes:  # a node may say the same of itself with and without an agent
            nodes |= before.nodes.keys() ^ snapshot.nodes.keys()
        if same_nodes and before.instances is snapshot.instances:
            made._instances, made.by_service, made.by_node = self._instances, self.by_service, self.by_node
            instances: list[tuple[Key, Instance | None, Instance | None]] = []
        else:
            made._instances = _known_instances(snapshot, made.nodes)
            instances = list(changes(self._instances, made._instances))
            made.by_service = _regrouped(self.by_service, instances, lambda i: i.name.lower())
            made.by_node = _regrouped(self.by_node, instances, lambda i: i.node)
        checks = list(changes(before.checks, snapshot.checks))
        made.checks = _regrouped(self.checks, checks, lambda c: (c.node, c.service_id))
        if before.containers is snapshot.containers:
            made._labels = self._labels
        return made, frozenset((*self._touched(made, nodes, instances, checks), *self._relabelled(made)))

    def _touched(
        self,
        after: Directory,
        nodes: set[str],
        instances: list[tuple[Key, Instance | None, Instance | None]],
        checks: list[tuple[Key, Check | None, Check | None]],
    ) -> Iterable[Topic]:
        if nodes:
            yield Topic("nodes")
        if any(name in directory.by_node for name in nodes for directory in (self, after)):
            yield Topic("homes")
        if nodes or checks or instances:  # an instance may bring the check of its container
            yield Topic("checks")
        if instances:
            yield Topic("services")
        yield from (Topic("instance", "/".join(key)) for key, _, _ in instances)
        about = [(i.node, i.id) for _, *both in instances for i in both if i is not None]
        about += [(c.node, c.service_id) for _, *both in checks for c in both if c is not None]
        about += [(name, "") for name in nodes]
        for node, service in about:
            yield Topic("node", node.lower())
            for directory in (self, after):
                if service:
                    found = directory._instances.get((node, service))
                    concerned: Iterable[Instance] = () if found is None else (found,)
                else:
                    concerned = directory.by_node.get(node, ())
                for instance in concerned:
                    yield Topic("service", instance.name.lower())

    def _relabelled(self, after: Directory) -> Iterable[Topic]:
        """Of instances whose containers carry other labels now, which no answer about one service or node shows."""
        yield from (Topic("checks") for _ in relabelled(self, after))

    # --- what it says

    @property
    def instances(self) -> Mapping[Key, Instance]:
        """By (node, id)."""
        return self._instances

    def labels(self, instance: Instance) -> Mapping[str, str]:
        """Those of its container and its own metadata, which wins."""
        if self._labels is None:
            self._labels = Labels(self.snapshot.containers)
        return self._labels.of(instance)

    def instance(self, node: str, service_id: str) -> Instance | None:
        return self._instances.get((node, service_id))

    def has_agent(self, node: str) -> bool:
        return node in self.snapshot.nodes

    def node_checks(self, node: str) -> tuple[Check, ...]:
        """The checks of the node itself, by id."""
        own = self.checks.get((node, ""), ())
        if not self.has_agent(node):
            return own
        return tuple(sorted((*own, serf_check(node, node in self._alive)), key=lambda check: check.id))

    def service_checks(self, instance: Instance) -> tuple[Check, ...]:
        """The checks of the instance without those of its node, by id."""
        own = self.checks.get((instance.node, instance.id), ())
        return tuple(sorted((*own, container_check(instance)), key=lambda check: check.id)) if instance.container else own

    def instance_checks(self, instance: Instance) -> tuple[Check, ...]:
        """All that counts for the instance: the checks of its node, then its own."""
        return (*self.node_checks(instance.node), *self.service_checks(instance))

    def status(self, instance: Instance) -> Aggregate:
        """What the checks of the instance and of its node say together. DNS and HTTP give out what this says."""
        return aggregated(self.instance_checks(instance))


def relabelled(before: Directory, after: Directory) -> Iterable[Instance]:
    """Instances of `after` whose containers may have given them other labels before."""
    for (node, _), old, new in changes(before.snapshot.containers, after.snapshot.containers):
        if old is not None and new is not None and (old.name, old.labels, old.state) == (new.name, new.labels, new.state):
            continue
        names = {container.name for container in (old, new) if container is not None}
        yield from (instance for instance in after.by_node.get(node, ()) if instance.container in names)


def _all_nodes(snapshot: Snapshot) -> dict[str, CatalogNode]:
    """By name; one with an agent is what that says of it."""
    found = dict(snapshot.catalog_nodes)
    found.update((name, agent_node(node)) for name, node in snapshot.nodes.items())
    return dict(sorted(found.items()))


def agent_node(node: Node) -> CatalogNode:
    """A node as its agent says it is."""
    address, family = str(node.address), f"ipv{node.address.version}"
    meta = {key: value for key, value in node.meta.items() if key != SERVER_META}
    return CatalogNode(
        name=node.name,
        address=address,
        id=node.id,
        tagged_addresses={"lan": address, f"lan_{family}": address, "wan": address, f"wan_{family}": address},
        meta={"consul-network-segment": "", "consul-version": CONSUL_VERSION, **meta},
        create_index=1,
        modify_index=1,
    )


def _known_instances(snapshot: Snapshot, nodes: Mapping[str, CatalogNode]) -> dict[Key, Instance]:
    """The instances of known nodes, and `consul` on those that carry the store."""
    found = {key: i for key, i in snapshot.instances.items() if key[0] in nodes}
    for node in snapshot.nodes.values():
        if SERVER_META in node.meta:
            found[node.name, "consul"] = server_instance(node)
    return found


def server_instance(node: Node) -> Instance:
    """The pseudo-service `consul` of a node that carries the store."""
    return Instance("consul", "consul", node.name, port=SERVER_PORT, create_index=1, modify_index=1)


def changes(before: Mapping[K, V], after: Mapping[K, V]) -> Iterable[tuple[K, V | None, V | None]]:
    """(key, before, after) of what differs. Maps share most of their values, which are told apart by identity first."""
    if before is after:
        return
    moved = list(map(operator.is_not, after.values(), map(before.get, after)))
    for (key, new), other in zip(after.items(), moved, strict=True):
        if other and (old := before.get(key)) != new:
            yield key, old, new
    if len(before) + sum(1 for key in after if key not in before) != len(after):
        for key in before.keys() - after.keys():
            yield key, before[key], None


def _regrouped(
    groups: Mapping[K, tuple[R, ...]], changes: list[tuple[Key, R | None, R | None]], group_of: Callable[[R], K]
) -> Mapping[K, tuple[R, ...]]:
    """The groups after the changes; each ordered by node, then id."""
    if not changes:
        return groups
    moved: dict[K, dict[Key, R]] = {}
    for key, old, new in changes:
        for record in (old, new):
            if record is not None and (name := group_of(record)) not in moved:
                moved[name] = {(r.node, r.id): r for r in groups.get(name, ())}
        if old is not None:
            moved[group_of(old)].pop(key, None)
        if new is not None:
            moved[group_of(new)][key] = new
    fresh = {**groups, **{name: tuple(members[key] for key in sorted(members)) for name, members in moved.items()}}
    for name, members in moved.items():
        if not members:
            del fresh[name]
    return fresh
