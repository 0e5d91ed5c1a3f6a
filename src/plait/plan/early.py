# SPDX-License-Identifier: Apache-2.0
"""What becomes of packets as soon as a link of this host has received them: what is forged goes, the rest may take the fast path."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from plait.model.cluster import Endpoint, Network, Snapshot
from plait.model.objects import Fdb, KernelObject, Route
from plait.plan.apart import apart_objects
from plait.plan.entrance import entrances
from plait.plan.fastpath import Ways, fast_objects
from plait.plan.guard import CAPABILITY, guard_objects, own_addresses
from plait.plan.limits import counts_objects, not_held_back
from plait.plan.local import Local
from plait.plan.shortcut import shortcut_objects
from plait.plan.vips import Vips
from plait.shaping import uplink_objects


def early_objects(
    snapshot: Snapshot,
    sandboxes: Sequence[Endpoint],
    judged: Collection[str],
    local: Local,
    direct: Iterable[Network],
    rows: Sequence[Route | Fdb],
    vips: Vips,
) -> list[KernelObject]:
    """Of the endpoints of this node, `judged` by a policy or not (their ids). `direct`: networks some of whose plain routes go by the
    underlay's link; `rows` all of routes and tunnels that are planned. What comes from other hosts may be an answer by a virtual
    address (`vips`), which only the IP stack turns back."""
    networks = sorted(snapshot.networks.values(), key=lambda n: n.name)
    fast = local.fast_path and snapshot.nodes[snapshot.me].tunnel is not None
    quick = [endpoint for endpoint in sandboxes if fast and endpoint.id not in judged]
    objects = [*guard_objects(snapshot, networks, local.links, local.bridged)] if CAPABILITY in local.guards else []
    own = own_addresses(snapshot) if CAPABILITY in local.guards else {}
    ways = Ways(local.links, {network.name: local.underlay for network in direct if local.underlay}, tuple(vips.ends))
    told = ways, local.limiting, local.residents.chains
    objects += [*apart_objects(snapshot), *entrances(snapshot.networks, sandboxes, own, {e.id for e in quick}, *told)]
    objects += uplink_objects(local.uplink, local.limiting.means.able)
    objects += counts_objects(sandboxes, snapshot.networks, local.limiting)
    if fast:
        reached = [endpoint for endpoint in quick if endpoint.network not in vips.networks]
        objects += fast_objects(networks, quick, rows, ways, local.shortcut, vips.ends)
        unlimited = not_held_back(reached, snapshot.networks, local.limiting)
        objects += shortcut_objects(snapshot, networks, unlimited, local.shortcut, local.links)
    return objects
