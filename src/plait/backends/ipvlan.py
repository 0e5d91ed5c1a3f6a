# SPDX-License-Identifier: Apache-2.0
"""Backend `ipvlan`: containers on a link of the host (`-o parent=eth1`), all with that link's MAC, for switches that take one MAC a port.

Out: nothing for the network; each endpoint is an ipvlan link of the parent, made by the plan. Modes as in ip-link(8): `l2` (neighbours by
ARP), `l3` and `l3s` (no ARP and no broadcast: the host's own routes lead on, and others need routes to the blocks of this host; `l3s` sees
the host's connection tracking). The host itself cannot reach its own children.
"""

from dataclasses import replace

from plait.backends.base import Child, OnHostLink
from plait.model.cluster import Network


class IpvlanBackend(OnHostLink):
    name = kind = "ipvlan"
    modes = ("l2", "l3", "l3s")
    own_mac = False

    def child(self, network: Network) -> Child:
        child = super().child(network)
        return replace(child, gateway=child.mode == "l2")
