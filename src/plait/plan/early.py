# SPDX-License-Identifier: Apache-2.0
"""What becomes of packets as soon as a link of this host has received them: what is forged goes, the rest may take the fast path."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from plait.model.cluster import Endpoint, Snapshot
from plait.model.objects import KernelObject, Route
from plait.plan.apart import apart_objects
from plait.plan.entrance import entrances
from plait.plan.fastpath import fast_objects
from plait.plan.guard import guard_objects, own_addresses
from plait.plan.limits import not_held_back
from plait.plan.local import Local
from plait.plan.shortcut import shortcut_objects


def early_objects(
    snapshot: Snapshot,
    sandboxes: Sequence[Endpoint],
    judged: Collection[str],
    local: Local,
    plain: Mapping[str, str],
    routes: Sequence[Route],
) -> list[KernelObject]:
    """Of the endpoints of this node, `judged` by a policy or not (their ids). `plain`: the link that plain routes go by, of networks (by
    name) that have any; `routes` all that are planned."""
    networks = sorted(snapshot.networks.values(), key=lambda n: n.name)
    fast = local.fast_path and snapshot.nodes[snapshot.me].tunnel is not None
    quick = [endpoint for endpoint in sandboxes if fast and endpoint.id not in judged]
    objects = [*guard_objects(snapshot, networks, local.links)] if local.guard else []
    own = own_addresses(snapshot) if local.guard else {}
    objects += [*apart_objects(snapshot), *entrances(snapshot.networks, sandboxes, own, {e.id for e in quick}, local.links, plain)]
    if fast:
        objects += fast_objects(networks, quick, routes, local.links, plain, local.shortcut)
        objects += shortcut_objects(snapshot, networks, not_held_back(quick, snapshot.networks, local.limiting), local.shortcut)
    return objects
