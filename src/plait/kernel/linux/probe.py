# SPDX-License-Identifier: Apache-2.0
"""What this kernel can do, found out by trying in a namespace made for it: nothing is touched on the host."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address
from pathlib import Path

from plait.kernel.linux import child
from plait.kernel.linux import link as links
from plait.kernel.linux import netlink as nl
from plait.kernel.linux.netns import in_thread, unshare_net
from plait.kernel.linux.nft import NftError, open_nft
from plait.kernel.linux.shortcut import Shortcuts
from plait.kernel.linux.wireguard import in_user_space
from plait.model.hostlinks import ChildLink, VlanLink
from plait.model.objects import BridgeLink, EndpointLink, VxlanLink, WireguardLink

_MAC = "02:00:00:00:00:01"
_PARENT = 1001
_SCRIPTS = {
    "nft": "add table inet plait\nadd set inet plait s { type ipv4_addr . ipv4_addr; flags interval; }\n",
    "fwd": 'add table netdev plait\nadd chain netdev plait c { type filter hook ingress device "lo" priority 0; }\n'
    'add rule netdev plait c fwd ip to ip daddr device "lo"\n',
    "ingress": 'add table netdev plait\nadd chain netdev plait d { type filter hook ingress device "lo" priority 0; }\n'
    "add rule netdev plait d arp operation 1 ether daddr set ff:ff:ff:ff:ff:ff\n",
}


def probe_capabilities() -> frozenset[str]:
    """Of "vxlan", "bridge", "veth", "wireguard" (the kernel's or wireguard-go), "nft", "fwd" (forwarding at ingress, nft_fwd_netdev),
    "ingress" (rules there that change frames), "shortcut" (an eBPF classifier at a link's ingress), "macvlan", "ipvlan", "vlan" (802.1Q)
    and "ipv6" those that work here."""
    return in_thread(_probe)


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
        with contextlib.suppress(OSError, nl.NetlinkParseError), contextlib.closing(Shortcuts(sock)) as shortcuts:
            shortcuts.put("lo")
            found.add("shortcut")
    if Path("/proc/sys/net/ipv6").is_dir():
        found.add("ipv6")
    for name, script in _SCRIPTS.items():
        with contextlib.suppress(NftError):
            open_nft().run(script)
            found.add(name)
    return frozenset(found)
