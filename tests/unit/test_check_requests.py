# SPDX-License-Identifier: Apache-2.0
"""Health checks and catalogue registrations in Consul's bodies -> values, and how checks are shown."""

from __future__ import annotations

import pytest

from plait.model.cluster import Instance
from plait.model.discovery import CheckDefinition
from plait.services.catalogrequests import parse_registration, parse_removal
from plait.services.checkrequests import parse_check, service_checks
from plait.services.checkviews import go_duration, health_check
from plait.services.requests import BadRequest

WEB = Instance("web-1", "web", "A", tags=("v1",))


@pytest.mark.parametrize(
    ("body", "kind", "target"),
    [
        ({"TTL": "10s"}, "ttl", ""),
        ({"ttl": 10_000_000_000}, "ttl", ""),
        ({"HTTP": "http://x/", "Interval": "5s"}, "http", "http://x/"),
        ({"tcp": "h:1", "interval": "5s"}, "tcp", "h:1"),
        ({"udp": "h:1", "Interval": "5s"}, "udp", "h:1"),
        ({"grpc": "h:1/s", "Interval": "5s"}, "grpc", "h:1/s"),
        ({"h2ping": "h:1", "Interval": "5s"}, "h2ping", "h:1"),
        ({"os_service": "ssh", "Interval": "5s"}, "os_service", "ssh"),
        ({"docker_container_id": "web", "args": ["true"], "Interval": "5s"}, "docker", "web"),
        ({"script_args": ["true"], "Interval": "5s"}, "script", ""),
        ({"alias_service": "a/b"}, "alias", "/a/b"),
        ({"AliasNode": "B"}, "alias", "B/"),
    ],
)
def test_every_kind_is_known_by_its_keys(body: dict[str, object], kind: str, target: str) -> None:
    definition = parse_check({"Name": "c", **body}, "A").definition
    assert (definition.kind, definition.target) == (kind, target)


def test_every_field_finds_its_place() -> None:
    body = {
        "Name": "c",
        "CheckID": "id",
        "Notes": "n",
        "Status": "warning",
        "ServiceID": "web-1",
        "HTTP": "https://x",
        "Method": "POST",
        "Header": {"X": ["1", "2"]},
        "Body": "b",
        "DisableRedirects": True,
        "TLSServerName": "s",
        "TLSSkipVerify": True,
        "Interval": "1m30s",
        "Timeout": "100ms",
        "SuccessBeforePassing": 2,
        "FailuresBeforeWarning": 1,
        "FailuresBeforeCritical": 3,
        "OutputMaxSize": 10,
        "DeregisterCriticalServiceAfter": "2m",
        "ExposedPort": 9,
        "InitialDelay": "1s",
    }
    check = parse_check(body, "A")
    shown = health_check(check)
    assert (check.id, check.status, check.service_id, check.definition.output_max) == ("id", "warning", "web-1", 10)
    assert {key: shown[key] for key in ("Node", "CheckID", "Type", "Interval", "Timeout", "ExposedPort")} == {
        "Node": "A",
        "CheckID": "id",
        "Type": "http",
        "Interval": "1m30s",
        "Timeout": "100ms",
        "ExposedPort": 9,
    }
    assert shown["Definition"] == {
        "HTTP": "https://x",
        "Interval": "1m30s",
        "Timeout": "100ms",
        "DeregisterCriticalServiceAfter": "2m0s",
        "InitialDelay": "1s",
        "Method": "POST",
        "Header": {"X": ["1", "2"]},
        "Body": "b",
        "DisableRedirects": True,
        "TLSServerName": "s",
        "TLSSkipVerify": True,
        "SuccessBeforePassing": 2,
        "FailuresBeforeWarning": 1,
        "FailuresBeforeCritical": 3,
        "OutputMaxSize": 10,
    }


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "^Missing check name$"),
        ({"Name": "c", "TTL": "9s", "Status": "good"}, "^Bad check status$"),
        ({"Name": "c"}, "^Invalid check: TTL must be > 0 for TTL checks$"),
        ({"Name": "c", "HTTP": "http://x"}, "^Invalid check: Interval must be > 0"),
        ({"Name": "c", "HTTP": "http://x", "Interval": "1s", "TTL": "1s"}, "^Invalid check: Interval and TTL cannot both be specified$"),
        ({"Name": "c", "Script": "true"}, "Script is not supported any more"),
        ({"Name": "c", "TTL": "soon"}, "ttl must be a duration"),
        ({"Name": "c", "TTL": True}, "ttl must be a duration"),
        ({"Name": "c", "Args": "true", "Interval": "1s"}, "args must be a list"),
        ({"Name": "c", "TTL": "1s", "Header": []}, "header must be a map"),
        ({"Name": "c", "TTL": "1s", "Header": {"x": "y"}}, "header must be a map"),
        ({"Name": "c", "TTL": "1s", "OutputMaxSize": -1}, "outputmaxsize must be a number"),
        ({"Name": "a\nb", "TTL": "1s"}, "printable"),
    ],
)
def test_a_wrong_check_is_refused(body: object, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        parse_check(body, "A")


def test_checks_inside_a_service_get_their_ids() -> None:
    (one,) = service_checks({"Name": "web", "Check": {"TTL": "9s"}}, WEB)
    assert (one.id, one.name, one.status, one.service_id, one.service_tags) == (
        "service:web-1",
        "Service 'web' check",
        "critical",
        "web-1",
        ("v1",),
    )
    both = service_checks({"Check": {"TTL": "9s"}, "checks": [{"ttl": "1s", "status": "passing"}, {"TTL": "1s", "CheckID": "x"}]}, WEB)
    assert [(c.id, c.status) for c in both] == [("service:web-1:1", "critical"), ("service:web-1:2", "passing"), ("x", "critical")]
    assert service_checks({"Name": "web", "Checks": None}, WEB) == ()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"Check": {"TTL": "1s", "Status": "bad"}}, "^Status for checks must 'passing', 'warning', 'critical'$"),
        ({"Checks": {"TTL": "1s"}}, "checks must be a list"),
        ({"Checks": [1]}, "expected a JSON object"),
        ({"Checks": [{"TTL": "1s", "CheckID": "x"}] * 2}, "same id"),
        ({"Checks": [{"TTL": "1s"}] * 200}, "at most 128 checks"),
    ],
)
def test_wrong_checks_inside_a_service_are_refused(body: object, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        service_checks(body, WEB)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (10, "10s"),
        (1.5, "1.5s"),
        (0.1, "100ms"),
        (90, "1m30s"),
        (3600, "1h0m0s"),
        (0.00025, "250µs"),
        (5e-9, "5ns"),
        (86399.5, "23h59m59.5s"),
    ],
)
def test_durations_are_written_as_go_does(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text


def test_a_catalogue_registration_becomes_records() -> None:
    made = parse_registration(
        {
            "Node": "far",
            "Address": "far.example",
            "NodeMeta": {"k": "v"},
            "TaggedAddresses": {"wan": "192.0.2.7"},
            "Service": {"Service": "db", "ID": "db-1", "Port": 5432, "Tags": ["t"]},
            "Check": {
                "CheckID": "c",
                "Name": "alive",
                "Status": "passing",
                "ServiceID": "db-1",
                "Output": "ok",
                "Definition": {"TCP": "x:1"},
            },
        }
    )
    assert made.node is not None and made.instance is not None
    assert (made.node.name, made.node.address, made.node.meta, made.node.tagged_addresses) == (
        "far",
        "far.example",
        {"k": "v"},
        {"wan": "192.0.2.7"},
    )
    assert (made.instance.id, made.instance.name, made.instance.node, made.instance.origin) == ("db-1", "db", "far", "catalog")
    (check,) = made.checks
    assert (check.origin, check.status, check.service_name, check.service_tags, check.output) == ("catalog", "passing", "db", ("t",), "ok")
    assert check.definition == CheckDefinition(kind="tcp", target="x:1")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"Address": "192.0.2.7"}, "^Must provide node$"),
        ({"Node": "a/b", "Address": "192.0.2.7"}, "neither blanks nor slashes"),
        ({"Node": "far"}, "^Must provide address if SkipNodeUpdate is not set$"),
        ({"Node": "far", "Address": "x", "ID": "no"}, "^Bad node ID"),
        ({"Node": "far", "Address": "x", "Service": {"ID": "1"}}, "^Must provide service name with ID$"),
        ({"Node": "far", "Address": "x", "Service": {"Service": "s", "Address": "0.0.0.0"}}, "^Invalid service address$"),
        ({"Node": "far", "Address": "x", "Service": {"Service": "consul"}}, "registry itself"),
        ({"Node": "far", "Address": "x", "Check": {"Status": "passing"}}, "neither CheckID nor Name"),
        ({"Node": "far", "Address": "x", "Checks": {}}, None),
        ({"Node": "far", "Address": "x", "Checks": {"a": 1}}, "checks must be a list"),
    ],
)
def test_a_wrong_catalogue_registration_is_refused(body: object, words: str | None) -> None:
    if words is None:
        assert parse_registration(body).checks == ()
        return
    with pytest.raises(BadRequest, match=words):
        parse_registration(body)


def test_a_removal_names_a_node_and_perhaps_more() -> None:
    assert parse_removal({"node": "far", "check_id": "c"}).check_id == "c"
    with pytest.raises(BadRequest, match="Must provide node"):
        parse_removal({"ServiceID": "x"})
