# SPDX-License-Identifier: Apache-2.0
"""The store server towards strangers, the broken and the slow; the client towards a server that goes."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
from asyncio import sslproto
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from plait.model.errors import Compacted, ConfigError, PlaitError, StoreUnavailable
from plait.store import link as link_module
from plait.store import remote as remote_module
from plait.store import server as server_module
from plait.store.api import Put
from plait.store.listener import Limits
from plait.store.memory import MemoryStore
from plait.store.pki import init_cluster
from plait.store.protocol import MAX_FRAME, VERSION, Frames, Get, Hello, List, Watch, Welcome, client_decoder, frame
from plait.store.remote import RemoteStore
from plait.store.server import StoreServer
from plait.store.tls import TLS_BUFFER, ssl_context_client, ssl_context_server


def make_pki(directory: Path, now: datetime.datetime | None = None) -> Path:
    init_cluster(directory, "A", "id-a", ip_address("127.0.0.1"), now)
    return directory


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pki(tmp_path_factory.mktemp("pki"))


class Served:
    """A memory store behind a server that can be stopped and started again on its port."""

    def __init__(self, pki: Path, limits: Limits | None = None) -> None:
        self.store, self.pki, self.limits, self.port = MemoryStore(), pki, limits, 0
        self.task: asyncio.Future[None] | None = None

    def start(self) -> None:
        server = StoreServer(self.store, "127.0.0.1", self.port, ssl_context_server(self.pki), self.limits)
        server.open()
        self.port = server.port
        self.task = asyncio.ensure_future(server.run())

    async def stop(self) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    def client(self) -> RemoteStore:
        return RemoteStore("127.0.0.1", self.port, ssl_context_client(self.pki), jitter=lambda low, high: low)

    async def works(self) -> bool:
        client = self.client()
        try:
            return (await client.txn([], [Put("works", b"")])).ok
        finally:
            await client.close()


@pytest.fixture
async def served(pki: Path) -> AsyncIterator[Served]:
    served = Served(pki)
    served.start()
    yield served
    await served.stop()
    await served.store.close()


def bytes_after_handshake(port: int, context: ssl.SSLContext, data: bytes) -> bytes:
    """Everything the server says after the client's handshake; an alert raises ssl.SSLError."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain, context.wrap_socket(plain, server_hostname="plait") as secured:
        try:
            secured.sendall(data)
            return secured.recv(4096)
        except (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError):
            return b""


def anonymous() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def stranger(directory: Path) -> ssl.SSLContext:
    context = anonymous()
    context.load_cert_chain(directory / "node.crt", directory / "node.key")
    return context


async def test_without_a_certificate_of_this_cluster_there_is_no_answer_and_no_alert(served: Served, tmp_path: Path) -> None:
    long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=400)
    contexts = {
        "no certificate": anonymous(),
        "another cluster": stranger(make_pki(tmp_path / "other")),
        "expired": stranger(make_pki(tmp_path / "expired", long_ago)),
    }
    for name, context in contexts.items():
        assert await asyncio.to_thread(bytes_after_handshake, served.port, context, frame(Hello(VERSION))) == b"", name
    assert await served.works()


async def test_an_expired_certificate_of_this_cluster_is_not_let_in(served: Served, pki: Path, tmp_path: Path) -> None:
    from plait.store.pki import make_csr, sign_csr

    long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=400)
    (tmp_path / "node.crt").write_bytes(sign_csr(pki, make_csr(tmp_path), "B", "id-b", None, long_ago))
    assert await asyncio.to_thread(bytes_after_handshake, served.port, stranger(tmp_path), frame(Hello(VERSION))) == b""
    assert await served.works()


async def test_a_client_of_another_cluster_says_what_is_wrong(served: Served, tmp_path: Path) -> None:
    client = RemoteStore("127.0.0.1", served.port, ssl_context_client(make_pki(tmp_path / "other")))
    with pytest.raises(StoreUnavailable, match="not of this cluster"):
        await client.get("a")
    await client.close()


async def test_plain_text_junk_and_old_tls_end_without_an_answer(served: Served) -> None:
    for junk in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"\0" * 100, bytes(range(256))):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(junk)
        writer.write_eof()
        try:
            async with asyncio.timeout(10):
                assert await reader.read() == b""
        except ConnectionResetError:
            pass
        writer.transport.abort()
    old = ssl_context_client(served.pki)
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        await asyncio.to_thread(bytes_after_handshake, served.port, old, b"")
    assert await served.works()


async def test_a_member_that_breaks_the_protocol_is_cut(served: Served) -> None:
    hello = frame(Hello(VERSION))
    welcome = frame(Welcome(VERSION))
    too_large = (MAX_FRAME + 1).to_bytes(4, "big")
    for data, wanted in (
        (frame(Get(1, "a")), b""),
        (frame(Hello(VERSION + 1)), b""),
        (b"\0\0\0\2ab", b""),
        (hello + hello, welcome),
        (hello + too_large, welcome),
        (hello + b"\0\0\0\1\xc1", welcome),
    ):
        context = ssl_context_client(served.pki)
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port, ssl=context)
        writer.write(data)
        got = b""
        try:
            async with asyncio.timeout(5):
                while chunk := await reader.read(4096):
                    got += chunk
        except ConnectionResetError:
            pass
        assert wanted.startswith(got), data
        writer.transport.abort()
    assert await served.works()


async def test_handshakes_that_hang_do_not_keep_others_out(pki: Path) -> None:
    served = Served(pki, Limits(handshakes=100, handshakes_per_source=4, handshake_s=0.5))
    served.start()
    hanging = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(8)]
    await asyncio.sleep(0.1)
    with pytest.raises(StoreUnavailable):
        await served.works()
    await asyncio.sleep(0.8)
    assert await served.works()
    for _, writer in hanging:
        writer.transport.abort()
    await served.stop()


async def test_connections_are_limited(pki: Path) -> None:
    served = Served(pki, Limits(connections=2))
    served.start()
    clients = [served.client() for _ in range(3)]
    for client in clients[:2]:
        await client.get("a")
    with pytest.raises(StoreUnavailable):
        await clients[2].get("a")
    await clients[0].close()
    await asyncio.sleep(0.3)
    assert await clients[2].get("a") is None
    for client in clients:
        await client.close()
    await served.stop()


async def test_a_silent_client_is_cut(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "SILENCE", 0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port, ssl=ssl_context_client(served.pki))
    writer.write(frame(Hello(VERSION)))
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        async with asyncio.timeout(3):
            await reader.readexactly(1000)
    writer.transport.abort()


async def test_a_client_that_does_not_read_is_cut_and_not_buffered(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "DRAIN", 0.3)
    for at in range(16):
        await served.store.txn([], [Put(f"k/{at}", bytes(1_000_000))])
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port, ssl=ssl_context_client(served.pki), limit=1024)
    writer.write(frame(Hello(VERSION)) + frame(List(1, "")) + frame(Watch(2, "", 1)))
    await asyncio.sleep(1.5)
    received = 0
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        async with asyncio.timeout(5):
            while True:
                received += len(await reader.readexactly(1000))
    assert received < 16_000_000
    writer.transport.abort()
    assert await served.works()


async def test_one_connection_carries_everything(served: Served) -> None:
    client = served.client()
    watches = [asyncio.ensure_future(anext(client.watch(f"{n}/", 1))) for n in range(20)]  # type: ignore[arg-type]
    await asyncio.sleep(0.2)
    await asyncio.gather(*(client.txn([], [Put(f"{n}/x", b"")]) for n in range(20)))
    for n, watch in enumerate(watches):
        (change,) = await watch
        assert change.item.key == f"{n}/x"
    await client.close()


async def test_a_lost_server_ends_calls_and_watches_and_is_found_again(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, "HOLD", 0.0)
    client = served.client()
    await client.get("a")
    watching = asyncio.ensure_future(anext(client.watch("", 1)))  # type: ignore[arg-type]
    await asyncio.sleep(0.1)
    await served.stop()
    with pytest.raises(StoreUnavailable):
        async with asyncio.timeout(2):
            await watching
    with pytest.raises(StoreUnavailable):
        await client.get("a")
    with pytest.raises(StoreUnavailable, match="next attempt in"):
        await client.get("a")
    served.start()
    async with asyncio.timeout(5):
        while True:
            try:
                assert await client.get("a") is None
                break
            except StoreUnavailable:
                await asyncio.sleep(0.05)
    await client.close()


async def lost(served: Served) -> RemoteStore:
    """A client that was let in, and whose server is gone."""
    client = served.client()
    await client.get("a")
    watching = asyncio.ensure_future(anext(client.watch("", 1)))  # type: ignore[arg-type]
    await asyncio.sleep(0.1)
    await served.stop()
    await asyncio.gather(watching, return_exceptions=True)
    return client


async def test_calls_that_begin_while_the_server_is_restarted_wait_for_it(served: Served) -> None:
    client = await lost(served)
    writes = [asyncio.ensure_future(client.txn([], [Put(f"{n}", b"")])) for n in range(20)]
    await asyncio.sleep(0.5)
    assert not any(write.done() for write in writes)
    served.start()
    assert all(result.ok for result in await asyncio.gather(*writes))
    await client.close()


async def test_a_server_that_stays_away_fails_calls_when_the_time_to_hold_them_is_over(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "HOLD", 0.5)
    client = await lost(served)
    loop = asyncio.get_running_loop()
    started = loop.time()
    said = await asyncio.gather(*(client.get("a") for _ in range(20)), return_exceptions=True)
    assert all("Connection refused" in str(error) for error in said) and 0.5 <= loop.time() - started < 3
    with pytest.raises(StoreUnavailable, match="next attempt in"):
        await client.get("a")
    await client.close()


async def test_held_calls_are_let_go_when_the_agent_stops_or_hears_of_another_place(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "BACKOFF", (60.0, 60.0))
    client = await lost(served)
    client.connect_anew("test")  # the next pause is the long one
    first, second = (asyncio.ensure_future(client.get("a")) for _ in range(2))
    await asyncio.sleep(0.2)
    served.start()
    client.look_at("127.0.0.1", served.port)
    async with asyncio.timeout(2):
        assert await first is None and await second is None
    await served.stop()
    held = asyncio.ensure_future(client.get("a"))
    await asyncio.sleep(0.2)
    await client.close()
    async with asyncio.timeout(2):
        with pytest.raises(StoreUnavailable, match="agent is stopping"):
            await held


async def test_a_server_that_falls_silent_is_noticed(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "PING", 0.1)

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(frame(Welcome(VERSION)))
        try:
            while await reader.read(1000):
                pass
        except OSError:
            pass
        writer.transport.abort()

    server = await asyncio.start_server(mute, "127.0.0.1", 0, ssl=ssl_context_server(pki))
    client = RemoteStore("127.0.0.1", server.sockets[0].getsockname()[1], ssl_context_client(pki))
    with pytest.raises(StoreUnavailable, match="does not answer"):
        async with asyncio.timeout(2):
            await anext(client.watch("", 1))  # type: ignore[arg-type]
    await client.close()
    server.close()
    await server.wait_closed()


async def test_a_call_is_bounded_in_time(pki: Path) -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = Frames(client_decoder)
        del frames
        writer.write(frame(Welcome(VERSION)))
        await reader.read(1)
        await asyncio.sleep(1)
        writer.transport.abort()

    server = await asyncio.start_server(mute, "127.0.0.1", 0, ssl=ssl_context_server(pki))
    client = RemoteStore("127.0.0.1", server.sockets[0].getsockname()[1], ssl_context_client(pki), timeout=0.3)
    with pytest.raises(StoreUnavailable, match=r"no answer within 0\.3 s"):
        await client.get("a")
    await client.close()
    server.close()
    await server.wait_closed()
    await asyncio.sleep(1)


async def test_a_watch_that_is_not_read_ends_with_compacted(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "MAX_LAG", 50)
    client = served.client()
    watch = client.watch("", 1)
    first = asyncio.ensure_future(anext(watch))  # type: ignore[arg-type]
    await asyncio.sleep(0.1)
    await client.txn([], [Put("a", b"")])
    await first
    for at in range(100):
        await client.txn([], [Put(f"k/{at}", b"")])
    with pytest.raises(Compacted):
        while True:
            await anext(watch)
    await client.close()


async def test_errors_keep_their_class_and_words_over_the_wire(served: Served) -> None:
    client = served.client()
    with pytest.raises(PlaitError, match="lease 5"):
        await client.txn([], [Put("a", b"", 5)])
    with pytest.raises(ConfigError):
        await client.get("")
    await client.close()


async def test_tls_connections_take_small_buffers(served: Served) -> None:
    client = served.client()
    await client.get("a")
    assert client._link is not None and client._link._transport is not None
    inner = client._link._transport._ssl_protocol  # type: ignore[attr-defined]
    assert isinstance(inner, sslproto.SSLProtocol) and inner.max_size == TLS_BUFFER and len(inner._ssl_buffer) <= TLS_BUFFER
    await client.close()
