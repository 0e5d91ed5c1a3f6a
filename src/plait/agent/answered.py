# SPDX-License-Identifier: Apache-2.0
"""Policies by names of hosts: what this host's DNS answers opens what rules say, before the client has the answer.

Data in: the policies of the view, and what the DNS child says that resolvers gave for names that meet theirs (`serve/dns_heed.py`). Data
out: `Snapshot.answered`, and so maps of the kernel; the child hears that it may let the answer go once a pass has made them.

An address counts for a name as long as the answer may be kept, and `least_s` at least, by the agent's clock. What counts is in a file of
`/run` before the kernel has it, so that the next agent has the same plan, whatever ended this one; while there is none the kernel keeps
what it has, nothing new is opened, and nothing ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol

from plait.agent.files import replace_file
from plait.agent.kernelwork import PassReport
from plait.agent.view import View
from plait.dns.heeded import Addresses
from plait.model.addr import IPAddress
from plait.model.cluster import Snapshot
from plait.policy.answers import Answers, Pair
from plait.serve.dns_parent import DnsUnavailable

log = logging.getLogger("plait.policies")
_IDLE_S = 60.0
_SLACK = 1000
"""Lines of the file beyond twice what counts, after which it is written anew."""
_ANEW = float("inf")
"""Lines of a file to which nothing is added any more: the last one may be half written."""


def boot_time() -> float:
    """Seconds since the host was started, which is as long as the file lives."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def domains_of(snapshot: Snapshot) -> frozenset[str]:
    """The names and patterns that rules are for."""
    return frozenset(domain for policy in snapshot.policies.values() for rule in policy.egress or () for domain in rule.domains)


class Heeding(Protocol):
    async def set_heeded(self, patterns: frozenset[str]) -> None:
        """As `DnsService` has it."""
        ...


class Answered:
    """`full_pass` makes the kernel what the view says. Not thread-safe."""

    def __init__(
        self,
        view: View,
        dns: Heeding,
        path: Path,
        least_s: float,
        full_pass: Callable[[], Awaitable[PassReport]],
        clock: Callable[[], float] = boot_time,
    ) -> None:
        self._view, self._dns, self._path, self._least_s = view, dns, path, least_s
        self._full_pass, self._clock = full_pass, clock
        self.answers = Answers()
        self._pending: list[tuple[dict[Pair, float], Callable[[], None]]] = []
        self._dirty = asyncio.Event()
        self._lines: float = 0
        view.subscribe(self._on_view)

    def _on_view(self, kinds: frozenset[str]) -> None:
        if "policies" in kinds:
            self._dirty.set()

    def recover(self) -> None:
        """Know what the agent before knew, as far as it still counts. A line that was half written is passed over."""
        try:
            lines = self._path.read_text().splitlines()
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            log.warning("answers_unread", extra={"path": str(self._path), "error": str(error)})
            return
        self.answers.add(dict(filter(None, map(_read, lines))))
        self.answers.expire(self._clock())
        self._lines = _ANEW
        self._view.answer(self.answers.known)

    def take(self, name: str, addresses: Addresses, kept: Callable[[], None]) -> None:
        """Know of the addresses that DNS gives for a name, then call `kept`."""
        now = self._clock()
        pairs = {(name, ip_address(packed)): now + max(self._least_s, ttl) for packed, ttl in addresses}
        self._pending.append((pairs, kept))
        self._dirty.set()

    async def enforce(self) -> PassReport:
        """Have the names of the policies as they are now heeded, and make a pass."""
        await self._heed()
        return await self._full_pass()

    async def run(self) -> None:
        """Never returns."""
        while True:
            await self._heed()
            await self._settle()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._idle()):
                    await self._dirty.wait()

    def _idle(self) -> float:
        """Seconds in which nothing ends."""
        end = self.answers.next_end()
        return _IDLE_S if end is None else max(0.0, min(_IDLE_S, end - self._clock()))

    async def _heed(self) -> None:
        with contextlib.suppress(DnsUnavailable):  # the next child is told the same; whoever keeps the names up to date makes that known
            await self._dns.set_heeded(domains_of(self._view.snapshot))

    async def _settle(self) -> None:
        """Make everything so that has come since the last time, or has ended."""
        self._dirty.clear()
        pending, self._pending = self._pending, []
        before = self.answers.known
        self.answers.expire(self._clock())
        found: dict[Pair, float] = {}
        for pairs, _ in pending:
            found |= pairs
        if found:
            self.answers.add(found)
            self._write(found.items())
        if self.answers.known is not before:
            self._view.answer(self.answers.known)
            await self._full_pass()
        for _, kept in pending:
            kept()

    def _write(self, fresh: Iterable[tuple[Pair, float]]) -> None:
        """Add to the file, or write it anew if most of it counts no longer. One that cannot be written costs what it is for alone."""
        added = [_line(pair, until) for pair, until in fresh]
        anew = self._lines + len(added) > 2 * len(self.answers) + _SLACK
        lines = [_line(pair, until) for pair, until in self.answers] if anew else added
        try:
            if anew:
                replace_file(self._path, "".join(lines), 0o600)
            else:
                with open(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w") as stream:
                    stream.write("".join(lines))
        except OSError as error:
            log.warning("answers_unwritten", extra={"path": str(self._path), "error": str(error)})
        else:
            self._lines = len(lines) if anew else self._lines + len(lines)


def _line(pair: Pair, until: float) -> str:
    name, address = pair
    return f"{until:.0f} {address} {name}\n"


def _read(line: str) -> tuple[Pair, float] | None:
    until, _, rest = line.partition(" ")
    address, _, name = rest.partition(" ")
    try:
        found: IPAddress = ip_address(address)
        return ((name, found), float(until)) if name else None
    except ValueError:
        return None
