# SPDX-License-Identifier: Apache-2.0
"""The real kernel: netlink, nftables, namespaces."""

from plait.kernel.linux.bridgeport import port_into
from plait.kernel.linux.child import children_in, readdress
from plait.kernel.linux.herald import tell_neighbours
from plait.kernel.linux.inside import inspect_sandbox
from plait.kernel.linux.kernel import LinuxKernel
from plait.kernel.linux.neightables import neigh_tables
from plait.kernel.linux.netns import create_netns, delete_netns, netns_exists, running_netns
from plait.kernel.linux.packets import PacketSocket, announce_here, link_mac, open_arp, open_claims, open_neighbours
from plait.kernel.linux.resolver import open_resolver
from plait.kernel.linux.sysctl import Sysctls

__all__ = [
    "LinuxKernel",
    "PacketSocket",
    "Sysctls",
    "announce_here",
    "children_in",
    "create_netns",
    "delete_netns",
    "inspect_sandbox",
    "link_mac",
    "neigh_tables",
    "netns_exists",
    "open_arp",
    "open_claims",
    "open_neighbours",
    "open_resolver",
    "port_into",
    "readdress",
    "running_netns",
    "tell_neighbours",
]
