# SPDX-License-Identifier: Apache-2.0
"""Who may talk to whom: policies as the store holds them. The words are those of Kubernetes, whose files they come from.

A container's *namespace* is its label `plait.namespace`; without it the one that Kubernetes gave its pod, or `default`. Namespaces have
labels of their own (`Namespace`), and each has `kubernetes.io/metadata.name`, its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from plait.model.addr import EitherNetwork, Protocol

Tier = Literal["Admin", "NetworkPolicy", "Baseline"]
"""Which policies are asked first, those of the next tier only where the one before says nothing (or `Pass`)."""
Action = Literal["Accept", "Deny", "Pass"]
Operator = Literal["In", "NotIn", "Exists", "DoesNotExist"]
Direction = Literal["ingress", "egress"]
PROTOCOLS: tuple[Protocol, ...] = ("tcp", "udp", "sctp")
LAST_PORT = 65535

NAMESPACE_LABEL, POD_NAMESPACE_LABEL = "plait.namespace", "io.kubernetes.pod.namespace"
DEFAULT_NAMESPACE = "default"
NAME_OF_NAMESPACE = "kubernetes.io/metadata.name"
"""The label that every namespace has."""
NETWORK_LABEL, CONTAINER_LABEL = "plait.network", "plait.container"
"""Labels that every workload has, whatever its container says: where it is attached, and its name."""
SERVICE_LABEL, SERVING = "plait.service.", "true"
"""With the name of a service behind it, the label of a workload whose address an instance of that service has, and its value. A container
cannot give it itself."""
NAME_OF_NODE = "kubernetes.io/hostname"
"""The label that every node has besides what its `meta` says."""
PORT_LABEL = "plait.port."
"""With the name of a port behind it, the label of a container that says its number: `plait.port.http=8080`, or `=53/udp`."""
AUDIT_ANNOTATION = "plait.audit"
"""With "true", the annotation of a policy that is only to tell what it would drop."""
CLUSTER = "_cluster"
"""Stands in keys for the namespace of policies that have none; no namespace is called so."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """What one label must be like. `values` are none for `Exists` and `DoesNotExist`; a label that is absent is `NotIn` all."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Selector:
    """Labels that meet all requirements; without any, all labels."""

    requirements: tuple[Requirement, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """Workloads by their own labels and those of their namespace; `namespace` "" is any."""

    pods: Selector = field(default_factory=Selector)
    namespaces: Selector = field(default_factory=Selector)
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class Range:
    """The addresses of `network` but for those of `excluded`, which lie in it."""

    network: EitherNetwork
    excluded: tuple[EitherNetwork, ...] = ()


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports `first` to `last` of a protocol; or what the destination calls `name`, of `protocol` if one is said ("": of any)."""

    protocol: Protocol | Literal[""] = ""
    first: int = 0
    last: int = LAST_PORT
    name: str = ""


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """What to do with connections from (ingress) or to (egress) any of `groups` and `ranges`, any of the `nodes` by their labels, or
    `anybody`, on any of `ports`; no ports: whatever protocol and port. `domains` (egress, `model/domains.py`): to what DNS gave for such a
    name, if it is no workload. `where` is its place in the policy (`ingress[0]`, or its name)."""

    action: Action
    where: str
    groups: tuple[Group, ...] = ()
    ranges: tuple[Range, ...] = ()
    anybody: bool = False
    ports: tuple[Ports, ...] = ()
    nodes: tuple[Selector, ...] = ()
    domains: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """`subject`: whom it is about. In the tier `NetworkPolicy`, a direction that is not None isolates them there: nothing passes but what
    some rule accepts. In the others rules are asked in order of `priority`, the least first, then of the policies' names. `namespace` is ""
    for those. `document`: as it was given, in YAML. One to `audit` decides nothing: what it would drop is told."""

    name: str
    namespace: str
    tier: Tier
    subject: Group
    ingress: tuple[PolicyRule, ...] | None = None
    egress: tuple[PolicyRule, ...] | None = None
    priority: int = 0
    document: str = ""
    audit: bool = False

    def rules(self, direction: Direction) -> tuple[PolicyRule, ...] | None:
        return self.ingress if direction == "ingress" else self.egress

    @property
    def ident(self) -> tuple[str, str]:
        """What it is known by: its namespace, or `CLUSTER`, and its name."""
        return self.namespace or CLUSTER, self.name


@dataclass(frozen=True, slots=True)
class Namespace:
    """The labels that somebody gave a namespace."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
