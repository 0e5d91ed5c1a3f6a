# SPDX-License-Identifier: Apache-2.0
"""Published ports of other hosts, as containers of the same network find them where policies decide who may come, or go there.

What a container sends to another host leaves under its own host's address, and whoever publishes a port there could not tell who comes. So
this host leads what is for such a port to the container that stands behind it: the way that the container's own address goes, and judged
on it as by that, on both ends. It opens nothing: who is on the network may go there by the container's address anyway. Where no policy
looks, nothing depends on who comes, and packets keep the quicker ways on which nobody needs to see them twice.

Data in: a Snapshot, and what policies make of it. Data out: for each network and family a map of the ports of hosts, a chain that asks them
when a connection begins, and what must be tracked for it (as for backends of services, `plan/vips.py`). A publication for chosen clients
alone is left to its own host unless it is for this host, by all its addresses, as which containers come to it otherwise; and so is what
is published at addresses that a host does not tell others (`plan/asked.py`).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import cast

from plait.backends import backend_of
from plait.model.addr import IPAddress, IPNetwork, Protocol
from plait.model.cluster import Endpoint, Network, PortMapping, Snapshot
from plait.model.flows import PortRule, Target
from plait.model.objects import NFT_FAMILY, KernelObject, NftChain, NftSet, Op, Plan
from plait.plan.asked import asked_at
from plait.plan.dual import V4, V6, Family, families
from plait.plan.flows import targets
from plait.plan.ports import ANY
from plait.plan.vipflows import end_of
from plait.plan.vips import Vips, place_type
from plait.policy.compile import Compiled
from plait.policy.isolation import governed

CHAIN, PREFIX, ENDS = "elsewhere", "elsewhere_", "elsewhere_ends"


def elsewhere(snapshot: Snapshot, policies: Compiled) -> Vips:
    """All of it, nothing while no policy selects whoever publishes ports, or sends."""
    leads = _all_leads(snapshot, policies) if governed(snapshot) else {}
    if not leads:
        return Vips()
    ends: defaultdict[Family, set[str]] = defaultdict(set)
    for (family, _), places in leads.items():
        ends[family].update(end_of(place, target) for place, target in places.items())
    rules = [_rule(family, snapshot.networks[name]) for family, name in leads]
    objects: list[KernelObject] = [
        *(NftSet(_map(*key), f"{place_type(key[0])} : {key[0].type} . inet_service", _elements(p), kind="map") for key, p in leads.items()),
        *(NftSet(f"{ENDS}{family.end}", place_type(family), frozenset(found)) for family, found in ends.items()),
        NftChain(CHAIN, tuple(rules), "type nat hook prerouting priority dstnat - 6; policy accept;"),
    ]
    kept = tuple(rule for family in ends for rule in _kept(family))
    shown = frozenset(name for family, name in leads if family is V4)  # the shortcut has nothing of IPv6
    return Vips(tuple(objects), {f: frozenset(found) for f, found in ends.items()}, kept, networks=shown)


def _all_leads(snapshot: Snapshot, policies: Compiled) -> dict[tuple[Family, str], dict[str, str]]:
    """By family and network, in their order: what each address and port of another host leads to."""
    bound = {name for name, network in snapshot.networks.items() if any(one in network.subnet for one in policies.chosen["egress"])}
    hosts, mine, leads = asked_at(snapshot), _own(snapshot), defaultdict[tuple[Family, str], dict[str, str]](dict)
    for endpoint in snapshot.endpoints.values():
        network = snapshot.networks.get(endpoint.network)
        if network is None or not endpoint.ports or endpoint.node not in hosts or not _is_everywhere(network):
            continue
        if network.name in bound or policies.hears(endpoint.address):
            for family in families([network]):
                leads[family, network.name].update(_leads(family, endpoint, hosts[endpoint.node], mine[family]))
    return {key: leads[key] for key in sorted(leads, key=lambda key: (key[1], key[0].end)) if leads[key]}


def _own(snapshot: Snapshot) -> dict[Family, list[IPAddress]]:
    """This host's addresses."""
    me = snapshot.nodes.get(snapshot.me)
    found = (me.address, *me.further) if me is not None else ()
    return {family: [address for address in found if address.version == family.anywhere.version] for family in (V4, V6)}


def _leads(family: Family, endpoint: Endpoint, hosts: Iterable[IPAddress], mine: Sequence[IPAddress]) -> Iterator[tuple[str, str]]:
    """The container's address and port by those of its host, of ports that are for a host with the addresses `mine`."""
    address = family.address(endpoint)
    for host in hosts if address is not None else ():
        if host.version == family.anywhere.version:
            for port in endpoint.ports:
                if port.host_ip in (ANY, family.anywhere, host) and _is_for(port, mine):
                    yield f"{host} . {port.proto} . {port.host_port}", f"{address} . {port.container_port}"


def _is_for(port: PortMapping, clients: Sequence[IPAddress]) -> bool:
    if not port.sources:
        return True
    return bool(clients) and all(any(client in source for source in port.sources) for client in clients)


def _rule(family: Family, network: Network) -> str:
    ip, sent = family.ip, f"{family.ip} daddr . meta l4proto . th dport"
    return f"{ip} saddr {family.subnet(network)} dnat {ip} to {sent} map @{_map(family, network.name)}"


def _kept(family: Family) -> tuple[str, str]:
    ip, ends = family.ip, f"@{ENDS}{family.end}"
    return f"{ip} saddr . meta l4proto . th sport {ends} accept", f"{ip} daddr . meta l4proto . th dport {ends} accept"


def _is_everywhere(network: Network) -> bool:
    """Whether its containers reach those of other hosts, by way of their own."""
    return bool(backend_of(network).ways)


def _map(family: Family, network: str) -> str:
    return f"{PREFIX}{hashlib.sha256(network.encode()).hexdigest()[:10]}{family.end}"


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
        yield PortRule(
            cast(Protocol, proto),
            int(port),
            ip_address(host).version,
            ip_address(host),
            led=was,
            leads=after.get(place),
            sources=(clients,),
        )
