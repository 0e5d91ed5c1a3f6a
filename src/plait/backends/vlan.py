# SPDX-License-Identifier: Apache-2.0
"""Backend `vlan`: containers in one VLAN of a link of the host (`-o parent=eth1 -o vlan=42`): what they send leaves with that 802.1Q tag.

Out, on hosts with endpoints of it: one tagged sub-interface, shared by all networks of that parent and VLAN. Each endpoint is a macvlan
link of that, made by the plan; `mode` is as for the backend `macvlan`. With `-o switch=openvswitch` the parent is a bridge of Open vSwitch
instead, and each endpoint's veth a port of it with that tag, whatever the kernel has of 802.1Q.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from plait.backends.base import Child, OnHostLink, Peer
from plait.model.cluster import Network, Node
from plait.model.errors import ConfigError
from plait.model.hostlinks import VlanLink
from plait.model.objects import PREFIX, KernelObject

OPEN_VSWITCH = "openvswitch"
LARGEST_VLAN = 4094
"""IEEE 802.1Q: 0 and 4095 are no VLANs."""


class VlanBackend(OnHostLink):
    name = "vlan"
    modes = ("bridge", "private", "vepa", "passthru")
    options = OnHostLink.options | {"vlan", "switch", "ipam", "ipam6"}

    def needs(self) -> frozenset[str]:
        return super().needs() | {"vlan"}

    def needs_of(self, network: Network) -> frozenset[str]:
        return frozenset({"veth"}) if _switched(network.options) else self.needs()

    def device(self, network: Network) -> str:
        of = f"{network.options['parent']}/{network.options['vlan']}"
        return f"{PREFIX}v{hashlib.sha256(of.encode()).hexdigest()[:10]}"

    def child(self, network: Network) -> Child:
        if _switched(network.options):
            return Child(network.options["parent"], "veth", "", tag=int(network.options["vlan"]))
        return replace(super().child(network), parent=self.device(network))

    def check(self, options: Mapping[str, str]) -> None:
        super().check(options)
        vlan = options.get("vlan", "")
        if not (vlan.isascii() and vlan.isdigit() and vlan == str(int(vlan)) and 1 <= int(vlan) <= LARGEST_VLAN):
            raise ConfigError("vlan", vlan, "is no VLAN", f"give a number from 1 to {LARGEST_VLAN}: -o vlan=42")
        if options.get("switch", OPEN_VSWITCH) != OPEN_VSWITCH:
            raise ConfigError("switch", options["switch"], "is not known", f"use {OPEN_VSWITCH}, or leave it out for a link of the kernel")
        if _switched(options) and "mode" in options:
            raise ConfigError("mode", options["mode"], "means nothing to a port of a switch", "leave it out")
        if _switched(options) and options.get("ipam") == "dhcp":
            raise ConfigError("ipam", "dhcp", "is not possible on a port of a switch", "use a link of the kernel, or give a --subnet")

    def plan(self, me: Node, network: Network, peers: Sequence[Peer]) -> list[KernelObject]:
        if _switched(network.options):
            return []
        return [VlanLink(self.device(network), network.options["parent"], int(network.options["vlan"]))]


def _switched(options: Mapping[str, str]) -> bool:
    return "switch" in options
