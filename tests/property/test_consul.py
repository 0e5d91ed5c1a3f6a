# SPDX-License-Identifier: Apache-2.0
"""Whatever is sent to the Consul API: it answers, refuses with a reason, or closes; it never breaks, and serves the next request."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from plait.model.cluster import Instance, Node, Snapshot
from plait.serve.consul import ConsulApi
from plait.serve.consul_http import encoded
from plait.services.directory import Directory
from plait.services.requests import BadRequest, duration_s, parse_service
from plait.services.views import Views, seed_answer

KEYS = (
    "Name",
    "name",
    "ID",
    "Address",
    "Port",
    "Ports",
    "Tags",
    "Meta",
    "Weights",
    "enable_tag_override",
    "TaggedAddresses",
    "Check",
    "Checks",
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["web", "10.28.0.2", "::1"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
BODIES = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6) | VALUES
NODE = Node("A", "id-a", IPv4Address("192.0.2.1"), meta={"server": "1"})


@given(BODIES)
def test_a_body_is_a_service_or_refused_and_a_service_can_be_shown(body: object) -> None:
    try:
        made = parse_service(body, "A")
    except BadRequest as error:
        assert str(error)
        return
    views = Views(Directory.of(Snapshot("A", nodes={"A": NODE}, alive=frozenset({"A"}), instances={("A", made.id): made})), "dc1")
    assert made.name and made.id.isprintable() and 0 <= made.port <= 65535
    assert made in views.instances(made.name)
    for view in (views.catalog_service(made), views.health_entry(made), views.agent_service(made), seed_answer(made)):
        assert encoded(view, pretty=False)


@given(st.text(alphabet="0123456789.nusmhµ -e", max_size=12) | st.text(max_size=6))
def test_a_duration_is_a_number_of_seconds_or_refused(text: str) -> None:
    try:
        assert duration_s(text) >= 0
    except ValueError:
        pass


@given(st.lists(st.text(max_size=8) | st.sampled_from(["rack:r1", "a:b:c", ":"]), max_size=3))
def test_any_node_meta_selects_a_part_of_the_nodes(wanted: list[str]) -> None:
    snapshot = Snapshot("A", nodes={"A": NODE})
    assert [node["Node"] for node in Views(Directory.of(snapshot), "dc1", wanted).nodes()] in ([], ["A"])


class Backend:
    """Takes every registration and shows always the same service."""

    def snapshot(self) -> Snapshot:
        return Snapshot(
            "A", 3, {"A": NODE}, frozenset({"A"}), instances={("A", "w"): Instance("w", "web", "A", port=80, meta={"app": "web"})}
        )

    async def register(self, instance: Instance) -> Instance:
        return instance

    async def deregister(self, service_id: str) -> bool:
        return False

    async def changed(self, timeout_s: float) -> None:
        await asyncio.sleep(timeout_s)

    def last_contact_ms(self) -> int | None:
        return 0


async def serve(ready: threading.Event, stop: asyncio.Event, port: list[int]) -> None:
    server = ConsulApi(Backend(), "A", "dc1").server()
    await server.start("127.0.0.1", 0)
    port.append(server.port)
    ready.set()
    await stop.wait()
    await server.stop()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of an API served by a thread."""
    loop, stop, ready, found = asyncio.new_event_loop(), asyncio.Event(), threading.Event(), list[int]()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(ready, stop, found),))
    thread.start()
    assert ready.wait(10)
    yield found[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()


def exchange(port: int, request: bytes, cut: bool = False) -> bytes:
    """Everything that comes back for `request` until the server closes; `cut`: nothing more will follow, and the server sees that."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            connection.sendall(request)
            if cut:
                connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))
        except (ConnectionResetError, BrokenPipeError):
            return b""


PATHS = st.sampled_from(
    [
        "agent/services",
        "agent/service/register",
        "agent/service/deregister/",
        "agent/service/",
        "catalog/service/",
        "catalog/node/",
        "catalog/nodes",
        "catalog/services",
        "health/service/",
        "health/node/",
        "health/state/",
        "plait/instances",
        "plait/http_sd",
        "kv/",
        "",
    ]
)
WORDS = st.sampled_from(
    [
        "GET ",
        "PUT ",
        "/v1/catalog/nodes",
        "%",
        "%zz",
        "?",
        " HTTP/1.1",
        " HTTP/9.9",
        "\r\n",
        "\n",
        "\r\n\r\n",
        "Host: x\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: -1\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Content-Encoding: gzip\r\n",
        "zz\r\n",
        "\x00",
        "ÿ",
    ]
)
PARAMS = st.sampled_from(
    [
        "passing",
        "tag",
        "index",
        "stale",
        "consistent",
        "dc",
        "ns",
        "near",
        "node-meta",
        "max_stale",
        "pretty",
        "hash",
        "filter",
        "selector",
        "service",
        "port",
    ]
)
HTTP = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@HTTP
@given(
    st.sampled_from(["GET", "PUT", "POST", "DELETE", "OPTIONS", "HEAD"]),
    PATHS,
    st.text(max_size=8),
    st.lists(st.tuples(PARAMS, st.text(max_size=5) | st.sampled_from(["", "1", "10", "app=web,!x", "app in (web"])), max_size=3),
    st.binary(max_size=40) | BODIES.map(lambda body: encoded(body, pretty=False)),
)
@example("PUT", "agent/service/register", "", [], b'{"Name": "\\udfff"}')
@example("GET", "catalog/nodes", "", [("index", "\u00b2")], b"")
def test_every_request_is_answered_without_a_fault(
    port: int, caplog: pytest.LogCaptureFixture, method: str, path: str, tail: str, params: list[tuple[str, str]], body: bytes
) -> None:
    caplog.clear()
    query = "&".join(f"{name}={quote(value.encode('utf-8', 'surrogatepass'))}" for name, value in [*params, ("wait", "1ms")])
    target = f"/v1/{path}{quote(tail.encode('utf-8', 'surrogatepass'), safe='')}?{query}"
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    status = exchange(port, head.encode() + body).split(b" ", 2)[1]
    assert status in (b"200", b"400", b"401", b"404", b"405") or (status == b"500" and ("dc=" in query))
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@HTTP
@given(st.binary(max_size=200) | st.lists(WORDS, max_size=14).map(lambda words: "".join(words).encode("latin-1")))
def test_bytes_that_are_no_http_break_nothing(port: int, caplog: pytest.LogCaptureFixture, raw: bytes) -> None:
    caplog.clear()
    exchange(port, raw, cut=True)
    assert [record for record in caplog.records if record.name == "plait.consul"] == []
    assert exchange(port, b"GET /v1/status/leader HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").endswith(b'"192.0.2.1:8300"')
