# SPDX-License-Identifier: Apache-2.0
"""What the admin API tells of services, as JSON: shared by the agent, who fills these in, and the CLI, who reads them."""

from __future__ import annotations

from typing import TypedDict


class ServiceRow(TypedDict):
    """`address` is "" for a headless one, `address6` also where its network has no IPv6. `backends`: how many containers it finds on all
    nodes, `ready`: how many of them get new connections."""

    namespace: str
    name: str
    address: str
    address6: str
    network: str
    ports: list[str]
    published: list[str]
    ready: int
    backends: int


class BackendRow(TypedDict):
    """`address6` is "" for one without IPv6. `state`: ready, draining, unhealthy, away (its node gives no sign of life)."""

    node: str
    name: str
    address: str
    address6: str
    weight: int
    state: str


class ServiceView(ServiceRow):
    dns: str
    selector: dict[str, str]
    affinity: bool
    local_first: bool
    hosts: list[str]
    containers: list[BackendRow]
