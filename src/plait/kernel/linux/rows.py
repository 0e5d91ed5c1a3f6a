# SPDX-License-Identifier: Apache-2.0
"""Operations on what lies on links (addresses, routes, rules, neighbours, FDB rows) -> one rtnetlink message each."""

from __future__ import annotations

from collections.abc import Mapping

from plait.kernel.linux import fdb
from plait.kernel.linux import netlink as nl
from plait.kernel.linux import route as routes
from plait.kernel.linux import rule as rules
from plait.model.objects import Addr, BridgeFdb, Fdb, Flood, Neigh, Op, Route
from plait.model.routing import Rule


def row_message(op: Op, indexes: Mapping[str, int]) -> nl.Message | None:
    """What performs `op`, None if it is not on such an object. `indexes` are those of links, by name."""
    put = op.verb == "put"
    match op.subject:
        case Addr() as addr:
            return (routes.put_addr if put else routes.del_addr)(addr, indexes[addr.dev])
        case Route() as route:
            return (routes.put_route if put else routes.del_route)(route, indexes[route.dev] if route.dev else 0)
        case Rule() as rule:
            return (rules.put_rule if put else rules.del_rule)(rule)
        case Neigh() as neigh:
            return (routes.put_neigh if put else routes.del_neigh)(neigh, indexes[neigh.dev])
        case Fdb() as row:
            return (fdb.put_fdb if put else fdb.del_fdb)(row, indexes[row.dev])
        case BridgeFdb() as row:
            return (fdb.put_bridge_fdb if put else fdb.del_bridge_fdb)(row, indexes[row.port])
        case Flood() as row:
            return (fdb.put_flood if put else fdb.del_flood)(row, indexes[row.dev])
    return None
