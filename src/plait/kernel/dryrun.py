# SPDX-License-Identifier: Apache-2.0
"""The dry run: a kernel that reads from another one and writes nothing. What `plait plan` runs its passes over.

Its record of operations is rendered as the `ip`, `bridge`, `tc`, `sysctl` and `nft` lines that one would type; the golden tests compare
them.
"""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Iterable, Sequence

from plait.kernel.api import UNMARKED, Kernel, Result, changeable
from plait.kernel.dryruntc import tc_lines
from plait.kernel.image import KernelImage
from plait.kernel.linux.bridge import QUERY_RESPONSE
from plait.kernel.linux.nftscript import script_of
from plait.kernel.linux.sysctl import OPEN6
from plait.model.addr import at_port
from plait.model.flows import PortRule
from plait.model.hostlinks import ChildGuard, ChildLink, Key, PortGuard, SwitchPort, VlanLink
from plait.model.inside import Inside6
from plait.model.objects import (
    HOOK_COMMENT,
    NFT_TABLE,
    NO_MAC,
    PORT_FLAGS,
    ROUTE_PROTOCOL,
    Addr,
    BridgeFdb,
    BridgeLink,
    EndpointLink,
    Fdb,
    Flood,
    HookRule,
    InsideRoutes,
    KernelObject,
    Neigh,
    NftElement,
    Op,
    Route,
    Sysctl,
    VxlanLink,
)
from plait.model.routing import MAIN_TABLE, Rule
from plait.model.shortcut import Delivery, Shortcut
from plait.model.tc import Classes, IfbLink, PortQueues, Redirect, Tbf
from plait.model.wireguard import AllowedIp, WireguardLink, WireguardPeer

STATE_DIR = "/var/lib/plait"
"""Where a node keeps its private keys; the rendered lines name them as wg(8) takes them, by file."""


class DryRunKernel:
    """See `kernel.api.Kernel`. What it holds is what `kernel` holds at the moment it is asked, with the recorded operations done.

    `kernel` is only ever read, and stays its owner's to close. With `bare` it is taken to hold nothing of plait's yet. What only the real
    kernel can know (a set's type that it lacks, a sandbox that is gone) is not seen here.
    """

    def __init__(self, kernel: Kernel, *, bare: bool = False) -> None:
        self._kernel, self._bare = kernel, bare
        self._batches: list[list[Op]] = []

    @property
    def record(self) -> list[Op]:
        """The operations that were accepted, in the order in which a kernel does them."""
        return [op for batch in self._batches for op in batch]

    def rules_known(self) -> bool:
        return False

    def owned(self, probe: Iterable[Key] = ()) -> dict[Key, KernelObject]:
        named = set(probe)
        return self._image(named).held(named)

    def apply(self, ops: Sequence[Op]) -> Result:
        result = self._image({op.key for op in ops if op.key[0] in UNMARKED}).apply(ops)
        accepted = [op for op in ops if op.key not in result.failed]
        self._batches.append(sorted(accepted, key=lambda op: op.key[0] == "nft"))
        return result

    def forget_flows(self, rules: Sequence[PortRule]) -> int:
        return 0

    def watch(self) -> AsyncIterator[str]:
        return self._kernel.watch()

    def capabilities(self) -> frozenset[str]:
        return self._kernel.capabilities()

    def close(self) -> None:
        """Nothing: the kernel below belongs to whoever made it."""

    def lines(self) -> list[str]:
        """The record as lines for a shell, in order."""
        return [line for op in self.record for line in render(op)]

    def _image(self, named: set[Key]) -> KernelImage:
        probe = named | {op.key for op in self.record if op.key[0] in UNMARKED}
        image = KernelImage({} if self._bare else self._kernel.owned(probe))
        for batch in self._batches:
            image.apply(batch)
        return image


def render(op: Op) -> list[str]:
    """The lines that perform `op`; never empty for a put."""
    match op.subject:
        case ChildLink() as child:
            gone = _in(child.netns, f"ip link del {child.ifname if child.netns else child.name}")
            return [*([gone] if op.old is not None else []), *(_child(child) if op.verb == "put" else [])]
        case VxlanLink() | BridgeLink() | WireguardLink() | EndpointLink() | VlanLink() as link:
            return _link(link, op.old) if op.verb == "put" else [f"ip link del {link.name}"]
        case IfbLink() | Tbf() | PortQueues() | Redirect() | Classes():
            return tc_lines(op)
        case SwitchPort() as port:
            return _switch_port(port) if op.verb == "put" else [f"ovs-vsctl --if-exists del-port {port.bridge} {port.dev}"]
        case Addr(dev, address):
            at_once = " nodad noprefixroute" if address.version == 6 and op.verb == "put" else ""
            return [f"ip addr {'replace' if op.verb == 'put' else 'del'} {address} dev {dev}{at_once}"]
        case Route() | Rule() as way:
            return [_way(way, op.verb)]
        case InsideRoutes() as inside:
            return _inside_routes(inside, op)
        case Neigh(dev, address, mac):
            tail = f" lladdr {mac} nud permanent" if op.verb == "put" else ""
            return [f"ip neigh {'replace' if op.verb == 'put' else 'del'} {address} dev {dev}{tail}"]
        case Fdb(dev, mac, dst):
            return [f"bridge fdb {'replace' if op.verb == 'put' else 'del'} {mac} dev {dev} dst {dst} self permanent"]
        case BridgeFdb(_, mac, port):
            return [f"bridge fdb {'replace' if op.verb == 'put' else 'del'} {mac} dev {port} master static"]
        case Flood(dev, dst):
            return [f"bridge fdb {'append' if op.verb == 'put' else 'del'} {NO_MAC} dev {dev} dst {dst} self permanent"]
        case WireguardPeer() as peer:
            return [_peer(peer) if op.verb == "put" else f"wg set {peer.dev} peer {peer.public} remove"]
        case AllowedIp(dev, cidr, public):
            return [f"wg set {dev} peer {public} allowed-ips {'+' if op.verb == 'put' else '-'}{cidr}"]
        case Sysctl(path, value):
            return [f"sysctl -w net.{path.replace('/', '.')}={value}"]
        case HookRule() as rule:
            return [_hook(rule, op.verb == "put")]
        case Shortcut() | Delivery() | PortGuard() | ChildGuard() as judge:
            return [_judge(judge, op.verb == "put")]
        case NftElement(of, element):
            return [_nft(f"add element {of.family} {NFT_TABLE} {of.name} {{ {element} }}")]
        case _:
            return [_nft(line) for line in script_of([op]).splitlines() if not line.startswith("add table ")]


def _inside_routes(inside: InsideRoutes, op: Op) -> list[str]:
    """Of routes that were made before, those that are not wanted any more are deleted."""
    wanted = inside.routes if op.verb == "put" else ()
    before = op.old.routes if isinstance(op.old, InsideRoutes) else ()
    enter, kept = f"nsenter --net={inside.netns} ip route", {route.dst for route in wanted}
    gone = [f"{enter} del {_route(route)}" for route in before if route.dst not in kept]
    return gone + [f"{enter} replace {_route(route)}" for route in wanted if route not in before]


def _judge(obj: Shortcut | Delivery | PortGuard | ChildGuard, wanted: bool) -> str:
    """There is no file with the programs: `plait_here` stands for what the agent loads, and for its map, `plait_bare` for what it loads on
    a bare link, `plait_guard` for what lets these addresses pass. In a container's namespace a digest stands for the rules."""
    if isinstance(obj, ChildGuard):
        return f"nsenter --net={obj.netns} nft {'add' if wanted else 'delete'} table netdev {obj.dev}  # own-{obj.digest}"
    if isinstance(obj, PortGuard):
        passing = f"  # {obj.mac} {' '.join(map(str, obj.own))}" if wanted else ""
        return f"bpftool net {'attach' if wanted else 'detach'} xdpgeneric name plait_guard dev {obj.dev}{passing}"
    if isinstance(obj, Shortcut):
        name = "plait_bare" if obj.bare else "plait_here"
        return f"bpftool net {'attach' if wanted else 'detach'} tcx_ingress name {name} dev {obj.dev}"
    if not wanted:
        return f"bpftool map delete name plait_here key {obj.address}"
    around = f" by {obj.local} vni {obj.vni} port {obj.port}{' framed' if obj.framed else ''}" if obj.port else ""
    value = f"{obj.link} {obj.mac} from {obj.source}{around}"
    return f"bpftool map update name plait_here key {obj.address} value {value}"


def _hook(rule: HookRule, wanted: bool) -> str:
    where = f"{rule.family} {rule.table} {rule.chain}"
    if wanted:
        return _nft(f'insert rule {where} {rule.rule} comment "{HOOK_COMMENT}"')
    return f"nft delete rule {where} handle N  # N is that of: {rule.rule}"


def _nft(command: str) -> str:
    """Quoted, because a shell takes braces, semicolons and stars for its own."""
    return f"nft {shlex.quote(command)}"


def _peer(peer: WireguardPeer) -> str:
    endpoint = f" endpoint {at_port(*peer.endpoint)}" if peer.endpoint is not None else ""
    return f"wg set {peer.dev} peer {peer.public}{endpoint} persistent-keepalive {peer.keepalive or 'off'}"


def _link(link: VxlanLink | BridgeLink | WireguardLink | EndpointLink | VlanLink, old: KernelObject | None) -> list[str]:
    """A link that is there and can be brought in line is set, one that cannot is deleted first."""
    if old is not None and changeable(old, link):
        address = f" address {link.mac}" if isinstance(link, VxlanLink | BridgeLink) else ""
        mtu = "" if isinstance(link, VlanLink) else f" mtu {link.mtu}"
        lines = [f"ip link set {link.name}{address}{mtu} up"]
        return lines + _rest(link, old)
    gone = [f"ip link del {link.name}"] if old is not None else []
    match link:
        case VxlanLink():
            kind = (
                f"type vxlan id {link.vni} local {link.local} dstport {link.port} nolearning{' tos inherit' if link.inherits_tos else ''}"
            )
            made = [
                f"ip link add {link.name} address {link.mac} mtu {link.mtu} {kind}",
                f"ip link set {link.name} up alias {link.name}",
                *_rest(link),
            ]
        case BridgeLink():
            made = [
                f"ip link add {link.name} address {link.mac} mtu {link.mtu} type bridge",
                f"ip link set {link.name} up alias {link.name}",
                *_rest(link),
            ]
        case WireguardLink():
            made = [
                f"ip link add {link.name} mtu {link.mtu} type wireguard",
                *_keyed(link),
                f"ip link set {link.name} up alias {link.name}",
            ]
        case VlanLink():
            made = [
                f"ip link add link {link.parent} name {link.name} type vlan id {link.vlan}",
                f"ip link set {link.name} up alias {link.name}",
            ]
        case EndpointLink():
            made = _endpoint(link)
    return gone + made


def _rest(link: VxlanLink | BridgeLink | WireguardLink | EndpointLink | VlanLink, old: KernelObject | None = None) -> list[str]:
    """What a link has besides its own attributes."""
    match link:
        case EndpointLink():
            return [*_joins(link, old), *_answers(link)]
        case WireguardLink():
            return _keyed(link)
        case VxlanLink():
            return [*_tos(link, old), *_joins(link, old), *_offload(link, old)]
        case VlanLink():
            return []
    return _asks(link, old)


def _tos(link: VxlanLink, old: KernelObject | None) -> list[str]:
    """What changes whose DSCP the outer header has (a new device is told with the rest)."""
    if not isinstance(old, VxlanLink) or old.inherits_tos == link.inherits_tos:
        return []
    return [f"ip link set {link.name} type vxlan id {link.vni} tos {'inherit' if link.inherits_tos else 0}"]


def _asks(link: BridgeLink, old: KernelObject | None) -> list[str]:
    """What makes a bridge a querier, or one no more (a new one is none)."""
    if link.querier == (old.querier if isinstance(old, BridgeLink) else False):
        return []
    asks = f"mcast_query_response_interval {QUERY_RESPONSE} mcast_querier 1" if link.querier else "mcast_querier 0"
    return [f"ip link set {link.name} type bridge {asks}"]


def _keyed(link: WireguardLink) -> list[str]:
    """wg(8) is told the file of the private key, never the key."""
    return [f"wg set {link.name} listen-port {link.port} private-key {STATE_DIR}/{link.key_file}"]


def _offload(link: VxlanLink, old: KernelObject | None) -> list[str]:
    """What switches the checksum offload of a tunnel device that has it otherwise (a new one has it on)."""
    if link.tx_checksum == (old.tx_checksum if isinstance(old, VxlanLink) else True):
        return []
    return [f"ethtool -K {link.name} tx {'on' if link.tx_checksum else 'off'}"]


def _endpoint(link: EndpointLink) -> list[str]:
    inside = f" netns {link.netns}" if link.netns else ""
    peer = link.ifname if link.netns else link.peer
    lines = [
        f"ip link add {link.name} mtu {link.mtu} type veth peer name {peer} address {link.mac} mtu {link.mtu}{inside}",
        f"ip link set {link.name} up alias {link.name}",
        *_rest(link),
    ]
    return lines + _plumbed(link)


def _plumbed(link: EndpointLink | ChildLink) -> list[str]:
    """What a sandbox has of both families; nothing where an engine plumbs it."""
    if not link.netns:
        return []
    opens = [f"sysctl -w net.ipv6.conf.{link.ifname}.{name}={value}" for name, value in OPEN6] if link.inside6 is not None else []
    six = _inside6(link.ifname, link.inside6, link.gateway is None) if link.inside6 is not None else []
    return [_in(link.netns, line) for line in (*opens, *(f"ip {what}" for what in (*_inside(link), *six)))]


def _inside(link: EndpointLink | ChildLink) -> list[str]:
    """What a sandbox has of IPv4."""
    mtu = f" mtu {link.mtu}" if isinstance(link, ChildLink) and link.mtu else ""
    lines = ["link set lo up", f"link set {link.ifname}{mtu} up"]
    if link.address is not None:
        lines.append(f"addr replace {link.address} dev {link.ifname}")
    if link.gateway is not None:
        lines.append(f"route replace {link.gateway} dev {link.ifname} scope link")
    via = f"via {link.gateway} " if link.gateway is not None else ""
    tail = "" if link.gateway is not None else " scope link"
    lines += [f"route replace {network} {via}dev {link.ifname}{tail}" for network in link.through]
    if isinstance(link, ChildLink) and link.address6 is not None:
        lines.append(f"addr replace {link.address6} dev {link.ifname} nodad noprefixroute")
    ways = link.ways if isinstance(link, ChildLink) else ()
    return lines + [f"route replace {way.to} {f'via {way.via} ' if way.via is not None else ''}dev {link.ifname}" for way in ways]


def _child(link: ChildLink) -> list[str]:
    name, where = (link.ifname, f" netns {link.netns}") if link.netns else (link.name, "")
    address = f" address {link.mac}" if link.mac else ""
    lines = [
        f"ip link add link {link.parent} name {name}{where}{address} type {link.kind} mode {link.mode}",
        _in(link.netns, f"ip link set {name} alias {link.name}"),
    ]
    return lines + _plumbed(link)


def _in(netns: str, command: str) -> str:
    return f"nsenter --net={netns} {command}" if netns else command


def _inside6(dev: str, has: Inside6, straight: bool) -> list[str]:
    routes = [f"{has.subnet} dev {dev}"] if has.on_link else []
    routes += [] if straight else [f"{has.gateway} dev {dev}"]
    via = "" if straight else f" via {has.gateway}"
    routes += [f"{'default' if not network.prefixlen else network}{via} dev {dev}" for network in has.through]
    return [f"addr replace {has.interface} dev {dev} nodad noprefixroute", *(f"-6 route replace {route}" for route in routes)]


def _joins(link: VxlanLink | EndpointLink, old: KernelObject | None) -> list[str]:
    """What makes it a port of its bridge, or of none any longer."""
    if link.master:
        return [f"ip link set {link.name} master {link.master}", f"bridge link set dev {link.name} {_port(link)}"]
    return [f"ip link set {link.name} nomaster"] if isinstance(old, VxlanLink | EndpointLink) and old.master else []


def _port(link: VxlanLink | EndpointLink) -> str:
    if isinstance(link, EndpointLink):
        isolated, hairpin = ("on" if flag else "off" for flag in (link.isolated, link.hairpin))
        return f"isolated {isolated} hairpin {hairpin}"
    spelled = {"mcast_router": ("1", "2")}
    return " ".join(f"{flag} {spelled.get(flag, ('off', 'on'))[flag in link.switching]}" for flag in PORT_FLAGS)


def _switch_port(port: SwitchPort) -> list[str]:
    make = f"ovs-vsctl --may-exist add-port {port.bridge} {port.dev} tag={port.tag}"
    return [f"{make} -- set Port {port.dev} tag={port.tag} external_ids:plait=endpoint"]


def _answers(link: EndpointLink) -> list[str]:
    if not link.answers:
        quiet = (("ipv4", "proxy_arp=0"), ("ipv4", "arp_ignore=8"), ("ipv6", "disable_ipv6=1"))
        return [f"sysctl -w net.{family}.conf.{link.name}.{setting}" for family, setting in quiet]
    return [f"sysctl -w net.ipv4.conf.{link.name}.proxy_arp=1", f"sysctl -w net.ipv4.neigh.{link.name}.proxy_delay=0"]


def _way(way: Route | Rule, verb: str) -> str:
    if isinstance(way, Rule):
        return f"ip {'-6 ' if way.source.version == 6 else ''}rule {'add' if verb == 'put' else 'del'} {_rule(way)}"
    return f"ip route {'replace' if verb == 'put' else 'del'} {_route(way)}"


def _rule(rule: Rule) -> str:
    to = f" to {rule.dst}" if rule.dst is not None else ""
    table = "main" if rule.table == MAIN_TABLE else rule.table
    action = f"lookup {table}{' suppress_prefixlength 0' if rule.specific else ''}" if rule.table else "unreachable"
    source = f"{rule.source if rule.source.prefixlen else 'all'}{f' fwmark {rule.mark:#x}' if rule.mark else ''}"
    return f"from {source}{to} {action} pref {rule.priority} protocol {ROUTE_PROTOCOL}"


def _route(route: Route) -> str:
    words = [str(route.dst)] if route.kind == "unicast" else [route.kind, str(route.dst)]
    if route.via is not None:
        words.append(f"via {'' if route.via.version == route.dst.version else 'inet6 '}{route.via}")
    if route.dev:
        words.append(f"dev {route.dev}")
    words.append(f"proto {ROUTE_PROTOCOL}")
    if route.scope != "global":
        words.append(f"scope {route.scope}")
    if route.src is not None:
        words.append(f"src {route.src}")
    if route.table:
        words.append(f"table {route.table}")
    if route.metric:
        words.append(f"metric {route.metric}")
    if route.mtu:
        words.append(f"mtu {route.mtu}")
    if route.onlink:
        words.append("onlink")
    return " ".join(words)
