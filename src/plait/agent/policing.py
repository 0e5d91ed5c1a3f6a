# SPDX-License-Identifier: Apache-2.0
"""Where policies select a container of this host whose packets the host does not see: named, never passed over in silence.

Data in: Snapshots, and whether bridges show the firewall what they switch. Data out: the condition `policy-unenforced`, by network.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from plait.backends import child_of, on_link
from plait.model.addr import IPAddress
from plait.model.cluster import Snapshot
from plait.policy.compile import Compiled
from plait.policy.isolation import governed
from plait.policy.workloads import workloads

UNENFORCED = "policy-unenforced"
_SHOWN = 5


def bridges_filter() -> bool:
    """Whether what a bridge of this namespace switches meets the rules for IPv4 (ip-sysctl, bridge-nf-call-iptables)."""
    try:
        return Path("/proc/sys/net/bridge/bridge-nf-call-iptables").read_text().strip() == "1"
    except OSError:
        return False


class Gaps:
    """Remembers what it found for as long as nothing that it is made of changes."""

    def __init__(self, compiled: Callable[[Snapshot], Compiled], filtering: Callable[[], bool] = bridges_filter) -> None:
        self._compiled, self._filtering = compiled, filtering
        self._seen: tuple[tuple[object, ...], bool] | None = None
        self._found: dict[str, str] = {}

    def texts(self, snapshot: Snapshot) -> dict[str, str]:
        """By network, what of it policies cannot reach here."""
        of = (snapshot.policies, snapshot.namespaces, snapshot.endpoints, snapshot.containers, snapshot.networks, snapshot.instances)
        filtering = self._filtering()
        if self._seen is None or self._seen[1] != filtering or any(a is not b for a, b in zip(of, self._seen[0], strict=True)):
            self._seen, self._found = (
                (of, filtering),
                _gaps(snapshot, self._compiled(snapshot).addresses, filtering) if governed(snapshot) else {},
            )
        return self._found


def _gaps(snapshot: Snapshot, selected: frozenset[IPAddress], filtering: bool) -> dict[str, str]:
    names: dict[str, set[str]] = {}
    reasons: dict[str, str] = {}
    for workload in workloads(snapshot):
        network = snapshot.networks.get(workload.network)
        if network is None or workload.node != snapshot.me or selected.isdisjoint(workload.addresses):
            continue
        if child_of(network) is not None:
            reasons[network.name] = "lies on a link of the host, by which its packets pass the host's rules by"
        elif not filtering and (on_link(network) or not workload.ident):
            reasons[network.name] = "is on a bridge, whose packets between its own containers pass the host's rules by (no br_netfilter)"
        else:
            continue
        names.setdefault(network.name, set()).add(workload.name)
    return {network: f"network {network} {reasons[network]}: {_listed(found)}" for network, found in names.items()}


def _listed(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
