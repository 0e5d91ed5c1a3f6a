# SPDX-License-Identifier: Apache-2.0
"""This node's health checks: journalled, run, published.

Data in: checks of clients, words of clients about their TTL checks, results of runs. Data out: `Check` records in the view, from where they
are published, and services deregistered because they were critical for too long.

What changes a status is shown at once. A change of the output alone is shown at once too as long as few are; beyond that each waits for its
turn (`OUTPUT_GAP_S`, `OUTPUT_RATE`), so that checks whose output holds the time of day do not flood the store. The journal holds each check
as it was last shown, written behind it in batches: after a restart nothing turns critical just because it has not been run yet.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol
from weakref import WeakValueDictionary

from plait.agent.journal import Journal, Write
from plait.agent.view import View
from plait.checks.scheduler import SLOW, Scheduler, Ticker
from plait.model.discovery import Check, CheckDefinition, Status
from plait.model.errors import Conflict, NotFound, NotSaved, NotSupported, PlaitError
from plait.services.health import COMMAND_KINDS, RUN_KINDS, Result, Standing, advanced, clipped_note, refusal, ttl_expired
from plait.store.codec import decode, encode

log = logging.getLogger("plait.checkup")
OUTPUT_GAP_S = 10.0
"""How long a check that is run keeps the output that was shown, if only the output changed."""
OUTPUT_RATE, OUTPUT_BURST = 20.0, 40.0
"""Changes of outputs alone that are shown in a second, of all checks together, and how many may come at once after a rest."""
_SETTLE_S = 1.0
"""How long what waits is collected: outputs that take turns, and what the journal does not hold yet."""
_RETRY_S = 1.0
_KIND = "check"


class Runner(Protocol):
    """What runs one check once: `checks.runners`."""

    async def run(self, definition: CheckDefinition) -> Result:
        """Never raises."""
        ...


@dataclass(frozen=True, slots=True)
class CheckPolicy:
    """What the operator allows. `parallel`: runs at once, of commands a sixteenth; those that wait for silent targets have four times as
    many places of their own, commands that hang as many again."""

    scripts: bool = False
    local_scripts: bool = False
    parallel: int = 512


@dataclass(slots=True)
class _Live:
    """One check of this node. `check` is as it was last shown, `standing` as it is; moments are of the monotonic clock."""

    check: Check
    standing: Standing
    slow: bool = False
    shown_at: float = field(default=float("-inf"))


class Checkup:
    """Owns the checks that clients register. Not thread-safe; `run` starts what is run."""

    def __init__(
        self,
        view: View,
        journal: Journal,
        runner: Runner,
        policy: CheckPolicy,
        deregister: Callable[[str], Awaitable[object]],
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._view, self._journal, self._runner, self._policy = view, journal, runner, policy
        self._deregister, self._clock = deregister, clock
        self._live: dict[str, _Live] = {}
        self._changing = asyncio.Lock()
        self._of_services: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._unsaved: dict[str, None] = {}
        self._pending: dict[str, None] = {}
        self._reaped: asyncio.Queue[str] = asyncio.Queue()
        self._stirred = asyncio.Event()
        self._tokens, self._tokens_at = OUTPUT_BURST, clock()
        commands = max(4, policy.parallel // 16)
        lanes = {"network": policy.parallel, f"network{SLOW}": 4 * policy.parallel, "command": commands, f"command{SLOW}": commands}
        self._scheduler: Scheduler[str] = Scheduler(self._run_one, self._lane, lanes, clock, chance)
        self._deadlines: Ticker[tuple[str, str]] = Ticker(self._due, clock)
        for key, body in journal.load(_KIND).items():
            check = decode(Check, body, key)
            if why := self._refusal(check.definition, remote=not check.runtime):
                check = replace(check, status="critical", output=why)
            self._adopt(check, Standing(check.status, check.output), runs=not why)

    # --- questions

    def own(self, check_id: str) -> Check | None:
        """The check of that id as it is now, its present output included, or None."""
        live = self._live.get(check_id)
        return replace(live.check, output=live.standing.output) if live is not None else None

    def of_service(self, service_id: str) -> list[Check]:
        """The checks of a service of this node, "" those of the node itself, by id."""
        return sorted((live.check for live in self._live.values() if live.check.service_id == service_id), key=lambda check: check.id)

    def automatic(self) -> list[Check]:
        """The checks of services that come and go with their containers."""
        return [live.check for live in self._live.values() if live.check.runtime]

    def overdue(self) -> tuple[int, float]:
        """How many wait for their turn although they are due, and for how many seconds the one that waits longest."""
        return self._scheduler.overdue()

    # --- what clients want

    def changing(self, service_id: str) -> asyncio.Lock:
        """To be held by whoever makes or removes a service with its checks, or adds a check to one that is there: so none is left without
        its service."""
        return self._of_services.setdefault(service_id, asyncio.Lock())

    async def add(self, checks: Sequence[Check], remote: bool = True) -> None:
        """Take over checks, all or none (of none: nothing); durable when it returns. Definitions are complete (`services.health`).

        A check that is there already keeps its standing if it is still run the same way, unless `status` says better than critical. Raises
        NotSupported for commands that the operator does not allow."""
        for check in checks:
            if why := self._refusal(check.definition, remote):
                raise NotSupported(why)
        async with self._changing:
            await self._journal.write([Write(_KIND, check.id, encode(self._continued(check)[0])) for check in checks])
            for check in checks:
                self._adopt(*self._continued(check), runs=True)
                self._unsaved[check.id] = None  # a result may have come meanwhile
            self._stirred.set()

    async def remove(self, check_ids: Iterable[str]) -> None:
        """Forget checks, durably. Unknown ids are no matter."""
        async with self._changing:
            known = [self._live.pop(key) for key in dict.fromkeys(check_ids) if key in self._live]
            for live in known:
                self._rest(live.check.id)
                self._view.drop(live.check)
            await self._journal.write([Write(_KIND, live.check.id, None) for live in known])

    def update(self, check_id: str, status: Status, output: str) -> None:
        """A client's word about its TTL check, which starts its time anew. NotFound, or Conflict if it is of another kind."""
        live = self._live.get(check_id)
        if live is None:
            raise NotFound(f'Unknown check ID "{check_id}". Ensure that the check ID is passed, not the check name.')
        if live.check.definition.kind != "ttl":
            raise Conflict(f'CheckID "{check_id}" does not have associated TTL')
        self._deadlines.put(("ttl", check_id), self._clock() + live.check.definition.ttl)
        self._take(live, Result(status, clipped_note(output, live.check.definition.output_max)))

    def say(self, results: Mapping[str, Result]) -> None:
        """What was found out elsewhere about checks that are not run here (alias), by id. Unknown ids are no matter."""
        for key, result in results.items():
            if (live := self._live.get(key)) is not None:
                self._take(live, result)

    def aliases(self) -> dict[str, str]:
        """Alias checks: id -> target."""
        return {key: live.check.definition.target for key, live in self._live.items() if live.check.definition.kind == "alias"}

    def _continued(self, check: Check) -> tuple[Check, Standing]:
        known = self._live.get(check.id)
        if known is None or (known.check.definition, known.check.service_id) != (check.definition, check.service_id):
            return check, Standing(check.status, check.output)
        if check.status != "critical" and check.status != known.standing.status:
            return check, Standing(check.status, check.output)
        return replace(check, status=known.standing.status, output=known.standing.output), known.standing

    def _refusal(self, definition: CheckDefinition, remote: bool) -> str:
        return refusal(definition, remote, self._policy.scripts, self._policy.local_scripts)

    def _adopt(self, check: Check, standing: Standing, runs: bool) -> None:
        """Begin, or go on with, a check that the journal has. `runs`: the operator allows it."""
        before, now, definition = self._live.get(check.id), self._clock(), check.definition
        if before is not None and before.check.definition != definition:
            self._rest(check.id)
        self._live[check.id] = live = _Live(check, standing, shown_at=now)
        if definition.kind in RUN_KINDS and runs and check.id not in self._scheduler:
            self._scheduler.add(check.id, definition.interval, definition.initial_delay)
        if definition.kind == "ttl":
            self._deadlines.put(("ttl", check.id), now + definition.ttl)
        self._watch_critical(live, ("reap", check.id) not in self._deadlines)
        self._view.put(live.check)

    def _rest(self, key: str) -> None:
        """Nothing more happens to that check by itself."""
        self._scheduler.remove(key)
        self._deadlines.drop(("ttl", key))
        self._deadlines.drop(("reap", key))
        self._pending.pop(key, None)
        self._unsaved.pop(key, None)

    # --- results

    def _lane(self, key: str) -> str:
        live = self._live[key]
        name = "command" if live.check.definition.kind in (*COMMAND_KINDS, "os_service") else "network"
        return name + SLOW if live.slow else name

    async def _run_one(self, key: str) -> None:
        live = self._live[key]
        result = await self._runner.run(live.check.definition)
        current = self._live.get(key)
        if current is not None and current.check.definition == live.check.definition:
            self._take(current, result)

    def _take(self, live: _Live, result: Result) -> None:
        live.slow = result.timed_out
        live.standing = advanced(live.check.definition, live.standing, result)
        if live.standing.status != live.check.status:
            began = live.standing.status == "critical"
            log.info("check_changed", extra=_change(live))
            self._show(live)
            self._watch_critical(live, began)
        elif live.standing.output != live.check.output:
            self._pending[live.check.id] = None
            if self._tokens_now() > OUTPUT_BURST / 2:
                self._show_outputs()
            if self._pending:
                self._stirred.set()
        else:
            self._pending.pop(live.check.id, None)

    def _show(self, live: _Live) -> None:
        live.check = replace(live.check, status=live.standing.status, output=live.standing.output)
        live.shown_at = self._clock()
        self._pending.pop(live.check.id, None)
        self._unsaved[live.check.id] = None
        self._stirred.set()
        self._view.put(live.check)

    def _show_outputs(self) -> None:
        """As many of the changed outputs as are allowed now, those that wait longest first."""
        if self._tokens_now() < 1:
            return
        now = self._clock()
        for key in list(self._pending):
            live = self._live[key]
            gap = OUTPUT_GAP_S if live.check.definition.kind in RUN_KINDS and live.check.output else 0.0
            if now - live.shown_at >= gap:
                self._tokens -= 1
                self._show(live)
                if self._tokens < 1:
                    return

    def _tokens_now(self) -> float:
        """How many changed outputs may be shown now. Once half of the burst is used up they are shown together, at `_settle`'s pace, so
        that each costs no round of the publisher of its own."""
        now = self._clock()
        self._tokens = min(OUTPUT_BURST, self._tokens + (now - self._tokens_at) * OUTPUT_RATE)
        self._tokens_at = now
        return self._tokens

    # --- deadlines

    def _watch_critical(self, live: _Live, began: bool) -> None:
        """Start or stop the time after which a critical service is deregistered."""
        check = live.check
        if check.status != "critical" or not check.definition.deregister_after or not check.service_id:
            self._deadlines.drop(("reap", check.id))
        elif began:
            self._deadlines.put(("reap", check.id), self._clock() + check.definition.deregister_after)

    def _due(self, deadline: tuple[str, str]) -> None:
        what, key = deadline
        live = self._live.get(key)
        if live is None:
            return
        if what == "ttl":
            said = "" if live.standing.output.startswith(ttl_expired("")) else live.standing.output
            self._take(live, Result("critical", ttl_expired(said)))
        else:
            self._reaped.put_nowait(key)

    # --- loops

    async def run(self) -> None:
        """Never returns."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._scheduler.run())
            group.create_task(self._deadlines.run())
            group.create_task(self._reap())
            group.create_task(self._settle())

    async def _reap(self) -> None:
        while True:
            live = self._live.get(await self._reaped.get())
            if live is None or live.standing.status != "critical":
                continue
            check = live.check
            log.warning("service_critical_too_long", extra={"id": check.service_id, "check": check.id, "output": check.output})
            try:
                await self._deregister(check.service_id)
            except PlaitError as error:
                log.warning("service_not_deregistered", extra={"id": check.service_id, "error": str(error)})
                self._watch_critical(live, True)

    async def _settle(self) -> None:
        """Show waiting outputs and write to the journal what was shown."""
        while True:
            await self._stirred.wait()
            self._stirred.clear()
            await asyncio.sleep(_SETTLE_S)
            self._show_outputs()
            await self.flush()
            if self._pending:
                self._stirred.set()

    async def flush(self) -> None:
        """Have the journal hold every check as it is shown."""
        async with self._changing:
            keys, self._unsaved = self._unsaved, {}
            try:
                await self._journal.write([Write(_KIND, key, encode(self._live[key].check)) for key in keys])
            except NotSaved as error:
                self._unsaved = keys | self._unsaved
                log.warning("checks_not_saved", extra={"items": len(keys), "error": str(error)})
                await asyncio.sleep(_RETRY_S)
                self._stirred.set()


def _change(live: _Live) -> dict[str, object]:
    """What a change of status is logged with."""
    check, status = live.check, live.standing.status
    return {"check": check.id, "id": check.service_id, "status": status, "was": check.status, "output": live.standing.output[:200]}
