# SPDX-License-Identifier: Apache-2.0
"""The limits of this node's endpoints as kernel objects, and what must not go round them.

The bucket of what comes to a container is on the host side of its link: what is forwarded from device to device (`fastpath.py`) goes
through it, what goes straight into the container (`shortcut.py`) does not. What the container sends is led through the other bucket by
the last rule of the chain of its link (`entrance.py`), or, where there is none or no such rule, before the chain by a filter of tc.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from plait.backends import child_of
from plait.model.cluster import Endpoint, Network, Node
from plait.model.limits import NORMAL, Limits
from plait.model.objects import KernelObject
from plait.plan.exposed import HOST
from plait.plan.paths import network_mtu
from plait.plan.portlimits import sorting_rules
from plait.plan.shortcut import FastPath
from plait.shaping import Limiting, counted_objects, counted_rules, led_away, limit_objects, mark_rules


def limitable(network: Network, runtime: str) -> bool:
    """Whether endpoints of the network have a side on the host that can hold them back. One that is a link on a link of the host has none,
    and the host's own address is no link at all."""
    child = child_of(network)
    return runtime != HOST and (child is None or child.kind == "veth")


def endpoint_limits(me: Node, network: Network, endpoint: Endpoint, limiting: Limiting) -> list[KernelObject]:
    """All that holds one endpoint to its limits but the rules of its link's chain, in the order in which it can be made, after its link.
    `me` as `paths.member` says."""
    if not limitable(network, endpoint.runtime):
        return []
    by_rule = limiting.means.by_rule and has_chain(network)
    queued = limiting.queues_of(endpoint) if has_chain(network) else {}
    return limit_objects(endpoint.dev, network_mtu(me, network), limiting.of(endpoint, network), by_rule, queued)


def has_chain(network: Network) -> bool:
    """Whether the links of its endpoints have chains of ours: ports of somebody else's switch have none."""
    return child_of(network) is None


def limit_rules(network: Network, endpoint: Endpoint, limiting: Limiting) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Rules of the chain of the endpoint's link by which it is held to its limits: such as drop what is too much and mark the
    rest, and such behind which nothing has its packets any more."""
    if not has_chain(network):
        return (), ()
    limits = limiting.of(endpoint, network)
    ips = ("ip", "ip6") if endpoint.address6 is not None else ("ip",)
    marks = mark_rules(limits.priority or NORMAL, limiting.honours, ips)
    if "out" in limiting.queues_of(endpoint):
        marks = (*marks, *sorting_rules(ips))
    elif limits.outgoing is None or not limiting.means.by_rule:
        return (*counted_rules(limits, "out"), *marks), ()
    return (*counted_rules(limits, "out"), *marks), led_away(endpoint.dev)


def counts_objects(endpoints: Iterable[Endpoint], networks: Mapping[str, Network], limiting: Limiting) -> list[KernelObject]:
    """What holds these endpoints to numbers a second besides the rules of their links' chains."""
    own = (endpoint for endpoint in endpoints if has_chain(networks[endpoint.network]))
    return counted_objects((endpoint.dev, limiting.of(endpoint, networks[endpoint.network])) for endpoint in own)


def not_held_back(endpoints: Iterable[Endpoint], networks: Mapping[str, Network], limiting: Limiting) -> list[Endpoint]:
    """Those of `endpoints` that packets may go straight into."""
    return [endpoint for endpoint in endpoints if not _judged_on_entry(limiting.of(endpoint, networks[endpoint.network]))]


def way_of(limits: Limits, has: FastPath) -> FastPath:
    """What of the fast path an endpoint with these limits may take, of what its host has."""
    return replace(has, link="") if _judged_on_entry(limits) else has


def _judged_on_entry(limits: Limits) -> bool:
    """Whether what comes to the container must pass the host side of its link."""
    return any(word == "in" or word.endswith("-in") for word in limits.words())
