# SPDX-License-Identifier: Apache-2.0
"""The default of a network that is isolated, as a policy: its containers accept nothing of each other.

It is of the tier Baseline and the last one there, so that every policy that somebody wrote goes before it: who is selected by a
NetworkPolicy hears what that accepts, from neighbours too. Hosts, the outside and other networks are no business of it. Networks on bridges
have none: their ports are kept apart, whatever policies say (`plan/apart.py`).
"""

from __future__ import annotations

from collections.abc import Iterable

from plait.model.cluster import Network, Snapshot
from plait.model.policy import NETWORK_LABEL, Group, Policy, PolicyRule, Requirement, Selector

LAST = 1 << 31
"""Priority behind all that can be written (0 to 1000)."""


def isolations(networks: Iterable[Network]) -> list[Policy]:
    """One for each of the networks that wants it, by name. No policy that is written has such a name."""
    return [_isolation(n) for n in sorted(networks, key=lambda n: n.name) if n.isolated and not n.switched and not n.router]


def _isolation(network: Network) -> Policy:
    everybody = Group(Selector((Requirement(NETWORK_LABEL, "In", (network.name,)),)))
    rule = PolicyRule("Deny", "isolated", groups=(everybody,))
    return Policy(f"network:{network.name}", "", "Baseline", everybody, ingress=(rule,), priority=LAST)


def governed(snapshot: Snapshot) -> bool:
    """Whether there may be anything to decide about a workload."""
    return bool(snapshot.policies or isolations(snapshot.networks.values()))
