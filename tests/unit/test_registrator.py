# SPDX-License-Identifier: Apache-2.0
"""What containers say of themselves -> instances and checks: registrator's conventions and plait's labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from plait.model.cluster import Container, Instance, PortMapping
from plait.services.registrator import Which, registrations

HOST = "198.18.0.1"
OWN = IPv4Address("10.28.0.2")
PUBLISHED = PortMapping("tcp", 8080, 80)


def box(env: Mapping[str, str] | None = None, labels: Mapping[str, str] | None = None, **fields: object) -> Container:
    known: dict[str, object] = {"exposed": ((80, "tcp"),), "addresses": {"default": OWN}, "image": "registry.example:5000/shop/nginx:1.22"}
    return Container("c1", "web", "A", "docker", env=env or {}, labels=labels or {}, **{**known, **fields})  # type: ignore[arg-type]


def instances(container: Container, which: Which = "named", where: str = "container") -> list[Instance]:
    made, problems = registrations(container, HOST, which, where)  # type: ignore[arg-type]
    assert problems == []
    return [one.instance for one in made]


def brief(container: Container, which: Which = "named", where: str = "container") -> list[tuple[str, str, str, int]]:
    return [(i.id, i.name, i.address, i.port) for i in instances(container, which, where)]


def test_a_named_container_is_registered_with_its_own_address_and_port() -> None:
    (one,) = instances(box({"SERVICE_NAME": "shop", "SERVICE_TAGS": "a, b\\,c,", "SERVICE_REGION": "eu"}))
    assert one == Instance(
        "A:web:80", "shop", "A", str(OWN), 80, tags=("a", "b,c"), meta={"region": "eu"}, container="web", runtime="docker"
    )


def test_the_label_that_takes_its_names_away_says_nothing_of_the_service() -> None:
    (one,) = instances(box({"SERVICE_NAME": "shop"}, {"plait.dns": "off"}))
    assert one.name == "shop" and one.meta == {}


TWO = ((80, "tcp"), (443, "tcp"))
EACH: list[tuple[str, Container, list[tuple[str, str, str, int]]]] = [
    ("says nothing", box(), []),
    ("one exposed port", box({"SERVICE_NAME": "s"}), [("A:web:80", "s", "10.28.0.2", 80)]),
    ("a label instead", box(labels={"SERVICE_NAME": "s"}), [("A:web:80", "s", "10.28.0.2", 80)]),
    ("the label wins", box({"SERVICE_NAME": "env"}, {"SERVICE_NAME": "label"}), [("A:web:80", "label", "10.28.0.2", 80)]),
    ("plait's label wins", box({"SERVICE_NAME": "env"}, {"plait.service": "own"}), [("A:web:80", "own", "10.28.0.2", 80)]),
    (
        "two ports",
        box({"SERVICE_NAME": "s"}, exposed=TWO),
        [("A:web:80", "s-80", "10.28.0.2", 80), ("A:web:443", "s-443", "10.28.0.2", 443)],
    ),
    ("one of two named", box({"SERVICE_80_NAME": "s"}, exposed=TWO), [("A:web:80", "s", "10.28.0.2", 80)]),
    ("one ignored", box({"SERVICE_NAME": "s", "SERVICE_443_IGNORE": "1"}, exposed=TWO), [("A:web:80", "s-80", "10.28.0.2", 80)]),
    ("all ignored", box({"SERVICE_NAME": "s", "SERVICE_IGNORE": "yes"}), []),
    ("plait ignores", box({"SERVICE_NAME": "s"}, {"plait.ignore": "true"}), []),
    ("its own id", box({"SERVICE_NAME": "s", "SERVICE_ID": "s1"}), [("s1", "s", "10.28.0.2", 80)]),
    ("a port of its own", box(labels={"plait.service": "s", "plait.port": "9000"}, exposed=TWO), [("A:web:9000", "s", "10.28.0.2", 9000)]),
    ("a port nobody exposes", box(labels={"plait.9100.service": "m"}), [("A:web:9100", "m", "10.28.0.2", 9100)]),
    ("no port", box({"SERVICE_NAME": "s"}, exposed=()), [("A:web", "s", "10.28.0.2", 0)]),
    ("udp", box({"SERVICE_NAME": "s"}, exposed=((53, "udp"),)), [("A:web:53:udp", "s", "10.28.0.2", 53)]),
    ("stopped", box({"SERVICE_NAME": "s"}, state="exited"), []),
    ("published only", box({"SERVICE_NAME": "s"}, addresses={}, ports=(PUBLISHED,)), [("A:web:80", "s", HOST, 8080)]),
    ("on the host's network", box({"SERVICE_NAME": "s"}, addresses={}, host_network=True), [("A:web:80", "s", HOST, 80)]),
    ("by the host on demand", box({"SERVICE_NAME": "s"}, {"plait.address": "host"}, ports=(PUBLISHED,)), [("A:web:80", "s", HOST, 8080)]),
]


@pytest.mark.parametrize(("container", "wanted"), [row[1:] for row in EACH], ids=[row[0] for row in EACH])
def test_which_services_a_container_has(container: Container, wanted: list[tuple[str, str, str, int]]) -> None:
    assert brief(container) == wanted


def test_published_ports_are_registered_under_the_name_of_their_image_or_their_compose_service() -> None:
    container = box(ports=(PUBLISHED,), exposed=TWO)
    assert brief(container) == []
    assert brief(container, "published") == [("A:web:80", "nginx", "10.28.0.2", 80)]
    assert brief(container, "published", "host") == [("A:web:80", "nginx", HOST, 8080)]
    composed = replace(container, labels={"com.docker.compose.service": "front"})
    assert brief(composed, "published") == [("A:web:80", "front", "10.28.0.2", 80)]
    assert brief(container, "off") == [] == brief(replace(container, env={"SERVICE_NAME": "s"}), "off")


NAMED = {"plait.service": "s", "plait.ports": "http:8080, metrics:9100,dns:53/udp"}


def named(container: Container) -> list[tuple[str, int, str, bool]]:
    (one,) = instances(container)
    assert (one.id, one.name) == ("A:web", "s")
    return [(port.name, port.port, port.protocol, port.default) for port in one.ports]


def test_several_named_ports_are_one_instance() -> None:
    assert named(box(labels=NAMED)) == [("http", 8080, "tcp", True), ("metrics", 9100, "tcp", False), ("dns", 53, "udp", False)]
    assert named(box({"SERVICE_NAME": "s", "SERVICE_PORTS": "a:1"})) == [("a", 1, "tcp", True)]
    (one,) = instances(box(labels=NAMED | {"plait.port": "9100", "plait.9100.check.tcp": "true"}))
    assert (one.port, [port.name for port in one.ports if port.default]) == (9100, ["metrics"])


def test_named_ports_by_the_host_are_those_that_are_published() -> None:
    mappings = (PortMapping("tcp", 8080, 80), PortMapping("udp", 5353, 53))
    by_host = box(labels={"plait.service": "s", "plait.address": "host", "plait.ports": "http:80,dns:53/udp"}, ports=mappings)
    assert named(by_host) == [("http", 8080, "tcp", True), ("dns", 5353, "udp", False)]
    made, problems = registrations(replace(by_host, ports=mappings[:1]), HOST, "named", "container")
    assert made == [] and "publish the port" in problems[0]


def test_the_check_of_named_ports_is_of_the_services_own() -> None:
    said = NAMED | {"plait.port": "9100", "plait.9100.check.tcp": "true"}
    made, _ = registrations(box(labels=said), HOST, "named", "container")
    assert [check.definition.target for check in made[0].checks] == ["10.28.0.2:9100"]


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ({"plait.ports": "http"}, "NAME:PORT"),
        ({"plait.ports": "http:x"}, "NAME:PORT"),
        ({"plait.ports": "http:80,http:81"}, "twice"),
        ({"plait.ports": "http:80", "plait.port": "81"}, "one of those that ports names"),
        ({"plait.ports": "http:0"}, "from 1 to 65535"),
        ({"plait.ports": "http:70000"}, "65535"),
        ({"plait.ports": "http:80/quic"}, "must be one of"),
        ({"plait.ports": "a.b:80"}, "is no name"),
    ],
)
def test_wrong_named_ports_are_said(labels: dict[str, str], why: str) -> None:
    made, problems = registrations(box(labels={"plait.service": "s", **labels}), HOST, "named", "container")
    assert made == [] and len(problems) == 1 and why in problems[0]


def test_udp_is_a_tag_too_and_a_paused_container_is_down() -> None:
    (one,) = instances(box({"SERVICE_NAME": "s", "SERVICE_TAGS": "a"}, exposed=((53, "udp"),), state="paused"))
    assert (one.tags, one.down) == (("a", "udp"), True)


CHECKS: list[tuple[dict[str, str], tuple[str, str, float]]] = [
    ({"SERVICE_CHECK_HTTP": "/health"}, ("http", "http://10.28.0.2:80/health", 10.0)),
    ({"SERVICE_80_CHECK_HTTP": "health", "SERVICE_80_CHECK_INTERVAL": "15s"}, ("http", "http://10.28.0.2:80/health", 15.0)),
    ({"SERVICE_CHECK_HTTPS": "/", "SERVICE_CHECK_TLS_SKIP_VERIFY": "true"}, ("http", "https://10.28.0.2:80/", 10.0)),
    ({"SERVICE_CHECK_TCP": "true"}, ("tcp", "10.28.0.2:80", 10.0)),
    ({"SERVICE_CHECK_GRPC": "true"}, ("grpc", "10.28.0.2:80", 10.0)),
    ({"SERVICE_CHECK_TTL": "30s"}, ("ttl", "", 0.0)),
    ({"SERVICE_CHECK_CMD": "true"}, ("docker", "c1", 10.0)),
    ({"SERVICE_CHECK_SCRIPT": "curl $SERVICE_IP:$SERVICE_PORT"}, ("script", "", 10.0)),
]


@pytest.mark.parametrize(("said", "wanted"), CHECKS, ids=[next(iter(said)) for said, _ in CHECKS])
def test_checks(said: dict[str, str], wanted: tuple[str, str, float]) -> None:
    made, problems = registrations(box({"SERVICE_NAME": "s", **said}), HOST, "named", "container")
    assert problems == []
    ((check,),) = [one.checks for one in made]
    assert (check.definition.kind, check.definition.target, check.definition.interval) == wanted
    assert (check.id, check.service_id, check.runtime, check.status) == ("service:A:web:80", "A:web:80", "docker", "critical")


def test_the_rest_of_a_checks_words() -> None:
    said = {"plait.service": "s", "plait.check.http": "/", "plait.check.timeout": "2s", "plait.check.initial-status": "passing"}
    more = {"plait.check.deregister.after": "90s", "plait.check.http-method": "HEAD", "plait.check.failures-before-critical": "3"}
    made, _ = registrations(box(labels=said | more | {"plait.meta.Team": "blue"}), HOST, "named", "container")
    ((check,),) = [one.checks for one in made]
    found = check.definition
    assert (found.timeout, found.deregister_after, found.method, found.failures_before_critical) == (2.0, 90.0, "HEAD", 3)
    assert check.status == "passing" and made[0].instance.meta == {"Team": "blue"}


def test_a_script_gets_address_and_port() -> None:
    made, _ = registrations(box({"SERVICE_NAME": "s", "SERVICE_CHECK_SCRIPT": "x $SERVICE_IP $SERVICE_PORT"}), HOST, "named", "container")
    assert made[0].checks[0].definition.args == ("sh", "-c", "x 10.28.0.2 80")


@pytest.mark.parametrize(
    ("env", "fields", "said"),
    [
        ({"SERVICE_CHECK_HTTP": "/", "SERVICE_CHECK_INTERVAL": "soon"}, {}, "interval must be a duration"),
        ({"SERVICE_CHECK_TTL": "x"}, {}, "ttl must be a duration"),
        ({"SERVICE_CHECK_TCP": "1", "SERVICE_CHECK_INITIAL_STATUS": "fine"}, {}, "Status for checks"),
        ({}, {"addresses": {}}, "no address that other hosts reach"),
        ({"SERVICE_ADDRESS": "moon"}, {}, "address must be container or host"),
        ({"SERVICE_80_NAME": "a\x00"}, {}, "printable"),
    ],
)
def test_what_is_wrong_is_said_and_spoils_no_other(env: dict[str, str], fields: dict[str, object], said: str) -> None:
    made, problems = registrations(box({"SERVICE_NAME": "s", **env}, **fields), HOST, "named", "container")
    assert made == [] and len(problems) == 1 and said in problems[0] and problems[0].startswith("port 80/tcp: ")
