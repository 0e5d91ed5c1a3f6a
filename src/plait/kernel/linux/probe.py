# SPDX-License-Identifier: Apache-2.0
"""What this kernel can do, found out by trying in a namespace made for it: nothing is touched on the host."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path

from plait.kernel.linux import child, portguard
from plait.kernel.linux import link as links
from plait.kernel.linux import netlink as nl
from plait.kernel.linux.classes import ClassControl
from plait.kernel.linux.devices import index_of
from plait.kernel.linux.netns import in_thread, unshare_net
from plait.kernel.linux.nft import NftError, open_nft
from plait.kernel.linux.route import put_route
from plait.kernel.linux.shortcut import Shortcuts
from plait.kernel.linux.tc import TrafficControl, create_ifb
from plait.kernel.linux.wireguard import in_user_space
from plait.model.hostlinks import ChildLink, VlanLink, guard_of
from plait.model.objects import BridgeLink, EndpointLink, Route, VxlanLink
from plait.model.tc import Classes, IfbLink, Tbf
from plait.model.wireguard import WireguardLink

_MAC = "02:00:00:00:00:01"
_PARENT = 1001
_SCRIPTS = {
    "nft": "add table inet plait\nadd set inet plait s { type ipv4_addr . ipv4_addr; flags interval; }\n",
    "counting": "add table inet plait\nadd set inet plait d { type ipv4_addr; flags dynamic,timeout; size 8; timeout 1m; }\n"
    "add chain inet plait d\nadd rule inet plait d update @d { ip saddr counter }\n",
    "fwd": 'add table netdev plait\nadd chain netdev plait c { type filter hook ingress device "lo" priority 0; }\n'
    'add rule netdev plait c fwd ip to ip daddr device "lo"\n',
    "guard": "add table netdev plait\nadd set netdev plait f { type iface_index; flags dynamic,timeout; }\n"
    'add chain netdev plait g { type filter hook ingress device "lo" priority 0; }\n'
    "add rule netdev plait g ether saddr != 02:00:00:00:00:01 update @f { iif timeout 1h counter } drop\n",
    "metered": "add table netdev plait\nadd set netdev plait m { type ifname; limit rate over 1/second counter; }\n"
    'add element netdev plait m { "lo" limit rate over 7/second counter }\n'
    'add chain netdev plait m { type filter hook ingress device "lo" priority 0; }\n'
    "add rule netdev plait m iifname @m drop\n",
    "egress": 'add table netdev plait\nadd chain netdev plait e { type filter hook egress device "lo" priority 0; }\n',
    "draw": "add table inet plait\nadd chain inet plait d\nadd rule inet plait d numgen random mod 2 vmap { 0 : accept }\n"
    "add rule inet plait d jhash ip saddr mod 2 seed 0x1 vmap { 0 : accept }\n",
    "ingress": 'add table netdev plait\nadd chain netdev plait d { type filter hook ingress device "lo" priority 0; }\n'
    "add rule netdev plait d arp operation 1 ether daddr set ff:ff:ff:ff:ff:ff\n",
}


def probe_capabilities() -> frozenset[str]:
    """Of "vxlan", "bridge", "veth", "wireguard" (the kernel's or wireguard-go), "nft", "fwd" (forwarding at ingress, nft_fwd_netdev),
    "ingress" (rules there that change frames), "guard" (rules there that count by link), "metered" (sets whose elements have limits),
    "egress" (chains for what leaves by a link), "draw" (rules that choose at random and by an address, nft_numgen and nft_hash), "shortcut"
    (an eBPF classifier at a link's ingress), "xdp" (an eBPF program that sees what a link receives before all else), "macvlan", "ipvlan",
    "vlan" (802.1Q), "counting" (sets that packets write, nft_dynset), "tbf" (queueing that limits a rate), "ifb" (a device for the same
    with what a link receives), "htb" (classes of a rate), "redirect" (what may lead there: the filter u32, the action mirred), "ipv6" and
    "via6" (routes of IPv4 with a next hop of IPv6) those that work here."""
    return in_thread(_probe)


def _by_next_hop_of_ipv6() -> list[nl.Message]:
    """The last of these needs what is asked for, on the pair that was made before."""
    route = Route(IPv4Network("192.0.2.0/24"), "pl-e0", via=IPv6Address("fe80::1"), onlink=True)
    return [*(links.set_link(index, up=True) for index in (_PARENT, 1002)), put_route(route, _PARENT)]


def _limits(sock: nl.NetlinkSocket) -> set[str]:
    """What of limits works on the pair that was made before."""
    tc = TrafficControl(sock)
    found: set[str] = set()
    found |= {"ifb"} if sock.transact([create_ifb(IfbLink("pl-i0"))])[0].errno == 0 else set()
    with contextlib.suppress(OSError):
        tc.put_tbf(Tbf("pl-e0", 1_000_000, 1 << 14, 1 << 16), _PARENT)
        found.add("tbf")
    with contextlib.suppress(OSError):
        ClassControl(sock).put(Classes("pl-p0", 1_000_000, (1000, 1000, 1000)), 1002)
        found.add("htb")
    with contextlib.suppress(OSError):
        tc.redirect(_PARENT, index_of("pl-i0"))
        found.add("redirect")
    return found


def _probe() -> frozenset[str]:
    unshare_net()
    found: set[str] = {"wireguard"} if in_user_space() else set()
    trials = {
        "vxlan": links.create_vxlan(VxlanLink("pl-x1", 1, 4789, IPv4Address("127.0.0.1"), _MAC, 1450)),
        "bridge": links.create_bridge(BridgeLink("pl-gw", _MAC)),
        "wireguard": links.create_wireguard(WireguardLink("pl-wg", "", 0, 1420)),
        "veth": links.create_veth(EndpointLink("pl-e0", 1500, peer="pl-p0", mac=_MAC), _PARENT, 1002, None),
        "macvlan": child.create_child(ChildLink("pl-e1", "", "macvlan", "bridge"), 1003, _PARENT, None),
        "ipvlan": child.create_child(ChildLink("pl-e2", "", "ipvlan", "l2"), 1004, 1002, None),
        "vlan": child.create_vlan(VlanLink("pl-v0", "", 1), _PARENT),
    }
    with contextlib.closing(nl.NetlinkSocket()) as sock:
        for name, message in trials.items():
            if sock.transact([message])[0].errno == 0:
                found.add(name)
        if sock.transact(_by_next_hop_of_ipv6())[-1].errno == 0:
            found.add("via6")
        with contextlib.suppress(OSError, nl.NetlinkParseError), contextlib.closing(Shortcuts(sock)) as shortcuts:
            shortcuts.put("lo")
            found.add("shortcut")
        with contextlib.suppress(OSError):
            portguard.put(sock, _PARENT, guard_of("pl-e0", _MAC, ()))
            found.add("xdp")
        found |= _limits(sock)
    if Path("/proc/sys/net/ipv6").is_dir():
        found.add("ipv6")
    for name, script in _SCRIPTS.items():
        with contextlib.suppress(NftError):
            open_nft().run(script)
            found.add(name)
    return frozenset(found)
