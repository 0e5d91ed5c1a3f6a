# SPDX-License-Identifier: Apache-2.0
"""What the admin API tells of policies, as JSON: shared by the agent, who fills these in, and the CLI, who reads them."""

from __future__ import annotations

from typing import Literal, TypedDict

from plait.model.policy import Direction, Tier

Change = Literal["created", "changed", "unchanged", "removed"]


class PolicyRow(TypedDict):
    """`namespace` is "_cluster" for policies of the administrator. `ingress` and `egress`: how many rules, -1 where it says nothing of that
    direction. `selects`: how many workloads it is about now, on all nodes. `allowed` and `denied`: how many connections it decided on this
    node since its agent started, or, if it is to `audit`, would have."""

    namespace: str
    name: str
    tier: Tier
    priority: int
    ingress: int
    egress: int
    selects: int
    audit: bool
    allowed: int
    denied: int


class RuleCount(TypedDict):
    """Connections that one rule decided on this node; `rule` "" is isolation itself. `last`: seconds since the epoch, 0 for never."""

    direction: Direction
    rule: str
    allowed: int
    denied: int
    last: float


class PolicyView(PolicyRow):
    """`document`: the policy in YAML. `workloads`: whom it is about, `NODE/NAME`. `rules`: what each decided."""

    document: str
    workloads: list[str]
    rules: list[RuleCount]


class DropRow(TypedDict):
    """Connections of one kind that this node dropped, or (`audit`) would have, on one side. `source` and `destination`: `NAME (ADDRESS)`,
    or the address; `port` 0 where the protocol has none. `rule` is of the one in `policies`, or "" where these isolate. Times in seconds
    since the epoch."""

    direction: Direction
    source: str
    destination: str
    protocol: str
    port: int
    policies: list[str]
    rule: str
    audit: bool
    count: int
    first: float
    last: float


class AppliedRow(TypedDict):
    """What became of one document of a file."""

    kind: Literal["policy", "namespace"]
    name: str
    change: Change


class PairRow(TypedDict):
    """What passes of new connections, in words, now and with the file. An end is `NODE/NAME`, a range of addresses, or "others"."""

    source: str
    destination: str
    before: str
    after: str


class PolicyPlan(TypedDict):
    """What applying a file would change. `selected` and `released`: `NODE/NAME DIRECTION` of whom policies select in that direction from
    then on, or no longer. `compared` of `concerned` pairs of workloads were. `added` and `removed`: elements of this host's sets and
    maps."""

    applied: list[AppliedRow]
    selected: list[str]
    released: list[str]
    pairs: list[PairRow]
    compared: int
    concerned: int
    added: int
    removed: int


class NamespaceRow(TypedDict):
    name: str
    labels: dict[str, str]
    workloads: int


class PolicySide(TypedDict):
    """What one side makes of a packet; `policy` ("NAMESPACE/NAME") and `rule` are "" where no rule decided."""

    direction: Direction
    workload: str
    allowed: bool
    policy: str
    rule: str
    why: str


class PolicyTest(TypedDict):
    """`source` and `destination`: what was asked about, with addresses. `note`: what else keeps the two apart."""

    allowed: bool
    source: str
    destination: str
    sides: list[PolicySide]
    note: str
