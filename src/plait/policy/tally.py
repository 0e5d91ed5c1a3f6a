# SPDX-License-Identifier: Apache-2.0
"""What policies made of connections that a node has seen, for whoever counts: by which rule each passed or was dropped, and what policies
to audit would have made of it. It is the reference evaluator that says so, of the policies as they are when it is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from plait.model.policy import Direction
from plait.policy.evaluate import Decision, Packet, Verdict, World, evaluate

Ident = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Ruling:
    """What one side of a connection made of it. `policies`: the one whose rule `where` decided; or, with `where` "", those that isolate the
    workload and let it pass by no rule; or none. `audit`: it is what policies to audit would have said, and was not done."""

    direction: Direction
    workload: str
    allowed: bool
    policies: tuple[Ident, ...]
    where: str
    audit: bool = False


def rulings(world: World, node: str, packet: Packet) -> list[Ruling]:
    """Of the sides that are on `node`, as far as the packet came."""
    ends = {"egress": world.known.get(packet.source), "ingress": world.known.get(packet.destination)}
    here = {way for way, workload in ends.items() if workload is not None and workload.node == node}
    done = evaluate(world, packet)
    found = [_ruling(side) for side in _met(done) if side.direction in here]
    audited = {policy.ident for policy in world.policies if policy.audit}
    if audited:
        trial = evaluate(world, packet, audited=True)
        for side, was in zip(_met(trial), _met(done), strict=False):
            by = tuple(ident for ident in _policies(side) if ident in audited)
            if by and side.direction in here and (side.allowed or was.allowed):
                found.append(Ruling(side.direction, side.workload, side.allowed, by, side.where, audit=True))
    return found


def _met(verdict: Verdict) -> Iterator[Decision]:
    """The sides up to the one that drops."""
    for side in verdict.sides:
        yield side
        if not side.allowed:
            return


def _ruling(side: Decision) -> Ruling:
    return Ruling(side.direction, side.workload, side.allowed, _policies(side), side.where)


def _policies(side: Decision) -> tuple[Ident, ...]:
    return (side.policy,) if side.where else side.isolating
