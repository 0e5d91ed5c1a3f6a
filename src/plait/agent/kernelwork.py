# SPDX-License-Identifier: Apache-2.0
"""The agent's one door to the kernel: every pass and every attach goes through here, one at a time, in one thread.

A pass lists the kernel, takes its snapshot and applies while it holds the door, and an endpoint is in the view before its objects
are made; so a pass can never take away what an attach has just made, and both may run at any moment.

A pass for an endpoint that begins does without the listing where what is there follows from the last pass. Rules must be known: nobody
changed any since they were seen (the kernel numbers the rulesets), so whatever judges the endpoint is in force as in any pass. Of links,
addresses and routes others may have changed something; what the endpoint needs of that is made as in a pass, for nothing of its own link
was there, or it is refused, which leads to a listing at once. All else is put right by the pass that every change of links is followed
by, and so are deletions: nothing is taken away that was not seen to be there.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from plait.kernel.api import UNMARKED, Kernel, Op, Result
from plait.kernel.dryrun import DryRunKernel
from plait.model.errors import KernelError
from plait.model.flows import PortRule
from plait.model.hostlinks import Key
from plait.model.objects import KernelObject, NftElement, NftSet, Plan
from plait.plan import guards_of
from plait.plan.elsewhere import led
from plait.plan.flows import changed_ports
from plait.plan.vipflows import orphaned
from plait.reconcile import diff, order, stages
from plait.services.figures import Summary

log = logging.getLogger("plait.pass")
Apply = Callable[[Kernel, Sequence[Op]], Result]
REHEARSED_PASSES = 3
"""A replaced link loses what lay on it, which the second pass puts back; a third finds nothing to do, unless the plan changes meanwhile."""


ADDED = "*"
"""A pass for the sake of what is new, which takes none away. Links are not called so."""


@dataclass(frozen=True, slots=True)
class PassReport:
    """What one pass did: number of operations, failures by key, milliseconds."""

    writes: int
    failed: dict[Key, KernelError] = field(default_factory=dict)
    took_ms: float = 0.0


class KernelWork:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._door = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "kernel")
        self.passes = self.writes = 0
        self.guards: Plan = {}
        """What the last pass that was refused no rule made of the sets that guard networks (`plan.guarded`)."""
        self.took_s = Summary()
        self._probed: frozenset[Key] = frozenset()
        self._held: Plan = {}
        """What the last pass made true, with what was put, removed and hastened since; nothing if that is not sure."""

    def capabilities(self) -> frozenset[str]:
        """See `kernel.api.Kernel`."""
        return self._kernel.capabilities()

    async def converge(self, plan: Callable[[], Plan], may_delete: bool, beginning: str = "") -> PassReport:
        """One full pass: list, plan, diff, apply. `plan` is called in the loop after the listing. `beginning`: the link of an endpoint
        for whose sake the pass is, which another one follows anyway; or `ADDED`, if only what the view said is new."""
        async with self._door:
            started = time.monotonic()
            held, self._held = self._held, {}  # so it stays if whoever asked does not wait for the end
            made, ops, result = await self._begin(plan, beginning, held) or await self._pass(self._kernel, plan, may_delete)
            self._held = {} if result.failed else dict(made)
            if not any(key[0] == "nft" for key in result.failed):
                self.guards = guards_of(made)
            self.passes += 1
            took = (time.monotonic() - started) * 1000
            self.writes += len(ops)
            self.took_s.add(took / 1000)
        if ops:
            log.info(
                "pass_applied",
                extra={"pass_id": self.passes, "writes": len(ops), "failed": len(result.failed), "took_ms": round(took, 1)},
            )
        for key, error in result.failed.items():
            log.warning("kernel_refused", extra={"key": " ".join(key), "error": str(error)})
        return PassReport(len(ops), dict(result.failed), took)

    async def _begin(self, plan: Callable[[], Plan], link: str, held: Plan) -> tuple[Plan, list[Op], Result] | None:
        """All of a pass but the listing and deletions; None if that is not sure to be enough, or something was refused. What was to be
        deleted is held on where an endpoint begins. A rule at somebody else's hook, and a link on the host's, may be there already."""
        if not link or not held or (link != ADDED and any(link in part for key in held for part in key)):
            return None
        wanted = plan()
        unsure = any(key[0] in UNMARKED and key[0] != "sysctl" for key in wanted.keys() - held.keys())
        if unsure or (link == ADDED and any(key[0] != "sysctl" for key in held.keys() - wanted.keys())):
            return None
        ops, result = await self._brought(_apply_if_known, self._kernel, wanted, held, may_delete=False)
        return None if result.failed else ({**held, **wanted}, ops, result)

    async def rehearse(self, plan: Callable[[], Plan], *, bare: bool = False) -> list[Op]:
        """What passes would do from now on until one has nothing left to do, in order; the same passes, over the dry run. `bare` as if
        nothing of plait's were there yet. An operation that would be refused is not among them."""
        async with self._door:
            dry = DryRunKernel(self._kernel, bare=bare)
            for _ in range(REHEARSED_PASSES):
                _, _, result = await self._pass(dry, plan, may_delete=True)
                if not result.done:
                    break
        return dry.record

    async def _pass(self, kernel: Kernel, plan: Callable[[], Plan], may_delete: bool) -> tuple[Plan, list[Op], Result]:
        """The kernel is asked for what the pass before had to ask for: to plan takes longer than to list once more what that missed."""
        loop = asyncio.get_running_loop()
        asked = set(self._probed)
        owned = await loop.run_in_executor(self._thread, kernel.owned, frozenset(asked))
        wanted = plan()
        while not asked.issuperset(_probes(wanted)):  # what nobody asked for would look as if it were not there
            asked.update(_probes(wanted))
            owned = await loop.run_in_executor(self._thread, kernel.owned, frozenset(asked))
            wanted = plan()
        self._probed = frozenset(_probes(wanted))
        owned = {key: obj for key, obj in owned.items() if key in wanted or not _in_a_container(key)}  # it was asked for by the pass before
        return wanted, *await self._brought(_apply_in_stages, kernel, wanted, owned, may_delete)

    async def _brought(self, apply: Apply, kernel: Kernel, wanted: Plan, owned: Plan, may_delete: bool) -> tuple[list[Op], Result]:
        """Bring a kernel from what it holds to what it should."""
        loop = asyncio.get_running_loop()
        ops = order(diff(wanted, owned, may_delete))
        result = await loop.run_in_executor(self._thread, apply, kernel, ops) if ops else Result()
        if rules := _turned(ops, result, wanted):
            await loop.run_in_executor(self._thread, _forget_flows, kernel, rules)
        return ops, result

    async def put(
        self, objects: Sequence[KernelObject], old: Sequence[KernelObject | None] = (), gone: Sequence[KernelObject] = ()
    ) -> None:
        """Remove `gone` (absent ones are fine) and make just these objects true, now; those equal to their `old` are left alone. Raises
        the first KernelError."""
        before = [*old, *([None] * (len(objects) - len(old)))]
        puts = [Op("put", new, previous) for new, previous in zip(objects, before, strict=True) if new != previous]
        await self._apply([*(Op("del", None, obj) for obj in gone), *puts], {obj.key: obj for obj in objects})

    async def hasten(self, wanted: Callable[[], Sequence[KernelObject]]) -> bool:
        """Bring sets from what a pass made of them to what they should be, element by element, without a look at the kernel. False, and
        nothing is done or sure any more, if it takes more than that or is refused: then it takes a pass."""
        async with self._door:
            now: Plan = {obj.key: obj for obj in wanted()}
            differing = [(self._held.get(key), obj) for key, obj in now.items() if self._held.get(key) != obj]
            if not all(_same_but_elements(old, new) for old, new in differing):
                return False
            ops = order(Op("put", new, old) for old, new in differing)
            done = not ops or not (await self._written(ops, now)).failed
            self._held = {**self._held, **now} if done else {}
            self.writes += len(ops)
        return done

    async def _written(self, ops: Sequence[Op], now: Plan) -> Result:
        """Connections of before are looked through when the caller goes on already."""
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(self._thread, self._kernel.apply, ops)
        if rules := _turned(ops, result, now):
            loop.run_in_executor(self._thread, _forget_flows, self._kernel, rules)
        return result

    async def _apply(self, ops: Sequence[Op], now: Plan) -> None:
        async with self._door:
            held, self._held = self._held, {}
            result = await self._written(ops, now)
            if held and not result.failed and all(_follows(op, held.get(op.key)) for op in ops):
                self._held = {key: obj for key, obj in {**held, **{op.key: op.new for op in ops}}.items() if obj is not None}
        for error in result.failed.values():
            raise error

    def close(self) -> None:
        self._thread.shutdown()
        self._kernel.close()


def _follows(op: Op, held: KernelObject | None) -> bool:
    """Whether what the kernel holds after `op` is known from what it held before: to a set elements are added, of what `op` took it for."""
    return not isinstance(op.subject, NftElement) and (op.new is None or not isinstance(op.new, NftSet) or op.old == held)


def _same_but_elements(old: KernelObject | None, new: KernelObject) -> bool:
    return isinstance(old, NftSet) and isinstance(new, NftSet) and replace(old, elements=new.elements) == new


def _apply_in_stages(kernel: Kernel, ops: Sequence[Op]) -> Result:
    results = [kernel.apply(part) for part in stages(ops)]
    failed = {key: error for result in results for key, error in result.failed.items()}
    return Result([op for result in results for op in result.ops], failed)


def _apply_if_known(kernel: Kernel, ops: Sequence[Op]) -> Result:
    """Nothing, and refused, if somebody has changed rules; and no link before the rules that judge it are there."""
    if not kernel.rules_known():
        changed = KernelError("list", "the kernel's rules", errno.ESTALE, "somebody has changed them")
        return Result(failed={op.key: changed for op in ops})
    for part in stages(ops):
        result = kernel.apply(part)
        if result.failed:
            return result
    return Result(ops)


def _turned(ops: Sequence[Op], result: Result, now: Plan) -> list[PortRule]:
    """Ports of the host at which connections may be that would lead elsewhere if they began now. `now` has all that is published, if any of
    that was changed."""
    done = [op for op in ops if op.key not in result.failed]
    return [*changed_ports(done, now), *orphaned(done, now), *led(done, now)]


def _forget_flows(kernel: Kernel, rules: Sequence[PortRule]) -> None:
    try:
        forgotten = kernel.forget_flows(rules)
    except KernelError as error:
        log.warning("flows_kept", extra={"error": str(error)})
    else:
        log.debug("flows_forgotten", extra={"flows": forgotten})


def _in_a_container(key: Key) -> bool:
    """Whether it is a link on one of the host's that lies in another namespace: no longer planned it goes with that, or is an engine's."""
    return key[0] == "child" and bool(key[2])


def _probes(plan: Plan) -> Iterable[Key]:
    """Keys that the kernel must be asked for by name."""
    return [key for key in plan if key[0] in UNMARKED]
