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

Of IPv6, which services on networks with it have too, all this is there once more, under names with a 6. Without such a service it is not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import collapse_addresses, ip_network
from typing import NamedTuple

from plait.backends import child_of
from plait.ipam import image_block
from plait.model.addr import IPAddress
from plait.model.cluster import Network, Node, Snapshot
from plait.model.objects import GATEWAY_LINK, KernelObject, NftChain, NftSet, Route
from plait.model.service import Service, ServicePort
from plait.plan.asked import asked_at
from plait.plan.backing import Backend, chosen, slots
from plait.plan.dual import V4, V6, Family
from plait.policy.isolation import governed

ENDS, OWN, SELF, NODES = "vip_ends", "vip_own", "vip_self", "vip_nodes"
"""Sets of IPv4; the names of those of IPv6 end in `V6.end`."""
_SERVICE, _PORT = "inet_proto . inet_service", "meta l4proto . th dport"


class Table(NamedTuple):
    """What is looked up (`to`, elements of `type`), in the map `places` and the maps that begin with `slot`; `draw`: what the names of
    chains that draw begin with."""

    family: Family
    places: str
    slot: str
    draw: str
    type: str
    to: str


def place_type(family: Family) -> str:
    """Address, protocol and port."""
    return f"{family.type} . {_SERVICE}"


def _place(family: Family) -> str:
    """Where a packet goes."""
    return f"{family.ip} daddr . {_PORT}"


_BOTH = (V4, V6)
VIRTUAL = {f: Table(f, f"vips{f.end}", f"vip{f.end}_slot", f"vip{f.end}_", place_type(f), _place(f)) for f in _BOTH}
PUBLISHED = {f: Table(f, f"vip_hosts{f.end}", f"vip{f.end}_hostslot", f"vip{f.end}_host", _SERVICE, _PORT) for f in _BOTH}
TABLES = tuple(tables[family] for family in _BOTH for tables in (VIRTUAL, PUBLISHED))
CAPABILITY = "draw"
"""What the kernel must be able to do (`kernel.api.Kernel.capabilities`): to a kernel that is not, the rules would take the whole table with
them."""
_AT_HAND = 8
"""So many slots can be drawn from at once: to make or remove a chain takes the kernel 7-20 ms, to change elements a fraction of one."""


def _kept(f: Family) -> tuple[str, str]:
    """Rules of a chain that would leave packets inside one network untracked: these not."""
    ends, own = f"@{ENDS}{f.end}", f"@{OWN}{f.end}"
    return f"{f.ip} saddr . meta l4proto . th sport {ends} {f.ip} daddr {own} accept", f"{_place(f)} {ends} {f.ip} saddr {own} accept"


def _refused(family: Family, which: str) -> tuple[str, str]:
    """At once."""
    return f"{which} meta l4proto tcp reject with tcp reset", f"{which} reject with {family.error} port-unreachable"


def _lost(family: Family) -> tuple[str, str]:
    """What nobody stands for."""
    return _refused(family, f'{family.ip} daddr {family.vips} oifname "{GATEWAY_LINK}"')


@dataclass(frozen=True, slots=True)
class Vips:
    """`ends`: elements of the sets of that name, for the fast path, which has its own; of the families that have any. `kept`: see `_kept`.
    `here`: IPv4 addresses of own containers that stand for services. `networks` that have services."""

    objects: tuple[KernelObject, ...] = ()
    ends: Mapping[Family, frozenset[str]] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    here: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()

    def __add__(self, other: Vips) -> Vips:
        """What both want."""
        kept, here, networks = self.kept + other.kept, self.here | other.here, self.networks | other.networks
        ends = {f: self.ends.get(f, frozenset()) | other.ends.get(f, frozenset()) for f in _BOTH if f in self.ends or f in other.ends}
        return Vips(self.objects + other.objects, ends, kept, here, networks)


def ends_sets(ends: Mapping[Family, Collection[str]], table: str) -> list[NftSet]:
    """Addresses and ports of backends, in the nft table of that family."""
    return [NftSet(f"{ENDS}{family.end}", place_type(family), frozenset(found), family=table) for family, found in ends.items()]


@dataclass(frozen=True, slots=True)
class Entries:
    """What some services make elements of: `elements` by the name of their set or map, and `draws`, how many slots of which table are drawn
    from, each at random or (True) by the client's address."""

    elements: frozenset[tuple[str, str]] = frozenset()
    draws: frozenset[tuple[Table, int, bool]] = frozenset()


def entries_of(service: Service, network: Network, backends: Sequence[Backend], me: str, silent: frozenset[str]) -> Entries:
    """Of one service, which is on `network`, on the node `me`. `silent`: lost nodes whose hosts do not answer."""
    elements: set[tuple[str, str]] = set()
    draws: set[tuple[Table, int, bool]] = set()
    for family in _BOTH:
        vip = family.vip(service, network)
        found = {one: address for one in backends if (address := family.address(one)) is not None} if vip is not None else {}
        elements |= {(f"{SELF}{family.end}", f"{address} . {address}") for one, address in found.items() if one.node == me}
        for port in service.ports if vip is not None else ():
            for table, place, asked in _ways(service, port, me, family, f"{vip}"):
                leads = _leads(asked, found, me)
                elements |= {(f"{table.slot}{number}", f"{place} : {address} . {port.target}") for number, address in enumerate(leads)}
                led = f"goto {_draw_name(table, len(leads), service.affinity)}" if leads else "accept"
                elements.add((table.places, f"{place} : {led}"))
                draws |= {(table, len(leads), service.affinity)} if leads else set()
            ends = (address for one, address in found.items() if _lives_on(port, one, silent))
            elements |= {(f"{ENDS}{family.end}", f"{address} . {port.proto} . {port.target}") for address in ends}
    return Entries(frozenset(elements), frozenset(draws))


def _ways(service: Service, port: ServicePort, me: str, family: Family, vip: str) -> Iterator[tuple[Table, str, Service]]:
    """In which tables the port is, at which place, and as what kind of service."""
    yield VIRTUAL[family], f"{vip} . {port.proto} . {port.port}", service
    if port.published and (not service.hosts or me in service.hosts):
        yield PUBLISHED[family], f"{port.proto} . {port.published}", replace(service, local_first=True)


def _leads(service: Service, backends: Mapping[Backend, IPAddress], me: str) -> list[IPAddress]:
    """Whom each slot leads to: in both families the same ones."""
    by_address = {one.address: address for one, address in backends.items()}
    return [by_address[one] for one in slots(service, chosen(service, backends, me))]


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
            return NftSet(name, f"{table.type} : {table.family.type} . inet_service", frozenset(), kind="map")
    family = V6 if name.endswith(V6.end) else V4
    return NftSet(name, place_type(family) if name.startswith(ENDS) else f"{family.type} . {family.type}", frozenset())


def vip_objects(
    snapshot: Snapshot,
    own: Mapping[Family, NftSet],
    me: Node,
    sets: Mapping[str, NftSet],
    draws: Iterable[tuple[Table, int, bool]],
    guarded: bool,
) -> Vips:
    """All of it but `networks`: `own` is `own_set` of each family that there is, `sets` are those that have elements, by name. `guarded`:
    the sets `clients` say who may come to published ports."""
    drawn, judged = list(draws), governed(snapshot)
    objects: list[KernelObject] = []
    for family in own:
        for table in (VIRTUAL[family], PUBLISHED[family]):
            objects += _table(table, sets, [one[1:] for one in drawn if one[0] is table])
        objects += [_held(sets, ENDS, family), own[family], _held(sets, SELF, family)]
    objects += _hooks(list(own), guarded, me, judged)
    objects += [NftSet(f"{NODES}{f.end}", f.type, _others(snapshot, f)) for f in own if judged and _is_known_by(f, me)]
    if me.tunnel is not None:
        objects += [Route(f.vips, GATEWAY_LINK, src=f.tunnel(me), scope="link" if f is V4 else "global") for f in own]
    here = frozenset(pair.partition(" ")[0] for pair in _held(sets, SELF, V4).elements)
    ends = {family: found for family in own if (found := _held(sets, ENDS, family).elements)}
    return Vips(tuple(objects), ends, tuple(rule for family in own for rule in _kept(family)), here)


def _held(sets: Mapping[str, NftSet], name: str, family: Family) -> NftSet:
    return sets.get(f"{name}{family.end}", declared(f"{name}{family.end}"))


def _table(table: Table, sets: Mapping[str, NftSet], draws: Collection[tuple[int, bool]]) -> Iterator[KernelObject]:
    at_hand, ip = _AT_HAND if table.places in sets else 0, table.family.ip
    yield sets.get(table.places, declared(table.places))
    for number in range(max([at_hand, *(drawn for drawn, _ in draws)])):
        name = f"{table.slot}{number}"
        yield sets.get(name, declared(name))
        yield NftChain(name, (f"dnat {ip} to {table.to} map @{name}",))
    for number, affinity in sorted({*((last + 1, False) for last in range(at_hand)), *draws}):
        drawn_by = f"jhash {ip} saddr mod {number} seed 0x1" if affinity else f"numgen random mod {number}"
        leads = ", ".join(f"{slot} : goto {table.slot}{slot}" for slot in range(number))
        yield NftChain(_draw_name(table, number, affinity), (f"{drawn_by} vmap {{ {leads} }}",))


def _hooks(present: Sequence[Family], guarded: bool, me: Node, judged: bool) -> Iterator[NftChain]:
    """IPv6 comes first where a host's port is looked up: whoever asks for both families asks by the port alone.

    While there are policies (`judged`), by another host's port this host's containers are led from here, under their own address; those of
    other networks, whom nobody would answer across, under this host's."""
    virtual = tuple(_led_by(VIRTUAL[family]) for family in present)
    known = [f"{family.ip} saddr != @clients{family.end} return" for family in present] if guarded else []
    hosts = [_led_by(PUBLISHED[family]) for family in reversed(present)]
    beyond = [family for family in present if judged and _is_known_by(family, me)]
    sent = [f"{f.ip} saddr @pools{f.end} {f.ip} daddr @{NODES}{f.end} {PUBLISHED[f].to} vmap @{PUBLISHED[f].places}" for f in beyond]
    yield NftChain("vip_in", (*virtual, *known, *hosts, *sent), "type nat hook prerouting priority dstnat - 5; policy accept;")
    local = (*hosts[:-1], f"ip daddr != 127.0.0.0/8 {hosts[-1]}")
    yield NftChain("vip_out", (*virtual, *local), "type nat hook output priority -105; policy accept;")
    back = [rule for family in present for rule in _back(family, me, family in beyond)]
    yield NftChain("vip_back", tuple(back), "type nat hook postrouting priority srcnat - 5; policy accept;")
    begun = "ct state established,related,untracked accept"
    lost = [rule for family in present for rule in _lost(family)]
    apart = [rule for family in present for rule in _refused(family, _apart(family))]
    yield NftChain("vip_through", (begun, *apart, *lost), "type filter hook forward priority -15; policy accept;")
    yield NftChain("vip_sent", tuple(lost), "type filter hook output priority -15; policy accept;")


def _led_by(table: Table) -> str:
    where = "" if table.type != _SERVICE else "fib daddr type local " if table.family is V4 else "ip6 daddr != ::1 fib daddr type local "
    return f"{where}{table.to} vmap @{table.places}"


def _apart(f: Family) -> str:
    return f"ct direction original ct original {f.ip} daddr {f.vips} {f.ip} saddr @pools{f.end} {f.ip} saddr . {f.ip} daddr != @same{f.end}"


def _back(f: Family, me: Node, beyond: bool) -> Iterator[str]:
    """A backend that comes back to itself, and one on another host that somebody outside the cluster is led to by this host's address,
    answer to this host: their answers would not come by it otherwise. Where a plain route leads to that host (`direct`) it must be the
    host's address inside the cluster: others are refused there, as whoever has none. By IPv6 that is always named: what the kernel would
    choose may be a gateway's, which every host has. The encrypted tunnel carries nothing of a host but under its address there."""
    ip, pools, own, mine = f.ip, f"@pools{f.end}", f"@{OWN}{f.end}", f.tunnel(me)
    as_host = "masquerade" if f is V4 else f"snat ip6 to {mine}"
    yield f"ct status dnat {ip} saddr . {ip} daddr @{SELF}{f.end} {as_host}"
    led = f"ct status dnat {ip} saddr != {pools} {ip} daddr {pools} {ip} daddr != {own}"
    if f is V4 and mine is not None:
        yield f'{led} oifname != "pl-*" snat ip to {mine}'
    if beyond and mine is not None:
        across = f"ct status dnat ct original {ip} daddr @{NODES}{f.end} {ip} saddr {pools} {ip} saddr . {ip} daddr != @same{f.end}"
        yield f"{across} {ip} daddr != {own} snat {ip} to {mine}"
    if f.encrypted(me) is not None and mine is not None:
        whose = f"ct status dnat ip saddr {mine}" if f is V4 else led
        yield f'{whose} oifname "pl-wg*" snat {ip} to {f.encrypted(me)}'
    yield f"{led} {as_host}"


def _draw_name(table: Table, number: int, affinity: bool) -> str:
    return f"{table.draw}{'client' if affinity else 'random'}{number}"


def own_set(snapshot: Snapshot, me: Node, family: Family) -> NftSet:
    """Whom this host answers for: its blocks, what it has of others', itself."""
    routed = {name: network for name, network in snapshot.networks.items() if child_of(network) is None}
    blocks = [block for block in snapshot.blocks.values() if block.node == me.name and block.network in routed]
    found = [block.cidr if family is V4 else image_block(routed[block.network], block.cidr) for block in blocks]
    single = [family.address(one) for one in snapshot.endpoints.values() if one.node == me.name and one.network in routed]
    single += [family.tunnel(me), *([family.encrypted(me)] if family is V6 else [])]
    found += [ip_network(one) for one in single if one is not None]
    whole = collapse_addresses(one for one in found if one is not None)  # type: ignore[type-var]
    length = f"/{family.anywhere.max_prefixlen}"
    return NftSet(f"{OWN}{family.end}", family.type, frozenset(str(one).removesuffix(length) for one in whole), ("interval",))


def _others(snapshot: Snapshot, family: Family) -> frozenset[str]:
    """Addresses of the other hosts."""
    version = family.anywhere.version
    return frozenset(str(address) for found in asked_at(snapshot).values() for address in found if address.version == version)


def _is_known_by(family: Family, me: Node) -> bool:
    """Whether hosts have addresses of it, by this one."""
    return any(address.version == family.anywhere.version for address in (me.address, *me.further))
