# SPDX-License-Identifier: Apache-2.0
"""The nft table `inet plait` of this node: isolation between networks, NAT to the outside, published ports.

Everything that depends on the number of networks, endpoints or ports is an element of a set or map, so a rule list of fixed
length decides each packet. Rules are spelled as `nft -s list table` prints them, because they are compared with that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from typing import TypeVar

from plait.backends import ENCRYPTED_PORTS, Peer, backend_of, child_of, has_tunnel
from plait.model.addr import IPNetwork
from plait.model.cluster import Endpoint, Network, Snapshot
from plait.model.hostlinks import Key
from plait.model.objects import PREFIX, HookRule, KernelObject, NftChain, NftSet, Plan
from plait.plan.apart import not_routed
from plait.plan.beyond import Beyond
from plait.plan.dual import V4, V6, Family, families
from plait.plan.policy import tracked
from plait.plan.ports import client_sets, hidden_chains, inbound, outbound, port_sets
from plait.policy.compile import Compiled

RAW, CLEAR_OUT = "raw", "clear_out"
"""Chains that drop and count packets of encrypted networks that are not, and count nothing else."""
_WITHIN = "within"
"""What `raw` leads packets inside one network to."""
_PROTECTED = ("pl-e*", "pl-wg*", "lo")
"""Devices that packets of encrypted networks may be seen on."""
_INSIDE = ("pl-e*", "pl-b*")
"""Devices that what containers send comes from, apart from those of Docker's own bridge."""
_GUARDS = tuple(NftSet(name, "ipv4_addr", frozenset()).key for name in ("pools", "internal", "encrypted"))
"""Of IPv4 alone: those of IPv6 are changed with them, in one transaction."""
_TO_MANY = 'iifname "pl-b*" oifname "pl-b*" meta pkttype { broadcast, multicast } accept'
_NO_POLICIES, _NOTHING_BEYOND = Compiled(), Beyond()
N = TypeVar("N", IPv4Network, IPv6Network)
_PLAIN_NETWORKS = 8
"""So many networks are matched by a rule each, which is quicker than a look-up in a set of pairs of ranges (measured: 36,300 round trips a
second against 33,700); further ones by the set, so that the chain stays of bounded length."""


def firewall_objects(
    snapshot: Snapshot,
    networks: Sequence[Network],
    gateway: bool,
    handed: Sequence[Network],
    underlay: str,
    direct: bool = False,
    policies: Compiled = _NO_POLICIES,
    clients: Sequence[IPNetwork] = (),
    trusting: bool = False,
    kept: Sequence[str] = (),
    beyond: Beyond = _NOTHING_BEYOND,
) -> list[KernelObject]:
    """Chains, sets and maps of the table, and the rules in Docker's documented hook that let overlay traffic pass its FORWARD policy.
    `handed`: networks for which a gateway on the link `underlay` hands on what comes from outside; `direct`: whether hosts send to
    containers by that link; `policies`: what they want of this node; `clients`: who may come to published ports, () for everybody;
    `trusting`: nobody else judges what the host itself receives and sends; `kept`: rules of what is tracked inside one network besides;
    `beyond`: what there is besides for networks that leave otherwise."""
    own = [e for e in snapshot.endpoints.values() if e.node == snapshot.me and e.network in snapshot.networks]
    present = families(networks)
    objects: list[KernelObject] = [_set for family in present for _set in _sets(family, snapshot, networks)]
    closed = (*beyond.forward, *(() if gateway else _closed(present, handed, underlay)))
    hosts = [link for link, used in ((f"{PREFIX}x*", _tunnelled(networks)), (f"{PREFIX}wg*", any(n.encrypted for n in networks))) if used]
    hosts += [underlay] if direct and underlay else []
    encrypted = [network for network in networks if network.encrypted]
    sealed = "udp dport {}-{}".format(*ENCRYPTED_PORTS) if encrypted and trusting else ""  # a range is compared, a set looked up
    guarded = _guarded_addresses(snapshot, encrypted)
    policed = (*tracked(policies, present), *kept)
    objects += [
        *port_objects(own, networks),
        *_raw_chains(present, networks, policed, _sealed_in(snapshot, sealed), _clear_in(guarded)),
        *client_sets(present, clients),
        *_published(present, clients),
        *_chains(present, networks, closed, hosts, gateway, beyond.postrouting),
        *beyond.objects,
    ]
    objects += _tunnel_objects(snapshot, networks, present, sealed, underlay)
    objects += [hook for family in present for hook in _hooks(family)]
    if handed:
        objects += [NftSet(f"handed{f.end}", f.type, frozenset(map(str, f.subnets(handed))), ("interval",)) for f in present]
    return objects + (_encrypted_only(guarded) if encrypted else [])


def guards_of(plan: Plan) -> Plan:
    """The part of a plan that `guarded` looks at."""
    return {key: plan[key] for key in _GUARDS if key in plan}


def guarded(plan: Plan, network: Network) -> bool:
    """Whether a plan has what keeps the packets of `network` from where they must not go, and translates those that leave. On a link of the
    host that is not this host's matter."""
    if child_of(network) is not None:
        return True
    subnet, (pools, internal, encrypted) = str(network.subnet), (_elements(plan, key) for key in _GUARDS)
    return subnet in pools and (subnet in internal) == network.internal and (subnet in encrypted) == network.encrypted


def _elements(plan: Plan, key: Key) -> frozenset[str]:
    found = plan.get(key)
    return found.elements if isinstance(found, NftSet) else frozenset()


def direct_objects(
    networks: Sequence[Network], underlay: str, policies: Compiled = _NO_POLICIES, kept: Sequence[str] = ()
) -> list[KernelObject]:
    """What lets packets of `networks`, which some node sends without a tunnel, come in from the link `underlay`: untracked like all that
    stays inside one network but for what `policies` say and `kept` rules let by, and past Docker's FORWARD policy."""
    within = [(ip, f"{ip} saddr {net} {ip} daddr {net}") for f in (V4, V6) for net in f.subnets(networks) for ip in (f.ip,)]
    if not within or not underlay:
        return []
    rules = (*tracked(policies, families(networks)), *kept, *(f'iifname "{underlay}" {match} notrack accept' for _, match in within))
    hooks = [HookRule(ip, "filter", "DOCKER-USER", f"{match} accept") for ip, match in within]
    return [NftChain("raw_direct", rules, "type filter hook prerouting priority raw; policy accept;"), *hooks]


def handed_objects(networks: Iterable[Network], underlay: str) -> list[KernelObject]:
    """On a gateway: what lets packets from outside go on by the link `underlay` to other hosts past Docker's FORWARD policy, in `networks`
    whose packets go without a tunnel."""
    found = [(f.ip, net) for network in networks if underlay for f in (V4, V6) for net in f.subnets([network])]
    return [HookRule(ip, "filter", "DOCKER-USER", f'oifname "{underlay}" {ip} daddr {net} accept') for ip, net in found]


def relay_objects(peers: Iterable[Peer], underlay: str) -> list[KernelObject]:
    """What comes from another node is passed on to its destination or not at all, never to a third one that would relay it: whatever nodes
    believe of each other meanwhile, a packet is relayed once."""
    relayed = [peer for peer in peers if peer.path is not None and peer.path.relay is not None]
    blocks = {V4: _collapsed(block for peer in relayed for block in peer.blocks)}
    blocks[V6] = _collapsed(block for peer in relayed for block in peer.blocks6)
    rules: list[str] = []
    objects: list[KernelObject] = []
    for (ip, kind, end, _), found in blocks.items():
        if found:
            rules.append(f'iifname "pl-x*" {ip} daddr @relayed{end} drop')
            rules += [f'iifname "{underlay}" {ip} saddr @pools{end} {ip} daddr @relayed{end} drop'] if underlay else []
            objects.append(NftSet(f"relayed{end}", kind, found, ("interval",)))
    return [*objects, NftChain("relay", tuple(rules), "type filter hook forward priority filter; policy accept;")] if rules else []


def _collapsed(blocks: Iterable[N]) -> frozenset[str]:
    """As elements of a set of ranges: neighbours are one there, a single address has no length."""
    return frozenset(str(block).removesuffix("/32").removesuffix("/128") for block in collapse_addresses(blocks))


def _sets(family: Family, snapshot: Snapshot, networks: Sequence[Network]) -> list[KernelObject]:
    subnets, inner = family.subnets(networks), family.subnets(n for n in networks if n.internal)
    tunnels = {str(tunnel) for n in snapshot.nodes.values() if (tunnel := family.tunnel(n)) is not None}
    tunnels |= {str(address) for n in snapshot.nodes.values() if (address := family.encrypted(n)) is not None}
    interval, kind, end = ("interval",), family.type, family.end
    return [
        NftSet(f"pools{end}", kind, frozenset(map(str, subnets)), interval),
        NftSet(f"same{end}", f"{kind} . {kind}", frozenset(f"{subnet} . {subnet}" for subnet in subnets), interval),
        NftSet(f"internal{end}", kind, frozenset(map(str, inner)), interval),
        NftSet(f"hosts{end}", kind, frozenset(tunnels)),
    ]


def port_objects(endpoints: Iterable[Endpoint], networks: Iterable[Network]) -> list[KernelObject]:
    """What depends on the published ports of this node's endpoints: a publication changes elements of sets and maps alone, for which the
    kernel waits for nobody (to make, replace or remove a chain takes it 7-20 ms, measured); the first and the last one by NAT make and
    remove the chain `hidden`, which comes last. Networks on a link of the host have none."""
    publishing = [e for e in endpoints if e.ports]
    present = families(sorted((n for n in networks if child_of(n) is None), key=lambda n: n.name))
    return [*(obj for family in present for obj in port_sets(family, publishing)), *hidden_chains(present, publishing)]


def _raw_chains(
    present: Sequence[Family], networks: Sequence[Network], policed: Sequence[str], sealed: Sequence[str], clear: Sequence[str]
) -> list[NftChain]:
    """Traffic inside one network needs no connection tracking, nor do the tunnels' own packets, which come first: it is what a packet
    between hosts costs most. Answers of published ports are tracked, because their addresses must be turned back, and those that a policy
    must know. Only what stays inside one network is asked whether it is such a one: each is a look-up in a set, for each packet.

    A container must not reach the host's loopback, which route_localnet (published ports on 127.0.0.1) would allow.

    All this hangs at one hook, because each chain at a hook costs every packet there, whatever its rules (measured: 25-50 ns).
    """
    rules = [*sealed, *clear, *_on_tunnel_ports(networks, "jump tunnels")]
    for family in present:
        ip, subnets = family.ip, family.subnets(networks)
        rules += [f"{ip} saddr {subnet} {ip} daddr {subnet} jump {_WITHIN}" for subnet in subnets[:_PLAIN_NETWORKS]]
        if len(subnets) > _PLAIN_NETWORKS:
            rules.append(f"{ip} saddr . {ip} daddr @same{family.end} jump {_WITHIN}")
    rules.append('ip daddr 127.0.0.0/8 iifname "pl-*" drop')
    answers = (f"{ip} saddr . meta l4proto . th sport @published{end} accept" for ip, _, end, _ in present)
    within = NftChain(_WITHIN, (*policed, *answers, 'iifname "pl-*" notrack accept'))
    return [within, NftChain(RAW, tuple(rules), "type filter hook prerouting priority raw; policy accept;")]


def _on_tunnel_ports(networks: Iterable[Network], verdict: str) -> tuple[str, ...]:
    """The rule for what goes to the ports of tunnels, none if there is no tunnel."""
    ports = sorted({network.port for network in networks if has_tunnel(backend_of(network))})
    which = str(ports[0]) if len(ports) == 1 else f"{{ {', '.join(map(str, ports))} }}"
    return (f"udp dport {which} {verdict}",) if ports else ()


def _tunnel_objects(
    snapshot: Snapshot, networks: Sequence[Network], present: Sequence[Family], sealed: str, underlay: str
) -> list[KernelObject]:
    """The tunnels' own packets are not tracked: those of hosts for this one. What a container sends to such a port of a host would come out
    of the tunnel as if another host had sent it, and is dropped; what it sends there to another container is like all else. The kernel
    takes tunnel packets at all of its addresses and from everybody: what is for one of our tunnels is dropped at others than the node's,
    where hosts send nothing but what containers gave them, and of nobody's address where it comes from another link than `underlay`, from
    containers that are none of plait's. `sealed` matches the packets of the encrypted tunnel, if they are not tracked either: `_sealed_in`
    has those that come in."""
    own, ours = snapshot.nodes[snapshot.me].address, _of_our_tunnels(networks)
    rules: list[str] = []
    sets: list[KernelObject] = []
    for family in (V4, V6):
        ip, kind, end, _ = family
        hosts = frozenset(str(node.address) for node in snapshot.nodes.values() if node.address.version == family.anywhere.version)
        if hosts:
            rules += [f"{ip} saddr @nodes{end} {ip} daddr {own} notrack accept"] if str(own) in hosts else []
            rules += [f"{ip} saddr @pools{end} {ip} daddr @nodes{end} counter drop"] if family in present else []
            away = f'iifname != "{underlay}" {ip} saddr != @nodes{end} {ip} daddr @nodes{end}'
            rules += [f"{away} {ours} counter drop"] if underlay else []
            sets.append(NftSet(f"nodes{end}", kind, hosts))
    rules.append(f"{V4.ip if own.version == 4 else V6.ip} daddr != {own} fib daddr type local {ours} counter drop")
    open_ones = _on_tunnel_ports(networks, "notrack accept")
    sent = (*((f"{sealed} notrack accept",) if sealed else ()), *open_ones)
    output = NftChain("raw_output", sent, "type filter hook output priority raw; policy accept;")
    return [*sets, NftChain("tunnels", tuple(rules)), output] if open_ones else [output]


def _of_our_tunnels(networks: Iterable[Network]) -> str:
    """What of VXLAN (RFC 7348) is: by the VNI, which is behind eight bytes of UDP and four of flags."""
    numbers = sorted({network.vni for network in networks if has_tunnel(backend_of(network))})
    return f"@th,96,24 {{ {', '.join(map(hex, numbers))} }}" if len(numbers) > 1 else f"@th,96,24 {hex(numbers[0])}" if numbers else ""


def _chains(
    present: Sequence[Family],
    networks: Sequence[Network],
    closed: Sequence[str],
    hosts: Sequence[str],
    gateway: bool,
    leaving: Sequence[str],
) -> list[KernelObject]:
    masquerade = [rule for family in present for rule in _masquerade(family, leaving)]
    forward = (*closed, *_forward(present, networks, hosts, gateway))
    return [
        NftChain("postrouting", tuple(masquerade), "type nat hook postrouting priority srcnat; policy accept;"),
        NftChain("forward", forward, "type filter hook forward priority filter; policy accept;"),
    ]


def _tunnelled(networks: Iterable[Network]) -> bool:
    return any(has_tunnel(backend_of(network)) for network in networks)


def _published(present: Sequence[Family], clients: Sequence[IPNetwork]) -> list[KernelObject]:
    return [
        NftChain("prerouting", inbound(present, clients), "type nat hook prerouting priority dstnat; policy accept;"),
        NftChain("output", outbound(present), "type nat hook output priority -100; policy accept;"),
    ]


def _masquerade(family: Family, leaving: Sequence[str]) -> list[str]:
    ip, _, end, _ = family
    rules = [f"{ip} saddr . {ip} daddr @hairpin{end} ct status dnat masquerade"]
    if family is V4:
        rules += ['ip saddr 127.0.0.0/8 oifname "pl-*" masquerade', *leaving]
    return [*rules, f'{ip} saddr @pools{end} {ip} daddr != @pools{end} oifname != "pl-*" masquerade']


def _closed(present: Sequence[Family], handed: Sequence[Network], underlay: str) -> tuple[str, ...]:
    """Only a gateway forwards what comes from outside to a container by its own address. All others drop that, even of connections that
    were made while the host was one; an answer, and what was sent to a published port, is told by its connection. Where a gateway sends
    straight to this host, what it hands on comes from the link with the outsider's own address. Hosts' own addresses of IPv6 lie in no
    pool."""
    own = present if handed else ()
    accept = (f'iifname "{underlay}" {ip} saddr != @pools{end} {ip} daddr @handed{end} accept' for ip, _, end, _ in own)
    drop = (
        f'ct status ! dnat ct direction original iifname != "pl-*" {f.ip} saddr != @pools{f.end}'
        f"{'' if f is V4 else ' ip6 saddr != @hosts6'} {f.ip} daddr @pools{f.end} drop"
        for f in present
    )
    return (*accept, *drop)


def _forward(present: Sequence[Family], networks: Sequence[Network], hosts: Sequence[str], gateway: bool) -> tuple[str, ...]:
    """Other hosts reach every container, by the links that they come from (`hosts`): what a container sends under the address of one
    comes from another. For the same reason what a container of plait's sends to another network under an outsider's address stops here
    on a gateway too, which lets outsiders in. Broadcast and multicast come here only where br_netfilter shows what a bridge switches: no
    host routes them."""
    rules = [*not_routed(present, networks), "ct state established,related,untracked accept"]
    if any(network.layer2 for network in networks):
        rules.append(_TO_MANY)
    rules += [f"{ip} saddr . {ip} daddr @same{end} accept" for ip, _, end, _ in present]
    rules.append("ct status dnat accept")
    rules += [f'iifname "{link}" {ip} saddr @hosts{end} accept' for ip, _, end, _ in present for link in hosts]
    for family, network in ((f, n) for f in present for n in networks if n.layer2 and f.subnet(n) is not None):
        ip, bridge = family.ip, backend_of(network).bridge(network)  # the tunnel is one of its ports, and so are containers: to these alone
        rules.append(f'iifname "{bridge}" {ip} saddr @hosts{family.end} {ip} daddr {family.subnet(network)} accept')
    for ip, _, end, _ in present:
        rules += [
            f"{ip} saddr @internal{end} drop",
            f"{ip} daddr @internal{end} drop",
            f"{ip} saddr @pools{end} {ip} daddr @pools{end} drop",
        ]
        rules += [f'iifname "{link}" {ip} daddr @pools{end} drop' for link in _INSIDE if gateway]
    if not gateway:
        rules += [f'iifname != "pl-x*" iifname != "pl-wg*" {ip} daddr @pools{end} drop' for ip, _, end, _ in present]
    return tuple(rules)


def _sealed_in(snapshot: Snapshot, sealed: str) -> tuple[str, ...]:
    """What `sealed` matches ("" for nothing) is the encrypted tunnel's own, which looks itself whether it is, and goes the quickest way to
    it: by the address that peers know, which is compared, or by another one of this host, which a route says."""
    if not sealed:
        return ()
    address = snapshot.nodes[snapshot.me].address
    mine = f"{(V4 if address.version == V4.anywhere.version else V6).ip} daddr {address}"
    return f"{mine} {sealed} notrack accept", f"{sealed} fib daddr type local notrack accept"


def _guarded_addresses(snapshot: Snapshot, encrypted: Sequence[Network]) -> dict[Family, frozenset[str]]:
    """By IPv6 the hosts' own addresses in these networks lie in no subnet, and are guarded by themselves."""
    guarded = {family: frozenset(map(str, family.subnets(encrypted))) for family in families(encrypted)} if encrypted else {}
    if V6 in guarded:
        guarded[V6] |= {str(address) for node in snapshot.nodes.values() if (address := V6.encrypted(node)) is not None}
    return guarded


def _clear_in(guarded: Mapping[Family, frozenset[str]]) -> list[str]:
    """The half of `_encrypted_only` that comes in."""
    rules, enters = list[str](), " ".join(f'iifname != "{name}"' for name in _PROTECTED)
    for family, which in _compared(guarded):
        rules += [f"{family.ip} saddr {one} {enters} counter drop" for one in which]
        rules += [f"{family.ip} daddr {one} {enters} fib daddr type != local counter drop" for one in which]
    return rules


def _encrypted_only(guarded: Mapping[Family, frozenset[str]]) -> list[KernelObject]:
    """What guards encrypted networks whatever else there is: their packets come from and go to their own containers, this host and the
    encrypted tunnel, nothing else. It stands before address translation, that of published ports included; what it drops is counted
    (`clear_drops`). Addresses come first: the tunnel's own packets have others, and each name of a link costs as much as a lookup."""
    out, leaves = list[str](), " ".join(f'oifname != "{name}"' for name in _PROTECTED)
    for family, which in _compared(guarded):
        out += [f"{family.ip} daddr {one} {leaves} counter drop" for one in which]
        out += [f'{family.ip} saddr {one} oifname "pl-x*" counter drop' for one in which]
    return [
        *(NftSet(f"encrypted{family.end}", family.type, found, ("interval",)) for family, found in guarded.items()),
        NftChain(CLEAR_OUT, tuple(out), "type filter hook postrouting priority srcnat - 10; policy accept;"),
    ]


def _compared(guarded: Mapping[Family, frozenset[str]]) -> list[tuple[Family, Sequence[str]]]:
    """What rules compare addresses with: few by themselves, many by a set."""
    return [(f, sorted(found) if len(found) <= _PLAIN_NETWORKS else [f"@encrypted{f.end}"]) for f, found in guarded.items()]


def _hooks(family: Family) -> list[KernelObject]:
    rules = ('iifname "pl-*" oifname != "br-*" accept', 'oifname "pl-*" accept')
    return [HookRule(family.ip, "filter", "DOCKER-USER", rule) for rule in rules]
