# SPDX-License-Identifier: Apache-2.0
"""The store's key layout (see docs/architecture.md): the only place where keys are put together and taken apart."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from plait.model.cluster import Assigned, Block, Container, Endpoint, Ghosts, HostRanges, Instance, Network, Node, Reach
from plait.model.discovery import CatalogNode, Check, OtherTags
from plait.model.egress import Egress
from plait.model.policy import Namespace, Policy
from plait.model.service import Service

Record = (
    Node
    | Reach
    | Network
    | Block
    | Endpoint
    | Container
    | Instance
    | Check
    | CatalogNode
    | OtherTags
    | Assigned
    | HostRanges
    | Ghosts
    | Policy
    | Namespace
    | Service
    | Egress
)

TYPES: dict[str, type[Record]] = {
    "nodes": Node,
    "reach": Reach,
    "networks": Network,
    "blocks": Block,
    "endpoints": Endpoint,
    "containers": Container,
    "instances": Instance,
    "checks": Check,
    "catalog/nodes": CatalogNode,
    "catalog/instances": Instance,
    "catalog/checks": Check,
    "catalog/tags": OtherTags,
    "assigned": Assigned,
    "hostranges": HostRanges,
    "ghosts": Ghosts,
    "policies": Policy,
    "namespaces": Namespace,
    "services": Service,
    "egress": Egress,
}
"""What is stored below `<kind>/`. The kinds of `catalog/` hold what was put into the catalogue by others than the node's own agent."""
NETWORK_GUARD = "guards/networks"
"""Rewritten by every transaction that makes or removes a network, so that two overlapping ones cannot both succeed."""


def node_key(name: str) -> str:
    return f"nodes/{name}"


def rotate_key(name: str) -> str:
    """Holds the wish that the node change its WireGuard key; the node itself deletes it."""
    return f"rotate/{name}"


def alive_key(name: str) -> str:
    return f"alive/{name}"


def reach_key(node: str) -> str:
    return f"reach/{node}"


def network_key(name: str) -> str:
    return f"networks/{name}"


def blocks_prefix(network: str) -> str:
    return f"blocks/{network}/"


def hostranges_key(node: str) -> str:
    return f"hostranges/{node}"


def assigned_prefix(network: str) -> str:
    return f"assigned/{network}/"


def assigned_guard(network: str) -> str:
    """Rewritten with each reservation in `network`, so that a name cannot get two addresses."""
    return f"guards/assigned/{network}"


def assigned_key(network: str, address: IPv4Address) -> str:
    return f"{assigned_prefix(network)}{address}"


def block_key(network: str, cidr: IPv4Network) -> str:
    return f"{blocks_prefix(network)}{str(cidr).replace('/', '_')}"


def policy_key(ident: tuple[str, str]) -> str:
    return f"policies/{ident[0]}/{ident[1]}"


def namespace_key(name: str) -> str:
    return f"namespaces/{name}"


def service_key(ident: tuple[str, str]) -> str:
    return f"services/{ident[0]}/{ident[1]}"


def egress_key(name: str) -> str:
    return f"egress/{name}"


def vip_key(address: IPv4Address) -> str:
    """Holds which service (NAMESPACE/NAME) has the virtual address."""
    return f"vips/{address}"


def record_key(record: Record) -> str:
    """The key under which `record` is stored."""
    match record:
        case Node():
            return node_key(record.name)
        case Reach():
            return reach_key(record.node)
        case Network():
            return network_key(record.name)
        case Block():
            return block_key(record.network, record.cidr)
        case Ghosts():
            return f"ghosts/{record.node}/all"
        case HostRanges():
            return hostranges_key(record.node)
        case Assigned():
            return assigned_key(record.network, record.address)
        case Policy():
            return policy_key(record.ident)
        case Namespace():
            return namespace_key(record.name)
        case Service():
            return service_key(record.ident)
        case Egress():
            return egress_key(record.name)
        case Endpoint():
            return f"endpoints/{record.node}/{record.id}"
        case Container():
            return f"containers/{record.node}/{record.id}"
        case Instance():
            return f"{_catalog(record)}instances/{record.node}/{record.id}"
        case Check():
            return f"{_catalog(record)}checks/{record.node}/{record.id}"
        case CatalogNode():
            return f"catalog/nodes/{record.name}"
        case OtherTags():
            return f"catalog/tags/{record.node}/{record.id}"


def _catalog(record: Instance | Check) -> str:
    return "catalog/" if record.origin == "catalog" else ""


def own_prefixes(node: str) -> tuple[str, ...]:
    """Prefixes below which `node` is the only writer."""
    return f"endpoints/{node}/", f"containers/{node}/", f"instances/{node}/", f"checks/{node}/", f"ghosts/{node}/"


def single_keys(node: str) -> tuple[str, ...]:
    """The keys of what there is once of a node; they go when it leaves."""
    return node_key(node), alive_key(node), reach_key(node), rotate_key(node), f"coordinates/{node}", hostranges_key(node)


def shown_from(ref: tuple[str, ...]) -> tuple[str, ...]:
    """The keys that decide what readers see of ("node", name), ("service", node, id) or ("check", node, id)."""
    kind, where = ref[0], "/".join(ref[1:])
    if kind == "node":
        return f"nodes/{where}", f"catalog/nodes/{where}"
    if kind == "service":
        return f"instances/{where}", f"catalog/instances/{where}", f"catalog/tags/{where}"
    return f"checks/{where}", f"catalog/checks/{where}"


def kept_key(ref: tuple[str, ...]) -> str:
    """The key of what others than the node's agent put into the catalogue, by the same reference."""
    return shown_from(ref)[1]


def kind_of(key: str) -> str:
    """The part of a key that says what is stored there: its first segment, of `catalog/` the first two."""
    kind, _, rest = key.partition("/")
    return f"{kind}/{rest.partition('/')[0]}" if kind == "catalog" else kind
