# SPDX-License-Identifier: Apache-2.0
"""What checks say together, and the checks that nobody runs because their status is known: serfHealth, and that of a container.

Data in: checks, instances, signs of life. Data out: checks, and one status for all of them. The order of severity is Consul's:
maintenance, critical, warning, passing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from plait.model.cluster import Instance
from plait.model.discovery import NODE_MAINTENANCE, SERF_CHECK, SERVICE_MAINTENANCE, Check, Status

Aggregate = Literal["passing", "warning", "critical", "maintenance"]
_SEVERITY: Mapping[Aggregate, int] = {"passing": 0, "warning": 1, "critical": 2, "maintenance": 3}
RUNNING_CHECK = "running:"
"""Followed by the id of a service that was registered for a container: whether that runs."""


def aggregated(checks: Iterable[Check]) -> Aggregate:
    """The most severe of what they say; passing if there is none."""
    return max(map(_said, checks), key=_SEVERITY.__getitem__, default="passing")


def weight(instance: Instance, status: Aggregate) -> int:
    """The instance's weight (0 to 65535) in that status; 0 = it is not to be used."""
    chosen = {"passing": instance.weight_passing, "warning": instance.weight_warning}.get(status, 0)
    return min(max(chosen, 0), 65535)


def serf_check(node: str, alive: bool) -> Check:
    """The check that every node with an agent has: whether it gives signs of life."""
    status: Status = "passing" if alive else "critical"
    output = "Agent alive and reachable" if alive else "Agent not live or unreachable"
    return Check(SERF_CHECK, node, "Serf Health Status", status, output, create_index=1, modify_index=1)


def container_check(instance: Instance) -> Check:
    """Whether the container runs that the instance was registered for."""
    return Check(
        id=f"{RUNNING_CHECK}{instance.id}",
        node=instance.node,
        name=f"Service '{instance.name}' runs",
        status="critical" if instance.down else "passing",
        output=f"Container {instance.container} {'does not run' if instance.down else 'runs'}",
        service_id=instance.id,
        service_name=instance.name,
        service_tags=instance.tags,
        create_index=instance.create_index,
        modify_index=instance.modify_index,
    )


def is_maintenance(check_id: str) -> bool:
    """Whether the check of that id says that its node or service is in maintenance."""
    return check_id == NODE_MAINTENANCE or check_id.startswith(SERVICE_MAINTENANCE)


def _said(check: Check) -> Aggregate:
    return "maintenance" if is_maintenance(check.id) else check.status
