# SPDX-License-Identifier: Apache-2.0
"""The figures that an agent gives of itself: which there are, and how Consul's API and Prometheus write them.

Data in: readings (counters and summaries since the agent started). Data out: what happened in an interval as a JSON-able value, all of it
as a text. Names are Consul's where it has the figure, so that
its dashboards find them. Sources: Consul's public telemetry reference (names, the shape of `/v1/agent/metrics`); Prometheus' text format
0.0.4 and its naming rules (a counter ends in `_total`, units are seconds and bytes).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Literal, NamedTuple

Kind = Literal["counter", "gauge", "summary"]
Labels = tuple[tuple[str, str], ...]
Key = tuple[str, Labels]


class Figure(NamedTuple):
    """counter: only grows. gauge: the value now. summary: a Summary."""

    kind: Kind
    about: str


def _dns(**abouts: str) -> dict[str, Figure]:
    return {f"plait.dns.{name}": Figure("counter", about) for name, about in abouts.items()}


FIGURES: Mapping[str, Figure] = {
    "consul.autopilot.healthy": Figure("gauge", "1 while the shared store can be reached, else 0"),
    "consul.catalog.services.local": Figure("gauge", "instances that this agent registered"),
    "consul.kvs.apply": Figure("summary", "milliseconds from a write of keys to its durable answer"),
    "consul.runtime.alloc_bytes": Figure("gauge", "resident memory of the agent, bytes"),
    "consul.runtime.num_goroutines": Figure("gauge", "tasks of the agent's event loop"),
    "consul.runtime.sys_bytes": Figure("gauge", "the most resident memory that the agent ever had, bytes"),
    "consul.state.checks": Figure("gauge", "health checks in the catalogue"),
    "consul.state.kv_entries": Figure("gauge", "keys"),
    "consul.state.nodes": Figure("gauge", "nodes in the catalogue"),
    "consul.state.service_instances": Figure("gauge", "instances in the catalogue"),
    "consul.state.services": Figure("gauge", "names of services in the catalogue"),
    "plait.checks.runs": Figure("counter", "runs of this agent's health checks, by `status`"),
    "plait.conditions": Figure("gauge", "what `plait status` says is wrong now, by `severity`"),
    **_dns(
        cache_misses="answers that were made, not kept",
        client_limited="queries that were not answered because their client had asked as often in a second as it may",
        dropped="messages that deserve no answer",
        expired="queries that were dropped because they had waited longer than their clients do",
        forward_failed="queries that no resolver answered",
        forward_rejected="queries for other names that were answered SERVFAIL because as many as allowed were waiting",
        forwarded="queries sent to resolvers",
        query_asked="prepared queries that the agent was asked for",
        query_failed="prepared queries that it did not answer",
        query_rejected="prepared queries that were answered SERVFAIL because as many as allowed were waiting",
        answers_heeded="answers of names that policies are for, of which the agent was told first",
        answers_unheeded="the same that went out before the agent had them: it was away, or took more than a second",
        restarts="times that the DNS process was started again",
        send_failures="answers that could not be sent",
        tcp_connections="connections",
        tcp_evicted="connections closed to make room",
        tcp_queries="queries over TCP",
        udp_queries="queries over UDP",
    ),
    "plait.dns.names": Figure("gauge", "names that the DNS process answers"),
    "plait.encrypted.clear_drops": Figure("counter", "packets of encrypted networks that were not encrypted, and were dropped"),
    "plait.encrypted.repairs": Figure("counter", "times that the process of a WireGuard device had ended by itself and was started again"),
    "plait.encrypted.tunnels_proved": Figure("gauge", "nodes that answer echoes through their encrypted tunnel"),
    "plait.http.answers": Figure("counter", "answers of the discovery API, by class of `status` (2xx)"),
    "plait.http.connections": Figure("gauge", "open connections of the discovery API"),
    "plait.http.waiting": Figure("gauge", "blocking queries and streams that wait for a change"),
    "plait.kernel.pass_seconds": Figure("summary", "time of a pass that compares the kernel with what it should be"),
    "plait.kernel.writes": Figure("counter", "changes made to the kernel by passes"),
    "plait.process.cpu_seconds": Figure("counter", "CPU time of the agent, seconds"),
    "plait.roundtrips": Figure("counter", "round trips to other nodes that were measured"),
    "plait.spoofed.drops": Figure("counter", "packets of containers under addresses that are not their own, dropped"),
    "plait.sessions": Figure("gauge", "sessions"),
    "plait.store.revision": Figure("gauge", "revision of the shared store that this agent has"),
}
"""By name, with dots."""


class Spread:
    """How many values there were, their sum and that of their squares, the least and the greatest."""

    __slots__ = ("count", "greatest", "least", "squares", "sum")

    def __init__(self) -> None:
        self.count, self.sum, self.squares, self.least, self.greatest = 0, 0.0, 0.0, 0.0, 0.0

    def add(self, value: float) -> None:
        if not self.count or value < self.least:
            self.least = value
        if not self.count or value > self.greatest:
            self.greatest = value
        self.count += 1
        self.sum += value
        self.squares += value * value


class Summary:
    """How many values there were since the agent started and their sum, and the `recent` ones, of the interval that has not ended."""

    __slots__ = ("count", "recent", "sum")

    def __init__(self) -> None:
        self.count, self.sum, self.recent = 0, 0.0, Spread()

    def add(self, value: float) -> None:
        self.count += 1
        self.sum += value
        self.recent.add(value)


class Reading(NamedTuple):
    """One figure, of what its labels tell apart."""

    name: str
    value: float | Summary
    labels: Labels = ()

    @property
    def key(self) -> Key:
        return self.name, self.labels


def readings(values: Mapping[str, float | Summary]) -> list[Reading]:
    """Readings without labels."""
    return [Reading(name, value) for name, value in values.items()]


class Interval(NamedTuple):
    """What happened in some seconds: what counters grew by, the values that summaries were given, and gauges as they are at its end.
    `start`: the time of day, seconds since 1970."""

    start: float
    seconds: float
    gauges: Mapping[Key, float]
    counters: Mapping[Key, float]
    spreads: Mapping[Key, Spread]


def interval(start: float, seconds: float, before: Mapping[Key, float], found: Iterable[Reading]) -> Interval:
    """What happened since counters were as in `before`; one that is less began anew. What did not happen is left out."""
    gauges, counters, spreads = dict[Key, float](), dict[Key, float](), dict[Key, Spread]()
    for reading in found:
        value = reading.value
        if isinstance(value, Summary):
            spreads[reading.key] = value.recent
        elif FIGURES[reading.name].kind == "counter":
            known = before.get(reading.key, 0.0)
            counters[reading.key] = value - known if value >= known else value
        else:
            gauges[reading.key] = value
    happened = {key: grown for key, grown in counters.items() if grown}
    return Interval(start, seconds, gauges, happened, {key: spread for key, spread in spreads.items() if spread.count})


def consul_json(found: Interval) -> dict[str, object]:
    """As `/v1/agent/metrics` gives it, each list ordered by name and labels. A counter's `Count` is what it grew by."""
    at = datetime.fromtimestamp(found.start, UTC).strftime("%Y-%m-%d %H:%M:%S +0000 UTC")
    gauges = [{"Name": name, "Value": value, "Labels": dict(labels)} for (name, labels), value in sorted(found.gauges.items())]
    counters = [_sampled(key, _grown(value), found.seconds) for key, value in sorted(found.counters.items())]
    samples = [_sampled(key, found.spreads[key], found.seconds) for key in sorted(found.spreads)]
    return {"Timestamp": at, "Gauges": gauges, "Points": [], "Counters": counters, "Samples": samples}


def _grown(value: float) -> Spread:
    """A counter that was told 1 so often."""
    spread = Spread()
    spread.count, spread.sum, spread.squares, spread.least, spread.greatest = int(value), value, value, min(value, 1.0), min(value, 1.0)
    return spread


def _sampled(key: Key, spread: Spread, seconds: float) -> dict[str, object]:
    count = max(1, spread.count)
    mean = spread.sum / count
    variance = max(0.0, spread.squares - count * mean * mean) / (count - 1) if count > 1 else 0.0
    return {
        "Name": key[0],
        "Count": spread.count,
        "Rate": spread.sum / seconds,
        "Sum": spread.sum,
        "Min": spread.least,
        "Max": spread.greatest,
        "Mean": mean,
        "Stddev": math.sqrt(variance),
        "Labels": dict(key[1]),
    }


def prometheus_text(found: Iterable[Reading]) -> str:
    """The text format 0.0.4, ordered by name and labels."""
    lines: list[str] = []
    before = ""
    for reading in sorted(found, key=lambda one: (one.name, one.labels)):
        figure = FIGURES[reading.name]
        key = prometheus_name(reading.name)
        if reading.name != before:
            lines += [f"# HELP {key} {figure.about}", f"# TYPE {key} {figure.kind}"]
            before = reading.name
        labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in reading.labels)
        braces = f"{{{labels}}}" if labels else ""
        if isinstance(reading.value, Summary):
            lines += [f"{key}_sum{braces} {reading.value.sum!r}", f"{key}_count{braces} {reading.value.count}"]
        else:
            lines.append(f"{key}{braces} {float(reading.value)!r}")
    return "\n".join(lines) + "\n"


def prometheus_name(name: str) -> str:
    """What a figure is called there."""
    key = name.replace(".", "_").replace("-", "_")
    return f"{key}_total" if FIGURES[name].kind == "counter" else key


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
