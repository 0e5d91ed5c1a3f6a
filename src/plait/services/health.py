# SPDX-License-Identifier: Apache-2.0
"""The life of a health check as pure functions: a definition made whole, a run's result in -> the check's standing out.

Durations and moments are seconds; a moment is on whatever clock the caller uses throughout. The rules are those of Consul's
documentation of checks, with the differences that docs/checks.md lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from plait.model.cluster import Snapshot
from plait.model.discovery import Check, CheckDefinition, CheckKind, Status

RUN_KINDS: frozenset[CheckKind] = frozenset({"script", "http", "tcp", "udp", "grpc", "h2ping", "docker", "os_service"})
"""Kinds that are run at an interval."""
COMMAND_KINDS: frozenset[CheckKind] = frozenset({"script", "docker"})
"""Kinds that run a command of whoever registers them, and so are refused unless the operator allows it."""
MIN_INTERVAL_S = 1.0
MIN_DEREGISTER_S = 1.0
"""The least time after which a critical service may be deregistered; Consul's is a minute."""
TIMEOUT_S, SCRIPT_TIMEOUT_S = 10.0, 30.0
SCRIPTS_OFF = "Scripts are disabled on this agent; to enable, configure 'enable_script_checks' to true"
SCRIPTS_LOCAL = "Scripts are disabled on this agent from remote calls; to enable, configure 'enable_script_checks' to true"
_SEVERITY: Mapping[Status, int] = {"passing": 0, "warning": 1, "critical": 2}
_NEEDS_TARGET = RUN_KINDS - {"script"} | {"alias"}


@dataclass(frozen=True, slots=True)
class Result:
    """What one run of a check said. `timed_out`: the target gave no answer in time, so the next run may well take as long."""

    status: Status
    output: str = ""
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """How a check stands after its runs so far: consecutive `successes` and `failures`, of which one is always 0."""

    status: Status
    output: str = ""
    successes: int = 0
    failures: int = 0


def worst(statuses: Iterable[Status]) -> Status:
    """The most severe; passing if there is none."""
    return max(statuses, key=_SEVERITY.__getitem__, default="passing")


# --- the definition


def problem(definition: CheckDefinition) -> str:
    """Why `definition` cannot be run, "" if it can."""
    kind = definition.kind
    if definition.interval and definition.ttl:
        return "Interval and TTL cannot both be specified"
    if min(definition.interval, definition.ttl, definition.timeout, definition.initial_delay, definition.deregister_after) < 0:
        return "durations cannot be negative"
    if kind in RUN_KINDS and definition.interval <= 0:
        return f"Interval must be > 0 for {kind} checks"
    if kind == "ttl" and definition.ttl <= 0:
        return "TTL must be > 0 for TTL checks"
    if kind in COMMAND_KINDS and not definition.args:
        return f"{kind} checks need a command (Args)"
    if kind in _NEEDS_TARGET and not definition.target:
        return f"{kind} checks need a target"
    if definition.output_max < 1:
        return "OutputMaxSize must be positive"
    if min(definition.success_before_passing, definition.failures_before_warning, definition.failures_before_critical) < 0:
        return "thresholds cannot be negative"
    if definition.failures_before_warning > definition.failures_before_critical:
        return "FailuresBeforeWarning can't be higher than FailuresBeforeCritical"
    return ""


def refusal(definition: CheckDefinition, remote: bool, scripts: bool, local_scripts: bool) -> str:
    """Why this agent does not run `definition`, "" if it does. `remote`: it came over the HTTP API, not from this host's own files."""
    if definition.kind not in COMMAND_KINDS or scripts:
        return ""
    if not local_scripts:
        return SCRIPTS_OFF
    return SCRIPTS_LOCAL if remote else ""


def completed(definition: CheckDefinition) -> CheckDefinition:
    """With the defaults of its kind: a timeout, an interval of at least a second, a deregistration that is not too early."""
    kind = definition.kind
    after = definition.deregister_after
    return replace(
        definition,
        interval=max(definition.interval, MIN_INTERVAL_S) if kind in RUN_KINDS else definition.interval,
        timeout=definition.timeout or (SCRIPT_TIMEOUT_S if kind == "script" else TIMEOUT_S) if kind in RUN_KINDS else definition.timeout,
        deregister_after=max(after, MIN_DEREGISTER_S) if after else 0.0,
    )


# --- a run's result


def advanced(definition: CheckDefinition, standing: Standing, result: Result) -> Standing:
    """The standing after one more result.

    A check passes after `success_before_passing` consecutive successes, from its very first run on. Results that are not a success
    count together: after `failures_before_critical` of them a critical one makes the check critical, after `failures_before_warning`
    (default: as many) any of them makes it a warning. Until then the status stays; failures never make it better. Only the client's word
    counts for ttl, the target's for alias: they have no thresholds. The output is always that of the last run.
    """
    if definition.kind not in RUN_KINDS:
        return Standing(result.status, result.output)
    if result.status == "passing":
        successes = standing.successes + 1
        status: Status = "passing" if successes >= definition.success_before_passing else standing.status
        return Standing(status, result.output, successes=successes)
    failures = standing.failures + 1
    return Standing(_failed(definition, standing.status, result.status, failures), result.output, failures=failures)


def _failed(definition: CheckDefinition, now: Status, said: Status, failures: int) -> Status:
    before_critical = definition.failures_before_critical
    before_warning = definition.failures_before_warning or before_critical
    if failures < before_warning:
        return now
    if said == "warning":
        return "warning"
    return "critical" if failures >= before_critical else worst((now, "warning"))


# --- texts


def ttl_expired(last_output: str) -> str:
    """The output of a TTL check whose client fell silent."""
    return f"TTL expired (last output before timeout follows): {last_output}" if last_output else "TTL expired"


def clipped_note(output: str, limit: int) -> str:
    """What a client says of its TTL check, cut at `limit` bytes with a remark."""
    raw = output.encode()
    return output if len(raw) <= limit else f"{_text(raw[:limit])} ... (captured {limit} of {len(raw)} bytes)"


def clipped_tail(tail: bytes, total: int, limit: int) -> str:
    """What a command wrote: the last `limit` of its `total` bytes, with a remark if that is not all."""
    if total <= limit:
        return _text(tail)
    return f"Captured {limit} of {total} bytes\n...\n{_text(tail[-limit:])}"


def clipped_head(head: bytes, limit: int) -> str:
    """What a server answered: its first `limit` bytes."""
    return _text(head[:limit])


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


# --- alias


def alias_of(target: str) -> tuple[str, str]:
    """NODE/SERVICE-ID as (node, service id). No node: this one; no service: the node itself."""
    node, slash, service = target.partition("/")
    return (node, service) if slash else ("", node)


def alias_results(snapshot: Snapshot, targets: Iterable[str]) -> dict[str, Result]:
    """For each alias target what its checks say together; each `targets` entry as in `CheckDefinition.target`.

    The worst of the service's own checks and those of its node; a target that does not exist, or whose node gives no sign of life, is
    critical. Other alias checks count like any, so that two that point at each other keep what they have; one that is a check of its own
    target does not count there.
    """
    of_service: dict[tuple[str, str], list[Check]] = {}
    for check in snapshot.checks.values():
        if check.definition.kind != "alias" or alias_of(check.definition.target) not in (
            (check.node, check.service_id),
            ("", check.service_id),
        ):
            of_service.setdefault((check.node, check.service_id), []).append(check)
    return {target: _alias(snapshot, of_service, *alias_of(target)) for target in targets}


def _alias(snapshot: Snapshot, of_service: Mapping[tuple[str, str], list[Check]], node: str, service: str) -> Result:
    node = node or snapshot.me
    if node not in snapshot.nodes and node != snapshot.me:
        return Result("critical", f"No node {node!r}")
    if service and (node, service) not in snapshot.instances:
        return Result("critical", f"No service {service!r} on node {node!r}")
    if node not in snapshot.alive:
        return Result("critical", f"Node {node!r} not live or unreachable")
    checks = [*of_service.get((node, ""), ()), *(of_service.get((node, service), ()) if service else ())]
    status = worst(check.status for check in checks)
    if status == "passing":
        return Result("passing", "All checks passing." if checks else "No checks found.")
    bad = min(check.id for check in checks if check.status == status)
    return Result(status, f"Aliased check {bad!r} is {status}")
