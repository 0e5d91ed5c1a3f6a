# SPDX-License-Identifier: Apache-2.0
"""Health checks: how one is run and what its last run said.

Immutable, like `cluster`, and stored the same way: a field added later must have a default. Durations are seconds, sizes bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["passing", "warning", "critical"]
CheckKind = Literal["", "ttl", "script", "http", "tcp", "udp", "grpc", "h2ping", "docker", "os_service", "alias"]
"""Who finds the status out; "" = nobody here: whoever registered the check says it (catalogue registrations, maintenance)."""

LAN4, LAN6 = "lan_ipv4", "lan_ipv6"
"""Kinds of tagged addresses: where an instance that follows its container is reached by either family, if the container has both."""
OUTPUT_MAX = 4096
SERF_CHECK = "serfHealth"
NODE_MAINTENANCE = "_node_maintenance"
SERVICE_MAINTENANCE = "_service_maintenance:"
"""Ids of the checks that plait makes itself; the last one is followed by the service's id."""


@dataclass(frozen=True, slots=True)
class CheckDefinition:
    """How a check is run. `target` is what it is run against: a URL (http), HOST:PORT (tcp, udp, h2ping), HOST:PORT[/SERVICE] (grpc),
    a container (docker), a unit (os_service), NODE/SERVICE-ID (alias; no NODE is this node, no SERVICE-ID
    the node itself). `args` is the command of script and docker checks.

    `interval` applies to all but ttl and alias, `ttl` to ttl alone. Thresholds count consecutive results that are needed to leave the
    present status; 0 and 1 mean at once. `initial_delay`: nothing is run before it has passed. `deregister_after` 0 = never.
    """

    kind: CheckKind = ""
    target: str = ""
    args: tuple[str, ...] = ()
    shell: str = ""
    interval: float = 0.0
    timeout: float = 0.0
    ttl: float = 0.0
    initial_delay: float = 0.0
    method: str = ""
    headers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    body: str = ""
    follow_redirects: bool = True
    tls: bool = False
    tls_server_name: str = ""
    tls_skip_verify: bool = False
    success_before_passing: int = 0
    failures_before_warning: int = 0
    failures_before_critical: int = 0
    output_max: int = OUTPUT_MAX
    deregister_after: float = 0.0


@dataclass(frozen=True, slots=True)
class Check:
    """One check of a node (`service_id` "") or of one of its instances, with what its last run said.

    `origin` "agent": the node's own agent runs and owns it; "catalog": somebody put it into the catalogue, nobody runs it.
    `runtime` is that of its instance (`cluster.Instance`).
    """

    id: str
    node: str
    name: str
    status: Status = "critical"
    output: str = ""
    notes: str = ""
    service_id: str = ""
    service_name: str = ""
    service_tags: tuple[str, ...] = ()
    exposed_port: int = 0
    definition: CheckDefinition = field(default_factory=CheckDefinition)
    runtime: str = ""
    origin: Literal["agent", "catalog"] = "agent"
    create_index: int = 0
    modify_index: int = 0


@dataclass(frozen=True, slots=True)
class OtherTags:
    """Tags that somebody else gave the service of an agent that allows it (EnableTagOverride).

    They count as long as that registration (`since`, its create index) says the tags `instead_of`: what the agent says later wins.
    """

    id: str
    node: str
    tags: tuple[str, ...]
    instead_of: tuple[str, ...] = ()
    since: int = 0
    modify_index: int = 0


@dataclass(frozen=True, slots=True)
class CatalogNode:
    """A node that somebody put into the catalogue: it runs no agent, so nothing is known of it but what was written.

    `address` is an IP address or a host name. `tagged_addresses` is keyed by kind (lan, wan, lan_ipv4, …).
    """

    name: str
    address: str
    id: str = ""
    tagged_addresses: Mapping[str, str] = field(default_factory=dict)
    meta: Mapping[str, str] = field(default_factory=dict)
    create_index: int = 0
    modify_index: int = 0
