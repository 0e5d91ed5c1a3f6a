# SPDX-License-Identifier: Apache-2.0
"""What every benchmark shares: interleaved rounds with the order reversed each time, medians of per-round ratios, the result's form."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: `value` against `limit` (at most or at least), with what it is a ratio of or a unit of. `note`: how it was measured."""

    name: str
    value: float
    unit: str
    limit: float
    at_most: bool
    note: str

    @property
    def holds(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def line(self) -> str:
        bound = f"{'≤' if self.at_most else '≥'} {self.limit:g}"
        return f"| {self.name} | {self.value:.3g} {self.unit} | {bound} | {'yes' if self.holds else '**no**'} | {self.note} |"


def interleave(trials: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each trial once a round, the order reversed every other round; one unrecorded round first."""
    results: dict[str, list[float]] = {name: [] for name in trials}
    for number in range(rounds + 1):
        names = list(trials) if number % 2 else list(reversed(trials))
        for name in names:
            value = trials[name]()
            if number:
                results[name].append(value)
    return results


def ratio(results: Mapping[str, list[float]], ours: str, peer: str) -> float:
    """Median of the per-round ratios ours / peer."""
    return statistics.median(a / b for a, b in zip(results[ours], results[peer], strict=True))


def end(servers: Iterable[subprocess.Popen[bytes]]) -> None:
    """Stop what a benchmark started, and wait for it."""
    for server in servers:
        server.terminate()
        server.wait(5)


def median(values: list[float]) -> float:
    return statistics.median(values)


def worst(values: list[float]) -> float:
    """The 99th percentile."""
    return sorted(values)[min(len(values) - 1, round(0.99 * len(values)))]
