# SPDX-License-Identifier: Apache-2.0
"""Backend `vlan`: containers in one VLAN of a link of the host (`-o parent=eth1 -o vlan=42`): what they send leaves with that 802.1Q tag.

Out, on hosts with endpoints of it: one tagged sub-interface, shared by all networks of that parent and VLAN. Each endpoint is a macvlan
link of that, made by the plan; `mode` is as for the backend `macvlan`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from plait.backends.base import Child, OnHostLink, Peer
from plait.model.cluster import Network, Node
from plait.model.errors import ConfigError
from plait.model.objects import PREFIX, KernelObject, VlanLink

LARGEST_VLAN = 4094
"""IEEE 802.1Q: 0 and 4095 are no VLANs."""


class VlanBackend(OnHostLink):
    name = "vlan"
    modes = ("bridge", "private", "vepa", "passthru")
    options = OnHostLink.options | {"vlan"}

    def needs(self) -> frozenset[str]:
        return super().needs() | {"vlan"}

    def device(self, network: Network) -> str:
        of = f"{network.options['parent']}/{network.options['vlan']}"
        return f"{PREFIX}v{hashlib.sha256(of.encode()).hexdigest()[:10]}"

    def child(self, network: Network) -> Child:
        return replace(super().child(network), parent=self.device(network))

    def check(self, options: Mapping[str, str]) -> None:
        super().check(options)
        vlan = options.get("vlan", "")
        if not (vlan.isascii() and vlan.isdigit() and vlan == str(int(vlan)) and 1 <= int(vlan) <= LARGEST_VLAN):
            raise ConfigError("vlan", vlan, "is no VLAN", f"give a number from 1 to {LARGEST_VLAN}: -o vlan=42")

    def plan(self, me: Node, network: Network, peers: Sequence[Peer]) -> list[KernelObject]:
        return [VlanLink(self.device(network), network.options["parent"], int(network.options["vlan"]))]
