# SPDX-License-Identifier: Apache-2.0
"""An endpoint's address told to its neighbours on a link of the host, who may still know it by the MAC of whoever had it before.

Out: one announcement of `announce`, by ARP or by neighbour discovery, on the endpoint's link in its sandbox. A kernel takes the sender's
MAC of it for what it knows already at once, and learns nothing that it did not ask for.
"""

from __future__ import annotations

import socket

from plait.kernel.linux import link as links
from plait.kernel.linux.announce import announcement
from plait.kernel.linux.inside import opened
from plait.kernel.linux.netns import inside
from plait.model.addr import IPAddress


def tell_neighbours(netns: str, alias: str, mac: str, address: IPAddress) -> bool:
    """Tell that `address` is at the link with that alias, or MAC, in the namespace at `netns`; False while no such link is up. OSError if
    the namespace is gone."""
    with opened(netns) as (fd, there):
        facts = links.dump_facts(there).values()
        own = next((one for one in facts if one.up and (one.alias == alias or (mac and one.mac == mac))), None)
        if own is None:
            return False
        with inside(fd):
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    with sock:
        sock.bind((own.name, 0))
        sock.send(announcement(address, links.mac_bytes(own.mac)))
    return True
