# SPDX-License-Identifier: Apache-2.0
"""TCP, UDP and HTTP checks against real servers on loopback, nginx among them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.checks import certificate, free_port, nginx, serve, serve_bytes
from tests.support.files import open_files

from plait.checks.resolve import Address, Resolver
from plait.checks.runners import Runners
from plait.model.discovery import CheckDefinition
from plait.services.health import Result


@contextlib.asynccontextmanager
async def runners(resolver: Resolver | None = None) -> AsyncIterator[Runners]:
    made = Runners(None, resolver)
    files = asyncio.get_running_loop()._selector.get_map()  # type: ignore[attr-defined]
    before = set(files)
    try:
        yield made
    finally:
        await made.close()
        for _ in range(100):  # aiohttp ends TLS after it has returned; a loop that is gone by then would leave the socket to chance
            if set(files) <= before:
                break
            await asyncio.sleep(0.005)


async def once(definition: CheckDefinition) -> Result:
    async with runners() as made:
        return await made.run(definition)


def http(url: str, **more: object) -> CheckDefinition:
    return replace(CheckDefinition(kind="http", target=url, interval=1, timeout=5), **more)  # type: ignore[arg-type]


def tcp(target: str, **more: object) -> CheckDefinition:
    return replace(CheckDefinition(kind="tcp", target=target, interval=1, timeout=5), **more)  # type: ignore[arg-type]


# --- TCP


async def test_tcp_passes_when_something_accepts() -> None:
    async with serve_bytes(b"") as port:
        assert await once(tcp(f"127.0.0.1:{port}")) == Result("passing", f"TCP connect 127.0.0.1:{port}: Success")


async def test_tcp_is_critical_when_refused_and_says_so() -> None:
    port = free_port()
    assert await once(tcp(f"127.0.0.1:{port}")) == Result("critical", f"TCP connect 127.0.0.1:{port}: connection refused")


async def test_tcp_tries_every_address_of_a_name() -> None:
    """Both families: the server listens on IPv4 alone, the name has an IPv6 address first."""

    def lookup(host: str) -> list[Address]:
        assert host == "both.test"
        return [(socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1")]

    async with serve_bytes(b"") as port, runners(Resolver(lookup)) as made:
        assert (await made.run(tcp(f"both.test:{port}"))).status == "passing"


@pytest.mark.parametrize("target", ["nowhere", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "::1:80", ":80", "127.0.0.1:٣"])
async def test_a_target_that_is_none_is_critical_and_says_what_it_should_be(target: str) -> None:
    result = await once(tcp(target))
    assert result.status == "critical" and "is not HOST:PORT" in result.output


async def test_tcp_with_tls_verifies_the_name_unless_told_not_to(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path, "web.test"))
    async with serve_bytes(b"", context) as port:
        refused = await once(tcp(f"127.0.0.1:{port}", tls=True))
        assert refused.status == "critical" and "TLS: " in refused.output and "certificate" in refused.output
        assert (await once(tcp(f"127.0.0.1:{port}", tls=True, tls_skip_verify=True))).status == "passing"
    async with serve_bytes(b"no tls here\n") as port:
        assert "TLS: " in (await once(tcp(f"127.0.0.1:{port}", tls=True, tls_skip_verify=True))).output


# --- UDP


async def test_udp_passes_with_an_answer_and_without_one_and_fails_when_nobody_listens() -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.setblocking(False)
        port = server.getsockname()[1]
        loop.add_reader(server, lambda: server.sendto(b"pong", server.recvfrom(100)[1]))
        check = CheckDefinition(kind="udp", target=f"127.0.0.1:{port}", interval=1, timeout=0.5)
        assert await once(check) == Result("passing", f"UDP connect 127.0.0.1:{port}: Success")
        loop.remove_reader(server)
        silent = await once(check)
        assert (silent.status, silent.timed_out) == ("passing", True)
    assert await once(check) == Result("critical", f"UDP connect 127.0.0.1:{port}: connection refused")


# --- HTTP: what we make of bytes


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "status", "output"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine and more", "passing", "200 OK Output: fine"),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", "passing", "200 OK Output: until the end"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "passing", "204 No Content Output: "),
        (b"HTTP/1.1 299\r\nContent-Length: 0\r\n\r\n", "passing", "299  Output: "),
        (b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n", "warning", "429 Too Many Requests Output: "),
        (b"HTTP/1.1 300 X\r\nContent-Length: 0\r\n\r\n", "critical", "300 X Output: "),
        (b"HTTP/1.1 500 Broken\r\nContent-Length: 2\r\n\r\nno", "critical", "500 Broken Output: no"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", "passing", "200 OK Output: x"),
        (CHUNKED + b"4\r\nfine\r\n2;x=y\r\nst\r\n0\r\n\r\n", "passing", "200 OK Output: finest"),
        (CHUNKED + b"ffffff\r\n" + b"y" * 70, "passing", "200 OK Output: " + "y" * 64),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1000, "passing", "200 OK Output: " + "x" * 64),
        (CHUNKED + b"zz\r\n", "critical", "chunks cannot be read"),
        (b"220 mail.test ESMTP\r\n\r\n", "critical", "the answer is not HTTP"),
        (b"HTTP/1.1 99 No\r\n\r\n", "critical", "the answer is not HTTP"),
        (b"hello", "critical", "the answer is not HTTP"),
        (b"", "critical", "connection closed without an answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70000, "critical", "is longer than 65536 bytes"),
    ],
)
async def test_answers_are_judged_by_their_status(answer: bytes, status: str, output: str) -> None:
    async with serve_bytes(answer, wait_for=b"\r\n\r\n") as port:
        result = await once(http(f"http://127.0.0.1:{port}/x", output_max=64))
    assert result.status == status
    assert result.output.startswith(f"HTTP GET http://127.0.0.1:{port}/x: ") and result.output.endswith(output)


async def test_an_answer_that_comes_byte_by_byte_is_the_same() -> None:
    async with serve_bytes(CHUNKED + b"4\r\nfine\r\n0\r\n\r\n", wait_for=b"\r\n\r\n", bytewise=True) as port:
        assert (await once(http(f"http://127.0.0.1:{port}"))).output.endswith("200 OK Output: fine")


async def test_the_request_is_what_the_check_asks_for() -> None:
    seen = bytearray()
    async with serve_bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", wait_for=b"end", seen=seen) as port:
        headers = {"Host": ("web.test",), "X-Two": ("1", "2")}
        check = http(f"http://u:p%40w@127.0.0.1:{port}/a%2Fb?q=1#frag", method="put", headers=headers, body="the end")
        assert (await once(check)).status == "passing"
    head, _, body = bytes(seen).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "PUT /a%2Fb?q=1 HTTP/1.1" and body == b"the end"
    assert sorted(lines[1:]) == [
        "Accept: text/plain, text/*, */*", "Authorization: Basic dTpwQHc=", "Connection: close", "Content-Length: 7", "Host: web.test",
        "User-Agent: Consul Health Check", "X-Two: 1", "X-Two: 2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        {"headers": {"X": ("a\r\nY: b",)}},
        {"headers": {"X Y": ("a",)}},
        {"method": "GET /x HTTP/1.1\r\n"},
        {"target": "http://127.0.0.1:1/a b"},
        {"target": "http://127.0.0.1:1/\r\nX: y"},
        {"target": "ftp://127.0.0.1"},
        {"target": "http://"},
        {"target": "http://[::1"},
        {"target": "http://127.0.0.1:99999"},
    ],
)
async def test_a_request_that_cannot_be_sent_is_critical_and_not_sent(more: dict[str, object]) -> None:
    seen = bytearray()
    async with serve_bytes(b"HTTP/1.1 200 OK\r\n\r\n", seen=seen) as port:
        result = await once(replace(http(f"http://127.0.0.1:{port}"), **more))  # type: ignore[arg-type]
    assert result.status == "critical" and result.output.startswith("HTTP ") and not seen


async def test_a_target_that_hangs_is_critical_at_its_timeout() -> None:
    async with serve_bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nx", wait_for=b"\r\n\r\n", hold=True) as port:
        began = time.monotonic()
        result = await once(http(f"http://127.0.0.1:{port}/", timeout=0.3))
        assert time.monotonic() - began < 5
    assert result == Result("critical", f"HTTP GET http://127.0.0.1:{port}/: no answer within 0.3 s", timed_out=True)


async def test_slow_name_servers_delay_only_the_checks_that_ask_them() -> None:
    def slow(host: str) -> list[Address]:
        time.sleep(1.5)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    async with serve_bytes(b"") as port, runners(Resolver(slow)) as made:
        names = [asyncio.ensure_future(made.run(http(f"http://h{n}.test/", timeout=0.5))) for n in range(40)]
        await asyncio.sleep(0.05)
        began = time.monotonic()
        assert (await made.run(tcp(f"127.0.0.1:{port}"))).status == "passing"
        assert time.monotonic() - began < 0.4, "an address waited for the names"
        assert {result.status for result in await asyncio.gather(*names)} == {"critical"}


async def test_a_name_is_looked_up_once_for_all_that_ask_and_again_later() -> None:
    asked: list[str] = []

    def lookup(host: str) -> list[Address]:
        asked.append(host)
        time.sleep(0.05)
        if host == "gone.test":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, "127.0.0.1")]

    async with serve_bytes(b"") as port, runners(Resolver(lookup, keep_s=0.2)) as made:
        await asyncio.gather(*(made.run(tcp(f"web.test:{port}")) for _ in range(50)))
        assert asked == ["web.test"]
        await asyncio.sleep(0.25)
        await made.run(tcp(f"web.test:{port}"))
        assert asked == ["web.test"] * 2
        gone = await made.run(tcp(f"gone.test:{port}"))
        assert gone.output == f"TCP connect gone.test:{port}: name lookup failed: Name or service not known"


# --- HTTP: a real server


SITE = """
listen 127.0.0.1:{plain}; listen 127.0.0.1:{tls} ssl http2; ssl_certificate {pem}; ssl_certificate_key {pem};
location = /ok {{ return 200 "fine\\n"; }}
location = /busy {{ return 429 "later\\n"; }}
location = /moved {{ return 302 /ok; }}
location = /away {{ return 301 https://127.0.0.1:{tls}/ok; }}
location = /loop {{ return 302 /loop; }}
location = /agent {{ return 200 "$http_user_agent|$http_accept|$request_method"; }}
location = /broken {{ return 500; }}
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[[str, bool], str]]:
    """URL of a path of nginx, plain or with TLS."""
    plain, tls = free_port(), free_port()
    with nginx(tmp_path, SITE.format(plain=plain, tls=tls, pem=certificate(tmp_path, "web.test")), tls):
        yield lambda path, secure: f"http{'s' if secure else ''}://127.0.0.1:{tls if secure else plain}{path}"


async def test_nginx_over_http_and_https(site: Callable[[str, bool], str]) -> None:
    assert await once(http(site("/ok", False))) == Result("passing", f"HTTP GET {site('/ok', False)}: 200 OK Output: fine\n")
    assert (await once(http(site("/busy", False)))).status == "warning"
    assert (await once(http(site("/broken", False)))).status == "critical"
    assert (await once(http(site("/ok", False), method="HEAD"))).output.endswith(": 200 OK Output: ")
    secure = http(site("/ok", True), tls_skip_verify=True)
    assert await once(secure) == Result("passing", f"HTTP GET {site('/ok', True)}: 200 OK Output: fine\n")
    refused = await once(http(site("/ok", True)))
    assert refused.status == "critical" and "certificate" in refused.output
    for url in (site("/agent", False), site("/agent", True)):
        assert (await once(http(url, tls_skip_verify=True))).output.endswith(" Output: Consul Health Check|text/plain, text/*, */*|GET")
    assert (await once(http(site("/ok", True), tls_skip_verify=True, output_max=2))).output.endswith(" Output: fi")


async def test_redirects_are_followed_unless_told_not_to(site: Callable[[str, bool], str]) -> None:
    followed = await once(http(site("/moved", False)))
    assert followed == Result("passing", f"HTTP GET {site('/moved', False)}: 200 OK Output: fine\n")
    assert (await once(http(site("/away", False), tls_skip_verify=True))).status == "passing", "from http to https"
    for secure in (False, True):
        stopped = await once(http(site("/moved", secure), follow_redirects=False, tls_skip_verify=True))
        assert stopped.status == "critical" and ": 302 " in stopped.output
    endless = await once(http(site("/loop", False)))
    assert endless.status == "critical" and endless.output.startswith(f"HTTP GET {site('/loop', False)}: ")


async def test_a_refused_https_connection_says_so() -> None:
    port = free_port()
    result = await once(http(f"https://127.0.0.1:{port}/"))
    assert result == Result("critical", f"HTTP GET https://127.0.0.1:{port}/: connection refused")


async def test_a_connection_that_is_never_answered_leaves_no_socket_behind() -> None:
    """A listener whose queue is full: the kernel drops further attempts without a word."""
    with socket.socket() as server, contextlib.ExitStack() as held:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(3):
            sock = held.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(server.getsockname())
        target = f"127.0.0.1:{server.getsockname()[1]}"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for check in (tcp(target, timeout=0.2), http(f"http://{target}/", timeout=0.2)):
                assert (await once(check)).timed_out
            gc.collect()
        assert [str(warning.message) for warning in caught if "unclosed" in str(warning.message)] == []


async def test_no_run_leaves_a_socket_behind() -> None:
    async with serve(lambda _reader, writer: writer.close()) as port, runners() as made:
        await made.run(http(f"http://127.0.0.1:{port}/"))
        before = open_files()
        for _ in range(20):
            for check in (http(f"http://127.0.0.1:{port}/"), tcp(f"127.0.0.1:{port}"), tcp(f"127.0.0.1:{free_port()}")):
                await made.run(check)
        assert open_files() <= before + 2
