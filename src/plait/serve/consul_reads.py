# SPDX-License-Identifier: Apache-2.0
"""Reads of the catalogue and of health: which view answers which path. Data in: calls, views. Data out: JSON-able values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from plait.model.cluster import Instance
from plait.serve.consul_backend import Read
from plait.serve.consul_http import Call
from plait.serve.consul_ui import ui_reads
from plait.services.bexpr import compile_filter, filtered
from plait.services.directory import Topic
from plait.services.prometheus import target_groups
from plait.services.selector import parse_selector
from plait.services.views import Views

FILTERED = (
    "agent/services",
    "agent/checks",
    "agent/members",
    "catalog/nodes",
    "catalog/services",
    "catalog/connect/",
    "health/connect/",
    "health/ingress/",
    "catalog/service/",
    "catalog/node/",
    "catalog/node-services/",
    "health/node/",
    "health/checks/",
    "health/service/",
    "health/services",
    "health/state/",
    "internal/ui/nodes",
    "internal/ui/services",
    "plait/instances",
)
"""Beginnings of the paths that take `filter`."""


def selected(read: Read, call: Call, views: Views) -> object:
    """What `read` answers, without what the call's `filter` does not let through: elements of a list, values of a map; of a node its
    services, of `health/services` the instances of each."""
    answer = read(call, views)
    if not call.one("filter"):
        return answer
    predicate = compile_filter(call.one("filter"))
    if call.path == "catalog/services":
        kept = filtered([views.catalog_service(i) for name in views.directory.by_service for i in views.instances(name)], predicate)
        return _tags_by_name(kept)
    if call.path == "health/services" and isinstance(answer, dict):
        kept = {name: filtered(entries, predicate) for name, entries in answer.items()}
        return {name: entries for name, entries in kept.items() if entries}
    if call.path.startswith(("catalog/node/", "catalog/node-services/")):
        return {**answer, "Services": filtered(answer["Services"], predicate)} if isinstance(answer, dict) else answer
    return filtered(answer, predicate)


def _tags_by_name(rows: object) -> dict[str, list[str]]:
    """Rows of catalog/service -> their names, each with all tags of its rows."""
    found: dict[str, set[str]] = {}
    for row in rows if isinstance(rows, list) else ():
        found.setdefault(row["ServiceName"], set()).update(row["ServiceTags"])
    return {name: sorted(found[name]) for name in sorted(found)}


def node_of(row: Any) -> str:
    """The name of the node that a row of a list is about."""
    node = row["Node"]
    return str(node["Node"] if isinstance(node, dict) else node)


def topics_of(call: Call) -> frozenset[Topic]:
    """All that the answer of a blocking read depends on, but for the distances of `near`. Selected by `node-meta` or `filter` it depends
    on what nodes say of themselves too, which the topic of a service or node tells of the nodes that matter."""
    name = "".join(call.parts)
    match call.path.removesuffix(name):
        case "catalog/service/" | "health/service/" | "health/checks/":
            topics = {Topic("service", name.lower())}
        case "catalog/node/" | "catalog/node-services/" | "health/node/" | "internal/ui/node/":
            topics = {Topic("node", name.lower())}
        case "catalog/nodes":
            topics = {Topic("nodes")}
        case "catalog/services":
            topics = {Topic("services")} | ({Topic("homes")} if call.flag("node-meta") or call.one("filter") else set())
        case _:
            topics = {Topic("checks")}
    return frozenset(topics)


def reads(datacenter: str) -> Iterator[tuple[str, str, bool, Read]]:
    """(path, what it is for, whether it blocks, its answer)."""
    yield "catalog/datacenters", "the only one", False, lambda _, __: [datacenter]
    yield "catalog/nodes", "all nodes", True, lambda _, views: views.nodes()
    yield "catalog/services", "all services with their tags", True, lambda _, views: views.services()
    yield "catalog/service/<name>", "instances of a service; `tag`", True, _catalog_service
    yield "catalog/node/<name>", "a node and its services", True, _catalog_node
    yield "catalog/node-services/<name>", "the same, its services in a list", True, _node_services
    yield "health/service/<name>", "instances with their checks; `passing`, `tag`", True, _health_service
    yield "health/services", "all passing instances of all services by name; `passing=false`: all of them", True, _health_services
    yield "health/node/<name>", "the checks on a node", True, _health_node
    yield "health/checks/<name>", "the checks of a service", True, lambda call, views: views.service_checks(call.part("service name"))
    yield "health/state/<state>", "checks by state, or `any`", True, lambda call, views: views.checks(call.part("check state"))
    yield "plait/instances", "instances by label: `selector=app=web,tier!=test`; `service`, `tag`, `passing`", True, _instances
    yield (
        "plait/http_sd",
        "[what Prometheus scrapes](prometheus.md); `selector`, `service`, `tag`, `passing`, `port`",
        False,
        _http_sd,
    )
    yield from ui_reads()


def _catalog_service(call: Call, views: Views) -> object:
    if call.one("peer"):  # there is none
        return []
    return [views.catalog_service(i) for i in views.instances(call.part("service name"), tags=call.every("tag"))]


def _catalog_node(call: Call, views: Views) -> object:
    node = views.find_node(call.part("node name"))
    if node is None:
        return None
    return {"Node": views.node(node), "Services": {i.id: views.node_service(i) for i in views.instances_on(node.name)}}


def _node_services(call: Call, views: Views) -> object:
    node = views.find_node(call.part("node name"))
    if node is None:
        return {"Node": None, "Services": []}
    return {"Node": views.node(node), "Services": [views.node_service(i) for i in views.instances_on(node.name)]}


def _health_service(call: Call, views: Views) -> object:
    if call.one("peer"):
        return []
    passing = call.switch("passing")
    found = views.instances(call.part("service name"), tags=call.every("tag"))
    return [views.health_entry(i) for i in found if not passing or views.status(i) == "passing"]


def _health_services(call: Call, views: Views) -> object:
    passing = call.switch("passing") if call.flag("passing") else True
    found = {
        name: [views.health_entry(i) for i in views.instances(name) if not passing or views.status(i) == "passing"]
        for name in views.directory.by_service
    }
    return {name: found[name] for name in sorted(found) if found[name]}


def _health_node(call: Call, views: Views) -> object:
    node = views.find_node(call.part("node name"))
    return views.node_checks(node.name) if node is not None else []


def chosen(call: Call, views: Views) -> Iterator[Instance]:
    """By node, then id: the instances that fit the call's `selector`, `service`, `tag` and `passing`."""
    selector, passing = parse_selector(call.one("selector")), call.switch("passing")
    service, tags = call.one("service").lower(), frozenset(tag.lower() for tag in call.every("tag"))
    for instance in views.all_instances():
        if service not in ("", instance.name.lower()) or not tags <= {tag.lower() for tag in instance.tags}:
            continue
        if selector.matches(views.labels(instance)) and (not passing or views.status(instance) == "passing"):
            yield instance


def _instances(call: Call, views: Views) -> object:
    return [{**views.health_entry(instance), "Labels": dict(views.labels(instance))} for instance in chosen(call, views)]


def _http_sd(call: Call, views: Views) -> object:
    return list(target_groups(views, chosen(call, views), call.one("port")))
