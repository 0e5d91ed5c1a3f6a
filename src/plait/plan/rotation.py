# SPDX-License-Identifier: Apache-2.0
"""How a node changes its WireGuard key without losing a packet: make before break, over a second device.

A device has one private key, and takes packets of an address from one peer only; so two keys of a node are in use at once only on two
devices. While any node rotates, every node has the spare device beside the main one, with the same peers and the same rows, and takes
packets from both. Each node then sends by itself:

1. The rotating node says so (`rotating`, a number that is new each time), everybody makes a spare device and publishes its key (`spare`).
2. Whoever has an answer through the spare device sends there from then on, and says so (`moved`, with that number); both ways by itself.
3. When all have moved, and it too, the rotating node changes the main key, which nobody uses any more, and publishes it.
4. When everybody answers through the main device again, it is `rotating` no longer, and each moves back the same way.
5. When nobody is left on the spare devices, they go.

Any number of nodes may rotate at the same time. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from plait.model.cluster import Snapshot, TunnelKey


def partners(snapshot: Snapshot) -> dict[str, TunnelKey]:
    """Of the living other nodes that have a tunnel of their own to this one, by name; empty while this node has none."""
    me = snapshot.nodes.get(snapshot.me)
    if me is None or me.wireguard is None:
        return {}
    return {name: key for name, key in reached(snapshot).items() if not (me.wireguard.nat and key.nat)}


def reached(snapshot: Snapshot) -> dict[str, TunnelKey]:
    """The same and those that are reached by way of another node."""
    me = snapshot.nodes.get(snapshot.me)
    if me is None or me.wireguard is None or me.wireguard.address is None:
        return {}
    nodes = (snapshot.nodes[name] for name in snapshot.alive & snapshot.nodes.keys() - {me.name})
    return {n.name: n.wireguard for n in nodes if n.wireguard is not None and n.wireguard.address is not None}


def moved(own: TunnelKey, others: Mapping[str, TunnelKey], main: Set[str], spare: Set[str]) -> dict[str, int]:
    """The nodes that this one sends to by the spare device from now on, each with the number of its rotation. `main` and `spare` are those
    that answered through that device just now."""

    def stays(name: str, other: TunnelKey) -> bool:
        if own.rotating or other.rotating:
            return name in own.moved or (bool(other.spare) and name in spare)
        return name in own.moved and name not in main

    return {name: other.rotating or own.moved.get(name, 0) for name, other in sorted(others.items()) if stays(name, other)}


def all_moved(me: str, own: TunnelKey, others: Mapping[str, TunnelKey]) -> bool:
    """Whether nobody uses this node's main key any more. A word about an earlier rotation says nothing: who gave it may be back by now."""
    return own.moved.keys() == others.keys() and all(other.moved.get(me) == own.rotating for other in others.values())


def spare_wanted(own: TunnelKey, others: Mapping[str, TunnelKey]) -> bool:
    """Whether the spare device is, or may yet be, in use."""
    return any(key.rotating or key.moved for key in (own, *others.values()))
