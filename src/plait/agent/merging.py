# SPDX-License-Identifier: Apache-2.0
"""Two clusters' stores -> what stands against their becoming one, and what is written into the one that is joined. Pure.

Data in: what both stores hold, by key; `ours` is the side that joins `theirs` and ends with that, of which there is what
`store.peek.shown` shows. Data out: conflicts, and keys with values
in three parts: what nobody acts upon while its node is unknown, which is written ahead, what makes the nodes known, in one piece, and what
each node would publish by itself, later.

Taken along: nodes, networks, blocks that nobody there holds, addresses that are reserved or lent, all that the nodes publish, what others
put into the catalogue, prepared queries, keys and values, policies. Not taken along: sessions, and so the locks that they hold; join
tokens; events.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network
from typing import Any

from plait.agent.keys import TYPES, kind_of, node_key, record_key
from plait.agent.merged import Merged
from plait.ipam import block_of, exhausted_in, free_blocks, held_by
from plait.ipam.merge import Clash, conflicts, export
from plait.model.cluster import Assigned, Block, Endpoint, Network, Node, Snapshot
from plait.model.errors import PlaitError
from plait.model.query import PreparedQuery
from plait.plan.desired import first_default_block
from plait.services.directory import SERVER_META
from plait.store.codec import decode, encode
from plait.store.peek import shown_value

Items = Mapping[str, bytes]
_AHEAD, _AFTER = ("endpoints", "queries", "kv"), ("containers", "instances", "checks")
_ONCE = ("ghosts", "hostranges", "coordinates", "reach", "policies", "namespaces", "services", "vips", "egress")
_SHARED = (
    "catalog/nodes",
    "catalog/instances",
    "catalog/checks",
    "catalog/tags",
    "queries",
    "kv",
    "policies",
    "namespaces",
    "services",
    "vips",
    "egress",
)
"""Kinds of which both may hold the same record, but not two different ones under one key."""
_NAMES = {
    "kv": "key",
    "queries": "query",
    "policies": "policy",
    "namespaces": "namespace",
    "services": "service",
    "egress": "egress rule",
    "vips": "virtual address",
}
_QUERIES = "queries"


@dataclass(frozen=True, slots=True)
class Move:
    """What is written: `ahead` at any time, `last` in one transaction, `after` then. `given_up`: keys of blocks that the joined cluster
    holds."""

    ahead: Items
    last: Items
    after: Items
    given_up: frozenset[str] = frozenset()
    nodes: tuple[str, ...] = field(default=())


def snapshot_of(items: Items) -> Snapshot:
    """The cluster that the items describe. A record that cannot be read is left out, as every agent does."""
    merged = Merged("")
    for key, value in items.items():
        wanted = TYPES.get(kind_of(key))
        if wanted is not None:
            try:
                merged.put(key, decode(wanted, value, key))
            except PlaitError:
                continue
    return merged.snapshot(0, frozenset())


def standing(ours: Items, theirs: Items) -> list[Clash]:
    """All conflicts, of addresses (`ipam.merge`), then of what is kept under a name."""
    return [*conflicts(export(snapshot_of(ours)), export(snapshot_of(theirs))), *_different(ours, theirs), *_queries(ours, theirs)]


def _different(ours: Items, theirs: Items) -> Iterator[Clash]:
    for key in sorted(ours.keys() & theirs.keys()):
        kind = kind_of(key)
        if kind in _SHARED and shown_value(key, ours[key]) != theirs[key]:
            name = f"{_NAMES.get(kind, kind)} {key.removeprefix(f'{kind}/')}"
            yield Clash(kind.partition("/")[0], name, f"{name}, with another value", "delete one, or give both the same value")


def _unlocked(key: str, value: bytes) -> bytes:
    """A key's record without its lock."""
    if kind_of(key) != "kv":
        return value
    entry = decode(dict[str, Any], value, key)
    return encode({**entry, "session": "", "lock_index": 0})


def _queries(ours: Items, theirs: Items) -> Iterator[Clash]:
    there = {query.name: query for query in _named(theirs)}
    for query in _named(ours):
        other = there.get(query.name)
        if other is not None and other.id != query.id:
            yield Clash("query", f"query {query.name} ({query.id})", f"query {other.name} ({other.id})", "delete or rename one")


def _named(items: Items) -> list[PreparedQuery]:
    found = (decode(PreparedQuery, items[key], key) for key in sorted(items) if kind_of(key) == _QUERIES)
    return [query for query in found if query.name]


def locks(ours: Items) -> list[str]:
    """Keys whose lock is released, ascending."""
    found = (key for key in ours if kind_of(key) == "kv" and decode(dict[str, Any], ours[key], key).get("session"))
    return sorted(key.removeprefix("kv/") for key in found)


def move(ours: Items, theirs: Items, default: str) -> Move:
    """What to write into `theirs` so that it holds `ours` too; of values that are there already nothing. There must be no conflict that
    stops it."""
    names = tuple(sorted(key.partition("/")[2] for key in ours if kind_of(key) == "nodes"))
    ahead = {key: _unlocked(key, value) for key, value in ours.items() if kind_of(key) in _AHEAD}
    last = dict(_last(ours, theirs, default))
    after = {key: value for key, value in ours.items() if kind_of(key) in _AFTER}
    lost = frozenset(key for key in ours if kind_of(key) == "blocks" and key in theirs and _holder(ours[key]) != _holder(theirs[key]))
    return Move(_new(ahead, theirs), _new(last, theirs), _new(after, theirs), lost, names)


def _new(wanted: Items, theirs: Items) -> Items:
    return {key: value for key, value in wanted.items() if theirs.get(key) != shown_value(key, value)}


def _last(ours: Items, theirs: Items, default: str) -> Iterator[tuple[str, bytes]]:
    for key, value in ours.items():
        kind = kind_of(key)
        if kind in _ONCE or kind.startswith("catalog/") or (kind in ("networks", "blocks") and key not in theirs):
            yield key, value
        elif kind == "assigned":
            yield key, _assigned(value, theirs.get(key), key)
    here, there = snapshot_of(ours), snapshot_of(theirs)
    held = {(b.network, b.cidr): b for b in (*here.blocks.values(), *there.blocks.values())}
    for node in sorted(here.nodes.values(), key=lambda n: n.name):
        made, block = _settled(node, held, here, there, default)
        yield node_key(node.name), encode(made)
        if block is not None:
            held[(block.network, block.cidr)] = block
            yield record_key(block), encode(block)


def _assigned(ours: bytes, theirs: bytes | None, key: str) -> bytes:
    """A reservation of both is used where it is used."""
    if theirs is None:
        return ours
    one, other = decode(Assigned, ours, key), decode(Assigned, theirs, key)
    return theirs if other.node or not one.node else encode(replace(other, node=one.node))


def _holder(value: bytes) -> str:
    return decode(Block, value, "of a block").node


def _settled(
    node: Node, held: Mapping[tuple[str, IPv4Network], Block], here: Snapshot, there: Snapshot, default: str
) -> tuple[Node, Block | None]:
    """The node's record as it will be, so that the others reach it from the first moment; with a block for its tunnel address if it has
    to give up those that it had."""
    meta = {name: text for name, text in node.meta.items() if name != SERVER_META}
    node = replace(node, meta=meta)
    key, wireguard = node.wireguard, node.wireguard
    if key is not None and key.address is not None and not _keeps(node, held, here, key.address):
        wireguard = replace(key, address=None)
    block = first_default_block(held.values(), node.name, default)
    made = None
    if block is None and node.tunnel is not None:
        network = there.networks.get(default) or here.networks[default]
        block = made = Block(default, _free(network, held, (*here.endpoints.values(), *there.endpoints.values())), node.name)
    return replace(node, tunnel=block.cidr.network_address if block is not None else None, wireguard=wireguard), made


def _keeps(node: Node, held: Mapping[tuple[str, IPv4Network], Block], here: Snapshot, address: Any) -> bool:
    return any(b.node == node.name and address in b.cidr for b in held.values() if here.networks[b.network].encrypted)


def _free(network: Network, held: Mapping[tuple[str, IPv4Network], Block], endpoints: tuple[Endpoint, ...]) -> IPv4Network:
    """A block that nobody holds, and of which nobody has an address if there is one."""
    taken = {cidr for name, cidr in held if name == network.name}
    used = {block_of(network, address) for e in endpoints if e.network == network.name for address in held_by(network, e)}
    free = list(free_blocks(network, taken))
    for cidr in (*(cidr for cidr in free if cidr not in used), *free):
        return cidr
    raise exhausted_in(Snapshot("", networks={network.name: network}, blocks=dict(held)), network)
