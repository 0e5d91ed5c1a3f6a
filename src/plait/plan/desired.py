# SPDX-License-Identifier: Apache-2.0
"""Snapshot + Local -> {key: KernelObject}: everything that this node's kernel should hold for plait.

Data in: the replicated cluster merged with this node's own truth, and a few local facts. Data out: links, addresses, routes,
neighbours, FDB rows, sysctls and the nft table (see `firewall.py`). Deterministic: equal input gives equal output.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface

from plait.backends import DIRECT, LAST_METRIC, LEAST_MTU6, Child, Peer, backend_of, child_of, on_link
from plait.ipam import image, image_block
from plait.model.addr import IPAddress, mac_from_digest
from plait.model.cluster import GATEWAY_META, Block, Endpoint, Network, Node, Snapshot
from plait.model.hostlinks import ChildLink, SwitchPort
from plait.model.leases import Leased
from plait.model.objects import (
    GATEWAY_LINK,
    NFT_FAST_FAMILY,
    PREFIX,
    Addr,
    BridgeLink,
    EndpointLink,
    Fdb,
    KernelObject,
    Plan,
    Route,
    Sysctl,
    VxlanLink,
)
from plait.plan.dual import endpoint6_objects, families, gateways6, inside6
from plait.plan.early import early_objects
from plait.plan.egress import egress_objects
from plait.plan.elsewhere import elsewhere
from plait.plan.exposed import HOST, exposed_here, host_objects, spoken
from plait.plan.firewall import direct_objects, firewall_objects, handed_objects, relay_objects
from plait.plan.guard import CHILDREN, PORTS, child_guard, own_addresses, port_guard
from plait.plan.hostlease import host_lease_objects
from plait.plan.limits import endpoint_limits
from plait.plan.local import Local
from plait.plan.narrow import narrow_objects
from plait.plan.outside import outside_objects
from plait.plan.paths import member, network_mtu, probe_objects
from plait.plan.portlimits import port_limit_objects
from plait.plan.strict import loosened
from plait.plan.switching import switched_objects
from plait.plan.vips import Vips, ends_sets
from plait.plan.wires import Lying, at_parents, wire_objects
from plait.policy.compile import Compiled

EVERYWHERE = IPv4Network("0.0.0.0/0")


def carried(snapshot: Snapshot, network: Network, ipv6: bool) -> Network:
    """The network as this node can carry it: without IPv6 if the kernel has none (`ipv6`) or the underlay leaves too little room."""
    if network.subnet6 is None or (ipv6 and network_mtu(member(snapshot, network), network) >= LEAST_MTU6):
        return network
    return replace(network, subnet6=None, gateway6=None)


def plan_node(snapshot: Snapshot, local: Local) -> Plan:
    """The whole desired state of node `snapshot.me`; empty while that node is not part of the cluster."""
    me = snapshot.nodes.get(snapshot.me)
    if me is None:
        return {}
    routed = [n for n in snapshot.networks.values() if child_of(n) is None]
    shared, every = snapshot, snapshot.networks
    snapshot = replace(snapshot, networks={n.name: carried(snapshot, n, local.ipv6) for n in routed})
    near, outside = local.residents.of(snapshot)
    objects = _on_host_links(me, replace(near, networks=every), local)
    if me.wireguard is not None:
        me = replace(me, wireguard=replace(me.wireguard, moved=local.moved))
        snapshot, near = (replace(one, nodes={**one.nodes, me.name: me}) for one in (snapshot, near))
    networks, policies = sorted(snapshot.networks.values(), key=lambda n: n.name), local.policing.compiled(snapshot)
    vips = _led(snapshot, near, me, local, policies)
    objects.append(Sysctl("ipv4/ip_forward", "1"))
    objects += [*_gateways(me, networks), *probe_objects(me, local.underlay, networks, snapshot.nodes.values())]
    strays = routed_strays(snapshot, outside)
    around = local.neighbours.of(shared, snapshot, outside, strays, local.underlay, local.path_mtu)
    peers = {name: found.peers for name, found in around.items()}
    beyond = egress_objects(snapshot, snapshot.networks, peers) + outside_objects(snapshot.networks, local.tables)
    snapshot = near  # what comes now is about no other endpoint
    for network in networks:
        objects += around[network.name].objects
        objects += _backstops(network, snapshot)
    direct = [network for network in networks if any(peer.path and peer.path.kind == DIRECT for peer in peers[network.name])]
    sandboxes, exposed = _own_sandboxes(snapshot), exposed_here(snapshot)
    objects += _of_endpoints([*sandboxes, *exposed], snapshot, local, vips.here)
    objects = [*spoken(objects, snapshot, exposed), *narrow_objects(sandboxes, snapshot.networks, peers, local.netns)]
    handed = [n for n in direct if not n.internal and any(map(_hands_on, peers[n.name]))] if local.underlay and not local.gateway else []
    told = local.clients, local.trusting, vips.kept, beyond
    objects += firewall_objects(snapshot, networks, local.gateway, handed, local.underlay, bool(direct), policies, *told)
    objects += [*local.policing.objects(policies, families(networks)), *vips.objects, *host_lease_objects(networks, local.leases)]
    objects += [*direct_objects(direct, local.underlay, policies, vips.kept), *port_limit_objects(sandboxes, local.limiting)]
    objects += handed_objects((n for n in direct if local.gateway and not n.internal), local.underlay)
    objects += relay_objects([peer for found in peers.values() for peer in found], local.underlay)
    if local.strict:
        objects += loosened(me, objects, [n for n in networks if backend_of(n).ways[:1] == (DIRECT,)], local.underlay)
    rows = [obj for obj in objects if isinstance(obj, Route | Fdb)]
    objects += early_objects(snapshot, sandboxes, policies.idents, local, direct, rows, vips)
    spelled = {number: key for found in around.values() for number, key in found.keys.items()}
    return {spelled.get(id(obj)) or obj.key: _as_local(obj, local) for obj in objects}


def prompt_objects(snapshot: Snapshot, local: Local) -> list[KernelObject]:
    """What of `plan_node` says whom services and policies mean now, at the cost of what differs from the last time: an event is in
    the kernel by these sets before a pass has looked at everything."""
    me = snapshot.nodes.get(snapshot.me)
    if me is None:
        return []
    routed = (n for n in snapshot.networks.values() if child_of(n) is None)
    snapshot = replace(snapshot, networks={n.name: carried(snapshot, n, local.ipv6) for n in routed})
    networks = sorted(snapshot.networks.values(), key=lambda n: n.name)
    policies = local.policing.compiled(snapshot)
    vips = _led(snapshot, local.residents.of(snapshot)[0], me, local, policies)
    fast = ends_sets(vips.ends, NFT_FAST_FAMILY) if local.fast_path and me.tunnel is not None else []
    return [*local.policing.objects(policies, families(networks)), *vips.objects, *fast]


def _led(snapshot: Snapshot, near: Snapshot, me: Node, local: Local, policies: Compiled) -> Vips:
    """What leads containers to others than those whose address they name."""
    vips = local.balancing.of(snapshot, near, me, bool(local.clients), local.silent) if local.draws else Vips()
    more = elsewhere(snapshot, policies)
    return vips + more if more.objects else vips


def endpoint_objects(me: Node, network: Network, endpoint: Endpoint, netns: str = "", served: bool = False) -> list[KernelObject]:
    """What one endpoint needs besides its published ports; `served`: it stands for a service. The attach applies just these; the next pass
    finds them there."""
    if endpoint.runtime == HOST:
        return host_objects(network, endpoint)
    child = child_of(network)
    if child is not None and child.kind == "veth":
        return _switched(me, network, child, endpoint, netns or endpoint.netns)
    if child is not None:
        return [child_link(network, endpoint, netns)]
    master = backend_of(network).bridge(network)
    link = EndpointLink(
        name=endpoint.dev,
        peer=peer_name(endpoint.dev),
        mac=endpoint.mac,
        mtu=network_mtu(me, network),
        netns=netns or endpoint.netns,
        ifname=endpoint.ifname,
        address=inside_address(network, endpoint.address),
        gateway=network.gateway,
        through=_through(network, endpoint),
        inside6=inside6(network, endpoint),
        master=master,
        isolated=bool(master) and network.isolated,
        hairpin=bool(master and (endpoint.ports or served)),
    )
    objects: list[KernelObject] = [link, Route(IPv4Network((endpoint.address, 32)), routed_by(network, endpoint), scope="link")]
    objects += endpoint6_objects(network, endpoint)
    objects += switched_objects(network, endpoint)
    if endpoint.ports:
        objects.append(local_ports(network, endpoint))
    return objects


def _switched(me: Node, network: Network, child: Child, endpoint: Endpoint, netns: str) -> list[KernelObject]:
    """An endpoint that is a port of a switch that others steer."""
    link = EndpointLink(
        name=endpoint.dev,
        mtu=network_mtu(me, network),
        answers=False,
        peer=peer_name(endpoint.dev),
        mac=endpoint.mac,
        netns=netns,
        ifname=endpoint.ifname,
        address=inside_address(network, endpoint.address),
        gateway=network.gateway,
        through=_through(network, endpoint),
        inside6=inside6(network, endpoint),
    )
    return [link, SwitchPort(child.parent, link.name, child.tag, netns, link.ifname if netns else link.peer)]


def child_link(network: Network, endpoint: Endpoint, netns: str = "") -> ChildLink:
    """An endpoint on a link of the host: all that there is of it."""
    child = child_of(network)
    assert child is not None
    link = ChildLink(
        name=endpoint.dev,
        parent=child.parent,
        kind=child.kind,
        mode=child.mode,
        netns=netns or endpoint.netns,
        mac=endpoint.mac,
        ifname=endpoint.ifname,
        address=inside_address(network, endpoint.address),
        gateway=network.gateway if child.gateway else None,
        through=_through(network, endpoint),
        inside6=inside6(network, endpoint),
    )
    return _as_leased(link, network, endpoint.leased, endpoint) if endpoint.leased is not None else link


def _as_leased(link: ChildLink, network: Network, leased: Leased, endpoint: Endpoint) -> ChildLink:
    """What a server on the link said goes; what it did not say is the network's. Without a lease there is no address."""
    address = None if leased.lost else leased_interface(network, endpoint.address, leased)
    six = IPv6Interface(endpoint.address6) if endpoint.address6 is not None else None
    ways = () if leased.lost else tuple(way for way in leased.ways if endpoint.default_route or way.to.prefixlen)
    return replace(link, address=address, gateway=None, through=(), ways=ways, mtu=leased.mtu, address6=six)


def leased_interface(network: Network, address: IPv4Address, leased: Leased | None) -> IPv4Interface:
    """The address with the prefix of its link."""
    return IPv4Interface((address, leased.prefix)) if leased is not None and leased.prefix else inside_address(network, address)


def _on_host_links(me: Node, snapshot: Snapshot, local: Local) -> list[KernelObject]:
    """Endpoints of this node on links of the host that are there. Nothing of these networks is this host's to route; what is forged is
    judged at ports of a switch, in the namespaces of children, and at their parents."""
    objects: list[KernelObject] = []
    lying: list[Lying] = []
    judged = {name for name, network in snapshot.networks.items() if child_of(network) is not None and _is_judged(network, local)}
    own = own_addresses(snapshot) if judged else {}
    for network in snapshot.networks.values():
        if network.by_dhcp and network.options["parent"] in local.links:
            objects += shared_objects(me, network)  # a lease comes before the first endpoint
    for endpoint in _own_sandboxes(snapshot):
        network = carried(snapshot, snapshot.networks[endpoint.network], local.ipv6)
        if child_of(network) is not None and network.options["parent"] in local.links:
            objects += [*shared_objects(me, network), *endpoint_objects(me, network, endpoint, local.netns.get(endpoint.id, ""))]
            objects += endpoint_limits(me, network, endpoint, local.limiting)
            objects += link_guard(network, endpoint, own[endpoint.id], local.netns.get(endpoint.id, "")) if network.name in judged else []
            lying.append((network, endpoint))
    return objects + (wire_objects(lying, own) if at_parents(local.guards) else [])


def _is_judged(network: Network, local: Local) -> bool:
    return (PORTS if is_port(network) else CHILDREN) in local.guards


def link_guard(network: Network, endpoint: Endpoint, own: Iterable[IPAddress], netns: str = "") -> Sequence[KernelObject]:
    """What judges an endpoint on a link of the host; nothing while a child's namespace is not known (`netns`, or the endpoint's own)."""
    if is_port(network):
        return port_guard(network, endpoint, own)
    place = netns or endpoint.netns
    return child_guard(network, endpoint, own, place) if place else []


def is_port(network: Network) -> bool:
    """Whether endpoints of it are ports of a switch that others steer."""
    child = child_of(network)
    return child is not None and child.kind == "veth"


def is_child(network: Network) -> bool:
    """Whether endpoints of it are links on a link of the host, of which nothing lies on the host itself."""
    return child_of(network) is not None and not is_port(network)


def inside_address(network: Network, address: IPv4Address) -> IPv4Interface:
    """An endpoint's address as its container has it: with the network's prefix where the others are neighbours on its link, else alone,
    everybody else being behind the gateway."""
    return IPv4Interface((address, network.subnet.prefixlen if on_link(network) else 32))


def _through(network: Network, endpoint: Endpoint) -> tuple[IPv4Network, ...]:
    """What an endpoint reaches by way of the gateway."""
    rest = [EVERYWHERE] if endpoint.default_route and not network.internal else []
    return tuple(rest if on_link(network) else [network.subnet, *rest])


def shared_objects(me: Node, network: Network) -> list[KernelObject]:
    """What an endpoint of `network` needs to be there before itself: its bridge, or the tagged link of its VLAN. `me` as
    `member` says."""
    return backend_of(network).plan(me, network, []) if on_link(network) else []


def routed_by(network: Network, endpoint: Endpoint) -> str:
    """The device of this host that leads to the endpoint."""
    return backend_of(network).bridge(network) or endpoint.dev


def local_ports(network: Network, endpoint: Endpoint) -> Sysctl:
    """What lets ports that are published on 127.0.0.1 reach the endpoint."""
    return Sysctl(f"ipv4/conf/{routed_by(network, endpoint)}/route_localnet", "1")


def device_name(endpoint_id: str) -> str:
    """The host side link of an endpoint: 13 characters, from a digest so that any runtime's ids will do."""
    return f"{PREFIX}e{hashlib.sha256(endpoint_id.encode()).hexdigest()[:10]}"


def peer_name(dev: str) -> str:
    """The link's other end while it still lies in the host's namespace."""
    return dev.replace(f"{PREFIX}e", f"{PREFIX}p", 1)


def endpoint_mac(endpoint_id: str) -> str:
    """A MAC from the endpoint's identity, never from its address."""
    return mac_from_digest(hashlib.sha256(b"mac:" + endpoint_id.encode()).digest())


def _own_sandboxes(snapshot: Snapshot) -> list[Endpoint]:
    own = (e for e in snapshot.endpoints.values() if e.node == snapshot.me and e.network in snapshot.networks)
    return sorted((e for e in own if e.runtime != HOST), key=lambda e: e.id)


def _of_endpoints(endpoints: Iterable[Endpoint], snapshot: Snapshot, local: Local, serving: Container[str]) -> list[KernelObject]:
    """`serving`: addresses of those that stand for services."""
    members = {name: (member(snapshot, network), network) for name, network in snapshot.networks.items()}

    def made(endpoint: Endpoint, netns: str, served: bool) -> list[KernelObject]:
        me, network = members[endpoint.network]
        return [*endpoint_objects(me, network, endpoint, netns, served), *endpoint_limits(me, network, endpoint, local.limiting)]

    asked = ((endpoint, local.netns.get(endpoint.id, ""), str(endpoint.address) in serving) for endpoint in endpoints)
    return local.residents.links.of((members, local.limiting), asked, made)


def _hands_on(peer: Peer) -> bool:
    """Whether what comes from outside may come from this node straight from the link."""
    return GATEWAY_META in peer.node.meta and peer.path is not None and peer.path.kind == DIRECT


def _gateways(me: Node, networks: Sequence[Network]) -> list[KernelObject]:
    """Every node holds every gateway: an anycast address that is never sent between nodes. Its own tunnel address lies there too, for
    networks without a tunnel, and so that routes from it outlive a tunnel device that is replaced."""
    mac = mac_from_digest(hashlib.sha256(b"gw:" + me.id.encode()).digest())
    objects: list[KernelObject] = [BridgeLink(GATEWAY_LINK, mac)]
    addresses = [n.gateway for n in networks] + ([me.tunnel] if me.tunnel is not None else [])
    objects += [Addr(GATEWAY_LINK, IPv4Interface((address, 32))) for address in addresses]
    return objects + gateways6(me, GATEWAY_LINK, networks)


def _as_local(obj: KernelObject, local: Local) -> KernelObject:
    """A tunnel device as this host's hardware needs it."""
    return replace(obj, tx_checksum=False) if isinstance(obj, VxlanLink) and {obj.name, obj.master} & local.software_checksums else obj


def _backstops(network: Network, snapshot: Snapshot) -> list[KernelObject]:
    """Unreachable routes for the pool and for this node's own blocks: what nobody holds gets an ICMP error, not a way out."""
    own = [b.cidr for b in snapshot.blocks.values() if b.network == network.name and b.node == snapshot.me and b.purpose == "pool"]
    images = {network.subnet6, *(image_block(network, cidr) for cidr in own)} - {None}
    return [Route(cidr, kind="unreachable", metric=LAST_METRIC) for cidr in (*{network.subnet, *own}, *images) if cidr is not None]


def routed_strays(snapshot: Snapshot, strays: Sequence[Endpoint]) -> list[Endpoint]:
    """Of `strays` (`stray_endpoints`) those that are sent to. Where the holder of the block gave the same address to an endpoint of its own
    while nobody could tell it, that one has it; where the address is reserved or lent, the node that it is given to."""
    if not strays:
        return []
    ids = {stray.id for stray in strays}
    rightful = {(e.network, a) for e in snapshot.endpoints.values() if e.id not in ids for a in _addresses(e)}
    given = _given(snapshot)

    def has(stray: Endpoint, address: IPAddress) -> bool:
        key = stray.network, address
        return given[key] == stray.node if key in given else key not in rightful

    return [stray for stray in strays if all(has(stray, address) for address in _addresses(stray))]


def _addresses(endpoint: Endpoint) -> tuple[IPAddress, ...]:
    return (endpoint.address,) if endpoint.address6 is None else (endpoint.address, endpoint.address6)


def _given(snapshot: Snapshot) -> dict[tuple[str, IPAddress], str]:
    """The node that each address is given to which goes round the blocks, and its image."""
    found: dict[tuple[str, IPAddress], str] = {}
    for (name, address), assigned in snapshot.assigned.items():
        if assigned.node and name in snapshot.networks:
            images = {address, image(snapshot.networks[name], address)} - {None}
            found |= {(name, one): assigned.node for one in images if one is not None}
    return found


def first_default_block(blocks: Iterable[Block], node: str, network: str) -> Block | None:
    """The block whose first address is the node's tunnel address: its lowest of `network`, a bridge block first."""
    own = [b for b in blocks if b.network == network and b.node == node]
    return min(own, key=lambda b: (b.purpose != "bridge", b.cidr)) if own else None
