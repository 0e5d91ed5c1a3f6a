# SPDX-License-Identifier: Apache-2.0
"""The admin API over a real Unix socket: server and client together, on a backend that records what it was asked."""

from __future__ import annotations

import asyncio
import grp
import http.client
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, TypeVar

import pytest

from plait.client.admin import AdminClient, AgentNotRunning, Refused
from plait.ipam import PoolChange
from plait.model import errors
from plait.model.addr import parse_range
from plait.model.cluster import PortMapping
from plait.model.egress import Egress, EgressGateway
from plait.model.limits import Limit, Limits
from plait.model.ports import parse_held
from plait.model.requests import NetworkRequest, NewSandbox
from plait.model.service import ServiceChange, ServicePort, ServiceRequest
from plait.serve.admin import AdminServer

R = TypeVar("R")


class Recorder:
    """Answers every call with a fixed value and remembers it; `failure` is raised instead when set."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.failure: BaseException | None = None
        self.waiting = ""
        self.delay_s = 0.0
        self.reached = asyncio.Event()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def answer(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, *args, *kwargs.values()))
            self.reached.set()
            await asyncio.sleep(self.delay_s)
            if self.failure is not None:
                raise self.failure
            return self.waiting if name == "ready" else {"was": name}

        return answer


@pytest.fixture
def backend() -> Recorder:
    return Recorder()


@pytest.fixture
async def path(backend: Recorder, tmp_path: Path) -> AsyncIterator[Path]:
    server = AdminServer(backend, tmp_path / "plait.sock", timeout_s=0.5)
    await server.start()
    yield tmp_path / "plait.sock"
    await server.stop()


async def ask(path: Path, call: Callable[[AdminClient], R]) -> R:
    return await asyncio.to_thread(call, AdminClient(path, timeout_s=5))


CALLS: list[tuple[Callable[[AdminClient], object], tuple[Any, ...]]] = [
    (lambda c: c.status(), ("status",)),
    (lambda c: c.nodes(), ("nodes",)),
    (lambda c: c.forget_node("B"), ("forget_node", "B")),
    (lambda c: c.networks(), ("networks",)),
    (lambda c: c.network("a/b c"), ("network", "a/b c")),
    (lambda c: c.create_network("mesh"), ("create_network", NetworkRequest("mesh"))),
    (
        lambda c: c.create_network(
            "mesh",
            "10.30.0.0/16",
            "10.30.0.9",
            True,
            {"a": "b"},
            {"backend": "vxlan"},
            "10.30.4.0/24",
            excluded=["10.30.4.8/29"],
            force=True,
        ),
        (
            "create_network",
            NetworkRequest(
                "mesh",
                IPv4Network("10.30.0.0/16"),
                IPv4Address("10.30.0.9"),
                internal=True,
                labels={"a": "b"},
                options={"backend": "vxlan"},
                ip_range=IPv4Network("10.30.4.0/24"),
                excluded=(parse_range("10.30.4.8/29"),),
                force=True,
            ),
        ),
    ),
    (lambda c: c.change_network("a/b", {"port": "8472"}), ("change_network", "a/b", {"port": "8472"}, None)),
    (
        lambda c: c.change_network("mesh", {}, "10.30.4.0/24", ["10.30.4.8/29"]),
        ("change_network", "mesh", {}, PoolChange(IPv4Network("10.30.4.0/24"), excluded=(parse_range("10.30.4.8/29"),))),
    ),
    (lambda c: c.change_network("mesh", {}, "all", []), ("change_network", "mesh", {}, PoolChange(whole=True, excluded=()))),
    (
        lambda c: c.join_cluster("198.18.0.1", "plait1.t", True, False),
        ("join_cluster", "198.18.0.1", "plait1.t", True, False),
    ),
    (lambda c: c.remove_network("mesh"), ("remove_network", "mesh", False)),
    (lambda c: c.paths(), ("paths",)),
    (lambda c: c.routing(), ("routing",)),
    (lambda c: c.remove_network("mesh", force=True), ("remove_network", "mesh", True)),
    (lambda c: c.ipam(), ("ipam",)),
    (lambda c: c.check_ipam(), ("check_ipam",)),
    (lambda c: c.cluster_conflicts(b'{"version": 1}'), ("cluster_conflicts", b'{"version": 1}')),
    (lambda c: c.reclaim_addresses(True), ("reclaim_addresses", True)),
    (lambda c: c.reserve_address("mesh", "db", "10.30.0.7"), ("reserve_address", "mesh", "db", IPv4Address("10.30.0.7"))),
    (lambda c: c.unreserve_address("mesh", "a/b c"), ("unreserve_address", "mesh", "a/b c")),
    (lambda c: c.ports(), ("ports",)),
    (lambda c: c.limits(), ("limits",)),
    (
        lambda c: c.set_limits("a/b", "mesh", {"in": "10M", "out": "none", "manner": "drop"}),
        ("set_limits", "a/b", "mesh", Limits(Limit(10_000_000, drop=True), Limit(0, drop=True)), ""),
    ),
    (
        lambda c: c.set_limits("web", "", {"in": "10M", "connections-in": "5"}, "53/udp"),
        ("set_limits", "web", "", Limits(Limit(10_000_000, drop=True), connections_in=5), "53/udp"),
    ),
    (lambda c: c.unset_limits("a/b", "me&sh"), ("unset_limits", "a/b", "me&sh", "")),
    (lambda c: c.unset_limits("web", "", "80"), ("unset_limits", "web", "", "80/tcp")),
    (
        lambda c: c.publish("a/b", ["8080:80", "53/udp"], "mesh", ["10.0.0.0/8"], True),
        (
            "publish",
            "a/b",
            "mesh",
            [
                PortMapping("tcp", 8080, 80, told=True, sources=(IPv4Network("10.0.0.0/8"),), hidden=True),
                PortMapping("udp", 0, 53, told=True, sources=(IPv4Network("10.0.0.0/8"),), hidden=True),
            ],
        ),
    ),
    (lambda c: c.unpublish("a/b", ["[::]:80", "9/udp"], "m"), ("unpublish", "a/b", "m", [parse_held("[::]:80"), parse_held("9/udp")])),
    (lambda c: c.unpublish("web"), ("unpublish", "web", "", [])),
    (lambda c: c.ps(), ("ps",)),
    (lambda c: c.plan(), ("plan", False)),
    (lambda c: c.plan(diff=True), ("plan", True)),
    (lambda c: c.create_token(90), ("create_token", 90)),
    (lambda c: c.rotate_key("b"), ("rotate_key", "b")),
    (lambda c: c.set_gateway(True), ("set_gateway", True)),
    (lambda c: c.set_gateway(False), ("set_gateway", False)),
    (lambda c: c.expose("a/b"), ("expose", "a/b")),
    (lambda c: c.hide("mesh"), ("hide", "mesh")),
    (lambda c: c.policies(), ("policies",)),
    (lambda c: c.policy("shop/db"), ("policy", "shop/db")),
    (lambda c: c.apply_policies(b"kind: x\n"), ("apply_policies", b"kind: x\n")),
    (lambda c: c.remove_policy("_cluster/guard"), ("remove_policy", "_cluster/guard")),
    (lambda c: c.namespaces(), ("namespaces",)),
    (lambda c: c.plan_policies(b"kind: x"), ("plan_policies", b"kind: x")),
    (lambda c: c.policy_drops(), ("policy_drops",)),
    (lambda c: c.test_policy("web", "db", "udp", 53), ("test_policy", "web", "db", "udp", 53)),
    (lambda c: c.services(), ("services",)),
    (lambda c: c.service("lab/shop"), ("service", "lab/shop")),
    (
        lambda c: c.create_service({"name": "shop", "ports": ["80:8080"], "publish": ["9090:80"], "selector": {"app": "shop"}}),
        ("create_service", ServiceRequest("shop", (ServicePort("tcp", 80, 8080, 9090),), {"app": "shop"})),
    ),
    (
        lambda c: c.create_service(
            {
                "name": "shop",
                "ports": ["80"],
                "selector": {"a": "b"},
                "namespace": "lab",
                "network": "mesh",
                "address": "10.27.0.9",
                "affinity": True,
                "local_first": True,
                "hosts": ["A"],
                "headless": True,
            }
        ),
        (
            "create_service",
            ServiceRequest(
                "shop", (ServicePort("tcp", 80, 80),), {"a": "b"}, "lab", "mesh", IPv4Address("10.27.0.9"), True, True, ("A",), True
            ),
        ),
    ),
    (
        lambda c: c.change_service("shop", {"affinity": False, "drain": ["web"]}),
        ("change_service", "shop", ServiceChange(affinity=False, drain=("web",))),
    ),
    (
        lambda c: c.change_service("shop", {"ports": ["81"], "selector": {"a": "b"}, "local_first": True, "undrain": ["web"]}),
        ("change_service", "shop", ServiceChange((ServicePort("tcp", 81, 81),), {"a": "b"}, None, True, (), ("web",))),
    ),
    (lambda c: c.remove_service("lab/shop"), ("remove_service", "lab/shop")),
    (lambda c: c.egresses(), ("egresses",)),
    (
        lambda c: c.put_egress("out", "mesh", {"app": "web"}, ["A", "B=192.0.2.7"]),
        ("put_egress", Egress("out", "mesh", (EgressGateway("A"), EgressGateway("B", IPv4Address("192.0.2.7"))), {"app": "web"})),
    ),
    (lambda c: c.remove_egress("out"), ("remove_egress", "out")),
    (lambda c: c.create_sandbox("web"), ("create_sandbox", NewSandbox("web"))),
    (
        lambda c: c.create_sandbox("web", "mesh", "10.30.0.7", {"k": "v"}, ("8080:80", "53:53/udp"), ("www",), share="db"),
        ("create_sandbox", NewSandbox("web", "mesh", IPv4Address("10.30.0.7"), {"k": "v"}, ("8080:80", "53:53/udp"), ("www",), share="db")),
    ),
    (lambda c: c.sandbox("web"), ("sandbox", "web")),
    (lambda c: c.sandbox_started("web", 4711), ("sandbox_started", "web", 4711)),
    (lambda c: c.remove_sandbox("web"), ("remove_sandbox", "web")),
]


@pytest.mark.parametrize(("call", "expected"), CALLS, ids=lambda value: value[0] if isinstance(value, tuple) else "")
async def test_every_client_method_reaches_its_backend_method(
    path: Path, backend: Recorder, call: Callable[[AdminClient], object], expected: tuple[Any, ...]
) -> None:
    answer = await ask(path, call)
    assert backend.calls == [expected]
    assert answer in (None, {"was": expected[0]})


@pytest.mark.parametrize(
    ("failure", "status", "kind"),
    [
        (errors.ConfigError("name", "", "is empty", "give one"), 400, "ConfigError"),
        (errors.NotFound("there is no sandbox 'x'"), 404, "NotFound"),
        (errors.Conflict("in use by web"), 409, "Conflict"),
        (errors.PortInUse("nginx (pid 12) has it"), 409, "PortInUse"),
        (errors.PoolExhausted("10.28.0.0/28 is full"), 409, "PoolExhausted"),
        (errors.NotSupported("no vxlan"), 501, "NotSupported"),
        (errors.StoreUnavailable("out of reach"), 503, "StoreUnavailable"),
        (errors.KernelError("put", "link pl-x1", 1), 500, "KernelError"),
        (errors.PlaitError("anything else"), 500, "PlaitError"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_deliberate_error_arrives_with_its_words(
    path: Path, backend: Recorder, failure: errors.PlaitError, status: int, kind: str
) -> None:
    backend.failure = failure
    with pytest.raises(Refused) as caught:
        await ask(path, lambda c: c.sandbox("x"))
    assert (str(caught.value), caught.value.kind, caught.value.status) == (str(failure), kind, status)


@pytest.mark.parametrize(
    ("words", "said"), [({"in": "fast"}, "in: 'fast' is no rate"), ({"burst": "64k"}, "says nothing"), ({}, "is missing")]
)
async def test_a_limit_that_is_none_is_refused_before_anybody_is_asked(
    path: Path, backend: Recorder, words: dict[str, str], said: str
) -> None:
    with pytest.raises(Refused, match=said):
        await ask(path, lambda c: c.set_limits("web", "", words))
    assert backend.calls == []


async def test_a_fault_inside_the_agent_is_an_answer_and_a_log_record(
    path: Path, backend: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    backend.failure = ZeroDivisionError("oops")
    with pytest.raises(Refused, match="oops"):
        await ask(path, lambda c: c.status())
    assert [record.message for record in caplog.records if record.name == "plait.admin"] == ["request_failed"]
    backend.failure = None
    assert await ask(path, lambda c: c.status()) == {"was": "status"}


async def test_a_request_that_takes_too_long_is_ended(path: Path, backend: Recorder) -> None:
    backend.delay_s = 5
    with pytest.raises(Refused, match=r"GET /v1/ps: no result within 0\.5 s") as caught:
        await ask(path, lambda c: c.ps())
    assert caught.value.status == 504


def raw(path: Path, method: str, target: str, body: bytes = b"") -> tuple[int, str]:
    connection = http.client.HTTPConnection("localhost", timeout=5)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    try:
        connection.request(method, target, body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


async def test_ready_says_what_it_waits_for(path: Path, backend: Recorder) -> None:
    assert (await asyncio.to_thread(raw, path, "GET", "/v1/ready"))[0] == 200
    backend.waiting = "its first block"
    status, text = await asyncio.to_thread(raw, path, "GET", "/v1/ready")
    assert status == 503 and "its first block" in text


@pytest.mark.parametrize(
    ("method", "target", "body", "expected", "words"),
    [
        ("POST", "/v1/networks", b"", 400, "name"),
        ("POST", "/v1/networks", b"[1]", 400, "JSON object"),
        ("POST", "/v1/networks", b'{"name": ', 400, "not JSON"),
        ("POST", "/v1/networks", b"\xff\xfe{", 400, "not JSON"),
        ("POST", "/v1/networks", b'{"name": 7}', 400, "must be a text"),
        ("POST", "/v1/networks", b'{"name": "m", "size": 1}', 400, "not a known key"),
        ("POST", "/v1/networks", b'{"name": "m", "subnet": "10.0.0.1/8"}', 400, "IPv4 network"),
        ("POST", "/v1/networks", b'{"name": "m", "internal": "yes"}', 400, "true or false"),
        ("POST", "/v1/networks", b'{"name": "m", "labels": {"a": 1}}', 400, "values are texts"),
        ("POST", "/v1/networks", b'{"name": "m", "excluded": ["10.0.0.9-10.0.0.2"]}', 400, "10.0.0.9 lies behind 10.0.0.2"),
        ("POST", "/v1/networks", b'{"name": "m", "excluded": ["10.0.0.1/24"]}', 400, "host bits"),
        ("POST", "/v1/networks", b'{"name": "m", "excluded": ["fd00::/120"]}', 400, "no address, network or range"),
        ("POST", "/v1/networks/m/reservations", b'{"name": "db"}', 400, "address"),
        ("POST", "/v1/networks/m/reservations", b'{"name": "db", "address": "fd00::1"}', 400, "IPv4 address"),
        ("POST", "/v1/sandboxes", b'{"name": "s", "address": "10.28.0.256"}', 400, "IPv4 address"),
        ("POST", "/v1/sandboxes", b'{"name": "s", "ports": "80"}', 400, "list of texts"),
        ("POST", "/v1/sandboxes/s/pid", b"{}", 400, "whole number"),
        ("POST", "/v1/sandboxes/s/pid", b'{"pid": true}', 400, "whole number"),
        ("POST", "/v1/sandboxes/s/pid", b'{"pid": 0}', 400, "whole number"),
        ("POST", "/v1/tokens", b'{"ttl_s": 99999999}', 400, "604800"),
        ("POST", "/v1/policy-test", b'{"from": "web"}', 400, "to"),
        ("POST", "/v1/policy-test", b'{"from": "a", "to": "b", "port": 65536}', 400, "from 0 to 65535"),
        ("POST", "/v1/policies", b" " * (9 << 20), 413, "more than 8388608 bytes"),
        ("GET", "/v1/plan?diff=maybe", b"", 400, "0 or 1"),
        ("GET", "/v1/nothing", b"", 404, "Not Found"),
        ("PUT", "/v1/nodes", b"", 405, "Method Not Allowed"),
        ("POST", "/v1/networks", b" " * (1 << 21), 413, "more than 1048576 bytes"),
        ("POST", "/v1/networks", b"[" * 100_000, 400, "not JSON"),
        ("GET", "/v1/networks/", b"", 404, "Not Found"),
        ("GET", "/v2/status", b"", 404, "Not Found"),
        ("POST", "/v1/sandboxes//pid", b"{}", 404, "Not Found"),
    ],
)
async def test_bad_requests_are_refused_with_a_reason(
    path: Path, backend: Recorder, method: str, target: str, body: bytes, expected: int, words: str
) -> None:
    status, text = await asyncio.to_thread(raw, path, method, target, body)
    assert status == expected
    assert words in text and '"error"' in text
    assert backend.calls == []


@pytest.mark.parametrize("known", [True, False])
async def test_the_socket_is_open_to_one_group_at_most(backend: Recorder, tmp_path: Path, known: bool) -> None:
    group = grp.getgrgid(os.getgroups()[-1] if os.getgroups() else os.getgid())
    server = AdminServer(backend, tmp_path / "s", group=group.gr_name if known else "no-such-group")
    await server.start()
    found = (tmp_path / "s").stat()
    assert stat.S_IMODE(found.st_mode) == (0o660 if known else 0o600)
    assert found.st_gid == (group.gr_gid if known else os.getegid())
    await server.stop()


async def test_stop_does_not_wait_for_a_request_that_hangs(backend: Recorder, tmp_path: Path) -> None:
    server = AdminServer(backend, tmp_path / "s")
    await server.start()
    backend.delay_s = 30
    asking = asyncio.ensure_future(ask(tmp_path / "s", lambda c: c.ps()))
    await asyncio.wait_for(backend.reached.wait(), 5)
    async with asyncio.timeout(4):
        await server.stop()
    with pytest.raises(errors.PlaitError):
        await asking


async def test_a_stale_socket_is_replaced_and_a_living_one_respected(path: Path, backend: Recorder, tmp_path: Path) -> None:
    with pytest.raises(errors.Conflict, match="an agent answers there already"):
        await AdminServer(backend, path).start()
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    server = AdminServer(backend, stale)
    await server.start()
    assert await ask(stale, lambda c: c.nodes()) == {"was": "nodes"}
    await server.stop()
    assert not stale.exists()
    await server.stop()


def test_without_an_agent_the_message_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AgentNotRunning, match=r"not running \(no answer on .*systemctl start plait"):
        AdminClient(tmp_path / "none.sock").status()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "broke off GET /v1/status"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "not JSON"),
        (b"nonsense\r\n\r\n", "broke off GET /v1/status"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\n[]", "GET /v1/status: status 500"),
    ],
)
async def test_strange_answers_are_plain_errors(tmp_path: Path, answer: bytes, words: str) -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(reply, tmp_path / "s")
    async with server:
        with pytest.raises(errors.PlaitError) as caught:
            await ask(tmp_path / "s", lambda c: c.status())
    assert words in str(caught.value)


async def test_a_silent_agent_is_not_waited_for_forever(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "s"))
        deaf.listen()
        with pytest.raises(errors.PlaitError, match=r"did not answer GET /v1/status within 0\.1 s"):
            await asyncio.to_thread(AdminClient(tmp_path / "s", timeout_s=0.1).status)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_without_permission_the_message_says_which_group(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as closed:
        closed.bind(str(tmp_path / "s"))
        (tmp_path / "s").chmod(0)
        with pytest.raises(errors.PlaitError, match="group `plait`"):
            AdminClient(tmp_path / "s").status()
