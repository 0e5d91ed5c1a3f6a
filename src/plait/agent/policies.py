# SPDX-License-Identifier: Apache-2.0
"""`plait policy`: policies in the store, and what they mean.

Data in: files, names. Data out: records below `policies/` and `namespaces/`, all of a file in one transaction; rows and explanations. It
answers once what was applied is in force on this host; the others follow as their replicas do.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from ipaddress import ip_address

from plait.agent.judgments import CountingKernel, Judgments
from plait.agent.kernelwork import PassReport
from plait.agent.keys import namespace_key, policy_key, record_key
from plait.agent.named import the_one
from plait.agent.view import View
from plait.model.addr import IPAddress
from plait.model.errors import ConfigError, Conflict, NotFound
from plait.model.policy import Namespace, Policy
from plait.model.policyreport import AppliedRow, Change, NamespaceRow, PairRow, PolicyPlan, PolicyRow, PolicySide, PolicyTest, PolicyView
from plait.plan.policychange import policy_change
from plait.policy.evaluate import Decision, Packet, World, evaluate, world_of
from plait.policy.isolation import LAST
from plait.policy.membership import Membership
from plait.policy.tables import in_words
from plait.policy.workloads import Workload
from plait.store.api import Delete, Put, Store
from plait.store.codec import encode

log = logging.getLogger("plait.policies")


class Policies:
    """`full_pass` makes the kernel what the view says, `kernel` has counted what that decided."""

    def __init__(self, view: View, store: Store, full_pass: Callable[[], Awaitable[PassReport]], kernel: CountingKernel) -> None:
        self._view, self._store, self._full_pass = view, store, full_pass
        self.judgments = Judgments(view, kernel, time.time)

    async def apply(self, body: bytes) -> list[AppliedRow]:
        """Take over all that a file holds, or nothing: ConfigError with line, field and reason. A namespace without labels is forgotten."""
        records = await _read(body)
        rows = [self._row(one) for one in records]
        changed = [one for one, row in zip(records, rows, strict=True) if row["change"] != "unchanged"]
        await self._write([_written(one) for one in changed])
        log.info("policies_applied", extra={"names": " ".join(row["name"] for row in rows if row["change"] != "unchanged")})
        return rows

    async def plan(self, body: bytes) -> PolicyPlan:
        """What applying a file would change; nothing is. Errors as of `apply`."""
        records = await _read(body)
        before, rows = self._view.snapshot, [self._row(one) for one in records]
        policies = {one.ident: one for one in records if isinstance(one, Policy)}
        named = {one.name: one for one in records if isinstance(one, Namespace)}
        labelled = {name: one for name, one in {**before.namespaces, **named}.items() if one.labels}
        after = replace(before, policies={**before.policies, **policies}, namespaces=labelled)
        found = await asyncio.to_thread(policy_change, before, after)
        return PolicyPlan(
            applied=rows,
            selected=[f"{name} {way}" for way, name in found.selected],
            released=[f"{name} {way}" for way, name in found.released],
            pairs=[
                PairRow(source=p.source, destination=p.destination, before=in_words(p.before), after=in_words(p.after)) for p in found.pairs
            ],
            compared=found.compared,
            concerned=found.concerned,
            added=found.added,
            removed=found.removed,
        )

    async def remove(self, name: str) -> None:
        """NotFound, Conflict if several have the name."""
        policy = self._named(name)
        await self._write([Delete(policy_key(policy.ident))])
        log.info("policy_removed", extra={"policy": "/".join(policy.ident)})

    async def _write(self, ops: Sequence[Put | Delete]) -> None:
        """Into the store, and in force here. KernelError if this host's kernel refuses what it means: it is the cluster's will all the
        same, and tried again."""
        if not ops:
            return
        await self.judgments.look()  # what was judged so far was by those that are in force
        result = await self._store.txn([], ops)
        await self._view.caught_up(result.revision)
        failed = (await self._full_pass()).failed
        for error in (error for key, error in failed.items() if key[0] in ("pass", "nft")):
            raise error

    def _row(self, one: Policy | Namespace) -> AppliedRow:
        """What applying it changes."""
        known = self._view.record(record_key(one))
        name = "/".join(one.ident) if isinstance(one, Policy) else one.name
        change: Change = "created" if known is None else "unchanged" if known == one else "changed"
        if isinstance(one, Namespace) and not one.labels:
            change = "removed" if known is not None else "unchanged"
        return AppliedRow(kind="policy" if isinstance(one, Policy) else "namespace", name=name, change=change)

    # --- what there is

    def rows(self) -> list[PolicyRow]:
        """All, with what they decided here."""
        world = world_of(self._view.snapshot)
        membership = Membership((policy.subject for policy in world.policies), world.namespaces)
        counts = Counter(group for one in world.members for group in membership.of(one))
        written = (policy for policy in world.policies if policy.priority < LAST)
        return [self._policy_row(policy, counts[membership.number[policy.subject]]) for policy in written]

    def show(self, name: str) -> PolicyView:
        """One policy, `NAMESPACE/NAME`, or `NAME` where only one is called so. NotFound, Conflict."""
        policy = self._named(name)
        found = _subjects(world_of(self._view.snapshot), policy)
        workloads = sorted(f"{one.node}/{one.name}" for one in found)
        told = self._policy_row(policy, len(found))
        return {**told, "document": policy.document, "workloads": workloads, "rules": self.judgments.rules(policy)}

    def namespaces(self) -> list[NamespaceRow]:
        """Those that have labels or workloads."""
        world, given = world_of(self._view.snapshot), self._view.snapshot.namespaces
        counts = dict.fromkeys(given, 0)
        for one in world.members:
            counts[one.namespace] = counts.get(one.namespace, 0) + 1
        return [
            NamespaceRow(name=name, labels=dict(given[name].labels) if name in given else {}, workloads=count)
            for name, count in sorted(counts.items())
        ]

    def _policy_row(self, policy: Policy, selects: int) -> PolicyRow:
        (namespace, name), (allowed, denied) = policy.ident, self.judgments.totals(policy)
        return PolicyRow(
            namespace=namespace,
            name=name,
            tier=policy.tier,
            priority=policy.priority,
            ingress=-1 if policy.ingress is None else len(policy.ingress),
            egress=-1 if policy.egress is None else len(policy.egress),
            selects=selects,
            audit=policy.audit,
            allowed=allowed,
            denied=denied,
        )

    def _named(self, name: str) -> Policy:
        return the_one(self._view.snapshot.policies, name, "policy", "policies")

    # --- what they decide

    def test(self, source: str, destination: str, protocol: str, port: int) -> PolicyTest:
        """What becomes of a connection between two, each an address, the name of a container or node, or one that this host's DNS answered
        for a rule. NotFound, Conflict if a name means several."""
        world = world_of(self._view.snapshot)
        pairs = [(a, b) for a in self._meant(world, source) for b in self._meant(world, destination) if a[0].version == b[0].version]
        near = [(a, b) for a, b in pairs if a[1] is None or b[1] is None or a[1].network == b[1].network]
        if not pairs:
            raise Conflict(f"{source!r} and {destination!r} have no addresses of one family")
        (one, other), *more = near or pairs
        if more:
            known = ", ".join(sorted({str(a[0]) for pair in near or pairs for a in pair}))
            raise Conflict(f"{source!r} and {destination!r} mean several ({known}); name addresses")
        verdict = evaluate(world, Packet(one[0], other[0], protocol, port))
        return PolicyTest(
            allowed=verdict.allowed,
            source=_called(one),
            destination=f"{_called(other)} {protocol}{f' port {port}' if port else ''}",
            sides=[_side(side) for side in verdict.sides],
            note=_apart(one[1], other[1]) or self._unnamed(world, one[1], other),
        )

    def _meant(self, world: World, name: str) -> list[tuple[IPAddress, Workload | None]]:
        """Addresses that a name or address stands for, of IPv4 first."""
        try:
            address = ip_address(name)
        except ValueError:
            pass
        else:
            return [(address, world.known.get(address))]
        found = [(one.addresses[0], one) for one in world.members if one.addresses and name in (one.name, one.ident)]
        node = self._view.snapshot.nodes.get(name)
        if not found and node is not None:
            return [(node.tunnel or node.address, None)]
        found_by_name = self._answered(world, name.lower()) if not found else ()
        if not found and not found_by_name:
            hint = "`plait ps` lists containers; of names in policies those count that this host's DNS has answered"
            raise NotFound(f"{name!r} is no address, container or node; {hint}")
        return [*found, *((address, None) for address in found_by_name)]

    @staticmethod
    def _answered(world: World, name: str) -> Collection[IPAddress]:
        """One address of each family that DNS gave for a name; to policies that have it all are alike, but for ranges."""
        given = sorted((one for one, names in world.answered.items() if name in names and one not in world.known), key=int, reverse=True)
        return {one.version: one for one in given}.values()

    def _unnamed(self, world: World, source: Workload | None, to: tuple[IPAddress, Workload | None]) -> str:
        """Where rules by names may say something else than what this host knows."""
        if source is None or to[1] is not None:
            return ""
        named = (policy for policy in world.policies if any(rule.domains for rule in policy.egress or ()))
        if not any(world.namespaces.has(policy.subject, source) for policy in named):
            return ""
        if source.node != self._view.me:
            return f"of rules by domainNames {source.node} goes by what its own DNS has answered; ask there"
        return "" if to[0] in world.answered else f"this host's DNS has answered no name in a policy with {to[0]}, or not of late"


async def _read(body: bytes) -> list[Policy | Namespace]:
    """What a file holds. ConfigError with line, field and reason."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        line = body[: error.start].count(b"\n") + 1
        raise ConfigError(f"line {line}", body[error.start : error.start + 8], "is no UTF-8") from error
    from plait.policy.kubernetes import read_policies  # an agent that is given no file need not carry YAML

    found = await asyncio.to_thread(read_policies, text)
    return [*found.policies, *found.namespaces]


def _written(one: Policy | Namespace) -> Put | Delete:
    if isinstance(one, Namespace) and not one.labels:
        return Delete(namespace_key(one.name))
    return Put(record_key(one), encode(one))


def _subjects(world: World, policy: Policy) -> list[Workload]:
    return [one for one in world.members if world.namespaces.has(policy.subject, one)]


def _called(end: tuple[IPAddress, Workload | None]) -> str:
    address, workload = end
    return f"{workload.name} ({address}, {workload.network} on {workload.node})" if workload is not None else str(address)


def _apart(one: Workload | None, other: Workload | None) -> str:
    if one is None or other is None or one.network == other.network:
        return ""
    return f"networks {one.network} and {other.network} are apart: only a published port leads from one to the other"


def _side(side: Decision) -> PolicySide:
    return PolicySide(
        direction=side.direction,
        workload=side.workload,
        allowed=side.allowed,
        policy="/".join(side.policy) if side.where else "",
        rule=side.where,
        why=side.why,
    )
