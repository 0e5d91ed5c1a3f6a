# SPDX-License-Identifier: Apache-2.0
"""Links as `ip link` knows them: VXLAN, bridge, WireGuard (less what only the device itself tells) and the host side of an endpoint's
veth <-> RTM_NEWLINK messages; what lies on a link of the host is `child`'s matter.

Sources: rtnetlink(7), include/uapi/linux/if_link.h. A veth pair is made by one request with both interface indexes chosen by us: the
peer's index is honoured only if the host side's is given too, and a peer may not be created already up.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_address, ip_network

from plait.kernel.linux import bridge
from plait.kernel.linux import netlink as nl
from plait.model.hostlinks import ChildLink, VlanLink
from plait.model.inside import Inside6
from plait.model.objects import PREFIX, BridgeLink, EndpointLink, VxlanLink
from plait.model.tc import IfbLink
from plait.model.wireguard import WireguardLink

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_NEWROUTE = 20, 21, 24
_IFINFO = struct.Struct("=BxHiII")
IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_LINKINFO = 1, 3, 4, 5, 18
_IFLA_MASTER, _IFLA_IFALIAS = 10, 20
_IFLA_XDP, _XDP_PROG_ID = 43, 4
_IFLA_AF_SPEC, _IFLA_NET_NS_FD, _IFLA_LINK_NETNSID = 26, 28, 37
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA, _VETH_INFO_PEER = 1, 2, 4, 5, 1
_VXLAN_ID, _VXLAN_LOCAL, _VXLAN_TOS, _VXLAN_LEARNING, _VXLAN_PORT, _VXLAN_LOCAL6 = 1, 4, 6, 7, 15, 17
_INHERITED = 1
"""The TOS of a tunnel that copies the inner header's (ip-link(8): `tos inherit`)."""
VLAN_ID = 1
MODE = {"macvlan": 1, "ipvlan": 1}
"""IFLA_MACVLAN_MODE, of 32 bits, and IFLA_IPVLAN_MODE, of 16."""
MODES = {"macvlan": {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}, "ipvlan": {"l2": 0, "l3": 1, "l3s": 2}}
_INET_CONF = 1
_CONF_PROXY_ARP = 3
"""Offsets into the IFLA_INET_CONF array are one less than IPV4_DEVCONF_* (include/uapi/linux/ip.h): PROXY_ARP is the third."""
_IFF_UP = 1
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_RTPROT_STATIC, _SCOPE_LINK = 4, 253
ADDRESS6_FLAGS = 0x02 | 0x200
"""Of an IPv6 address: there at once (IFA_F_NODAD), without a route of its prefix (IFA_F_NOPREFIXROUTE; include/uapi/linux/if_addr.h)."""
Link = VxlanLink | BridgeLink | WireguardLink | EndpointLink | VlanLink | ChildLink | IfbLink
INDEX_FROM = 1 << 20
"""Interface indexes that we choose lie above this, far from those that the kernel counts up."""
WIREGUARD_NAMES = f"{PREFIX}wg"
"""What the names of WireGuard devices begin with: in user space they are TUN devices like others."""


@dataclass(frozen=True, slots=True)
class Found:
    """One link of the kernel: its index and, if it is one of ours, what it is as an object (without the name of its master). `away` is the
    index of a veth's other end in the namespace where that lies, 0 if it lies in this one. `renamed`: it is ours by its alias, but
    somebody has given it another name than `name`; as an object it counts as down then. `master` is the index of its bridge, `parent` of
    the link that it lies on, in the namespace of that one; 0 for none. `mac` is that of an endpoint's host side, `xdp` the id of the
    program there, 0 for none."""

    index: int
    name: str
    link: Link | None
    away: int = 0
    renamed: bool = False
    master: int = 0
    parent: int = 0
    mac: str = ""
    xdp: int = 0


class Macs:
    """The MAC addresses that the host sides of endpoints had when they were first seen: containers know them as their gateway's, and ask
    for another only when that has been silent for most of a minute."""

    def __init__(self) -> None:
        self._first: dict[int, str] = {}

    def watch(self, found: list[Found]) -> list[Found]:
        """The same links; an endpoint's whose MAC somebody has rewritten counts as down."""
        self._first = {f.index: self._first.get(f.index, f.mac) for f in found if f.mac}
        return [self._judged(f) for f in found]

    def lost(self, found: Found) -> str:
        """The MAC that the link must have again, "" if it has it."""
        first = self._first.get(found.index, found.mac)
        return first if first != found.mac else ""

    def _judged(self, found: Found) -> Found:
        link = found.link
        return replace(found, link=replace(link, ready=False)) if isinstance(link, EndpointLink) and self.lost(found) else found


def decode_link(body: bytes) -> Found:
    """One RTM_NEWLINK body. Raises NetlinkParseError."""
    if len(body) < _IFINFO.size:
        raise nl.NetlinkParseError(f"link message of {len(body)} bytes is too short")
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    attrs = nl.parse_attrs(body[_IFINFO.size :])
    called, alias = nl.text_of(attrs.get(_IFLA_IFNAME, b"")), nl.text_of(attrs.get(_IFLA_IFALIAS, b""))
    name = alias if alias.startswith(PREFIX) else called
    if not name.startswith(PREFIX):
        return Found(index, name, None)
    renamed = called != name
    info = nl.parse_attrs(attrs.get(_IFLA_LINKINFO, b""))
    kind = nl.text_of(info.get(_INFO_KIND, b""))
    mac = attrs.get(IFLA_ADDRESS, b"").hex(":")
    mtu = nl.number_of(attrs.get(_IFLA_MTU))
    up = bool(flags & _IFF_UP) and not renamed
    if kind == "vxlan":
        tunnel = _decode_vxlan(name, info.get(_INFO_DATA, b""), mac, mtu, up)
        port = bridge.switching(info.get(_INFO_SLAVE_DATA, b""))
        return Found(index, name, replace(tunnel, switching=port), renamed=renamed, master=nl.number_of(attrs.get(_IFLA_MASTER)))
    if kind == "bridge":
        querier = bridge.is_querier(info.get(_INFO_DATA, b""))
        return Found(index, name, BridgeLink(name, mac, mtu, up, querier), renamed=renamed)
    if kind in ("wireguard", "tun") and name.startswith(WIREGUARD_NAMES):
        return Found(index, name, WireguardLink(name, "", 0, mtu, up), renamed=renamed)
    if kind == "ifb":
        return Found(index, name, IfbLink(name, up), renamed=renamed)
    data, parent = info.get(_INFO_DATA, b""), nl.number_of(attrs.get(_IFLA_LINK))
    if kind == "vlan":
        return Found(index, name, _decode_vlan(name, data, up), renamed=renamed, parent=parent)
    if kind in ("macvlan", "ipvlan"):
        return Found(index, name, _decode_child(name, kind, data, mac), parent=parent)
    if kind == "veth" and name.startswith(f"{PREFIX}e"):
        away = nl.number_of(attrs.get(_IFLA_LINK)) if _IFLA_LINK_NETNSID in attrs else 0
        answers = _proxy_arp(attrs.get(_IFLA_AF_SPEC, b""))
        isolated, hairpin = bridge.endpoint_port(info.get(_INFO_SLAVE_DATA, b""))
        link = EndpointLink(name, mtu, up, answers, isolated=isolated, hairpin=hairpin)
        return Found(index, name, link, away, renamed, nl.number_of(attrs.get(_IFLA_MASTER)), mac=mac, xdp=_program_of(attrs))
    return Found(index, name, None)


def _decode_vxlan(name: str, data: bytes, mac: str, mtu: int, up: bool) -> VxlanLink:
    attrs = nl.parse_attrs(data)
    local = attrs.get(_VXLAN_LOCAL6) or attrs.get(_VXLAN_LOCAL, b"\0\0\0\0")
    port = int.from_bytes(attrs.get(_VXLAN_PORT, b"\0\0"), "big")
    if len(local) not in (4, 16):
        raise nl.NetlinkParseError(f"vxlan {name}: local address of {len(local)} bytes")
    inherits = nl.number_of(attrs.get(_VXLAN_TOS)) == _INHERITED
    return VxlanLink(name, nl.number_of(attrs.get(_VXLAN_ID)), port, ip_address(local), mac, mtu, up, inherits_tos=inherits)


def _decode_vlan(name: str, data: bytes, up: bool) -> VlanLink:
    """Without its parent's name."""
    return VlanLink(name, "", nl.number_of(nl.parse_attrs(data).get(VLAN_ID)), up)


def _decode_child(name: str, kind: str, data: bytes, mac: str) -> ChildLink:
    """Without its parent's name and its place."""
    number = nl.number_of(nl.parse_attrs(data).get(MODE[kind]))
    mode = next((mode for mode, known in MODES[kind].items() if known == number), str(number))
    return ChildLink(name, "", kind, mode, mac=mac)


def _proxy_arp(af_spec: bytes) -> bool:
    inet = nl.parse_attrs(af_spec).get(socket.AF_INET, b"")
    conf = nl.parse_attrs(inet).get(_INET_CONF, b"")
    start = (_CONF_PROXY_ARP - 1) * 4
    return nl.number_of(conf[start : start + 4]) == 1


def dump_links(sock: nl.NetlinkSocket) -> list[Found]:
    """Every link of the namespace."""
    found = sock.dump(RTM_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0))
    return [decode_link(body) for kind, body in found if kind == RTM_NEWLINK]


@dataclass(frozen=True, slots=True)
class Facts:
    """Of a link of whatever kind."""

    name: str
    mac: str
    up: bool
    kind: str = ""
    alias: str = ""


def dump_facts(sock: nl.NetlinkSocket) -> dict[int, Facts]:
    """Every link of the namespace by its index, whosever it is."""
    found = {}
    for kind, body in sock.dump(RTM_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0)):
        if kind == RTM_NEWLINK and len(body) >= _IFINFO.size:
            _, _, index, flags, _ = _IFINFO.unpack_from(body)
            attrs = nl.parse_attrs(body[_IFINFO.size :])
            name, alias = nl.text_of(attrs.get(_IFLA_IFNAME, b"")), nl.text_of(attrs.get(_IFLA_IFALIAS, b""))
            what = nl.text_of(nl.parse_attrs(attrs.get(_IFLA_LINKINFO, b"")).get(_INFO_KIND, b""))
            found[index] = Facts(name, attrs.get(IFLA_ADDRESS, b"").hex(":"), bool(flags & _IFF_UP), what, alias)
    return found


def dump_ports(sock: nl.NetlinkSocket, master: int) -> dict[str, bytes]:
    """The ports of the bridge of that index by name, with the number of the namespace that their other end lies in; those alone that have
    one elsewhere."""
    found = {}
    for kind, body in sock.dump(RTM_GETLINK, head() + nl.attr_u32(_IFLA_MASTER, master)):
        attrs = nl.parse_attrs(body[_IFINFO.size :]) if kind == RTM_NEWLINK else {}
        if nl.number_of(attrs.get(_IFLA_MASTER)) == master and _IFLA_LINK_NETNSID in attrs:  # old kernels tell of all
            found[nl.text_of(attrs.get(_IFLA_IFNAME, b""))] = attrs[_IFLA_LINK_NETNSID]
    return found


def xdp_program(body: bytes) -> int:
    """The id of the program (XDP) that a link's message tells of, 0 of none."""
    return _program_of(nl.parse_attrs(body[_IFINFO.size :]))


def _program_of(attrs: Mapping[int, bytes]) -> int:
    return nl.number_of(nl.parse_attrs(attrs.get(_IFLA_XDP, b"")).get(_XDP_PROG_ID))


def head(index: int = 0, up: bool | None = None) -> bytes:
    """What a link message begins with (struct ifinfomsg)."""
    flags, change = (0, 0) if up is None else (_IFF_UP if up else 0, _IFF_UP)
    return _IFINFO.pack(0, 0, index, flags, change)


def get_body(index: int) -> bytes:
    """The body of an RTM_GETLINK request for one link."""
    return head(index)


def create_vxlan(link: VxlanLink) -> nl.Message:
    data = nl.nested(
        _INFO_DATA,
        nl.attr_u32(_VXLAN_ID, link.vni),
        nl.attr(_VXLAN_LOCAL if link.local.version == 4 else _VXLAN_LOCAL6, link.local.packed),
        nl.attr_u8(_VXLAN_TOS, _INHERITED if link.inherits_tos else 0),
        nl.attr_u8(_VXLAN_LEARNING, 0),
        nl.attr_u16be(_VXLAN_PORT, link.port),
    )
    return creation_of(link.name, link.mac, link.mtu, "vxlan", data)


def inherit_tos(link: VxlanLink, index: int) -> nl.Message:
    """What changes that of a device that is there."""
    data = nl.nested(_INFO_DATA, nl.attr_u8(_VXLAN_TOS, _INHERITED if link.inherits_tos else 0))
    return nl.Message(RTM_NEWLINK, 0, head(index) + nl.nested(_IFLA_LINKINFO, nl.attr_text(_INFO_KIND, "vxlan"), data))


def create_bridge(link: BridgeLink) -> nl.Message:
    """Without its MTU: only one that is changed later is kept whatever ports come and go (kernel: br_mtu_auto_adjust)."""
    return creation_of(link.name, link.mac, 0, "bridge", nl.nested(_INFO_DATA, *bridge.bridge_data()))


def ask_for_members(link: BridgeLink, index: int) -> list[nl.Message]:
    """Make the bridge a querier, or none any longer, in order."""
    wanted = bridge.querier_data(link.querier)
    infos = [nl.nested(_IFLA_LINKINFO, nl.attr_text(_INFO_KIND, "bridge"), nl.nested(_INFO_DATA, data)) for data in wanted]
    return [nl.Message(RTM_NEWLINK, 0, head(index) + info) for info in infos]


def create_wireguard(link: WireguardLink) -> nl.Message:
    return creation_of(link.name, "", link.mtu, "wireguard", b"")


def creation_of(name: str, mac: str, mtu: int, kind: str, data: bytes) -> nl.Message:
    body = head(up=True) + nl.attr_text(_IFLA_IFNAME, name) + (nl.attr_u32(_IFLA_MTU, mtu) if mtu else b"")
    body += nl.attr(IFLA_ADDRESS, mac_bytes(mac)) if mac else b""
    body += nl.nested(_IFLA_LINKINFO, nl.attr_text(_INFO_KIND, kind), data)
    return nl.Message(RTM_NEWLINK, nl.NLM_F_CREATE | nl.NLM_F_EXCL, body)


def create_veth(link: EndpointLink, index: int, peer_index: int, netns_fd: int | None) -> nl.Message:
    """The pair in one request: host side up, the other end in the namespace of `netns_fd` under its final name, or here as `peer`."""
    peer = head(peer_index) + nl.attr_text(_IFLA_IFNAME, link.peer if netns_fd is None else link.ifname)
    peer += nl.attr_u32(_IFLA_MTU, link.mtu) + nl.attr(IFLA_ADDRESS, mac_bytes(link.mac))
    if netns_fd is not None:
        peer += nl.attr_u32(_IFLA_NET_NS_FD, netns_fd)
    info = nl.nested(_IFLA_LINKINFO, nl.attr_text(_INFO_KIND, "veth"), nl.nested(_INFO_DATA, nl.attr(_VETH_INFO_PEER | 0x8000, peer)))
    body = head(index, up=True) + nl.attr_text(_IFLA_IFNAME, link.name) + nl.attr_u32(_IFLA_MTU, link.mtu) + info
    return nl.Message(RTM_NEWLINK, nl.NLM_F_CREATE | nl.NLM_F_EXCL, body)


def set_link(
    index: int, mtu: int = 0, mac: str = "", up: bool | None = None, proxy_arp: bool | None = None, name: str = "", alias: str = ""
) -> nl.Message:
    """Change an existing link; what is left at its default stays as it is. With index 0 it is found by `name`, else renamed to that."""
    body = head(index, up)
    if name:
        body += nl.attr_text(_IFLA_IFNAME, name)
    if alias:
        body += nl.attr(_IFLA_IFALIAS, alias.encode())
    if mtu:
        body += nl.attr_u32(_IFLA_MTU, mtu)
    if mac:
        body += nl.attr(IFLA_ADDRESS, mac_bytes(mac))
    if proxy_arp is not None:
        conf = nl.nested(_INET_CONF, nl.attr_u32(_CONF_PROXY_ARP, int(proxy_arp)))
        body += nl.nested(_IFLA_AF_SPEC, nl.nested(socket.AF_INET, conf))
    return nl.Message(RTM_NEWLINK, 0, body)


def join_bridge(link: VxlanLink | EndpointLink, index: int, master: int) -> list[nl.Message]:
    """Make the link a port of the bridge `master`, in order; 0: of none."""
    joined = nl.Message(RTM_NEWLINK, 0, head(index) + nl.attr_u32(_IFLA_MASTER, master))
    if not master:
        return [joined]
    data = nl.nested(_INFO_SLAVE_DATA, *bridge.port_data(link))
    port = nl.nested(_IFLA_LINKINFO, nl.attr_text(_INFO_SLAVE_KIND, "bridge"), data)
    return [joined, nl.Message(RTM_NEWLINK, 0, head(index) + port)]


def delete_link(index: int) -> nl.Message:
    return nl.Message(RTM_DELLINK, 0, head(index))


def inside_messages(link: EndpointLink | ChildLink, peer_index: int) -> list[nl.Message]:
    """What makes the sandbox's side work, in order: loopback up, the link up, and each family's address and routes."""
    messages = [set_link(1, up=True), set_link(peer_index, mtu=link.mtu if isinstance(link, ChildLink) else 0, up=True)]
    if link.address is not None:
        messages.append(_address(peer_index, link.address))
    if link.gateway is not None:
        messages += _routes(peer_index, link.gateway, link.through)
    else:
        messages += [_route(peer_index, network) for network in link.through]
    if isinstance(link, ChildLink):
        messages += _ways(peer_index, link)
        messages += [_address6(peer_index, link.address6)] if link.address6 is not None else []
    has, straight = link.inside6, link.address is not None and link.gateway is None
    return messages + (_inside6(peer_index, has, straight) if has is not None else [])


def _ways(index: int, link: ChildLink) -> list[nl.Message]:
    """Next hops that the address does not say to be on the link come first, as such."""
    near = link.address.network if link.address is not None else None
    hops = {way.via for way in link.ways if way.via is not None and (near is None or way.via not in near)}
    return [
        *(_route(index, ip_network(hop)) for hop in sorted(hops)),
        *(_route(index, way.to, way.via) for way in sorted(link.ways, key=lambda way: way.via is not None)),
    ]


def _inside6(index: int, has: Inside6, straight: bool) -> list[nl.Message]:
    """`straight`: everything goes by the link itself."""
    near = [_route(index, has.subnet)] if has.on_link else []
    far = [_route(index, network) for network in has.through] if straight else _routes(index, has.gateway, has.through)
    return [_address6(index, has.interface), *near, *far]


def _address6(index: int, address: IPv6Interface) -> nl.Message:
    body = struct.pack("=BBBBI", socket.AF_INET6, address.network.prefixlen, 0, 0, index)
    body += nl.attr(2, address.ip.packed) + nl.attr(1, address.ip.packed) + nl.attr_u32(8, ADDRESS6_FLAGS)
    return nl.Message(RTM_NEWADDR, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, body)


def _routes(index: int, gateway: IPv4Address | IPv6Address, through: Iterable[IPv4Network | IPv6Network]) -> list[nl.Message]:
    """The gateway as the one neighbour, and everything that is reached by way of it."""
    return [_route(index, ip_network(gateway)), *(_route(index, network, gateway) for network in through)]


def _route(index: int, to: IPv4Network | IPv6Network, via: IPv4Address | IPv6Address | None = None) -> nl.Message:
    """A route of the main table: by way of `via`, or to what is on the link itself."""
    family = socket.AF_INET if to.version == 4 else socket.AF_INET6
    body = struct.pack("=BBBBBBBBI", family, to.prefixlen, 0, 0, 254, _RTPROT_STATIC, _SCOPE_LINK if via is None else 0, 1, 0)
    body += nl.attr_u32(_RTA_OIF, index)
    if to.prefixlen:
        body += nl.attr(_RTA_DST, to.network_address.packed)
    if via is not None:
        body += nl.attr(_RTA_GATEWAY, via.packed)
    return nl.Message(RTM_NEWROUTE, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, body)


def _address(index: int, address: IPv4Interface) -> nl.Message:
    body = struct.pack("=BBBBI", socket.AF_INET, address.network.prefixlen, 0, 0, index)
    body += nl.attr(2, address.ip.packed) + nl.attr(1, address.ip.packed)
    if address.network.prefixlen < 31:
        body += nl.attr(4, address.network.broadcast_address.packed)
    return nl.Message(RTM_NEWADDR, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, body)


def drop_address(index: int, address: IPv4Interface | IPv6Interface) -> nl.Message:
    """The kernel takes the link's routes of IPv4 away with its last address."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    body = struct.pack("=BBBBI", family, address.network.prefixlen, 0, 0, index) + nl.attr(2, address.ip.packed)
    return nl.Message(RTM_DELADDR, 0, body)


def mac_bytes(mac: str) -> bytes:
    """Six bytes of a colon-separated MAC. ValueError if it is none."""
    raw = bytes.fromhex(mac.replace(":", ""))
    if len(raw) != 6:
        raise ValueError(f"{mac!r} is not a MAC address")
    return raw
