# SPDX-License-Identifier: Apache-2.0
"""A check as Consul's HTTP API shows it. Data in: `Check`. Data out: JSON-able values. Source: the API's public documentation."""

from __future__ import annotations

from plait.model.discovery import OUTPUT_MAX, Check, CheckDefinition
from plait.services.health import alias_of

Json = dict[str, object]
_TARGET_KEY = {
    "http": "HTTP",
    "tcp": "TCP",
    "udp": "UDP",
    "grpc": "GRPC",
    "h2ping": "H2PING",
    "docker": "DockerContainerID",
    "os_service": "OSService",
}
_TLS_KEY = {"tcp": "TCPUseTLS", "grpc": "GRPCUseTLS", "h2ping": "H2PingUseTLS"}


def health_check(check: Check) -> Json:
    """Every key is always there, in the documented order; only `Definition` leaves out what is not set."""
    definition = check.definition
    return {
        "Node": check.node,
        "CheckID": check.id,
        "Name": check.name,
        "Status": check.status,
        "Notes": check.notes,
        "Output": check.output,
        "ServiceID": check.service_id,
        "ServiceName": check.service_name,
        "ServiceTags": list(check.service_tags),
        "Type": definition.kind,
        "Interval": go_duration(definition.interval) if definition.interval else "",
        "Timeout": go_duration(definition.timeout) if definition.timeout else "",
        "ExposedPort": check.exposed_port,
        "Definition": _definition(definition),
        "CreateIndex": check.create_index,
        "ModifyIndex": check.modify_index,
    }


def go_duration(seconds: float) -> str:
    """As Go writes a time.Duration: "0s", "1.5s", "100ms", "1m30s", "1h0m0s"."""
    nanoseconds = round(seconds * 1e9)
    for unit, size in (("ns", 1), ("µs", 1000), ("ms", 1_000_000)):
        if 0 < nanoseconds < size * 1000 and nanoseconds < 1_000_000_000:
            return f"{_trimmed(nanoseconds / size)}{unit}"
    minutes, rest = divmod(nanoseconds, 60_000_000_000)
    text = f"{_trimmed(rest / 1e9)}s"
    if minutes:
        text = f"{minutes % 60}m{text}"
    return f"{minutes // 60}h{text}" if minutes >= 60 else text


def _trimmed(value: float) -> str:
    return f"{value:.9f}".rstrip("0").rstrip(".")


def _definition(definition: CheckDefinition) -> Json:
    kind = definition.kind
    shown: Json = {
        "Interval": go_duration(definition.interval) if definition.interval else "",
        "Timeout": go_duration(definition.timeout) if definition.timeout else "",
        "DeregisterCriticalServiceAfter": go_duration(definition.deregister_after) if definition.deregister_after else "",
        "TTL": go_duration(definition.ttl) if definition.ttl else "",
        "InitialDelay": go_duration(definition.initial_delay) if definition.initial_delay else "",
        "ScriptArgs": list(definition.args),
        "Shell": definition.shell,
        "Method": definition.method,
        "Header": {name: list(values) for name, values in definition.headers.items()},
        "Body": definition.body,
        "DisableRedirects": not definition.follow_redirects,
        "TLSServerName": definition.tls_server_name,
        "TLSSkipVerify": definition.tls_skip_verify,
        "SuccessBeforePassing": definition.success_before_passing,
        "FailuresBeforeWarning": definition.failures_before_warning,
        "FailuresBeforeCritical": definition.failures_before_critical,
        "OutputMaxSize": definition.output_max if definition.output_max != OUTPUT_MAX else 0,
    }
    if kind in _TARGET_KEY:
        shown = {_TARGET_KEY[kind]: definition.target, **shown}
    if kind in _TLS_KEY:
        shown[_TLS_KEY[kind]] = definition.tls
    if kind == "alias":
        node, service = alias_of(definition.target)
        shown |= {"AliasNode": node, "AliasService": service}
    return {key: value for key, value in shown.items() if value}
