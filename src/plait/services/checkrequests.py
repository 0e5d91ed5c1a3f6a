# SPDX-License-Identifier: Apache-2.0
"""Health checks in Consul's request bodies -> `Check` values. What is wrong raises BadRequest, with Consul's words where clients know them.

Data in: decoded JSON. Data out: checks as their agent owns them, before their first run. A check is registered by itself
(`PUT /v1/agent/check/register`) or inside a service (`Check`, `Checks`); keys are compared in lower case without underscores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from plait.model.cluster import Instance
from plait.model.discovery import NODE_MAINTENANCE, OUTPUT_MAX, SERVICE_MAINTENANCE, Check, CheckDefinition, CheckKind, Status
from plait.services.health import completed, problem
from plait.services.requests import BadRequest, duration_s, flag_of, fold, name_of, port_of, text_of

STATUSES: tuple[Status, ...] = ("passing", "warning", "critical")
_MAX_CHECKS = 128
"""Checks of one service."""
_TARGETS: tuple[tuple[str, CheckKind], ...] = (
    ("http", "http"),
    ("tcp", "tcp"),
    ("udp", "udp"),
    ("grpc", "grpc"),
    ("h2ping", "h2ping"),
    ("osservice", "os_service"),
    ("dockercontainerid", "docker"),
)
"""Keys that name what is checked, and the kind of check that this makes it."""
_TLS = {"tcp": ("tcpusetls", False), "grpc": ("grpcusetls", False), "h2ping": ("h2pingusetls", True)}
_NODE_REASON = "Maintenance mode is enabled for this node, but no reason was provided. This is a default message."
_SERVICE_REASON = "Maintenance mode is enabled for this service, but no reason was provided. This is a default message."


def parse_check(body: object, node: str) -> Check:
    """A check as in `PUT /v1/agent/check/register`, on `node`. Of its service, if it names one, only the id is set."""
    raw = fold(body)
    name = name_of(raw, "name")
    if not name:
        raise BadRequest("Missing check name")
    return Check(
        id=_check_id(raw) or name,
        node=node,
        name=name,
        status=check_status(raw, "Bad check status"),
        notes=text_of(raw, "notes"),
        service_id=name_of(raw, "serviceid"),
        exposed_port=port_of(raw.get("exposedport")),
        definition=parse_definition(raw),
    )


def service_checks(body: object, instance: Instance) -> tuple[Check, ...]:
    """The checks inside a service's definition: `Check`, then `Checks`. One without an id is `service:<id>`, one of several
    `service:<id>:<number from 1>`."""
    raw = fold(body)
    several = raw.get("checks") or []
    if not isinstance(several, list):
        raise BadRequest("Request decode failed: checks must be a list")
    bodies = [fold(check) for check in ([raw["check"]] if raw.get("check") else []) + several]
    if len(bodies) > _MAX_CHECKS:
        raise BadRequest(f"Invalid check: a service can have at most {_MAX_CHECKS} checks")
    made = [_service_check(check, instance, f":{number}" if len(bodies) > 1 else "") for number, check in enumerate(bodies, 1)]
    if len({check.id for check in made}) < len(made):
        raise BadRequest("Invalid check: two checks of the service have the same id")
    return tuple(made)


def of_service(check: Check, instance: Instance) -> Check:
    """The check as one of that instance."""
    return replace(check, service_id=instance.id, service_name=instance.name, service_tags=instance.tags)


def maintenance_check(node: str, instance: Instance | None, reason: str) -> Check:
    """The check that takes the instance (None: the whole node) out of service."""
    if instance is None:
        return Check(NODE_MAINTENANCE, node, "Node Maintenance Mode", "critical", notes=reason or _NODE_REASON)
    check = Check(f"{SERVICE_MAINTENANCE}{instance.id}", node, "Service Maintenance Mode", "critical", notes=reason or _SERVICE_REASON)
    return of_service(check, instance)


def parse_definition(raw: Mapping[str, object], runs: bool = True) -> CheckDefinition:
    """How the check is run, with the defaults of its kind. `raw` is folded. `runs` False: nobody will, so that it may be incomplete."""
    kind, target = _kind(raw)
    if not runs and kind == "ttl":
        kind = ""
    tls_key, tls_default = _TLS.get(kind, ("", False))
    definition = CheckDefinition(
        kind=kind,
        target=target,
        args=_args(raw),
        shell=text_of(raw, "shell"),
        interval=_seconds(raw, "interval"),
        timeout=_seconds(raw, "timeout"),
        ttl=_seconds(raw, "ttl"),
        initial_delay=_seconds(raw, "initialdelay"),
        method=text_of(raw, "method"),
        headers=_headers(raw.get("header")),
        body=text_of(raw, "body"),
        follow_redirects=not flag_of(raw, "disableredirects"),
        tls=flag_of(raw, tls_key, tls_default),
        tls_server_name=text_of(raw, "tlsservername"),
        tls_skip_verify=flag_of(raw, "tlsskipverify"),
        success_before_passing=_count(raw, "successbeforepassing"),
        failures_before_warning=_count(raw, "failuresbeforewarning"),
        failures_before_critical=_count(raw, "failuresbeforecritical"),
        output_max=_count(raw, "outputmaxsize") or OUTPUT_MAX,
        deregister_after=_seconds(raw, "deregistercriticalserviceafter"),
    )
    if not runs:
        return definition
    if why := problem(definition):
        raise BadRequest(f"Invalid check: {why}")
    return completed(definition)


def _service_check(raw: Mapping[str, object], instance: Instance, number: str) -> Check:
    check = Check(
        id=_check_id(raw) or f"service:{instance.id}{number}",
        node=instance.node,
        name=name_of(raw, "name") or f"Service '{instance.name}' check",
        status=check_status(raw, "Status for checks must 'passing', 'warning', 'critical'"),
        notes=text_of(raw, "notes"),
        exposed_port=port_of(raw.get("exposedport")),
        definition=parse_definition(raw),
    )
    return of_service(check, instance)


def _check_id(raw: Mapping[str, object]) -> str:
    return name_of(raw, "checkid") or name_of(raw, "id")


def check_status(raw: Mapping[str, object], refusal: str) -> Status:
    """The status that a new check begins with: critical unless another is given. BadRequest with `refusal` if it is none."""
    value = text_of(raw, "status") or "critical"
    for status in STATUSES:
        if value == status:
            return status
    raise BadRequest(refusal)


def _kind(raw: Mapping[str, object]) -> tuple[CheckKind, str]:
    """What kind the check is by the keys that it has, and what it is run against."""
    if text_of(raw, "script"):
        raise BadRequest("Invalid check: Script is not supported any more; give the command and its arguments as Args")
    for key, kind in _TARGETS:
        if target := text_of(raw, key):
            return kind, target
    if _args(raw):
        return "script", ""
    node, service = text_of(raw, "aliasnode"), text_of(raw, "aliasservice")
    if node or service:
        return "alias", f"{node}/{service}"
    return "ttl", ""


def _args(raw: Mapping[str, object]) -> tuple[str, ...]:
    value = raw.get("args") or raw.get("scriptargs") or []
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise BadRequest("Request decode failed: args must be a list of texts")
    return tuple(value)


def _headers(value: object) -> dict[str, tuple[str, ...]]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadRequest("Request decode failed: header must be a map of lists of texts")
    found: dict[str, tuple[str, ...]] = {}
    for name, values in value.items():
        if not isinstance(values, list) or not all(isinstance(entry, str) for entry in values):
            raise BadRequest("Request decode failed: header must be a map of lists of texts")
        found[str(name)] = tuple(values)
    return found


def _seconds(raw: Mapping[str, object], key: str) -> float:
    """A Go duration; a bare number is nanoseconds."""
    value = raw.get(key)
    if value is None or value == "":
        return 0.0
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63:
        return value / 1e9
    try:
        if isinstance(value, str):
            return duration_s(value)
    except ValueError:
        pass
    raise BadRequest(f'Request decode failed: {key} must be a duration such as "10s", got {value!r}')


def _count(raw: Mapping[str, object], key: str) -> int:
    value = raw.get(key)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise BadRequest(f"Request decode failed: {key} must be a number, not negative, got {value!r}")
    return value
