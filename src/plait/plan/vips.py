# SPDX-License-Identifier: Apache-2.0
"""Virtual addresses of services in the table `inet plait`: where a connection to one leads.

Data in: a Snapshot. Data out: maps and a few chains. `vips` leads an address and port to the chain for the number of slots that the service
has, which draws one (at random, or by the client's address); the chain of that slot looks up where its map leads the same address and port.
So there are as many chains as one service has slots at most, a packet costs three look-ups whatever the number of services, and only the
first of a connection pays: conntrack knows the rest. A backend more or less is a few elements. (One map with the drawn number in its key
would do, had numbers a type: by `typeof` nft 1.0.6 loads such a map once, and refuses to change it.)

Ports of hosts that lead to services are a second table of the same form (`vip_hosts`). There a host's own containers come first, which see
the client's address; one on another host sees this host's.

Addresses are translated on the client's host, so packets between hosts are those of a connection to the backend itself, and policies are
judged there by the client's own address. What comes back must be seen by that host: answers of backends (`vip_ends`), to whom this host
answers for (`vip_own`), are tracked, and take no fast path there (`plan/fastpath.py`). So are connections to the backends' own addresses,
because answers do not tell which of the two they belong to, and conntrack must see both directions or none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from typing import NamedTuple

from plait.backends import child_of
from plait.model.cluster import Network, Node, Snapshot
from plait.model.objects import GATEWAY_LINK, KernelObject, NftChain, NftSet, Route
from plait.model.service import VIP_POOL, Service, ServicePort
from plait.plan.backing import Backend, chosen, slots
from plait.policy.isolation import governed

ENDS, OWN, SELF, NODES = "vip_ends", "vip_own", "vip_self", "vip_nodes"
PLACE, _SERVICE = "ipv4_addr . inet_proto . inet_service", "inet_proto . inet_service"
_TO = "ip daddr . meta l4proto . th dport"


class Table(NamedTuple):
    """What is looked up (`to`, elements of `type`), in the map `places` and the maps that begin with `slot`; `draw`: what the names of
    chains that draw begin with."""

    places: str
    slot: str
    draw: str
    type: str
    to: str


VIRTUAL = Table("vips", "vip_slot", "vip_", PLACE, _TO)
PUBLISHED = Table("vip_hosts", "vip_hostslot", "vip_host", _SERVICE, "meta l4proto . th dport")
TABLES = (VIRTUAL, PUBLISHED)
CAPABILITY = "draw"
"""What the kernel must be able to do (`kernel.api.Kernel.capabilities`): to a kernel that is not, the rules would take the whole table with
them."""
_AT_HAND = 8
"""So many slots can be drawn from at once: to make or remove a chain takes the kernel 7-20 ms, to change elements a fraction of one."""
KEPT = (f"ip saddr . meta l4proto . th sport @{ENDS} ip daddr @{OWN} accept", f"{_TO} @{ENDS} ip saddr @{OWN} accept")
"""Rules of a chain that would leave packets inside one network untracked: these not."""
_LOST = (
    f'ip daddr {VIP_POOL} oifname "{GATEWAY_LINK}" meta l4proto tcp reject with tcp reset',
    f'ip daddr {VIP_POOL} oifname "{GATEWAY_LINK}" reject with icmp port-unreachable',
)
"""What nobody stands for is refused at once."""
_BEYOND = f"ip saddr @pools ip daddr @{NODES} {PUBLISHED.to} vmap @{PUBLISHED.places}"
"""What a container sends to a port of another host."""
_APART = f"ct direction original ct original ip daddr {VIP_POOL} ip saddr @pools ip saddr . ip daddr != @same"


@dataclass(frozen=True, slots=True)
class Vips:
    """`ends`: elements of the set of that name, for the fast path, which has one of its own. `kept`: see `KEPT`. `here`: addresses of own
    containers that stand for services. `networks` that have services."""

    objects: tuple[KernelObject, ...] = ()
    ends: frozenset[str] = frozenset()
    kept: tuple[str, ...] = ()
    here: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()

    def __add__(self, other: Vips) -> Vips:
        """What both want."""
        kept, here, networks = self.kept + other.kept, self.here | other.here, self.networks | other.networks
        return Vips(self.objects + other.objects, self.ends | other.ends, kept, here, networks)


def ends_set(ends: Collection[str], family: str = "inet") -> NftSet:
    """Addresses and ports of backends, in the table of that family."""
    return NftSet(ENDS, PLACE, frozenset(ends), family=family)


@dataclass(frozen=True, slots=True)
class Entries:
    """What some services make elements of: `elements` by the name of their set or map, and `draws`, how many slots of which table are drawn
    from, each at random or (True) by the client's address."""

    elements: frozenset[tuple[str, str]] = frozenset()
    draws: frozenset[tuple[Table, int, bool]] = frozenset()


def entries_of(service: Service, backends: Sequence[Backend], me: str, silent: frozenset[str]) -> Entries:
    """Of one service on the node `me`. `silent`: lost nodes whose hosts do not answer."""
    elements = {(SELF, f"{backend.address} . {backend.address}") for backend in backends if backend.node == me}
    draws: set[tuple[Table, int, bool]] = set()
    for port in service.ports:
        ways = [(VIRTUAL, f"{service.address} . {port.proto} . {port.port}", service)]
        if port.published and (not service.hosts or me in service.hosts):
            ways.append((PUBLISHED, f"{port.proto} . {port.published}", replace(service, local_first=True)))
        for table, place, asked in ways:
            leads = slots(service, chosen(asked, backends, me))
            elements |= {(f"{table.slot}{number}", f"{place} : {address} . {port.target}") for number, address in enumerate(leads)}
            elements.add((table.places, f"{place} : {f'goto {_draw_name(table, len(leads), service.affinity)}' if leads else 'accept'}"))
            draws |= {(table, len(leads), service.affinity)} if leads else set()
        elements |= {(ENDS, f"{one.address} . {port.proto} . {port.target}") for one in backends if _lives_on(port, one, silent)}
    return Entries(frozenset(elements), frozenset(draws))


def _lives_on(port: ServicePort, backend: Backend, silent: frozenset[str]) -> bool:
    """Whether connections of before go on. Of UDP, a client that never ends would never get away from a backend that is not well."""
    if backend.state == "away" and backend.node in silent:
        return False
    return port.proto != "udp" or backend.state in ("ready", "draining")


def declared(name: str) -> NftSet:
    """The set or map of that name, empty."""
    for table in TABLES:
        if name == table.places:
            return NftSet(name, f"{table.type} : verdict", frozenset(), kind="map")
        if name.startswith(table.slot):
            return NftSet(name, f"{table.type} : ipv4_addr . inet_service", frozenset(), kind="map")
    return NftSet(name, PLACE if name == ENDS else "ipv4_addr . ipv4_addr", frozenset())


def vip_objects(
    snapshot: Snapshot, own: NftSet, me: Node, sets: Mapping[str, NftSet], draws: Iterable[tuple[Table, int, bool]], guarded: bool
) -> Vips:
    """All of it but `networks`: `own` is `own_set`, `sets` are those that have elements, by name. `guarded`: the set `clients` says who may
    come to published ports."""
    drawn = list(draws)
    objects: list[KernelObject] = [
        *(obj for table in TABLES for obj in _table(table, sets, [one[1:] for one in drawn if one[0] is table])),
        sets.get(ENDS, declared(ENDS)),
        own,
        sets.get(SELF, declared(SELF)),
        *_hooks(guarded, me, governed(snapshot)),
        *([NftSet(NODES, "ipv4_addr", _others(snapshot))] if governed(snapshot) else []),
        *([Route(VIP_POOL, GATEWAY_LINK, src=me.tunnel, scope="link")] if me.tunnel is not None else []),
    ]
    here = frozenset(pair.partition(" ")[0] for pair in sets.get(SELF, declared(SELF)).elements)
    return Vips(tuple(objects), sets.get(ENDS, declared(ENDS)).elements, KEPT, here)


def _table(table: Table, sets: Mapping[str, NftSet], draws: Collection[tuple[int, bool]]) -> Iterator[KernelObject]:
    at_hand = _AT_HAND if table.places in sets else 0
    yield sets.get(table.places, declared(table.places))
    for number in range(max([at_hand, *(drawn for drawn, _ in draws)])):
        name = f"{table.slot}{number}"
        yield sets.get(name, declared(name))
        yield NftChain(name, (f"dnat ip to {table.to} map @{name}",))
    for number, affinity in sorted({*((last + 1, False) for last in range(at_hand)), *draws}):
        drawn_by = f"jhash ip saddr mod {number} seed 0x1" if affinity else f"numgen random mod {number}"
        leads = ", ".join(f"{slot} : goto {table.slot}{slot}" for slot in range(number))
        yield NftChain(_draw_name(table, number, affinity), (f"{drawn_by} vmap {{ {leads} }}",))


def _hooks(guarded: bool, me: Node, judged: bool) -> Iterator[NftChain]:
    """A backend that comes back to itself, and one on another host that somebody outside the cluster is led to by this host's address,
    answer to this host: their answers would not come by it otherwise. Where a plain route leads to that host (`direct`) it must be the
    host's address inside the cluster: others are refused there, as whoever has none.

    While there are policies (`judged`), by another host's port this host's containers are led from here, under their own address; those of
    other networks, whom nobody would answer across, under this host's."""
    virtual, hosts = f"{VIRTUAL.to} vmap @{VIRTUAL.places}", f"fib daddr type local {PUBLISHED.to} vmap @{PUBLISHED.places}"
    yield NftChain(
        "vip_in",
        (
            virtual,
            *(["ip saddr != @clients return"] if guarded else []),
            hosts,
            *([_BEYOND] if judged else []),
        ),
        "type nat hook prerouting priority dstnat - 5; policy accept;",
    )
    yield NftChain("vip_out", (virtual, f"ip daddr != 127.0.0.0/8 {hosts}"), "type nat hook output priority -105; policy accept;")
    led = f"ct status dnat ip saddr != @pools ip daddr @pools ip daddr != @{OWN}"
    plain = [f'{led} oifname != "pl-*" snat ip to {me.tunnel}'] if me.tunnel is not None else []
    across = f"ct status dnat ct original ip daddr @{NODES} ip saddr @pools ip saddr . ip daddr != @same ip daddr != @{OWN}"
    plain += [f"{across} snat ip to {me.tunnel}"] if judged and me.tunnel is not None else []
    back = (f"ct status dnat ip saddr . ip daddr @{SELF} masquerade", *plain, f"{led} masquerade")
    yield NftChain("vip_back", back, "type nat hook postrouting priority srcnat - 5; policy accept;")
    apart = (f"{_APART} meta l4proto tcp reject with tcp reset", f"{_APART} reject with icmp port-unreachable")
    begun = "ct state established,related,untracked accept"
    yield NftChain("vip_through", (begun, *apart, *_LOST), "type filter hook forward priority -15; policy accept;")
    yield NftChain("vip_sent", _LOST, "type filter hook output priority -15; policy accept;")


def _draw_name(table: Table, number: int, affinity: bool) -> str:
    return f"{table.draw}{'client' if affinity else 'random'}{number}"


def own_set(snapshot: Snapshot, me: Node) -> NftSet:
    """Whom this host answers for: its blocks, what it has of others', itself."""
    routed = {name for name, network in snapshot.networks.items() if _is_routed(network)}
    found = [block.cidr for block in snapshot.blocks.values() if block.node == me.name and block.network in routed]
    found += [IPv4Network(one.address) for one in snapshot.endpoints.values() if one.node == me.name and one.network in routed]
    found += [IPv4Network(me.tunnel)] if me.tunnel is not None else []
    return NftSet(OWN, "ipv4_addr", frozenset(str(one).removesuffix("/32") for one in collapse_addresses(found)), ("interval",))


def _others(snapshot: Snapshot) -> frozenset[str]:
    """Addresses of the other hosts."""
    found = (node.address for name, node in snapshot.nodes.items() if name != snapshot.me)
    return frozenset(str(address) for address in found if isinstance(address, IPv4Address))


def _is_routed(network: Network) -> bool:
    return child_of(network) is None
