# SPDX-License-Identifier: Apache-2.0
"""Published ports of other hosts, as containers of the same network find them where policies decide who may come, or go there.

What a container sends to another host leaves under its own host's address, and whoever publishes a port there could not tell who comes. So
this host leads what is for such a port to the container that stands behind it: the way that the container's own address goes, and judged
on it as by that, on both ends. It opens nothing: who is on the network may go there by the container's address anyway. Where no policy
looks, nothing depends on who comes, and packets keep the quicker ways on which nobody needs to see them twice.

Data in: a Snapshot, and what policies make of it. Data out: for each network a map of the ports of hosts, a chain that asks them when a
connection begins, and what must be tracked for it (as for backends of services, `plan/vips.py`). Publications for chosen clients alone are
left to their own host, and so is what it publishes by IPv6 or at other addresses than the one it is known by.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, ip_address, ip_network
from typing import cast

from plait.backends import backend_of
from plait.model.addr import IPNetwork, Protocol
from plait.model.cluster import Endpoint, Network, Snapshot
from plait.model.flows import PortRule, Target
from plait.model.objects import NFT_FAMILY, KernelObject, NftChain, NftSet, Op, Plan
from plait.plan.dual import V4
from plait.plan.flows import targets
from plait.plan.ports import ANY
from plait.plan.vipflows import end_of
from plait.plan.vips import Vips, place_type
from plait.policy.compile import Compiled
from plait.policy.isolation import governed

CHAIN, PREFIX, ENDS = "elsewhere", "elsewhere_", "elsewhere_ends"
_KEPT = (f"ip saddr . meta l4proto . th sport @{ENDS} accept", f"ip daddr . meta l4proto . th dport @{ENDS} accept")


def elsewhere(snapshot: Snapshot, policies: Compiled) -> Vips:
    """All of it, nothing while no policy selects whoever publishes ports, or sends."""
    if not governed(snapshot):
        return Vips()
    bound = {name for name, network in snapshot.networks.items() if any(one in network.subnet for one in policies.chosen["egress"])}
    leads: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for endpoint in snapshot.endpoints.values():
        if endpoint.ports and endpoint.node != snapshot.me and (endpoint.network in bound or policies.hears(endpoint.address)):
            leads[endpoint.network].update(_leads(snapshot, endpoint))
    found = {name: places for name, places in sorted(leads.items()) if places and _is_everywhere(snapshot.networks.get(name))}
    if not found:
        return Vips()
    ends = frozenset(end_of(place, target) for places in found.values() for place, target in places.items())
    rules = [f"ip saddr {snapshot.networks[name].subnet} dnat ip to ip daddr . meta l4proto . th dport map @{_map(name)}" for name in found]
    objects: list[KernelObject] = [
        *(
            NftSet(_map(name), f"{place_type(V4)} : ipv4_addr . inet_service", _elements(places), kind="map")
            for name, places in found.items()
        ),
        NftSet(ENDS, place_type(V4), ends),
        NftChain(CHAIN, tuple(rules), "type nat hook prerouting priority dstnat - 6; policy accept;"),
    ]
    return Vips(tuple(objects), {V4: ends}, _KEPT, networks=frozenset(found))


def _leads(snapshot: Snapshot, endpoint: Endpoint) -> dict[str, str]:
    """The container's address and port by that of its host."""
    node = snapshot.nodes.get(endpoint.node)
    if node is None or not isinstance(node.address, IPv4Address):
        return {}
    ports = [port for port in endpoint.ports if port.host_ip in (ANY, node.address) and not port.sources]
    return {f"{node.address} . {port.proto} . {port.host_port}": f"{endpoint.address} . {port.container_port}" for port in ports}


def _is_everywhere(network: Network | None) -> bool:
    """Whether its containers reach those of other hosts, by way of their own."""
    return network is not None and bool(backend_of(network).ways)


def _map(network: str) -> str:
    return f"{PREFIX}{hashlib.sha256(network.encode()).hexdigest()[:10]}"


def _elements(places: dict[str, str]) -> frozenset[str]:
    return frozenset(f"{place} : {target}" for place, target in places.items())


def led(ops: Iterable[Op], now: Plan) -> list[PortRule]:
    """A rule for each port of another host that leads elsewhere after operations on these maps (see `model.flows`). Not of TCP: whoever is
    connected stays so, whether by the host or past it, when a policy comes or goes. `now` has the chain, if there still is one."""
    chain = now.get(NftChain(CHAIN, ()).key)
    subnets = {rule.split("@")[1]: rule.split()[2] for rule in chain.rules} if isinstance(chain, NftChain) else {}
    rules: list[PortRule] = []
    for op in ops:
        if not isinstance(op.subject, NftSet) or op.subject.family != NFT_FAMILY or op.subject.kind != "map":
            continue
        name = op.subject.name
        if name.startswith(PREFIX):
            clients = (ip_network(subnets[name]),) if name in subnets else ()
            before, after = (targets(held.elements if isinstance(held, NftSet) else ()) for held in (op.old, op.new))
            rules += [rule for rule in _changed(before, after, clients) if rule.proto != "tcp"]
    return rules


def _changed(before: Mapping[str, Target], after: Mapping[str, Target], clients: tuple[IPNetwork, ...]) -> Iterator[PortRule]:
    for place in sorted(key for key in {*before, *after} if before.get(key) != after.get(key)):
        host, proto, port = place.split(" . ")
        was = frozenset([before[place]] if place in before else [])
        yield PortRule(cast(Protocol, proto), int(port), 4, ip_address(host), led=was, leads=after.get(place), sources=(clients,))
