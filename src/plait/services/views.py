# SPDX-License-Identifier: Apache-2.0
"""What Consul's HTTP API says about the catalogue: JSON-able values with Consul's field names, spelling and order.

Data in: a Directory. Data out: dicts and lists. Source: the public HTTP API documentation of Consul and its clients' traffic. Order is
deterministic: nodes, then service ids, then check ids, ascending. Empty lists are [], empty maps {}, tags never null.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from plait.model.addr import at_port
from plait.model.cluster import Instance, Snapshot
from plait.model.discovery import LAN4, LAN6, SERF_CHECK, CatalogNode, Check
from plait.services.checkviews import Json, health_check
from plait.services.directory import SERVER_META, SERVER_PORT, Directory
from plait.services.status import Aggregate


class Views:
    """Views of one directory, narrowed to the nodes whose meta has every "key:value" of `node_meta`. `datacenter` is the only one."""

    def __init__(self, directory: Directory, datacenter: str, node_meta: Sequence[str] = ()) -> None:
        self.directory, self.datacenter = directory, datacenter
        self._nodes = directory.nodes if not node_meta else _with_meta(directory.nodes, node_meta)

    # --- nodes

    def nodes(self) -> list[Json]:
        return [self.node(node) for node in self._nodes.values()]

    def node(self, node: CatalogNode) -> Json:
        return node_json(node, self.datacenter)

    def all_nodes(self) -> Iterator[CatalogNode]:
        """By name."""
        yield from self._nodes.values()

    def find_node(self, name: str) -> CatalogNode | None:
        """By name, in any case."""
        found = self._nodes.get(name)
        return found or next((node for node in self._nodes.values() if node.name.lower() == name.lower()), None)

    def members(self, suffix: str = "") -> list[Json]:
        """Nodes with an agent, `suffix` behind their names."""
        snapshot = self.directory.snapshot
        return [
            {
                "Name": node.name + suffix,
                "Addr": str(node.address),
                "Port": 8301,
                "Tags": {"role": "consul" if SERVER_META in node.meta else "node", "dc": self.datacenter, "id": node.id},
                "Status": 1 if node.name in snapshot.alive else 4,
                "ProtocolMin": 1,
                "ProtocolMax": 5,
                "ProtocolCur": 2,
                "DelegateMin": 2,
                "DelegateMax": 5,
                "DelegateCur": 4,
            }
            for node in sorted(snapshot.nodes.values(), key=lambda n: n.name)
        ]

    def servers(self) -> list[str]:
        nodes = sorted(self.directory.snapshot.nodes.values(), key=lambda n: n.name)
        return [at_port(node.address, SERVER_PORT) for node in nodes if SERVER_META in node.meta]

    # --- checks

    def checks(self, state: str = "any") -> list[Json]:
        """All checks in that state ("any": all), by node, then service id: a node's own checks come before those of its services."""
        found = (check for node in self._nodes for check in self._checks_on(node))
        return [health_check(check) for check in found if state in ("any", check.status)]

    def service_checks(self, name: str) -> list[Json]:
        """The checks of a service's instances, without their nodes'."""
        return [health_check(check) for i in self.instances(name) for check in self.directory.service_checks(i)]

    def node_checks(self, node: str) -> list[Json]:
        """All checks on one node."""
        return [health_check(check) for check in self._checks_on(node)]

    def agent_checks(self, node: str) -> dict[str, Json]:
        """The checks that the node's agent owns, by id: all but what the catalogue knows by itself."""
        shown = {check.id: check for check in self._checks_on(node) if check.origin == "agent" and check.id != SERF_CHECK}
        return {id: health_check(shown[id]) for id in sorted(shown)}

    def shown(self, checks: Iterable[Check]) -> list[Json]:
        """Those checks in their order."""
        return [health_check(check) for check in checks]

    def _checks_on(self, node: str) -> Iterable[Check]:
        yield from self.directory.node_checks(node)
        for instance in self.directory.by_node.get(node, ()):
            yield from self.directory.service_checks(instance)

    # --- services

    def services(self) -> dict[str, list[str]]:
        """Name -> union of the tags of all its instances, healthy or not."""
        found: dict[str, set[str]] = {}
        for name in self.directory.by_service:
            for instance in self.instances(name):
                found.setdefault(instance.name, set()).update(instance.tags)
        return {name: sorted(found[name]) for name in sorted(found)}

    def instances(self, name: str, tags: Sequence[str] = ()) -> list[Instance]:
        """Instances of a service on known nodes, by node, then id; `tags` must all be present."""
        wanted = {tag.lower() for tag in tags}
        found = self.directory.by_service.get(name.lower(), ())
        return [i for i in found if i.node in self._nodes and (not wanted or wanted <= {tag.lower() for tag in i.tags})]

    def instances_on(self, node: str) -> tuple[Instance, ...]:
        """By id, the pseudo-service `consul` included."""
        return self.directory.by_node.get(node, ()) if node in self._nodes else ()

    def all_instances(self) -> Iterator[Instance]:
        """On known nodes, by node, then id."""
        for node in self._nodes:
            yield from self.directory.by_node.get(node, ())

    def labels(self, instance: Instance) -> Mapping[str, str]:
        """Those of its container and its own metadata, which wins."""
        return self.directory.labels(instance)

    def catalog_service(self, instance: Instance) -> Json:
        node = self.node(self._nodes[instance.node])
        return {
            **{key: node[key] for key in ("ID", "Node", "Address", "Datacenter", "TaggedAddresses")},
            "NodeMeta": node["Meta"],
            "ServiceKind": "",
            "ServiceID": instance.id,
            "ServiceName": instance.name,
            "ServiceTags": list(instance.tags),
            "ServiceAddress": instance.address,
            "ServiceTaggedAddresses": _tagged(instance),
            "ServiceWeights": _weights(instance),
            "ServiceMeta": dict(instance.meta),
            "ServicePort": instance.port,
            **_ports("ServicePorts", instance),
            "ServiceSocketPath": "",
            "ServiceEnableTagOverride": instance.enable_tag_override,
            "ServiceProxy": {},
            "ServiceConnect": {},
            "ServiceLocality": None,
            "CreateIndex": instance.create_index,
            "ModifyIndex": instance.modify_index,
        }

    def node_service(self, instance: Instance) -> Json:
        return service_json(instance)

    def agent_service(self, instance: Instance) -> Json:
        """As its own agent shows it, which knows no index of the catalogue."""
        hidden = {"Proxy", "Connect", "PeerName", "CreateIndex", "ModifyIndex"} - instance.extra.keys()
        empty = {"TaggedAddresses"} if not instance.tagged_addresses else set()
        body = {key: value for key, value in self.node_service(instance).items() if key not in hidden | empty}
        return {**body, "Datacenter": self.datacenter}

    def health_entry(self, instance: Instance) -> Json:
        return {
            "Node": self.node(self._nodes[instance.node]),
            "Service": self.node_service(instance),
            "Checks": self.instance_checks(instance),
        }

    def instance_checks(self, instance: Instance) -> list[Json]:
        """The checks of its node, then its own."""
        return [health_check(check) for check in self.directory.instance_checks(instance)]

    def status(self, instance: Instance) -> Aggregate:
        """What its checks, its node's included, say together."""
        return self.directory.status(instance)


def node_json(node: CatalogNode, datacenter: str) -> Json:
    """A node as all answers show it."""
    return {
        "ID": node.id,
        "Node": node.name,
        "Address": node.address,
        "Datacenter": datacenter,
        "TaggedAddresses": dict(node.tagged_addresses),
        "Meta": dict(node.meta),
        "CreateIndex": node.create_index,
        "ModifyIndex": node.modify_index,
    }


def service_json(instance: Instance) -> Json:
    """A service as the catalogue shows it beside its node."""
    return {
        "ID": instance.id,
        "Service": instance.name,
        "Tags": list(instance.tags),
        "Address": instance.address,
        "TaggedAddresses": _tagged(instance),
        "Meta": dict(instance.meta),
        "Port": instance.port,
        **_ports("Ports", instance),
        "Weights": _weights(instance),
        "EnableTagOverride": instance.enable_tag_override,
        "Proxy": {},
        "Connect": {},
        "PeerName": "",
        **instance.extra,
        "CreateIndex": instance.create_index,
        "ModifyIndex": instance.modify_index,
    }


def seed_answer(instance: Instance) -> Json:
    """The answer to `PUT /v1/agent/services`, with exactly these keys in this order; tagged addresses are plain strings here."""
    return {
        "ID": instance.id,
        "Name": instance.name,
        "Tags": list(instance.tags),
        "Address": instance.address,
        "TaggedAddresses": dict(instance.tagged_addresses) or {"lan": instance.address, "wan": instance.address},
        "Meta": dict(instance.meta),
        "Port": instance.port,
        "EnableTagOverride": instance.enable_tag_override,
        "CreateIndex": instance.create_index,
        "ModifyIndex": instance.modify_index,
    }


def container_address(snapshot: Snapshot, name: str, node: str = "") -> str:
    """The address of the running container of that name, on `node` only if given, else on this node first and then anywhere.
    "" if there is none. Deterministic: the network `default` comes first."""
    found = [
        (container.node, str(address))
        for container in snapshot.containers.values()
        if container.name == name and container.state == "running" and node in ("", container.node)
        for _, address in sorted(container.addresses.items(), key=lambda item: (item[0] != "default", item[0]))
    ]
    resting = {c.node for c in snapshot.containers.values() if c.name == name and c.state != "running"}
    found += [
        (e.node, str(e.address)) for e in snapshot.endpoints.values() if e.name == name and node in ("", e.node) and e.node not in resting
    ]
    return min(found, key=lambda row: (row[0] != snapshot.me, row[0]))[1] if found else ""


def at_container(snapshot: Snapshot, instance: Instance, address: str) -> Instance:
    """The instance at `address` of its container; if that has IPv6 too, both addresses are tagged with their kind."""
    moved = address != instance.address
    tagged = {kind: where for kind, where in instance.tagged_addresses.items() if not moved or kind not in (LAN4, LAN6)}
    own = (e for e in snapshot.endpoints.values() if e.node == instance.node and str(e.address) == address)
    six = next((str(e.address6) for e in own if e.address6 is not None), "")
    return replace(instance, address=address, tagged_addresses=tagged | ({LAN4: address, LAN6: six} if six else {}))


def _with_meta(nodes: Mapping[str, CatalogNode], node_meta: Sequence[str]) -> dict[str, CatalogNode]:
    """Only those nodes whose meta has every "key:value" of `node_meta`."""
    wanted = {(key, value) for key, _, value in (text.partition(":") for text in node_meta)}
    return {name: node for name, node in nodes.items() if wanted <= node.meta.items()}


def _tagged(instance: Instance) -> Json:
    ports = instance.tagged_ports
    return {kind: {"Address": address, "Port": ports.get(kind, instance.port)} for kind, address in instance.tagged_addresses.items()}


def _ports(key: str, instance: Instance) -> Json:
    """Those that have names, under `key`; nothing if there are none. TCP is not said."""
    shown = [
        {"Name": p.name, "Port": p.port, "Default": p.default} | ({"Protocol": p.protocol} if p.protocol != "tcp" else {})
        for p in instance.ports
    ]
    return {key: shown} if shown else {}


def _weights(instance: Instance) -> Json:
    return {"Passing": instance.weight_passing, "Warning": instance.weight_warning}
