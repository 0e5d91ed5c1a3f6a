# SPDX-License-Identifier: Apache-2.0
"""`internal/ui/…`: the catalogue as dashboards read it, a service or a node with the checks that belong to it in one row.

Consul documents these reads nowhere; the fields are those that its clients decode. What belongs to Connect is always absent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from plait.model.discovery import CatalogNode
from plait.serve.consul_backend import Read
from plait.serve.consul_http import Call
from plait.services.checkviews import Json
from plait.services.views import Views


def ui_reads() -> Iterator[tuple[str, str, bool, Read]]:
    """As `consul_reads.reads`."""
    yield "internal/ui/services", "all services, each with its nodes and how many checks are in which state", True, _services
    yield "internal/ui/nodes", "all nodes, each with its services and checks", True, lambda _, v: [_node(n, v) for n in v.all_nodes()]
    yield "internal/ui/node/<name>", "one node with its services and checks", True, _one_node


def _services(_: Call, views: Views) -> object:
    return [_service(name, views) for name in sorted(views.directory.by_service) if views.instances(name)]


def _service(name: str, views: Views) -> Json:
    found = views.instances(name)
    nodes = sorted({instance.node for instance in found})
    states = Counter(check.status for node in nodes for check in views.directory.node_checks(node))
    states.update(check.status for instance in found for check in views.directory.service_checks(instance))
    return {
        "Kind": found[0].extra.get("Kind", ""),
        "Name": found[0].name,
        "Datacenter": views.datacenter,
        "Tags": sorted({tag for instance in found for tag in instance.tags}),
        "Nodes": nodes,
        "ExternalSources": sorted({instance.meta["external-source"] for instance in found if "external-source" in instance.meta}),
        "InstanceCount": len(found),
        "ChecksPassing": states["passing"],
        "ChecksWarning": states["warning"],
        "ChecksCritical": states["critical"],
        "ConnectedWithProxy": False,
        "ConnectedWithGateway": False,
        "GatewayConfig": {},
    }


def _node(node: CatalogNode, views: Views) -> Json:
    shown = views.node(node)
    return {
        **{key: shown[key] for key in ("ID", "Node", "Address", "TaggedAddresses", "Meta")},
        "Services": [views.node_service(instance) for instance in views.instances_on(node.name)],
        "Checks": views.node_checks(node.name),
    }


def _one_node(call: Call, views: Views) -> object:
    node = views.find_node(call.part("node name"))
    return _node(node, views) if node is not None else None
