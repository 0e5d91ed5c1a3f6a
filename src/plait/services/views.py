# SPDX-License-Identifier: Apache-2.0
"""What Consul's HTTP API says about a Snapshot: JSON-able values with Consul's field names, spelling and order.

Data in: a Snapshot. Data out: dicts and lists. Source: the public HTTP API documentation of Consul and its clients' traffic. Order is
deterministic: nodes, then service ids, ascending. Empty lists are [], empty maps {}, tags never null.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from plait.model.cluster import Instance, Node, Snapshot

Json = dict[str, object]
SERVER_META = "server"
"""Key of a node's meta that marks the node that carries the store; it also runs the pseudo-service `consul`."""
SERVER_PORT = 8300
CONSUL_VERSION = "1.22.0"
"""The version of Consul whose API is answered; some clients compare it."""


class Views:
    """Views of one snapshot. `datacenter` is the only one there is."""

    def __init__(self, snapshot: Snapshot, datacenter: str) -> None:
        self._snapshot, self._datacenter = snapshot, datacenter

    # --- nodes

    def nodes(self) -> list[Json]:
        return [self.node(node) for node in self._sorted_nodes()]

    def node(self, node: Node) -> Json:
        address = str(node.address)
        return {
            "ID": node.id,
            "Node": node.name,
            "Address": address,
            "Datacenter": self._datacenter,
            "TaggedAddresses": {"lan": address, "lan_ipv4": address, "wan": address, "wan_ipv4": address},
            "Meta": _node_meta(node),
            "CreateIndex": 1,
            "ModifyIndex": 1,
        }

    def find_node(self, name: str) -> Node | None:
        """By name, in any case."""
        return next((n for n in self._snapshot.nodes.values() if n.name.lower() == name.lower()), None)

    def members(self) -> list[Json]:
        return [
            {
                "Name": node.name,
                "Addr": str(node.address),
                "Port": 8301,
                "Tags": {"role": "consul" if SERVER_META in node.meta else "node", "dc": self._datacenter, "id": node.id},
                "Status": 1 if node.name in self._snapshot.alive else 4,
                "ProtocolMin": 1,
                "ProtocolMax": 5,
                "ProtocolCur": 2,
                "DelegateMin": 2,
                "DelegateMax": 5,
                "DelegateCur": 4,
            }
            for node in self._sorted_nodes()
        ]

    def servers(self) -> list[str]:
        return [f"{node.address}:{SERVER_PORT}" for node in self._sorted_nodes() if SERVER_META in node.meta]

    def serf_check(self, node: str) -> Json:
        alive = node in self._snapshot.alive
        return {
            "Node": node,
            "CheckID": "serfHealth",
            "Name": "Serf Health Status",
            "Status": "passing" if alive else "critical",
            "Notes": "",
            "Output": "Agent alive and reachable" if alive else "Agent not live or unreachable",
            "ServiceID": "",
            "ServiceName": "",
            "ServiceTags": [],
            "Type": "",
            "Interval": "",
            "Timeout": "",
            "ExposedPort": 0,
            "Definition": {},
            "CreateIndex": 1,
            "ModifyIndex": 1,
        }

    def checks(self, state: str = "any") -> list[Json]:
        """All checks in that state ("any": all), by node, then service id: a node's own check comes before those of its services."""
        found = [(node.name, "", self.serf_check(node.name)) for node in self._snapshot.nodes.values()]
        found += [(i.node, i.id, self._container_check(i)) for i in self.instances() if i.container]
        found.sort(key=lambda row: row[:2])
        return [check for _, _, check in found if state in ("any", check["Status"])]

    def service_checks(self, name: str) -> list[Json]:
        """The checks of a service's instances, without their nodes'."""
        return [self._container_check(i) for i in self.instances(name) if i.container]

    def node_checks(self, node: str) -> list[Json]:
        """All checks on one node."""
        return [check for check in self.checks() if check["Node"] == node]

    # --- services

    def services(self) -> dict[str, list[str]]:
        """Name -> union of the tags of all its instances, healthy or not."""
        found: dict[str, set[str]] = {}
        for instance in self.instances():
            found.setdefault(instance.name, set()).update(instance.tags)
        return {name: sorted(found[name]) for name in sorted(found)}

    def instances(self, name: str | None = None, node: str | None = None, tags: Sequence[str] = ()) -> list[Instance]:
        """Instances on known nodes, the pseudo-service `consul` included; `tags` must all be present."""
        servers = (_consul(n) for n in self._snapshot.nodes.values() if SERVER_META in n.meta)
        every: Iterable[Instance] = (*self._snapshot.instances.values(), *servers)
        wanted = {tag.lower() for tag in tags}
        found = [
            i
            for i in every
            if i.node in self._snapshot.nodes
            and (name is None or i.name.lower() == name.lower())
            and (node is None or i.node == node)
            and wanted <= {tag.lower() for tag in i.tags}
        ]
        return sorted(found, key=lambda i: (i.node, i.id))

    def catalog_service(self, instance: Instance) -> Json:
        node = self.node(self._snapshot.nodes[instance.node])
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
            "ServiceSocketPath": "",
            "ServiceEnableTagOverride": instance.enable_tag_override,
            "ServiceProxy": {},
            "ServiceConnect": {},
            "ServiceLocality": None,
            "CreateIndex": instance.create_index,
            "ModifyIndex": instance.modify_index,
        }

    def node_service(self, instance: Instance) -> Json:
        return {
            "ID": instance.id,
            "Service": instance.name,
            "Tags": list(instance.tags),
            "Address": instance.address,
            "TaggedAddresses": _tagged(instance),
            "Meta": dict(instance.meta),
            "Port": instance.port,
            "Weights": _weights(instance),
            "EnableTagOverride": instance.enable_tag_override,
            "Proxy": {},
            "Connect": {},
            "PeerName": "",
            "CreateIndex": instance.create_index,
            "ModifyIndex": instance.modify_index,
        }

    def agent_service(self, instance: Instance) -> Json:
        body = {key: value for key, value in self.node_service(instance).items() if key not in ("Proxy", "Connect", "PeerName")}
        return {**body, "Datacenter": self._datacenter}

    def health_entry(self, instance: Instance) -> Json:
        return {
            "Node": self.node(self._snapshot.nodes[instance.node]),
            "Service": self.node_service(instance),
            "Checks": self.instance_checks(instance),
        }

    def instance_checks(self, instance: Instance) -> list[Json]:
        """The node's check and, for an instance bound to a container, whether that runs."""
        checks = [self.serf_check(instance.node)]
        if instance.container:
            checks.append(self._container_check(instance))
        return checks

    def _container_check(self, instance: Instance) -> Json:
        state = "does not run" if instance.down else "runs"
        return {
            **self.serf_check(instance.node),
            "CheckID": f"service:{instance.id}",
            "Name": f"Service '{instance.name}' check",
            "Status": "critical" if instance.down else "passing",
            "Output": f"Container {instance.container} {state}",
            "ServiceID": instance.id,
            "ServiceName": instance.name,
            "ServiceTags": list(instance.tags),
            "Type": "container",
        }

    def passing(self, instance: Instance) -> bool:
        """Whether all its checks, its node's included, are passing."""
        return all(check["Status"] == "passing" for check in self.instance_checks(instance))

    def _sorted_nodes(self) -> list[Node]:
        return sorted(self._snapshot.nodes.values(), key=lambda n: n.name)


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
    found += [(e.node, str(e.address)) for e in snapshot.endpoints.values() if e.name == name and node in ("", e.node)]
    return min(found, key=lambda row: (row[0] != snapshot.me, row[0]))[1] if found else ""


def narrowed(snapshot: Snapshot, node_meta: Sequence[str]) -> Snapshot:
    """The snapshot with only those nodes whose meta has every "key:value" of `node_meta` (and so only with their services)."""
    if not node_meta:
        return snapshot
    wanted = {(key, value) for key, _, value in (text.partition(":") for text in node_meta)}
    return replace(snapshot, nodes={name: node for name, node in snapshot.nodes.items() if wanted <= _node_meta(node).items()})


def _node_meta(node: Node) -> dict[str, str]:
    """What Consul's clients see as the node's meta."""
    return {
        "consul-network-segment": "",
        "consul-version": CONSUL_VERSION,
        **{key: value for key, value in node.meta.items() if key != SERVER_META},
    }


def _consul(node: Node) -> Instance:
    return Instance("consul", "consul", node.name, port=SERVER_PORT, create_index=1, modify_index=1)


def _tagged(instance: Instance) -> Json:
    ports = instance.tagged_ports
    return {kind: {"Address": address, "Port": ports.get(kind, instance.port)} for kind, address in instance.tagged_addresses.items()}


def _weights(instance: Instance) -> Json:
    return {"Passing": instance.weight_passing, "Warning": instance.weight_warning}
