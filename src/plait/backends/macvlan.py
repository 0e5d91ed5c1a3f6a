# SPDX-License-Identifier: Apache-2.0
"""Backend `macvlan`: containers on a link of the host (`-o parent=eth1`), each with a MAC of its own there, as if plugged into its switch.

Out: nothing for the network; each endpoint is a macvlan link of the parent, made by the plan. Modes as in ip-link(8): `bridge` (those of
one host reach each other), `private` (they do not), `vepa` (by way of a switch that sends frames back), `passthru` (one container has the
link, and its MAC, to itself). The host itself cannot reach its own children in any mode, nor they it: that is how macvlan is.
"""

from plait.backends.base import OnHostLink


class MacvlanBackend(OnHostLink):
    name = "macvlan"
    options = OnHostLink.options | {"ipam", "ipam6"}
    modes = ("bridge", "private", "vepa", "passthru")
