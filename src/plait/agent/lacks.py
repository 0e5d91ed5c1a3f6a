# SPDX-License-Identifier: Apache-2.0
"""What this host's kernel lacks for what the cluster wants of it: the texts of the condition `kernel-lacks`, but for limits
(`agent/limits.py`)."""

from __future__ import annotations

from collections.abc import Collection

from plait.agent.spoofing import UNGUARDED, UNGUARDED_CHILDREN, UNGUARDED_PORTS
from plait.backends import needs
from plait.kernel.linux.wireguard import MISSING as WIREGUARD_MISSING
from plait.model.cluster import Snapshot
from plait.plan.desired import is_child, is_port
from plait.plan.guard import CAPABILITY as GUARD
from plait.plan.guard import CHILDREN, PORTS
from plait.plan.vips import CAPABILITY as DRAW

_HELP = {"wireguard": WIREGUARD_MISSING, DRAW: "load the modules nft_numgen and nft_hash"}
"""What to say of a capability that can be had."""


def lacking(snapshot: Snapshot, capabilities: Collection[str]) -> dict[str, str]:
    """By network, or by what it is that all share."""
    has = frozenset(capabilities)
    texts = {} if GUARD in has else {GUARD: UNGUARDED}
    if snapshot.services and DRAW not in has:
        texts["services"] = f"services need {DRAW}{_help({DRAW})}"
    if PORTS not in has and any(map(is_port, snapshot.networks.values())):
        texts[PORTS] = UNGUARDED_PORTS
    if CHILDREN not in has and any(map(is_child, snapshot.networks.values())):
        texts[CHILDREN] = UNGUARDED_CHILDREN
    for network in snapshot.networks.values():
        lacks = (needs(network) | ({"ipv6"} if network.subnet6 is not None else set())) - has
        if lacks:
            texts[network.name] = f"network {network.name} needs {', '.join(sorted(lacks))}{_help(lacks)}"
    return texts


def _help(lacks: Collection[str]) -> str:
    return "".join(f"; {_HELP[what]}" for what in sorted(_HELP.keys() & set(lacks)))
