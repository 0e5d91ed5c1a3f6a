# SPDX-License-Identifier: Apache-2.0
"""gRPC health and HTTP/2 ping checks against grpcio's server and nginx, and against servers that do not keep to the protocol."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from hpack import Decoder as ReferenceDecoder
from hpack import Encoder as ReferenceEncoder
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.checks import certificate, free_port, nginx, serve, serve_bytes

from plait.checks.hpack import Decoder, HpackError, encode
from plait.checks.runners import Runners
from plait.model.discovery import CheckDefinition, CheckKind
from plait.services.health import Result


async def once(kind: CheckKind, target: str, tls: bool = False, timeout: float = 5.0, skip: bool = True) -> Result:
    runners = Runners(None)
    try:
        return await runners.run(CheckDefinition(kind=kind, target=target, interval=1, timeout=timeout, tls=tls, tls_skip_verify=skip))
    finally:
        await runners.close()


@pytest.fixture
def grpc_server(tmp_path: Path) -> Iterator[tuple[health.HealthServicer, int, int]]:
    """A real server with its health service; its plain and its TLS port."""
    server = grpc.server(ThreadPoolExecutor(4))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    pem = certificate(tmp_path, "grpc.test").read_bytes()
    plain = server.add_insecure_port("127.0.0.1:0")
    secure = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(pem, pem)]))
    server.start()
    yield servicer, plain, secure
    server.stop(None).wait(5)


async def test_grpc_health_of_a_real_server(grpc_server: tuple[health.HealthServicer, int, int]) -> None:
    servicer, plain, secure = grpc_server
    status = health_pb2.HealthCheckResponse
    servicer.set("", status.SERVING)
    servicer.set("shop.Cart", status.NOT_SERVING)
    assert await once("grpc", f"127.0.0.1:{plain}") == Result("passing", f"gRPC check 127.0.0.1:{plain}: SERVING")
    assert (await once("grpc", f"127.0.0.1:{secure}", tls=True)).status == "passing"
    down = await once("grpc", f"127.0.0.1:{plain}/shop.Cart")
    assert down == Result("critical", f"gRPC check 127.0.0.1:{plain}/shop.Cart: NOT_SERVING")
    servicer.set("shop.Cart", status.SERVING)
    assert (await once("grpc", f"127.0.0.1:{plain}/shop.Cart")).status == "passing"
    servicer.set("shop.Cart", status.UNKNOWN)
    assert (await once("grpc", f"127.0.0.1:{plain}/shop.Cart")).output.endswith(": UNKNOWN")
    missing = await once("grpc", f"127.0.0.1:{plain}/nobody")
    assert missing.status == "critical" and ": NOT_FOUND" in missing.output
    untrusted = await once("grpc", f"127.0.0.1:{secure}", tls=True, skip=False)
    assert untrusted.status == "critical" and ": TLS: " in untrusted.output
    mistaken = await once("grpc", f"127.0.0.1:{secure}")
    assert mistaken.status == "critical", "plain HTTP/2 to a TLS port"


async def test_a_grpc_server_without_the_health_service_is_critical() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert ": UNIMPLEMENTED: " in (await once("grpc", f"127.0.0.1:{port}")).output
        assert (await once("h2ping", f"127.0.0.1:{port}")).status == "passing"
    finally:
        server.stop(None).wait(5)


SITE = "listen 127.0.0.1:{plain} http2; listen 127.0.0.1:{tls} ssl http2; ssl_certificate {pem}; ssl_certificate_key {pem}; return 418;"


@pytest.fixture
def h2_server(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """nginx's ports for HTTP/2 without and with TLS."""
    plain, tls = free_port(), free_port()
    with nginx(tmp_path, SITE.format(plain=plain, tls=tls, pem=certificate(tmp_path, "h2.test")), tls):
        yield plain, tls


async def test_h2ping_of_nginx(h2_server: tuple[int, int]) -> None:
    plain, tls = h2_server
    assert await once("h2ping", f"127.0.0.1:{tls}", tls=True) == Result("passing", f"HTTP2 ping 127.0.0.1:{tls}: Success")
    assert (await once("h2ping", f"127.0.0.1:{plain}")).status == "passing"
    answered = await once("grpc", f"127.0.0.1:{plain}")
    assert answered.status == "critical" and answered.output.endswith(": HTTP status 418")


@pytest.mark.parametrize("kind", ["grpc", "h2ping"])
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak HTTP/2"),
        (b"", "closed the connection"),
        (b"\x00\x00", "closed the connection"),
        (b"\x00\x00\x08\x06\x00\x00\x00\x00\x00abcdefgh", "does not speak HTTP/2"),
        (b"\xff\xff\xff\x04\x00\x00\x00\x00\x00", "does not speak HTTP/2"),
    ],
)
async def test_what_does_not_speak_http2_is_critical(kind: CheckKind, answer: bytes, said: str) -> None:
    async with serve_bytes(answer, wait_for=b"SM\r\n\r\n") as port:
        result = await once(kind, f"127.0.0.1:{port}")
    assert result.status == "critical" and (said in result.output or "connection reset" in result.output)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


SETTINGS = frame(4, 0, 0, b"")
OK_HEAD = frame(1, 4, 1, b"\x88")


@pytest.mark.parametrize(
    ("frames", "status", "said"),
    [
        (OK_HEAD + frame(0, 1, 1, b"\0\0\0\0\2\x08\x01"), "passing", ": SERVING"),
        (OK_HEAD + frame(0, 9, 1, b"\x02\0\0\0\0\2\x08\x01\0\0"), "passing", ": SERVING"),
        (frame(1, 0, 1, b"") + frame(9, 4, 1, b"\x88") + frame(0, 1, 1, b"\0\0\0\0\2\x08\x01"), "passing", ": SERVING"),
        (OK_HEAD + frame(0, 1, 1, b"\0\0\0\0\2\x08\x02"), "critical", ": NOT_SERVING"),
        (OK_HEAD + frame(0, 1, 1, b"\0\0\0\0\0"), "critical", ": UNKNOWN"),
        (OK_HEAD + frame(0, 1, 1, b"\0\0\0\0\2\x08\x07"), "critical", ": 7"),
        (OK_HEAD + frame(0, 1, 1, b"\0\0\0\0\2\x12\x01"), "critical", "not that of the health protocol"),
        (OK_HEAD + frame(0, 1, 1, b"\1\0\0\0\2\x08\x01"), "critical", "no gRPC message"),
        (OK_HEAD + frame(0, 1, 1, b"\0\0"), "critical", "no gRPC message"),
        (OK_HEAD + frame(0, 0, 1, b"x" * 16000) * 2, "critical", "too long"),
        (frame(1, 5, 1, b"\x88" + encode([("grpc-status", "14"), ("grpc-message", "go%20away")])), "critical", ": UNAVAILABLE: go away"),
        (frame(1, 5, 1, b"\x88" + encode([("grpc-status", "77")])), "critical", ": status 77"),
        (frame(1, 5, 1, b"\x8d"), "critical", ": HTTP status 404"),
        (frame(1, 4, 1, b"\xff"), "critical", "header"),
        (frame(1, 12, 1, b"\x09\x88"), "critical", "padding"),
        (frame(3, 0, 1, (8).to_bytes(4, "big")), "critical", "reset the call (error 8)"),
        (frame(7, 0, 0, bytes(4) + (11).to_bytes(4, "big")), "critical", "goes away (error 11)"),
        (frame(1, 0, 1, b"\x88") + frame(0, 1, 1, b""), "critical", "headers cannot be read"),
    ],
)
async def test_frames_of_a_server_are_understood(frames: bytes, status: str, said: str) -> None:
    async with serve_bytes(SETTINGS + frames, wait_for=b"SM\r\n\r\n", hold=True) as port:
        result = await once("grpc", f"127.0.0.1:{port}")
    assert result.status == status and said in result.output


async def test_a_servers_own_ping_is_answered_while_the_call_goes_on() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"SM\r\n\r\n")
        writer.write(SETTINGS + frame(6, 0, 0, b"12345678"))
        await reader.readuntil(frame(6, 1, 0, b"12345678"))
        writer.write(OK_HEAD + frame(0, 1, 1, b"\0\0\0\0\2\x08\x01"))
        await reader.read()
        writer.close()

    async with serve(handler) as port:
        assert (await once("grpc", f"127.0.0.1:{port}")).status == "passing"


async def test_a_server_that_never_acknowledges_is_critical_at_the_timeout() -> None:
    async with serve_bytes(SETTINGS + frame(6, 0, 0, b"12345678"), wait_for=b"SM\r\n\r\n", hold=True) as port:
        result = await once("h2ping", f"127.0.0.1:{port}", timeout=0.2)
    assert result == Result("critical", f"h2ping check 127.0.0.1:{port}: no answer within 0.2 s", timed_out=True)


async def test_a_server_without_alpn_is_told_apart_by_its_words(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path, "old.test"))
    async with serve_bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n", context, wait_for=b"SM\r\n\r\n") as port:
        assert (await once("h2ping", f"127.0.0.1:{port}", tls=True)).output.endswith("does not speak HTTP/2")


# --- header compression beside an independent implementation

ascii_text = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
fields = st.lists(st.tuples(st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=20), ascii_text), max_size=8)


@settings(deadline=None)
@given(st.lists(st.tuples(fields, st.booleans()), min_size=1, max_size=5), st.sampled_from([4096, 100, 0]))
def test_header_blocks_of_another_implementation_are_read(blocks: list[tuple[list[tuple[str, str]], bool]], table: int) -> None:
    """Names that stand in HTTP's static table are told as ""."""
    encoder, decoder = ReferenceEncoder(), Decoder()
    encoder.header_table_size = table
    known = {name.decode() for name, _ in encoder.header_table.STATIC_TABLE}
    for block, huffman in blocks:
        read = decoder.decode(encoder.encode(block, huffman=huffman))
        for (name, value), (read_name, read_value) in zip(block, read, strict=True):
            assert (read_name, read_value) == (name, value) or (name in known and read_name == "")


@settings(deadline=None)
@given(fields)
def test_header_blocks_are_read_by_another_implementation(block: list[tuple[str, str]]) -> None:
    long = [*block, ("long", "x" * 3000)]
    assert [(name, value) for name, value in ReferenceDecoder().decode(encode(long))] == long


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_noise_is_refused_or_read_never_worse(raw: bytes) -> None:
    try:
        Decoder().decode(raw)
    except HpackError:
        pass


def test_fields_to_remember_are_bounded() -> None:
    decoder = Decoder()
    for number in range(1000):
        decoder.decode(b"\x40\x04name" + bytes([4]) + f"{number:04}".encode())
    assert decoder._size <= 4096 and len(decoder._table) == 4096 // (4 + 4 + 32)
    assert decoder.decode(b"\xbe") == [("name", "0999")]


def test_statuses_of_the_static_table() -> None:
    assert Decoder().decode(bytes(range(0x88, 0x8F))) == [(":status", s) for s in ("200", "204", "206", "304", "400", "404", "500")]
