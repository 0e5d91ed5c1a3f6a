# SPDX-License-Identifier: Apache-2.0
"""Addresses of other hosts at which their published ports are asked for.

Data in: a Snapshot. Data out: by node, those that mean it and no other host. What several say they have (private networks that are alike,
an address that is moving from one to the other) leads nobody anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from plait.model.addr import IPAddress
from plait.model.cluster import Snapshot


def asked_at(snapshot: Snapshot) -> Mapping[str, tuple[IPAddress, ...]]:
    """Of each node but this one."""
    known = {node.address for node in snapshot.nodes.values()}
    told = Counter(address for node in snapshot.nodes.values() for address in node.further)
    return {
        name: (node.address, *(one for one in node.further if told[one] == 1 and one not in known))
        for name, node in snapshot.nodes.items()
        if name != snapshot.me
    }
