# SPDX-License-Identifier: Apache-2.0
"""Both drivers, threads and asyncio, over real sockets: connections, time limits, stopping, and agents that go away."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.support.fake_consul import FakeConsul, Server, serve

from plait.client import AsyncClient, Client, Closed, LockLost, NoInstances, NotAcquired, Service, Unreachable
from plait.client.balance import Ejection
from plait.client.steps import Request, Steps, send


@pytest.fixture
def fake() -> FakeConsul:
    return FakeConsul(time.monotonic)


@pytest.fixture
def server(fake: FakeConsul) -> Iterator[Server]:
    with serve(fake) as server:
        yield server


def both(url: str, steps: Callable[[], Steps[Any]], **how: Any) -> Iterator[Any]:
    """The result, or the error, with threads and with asyncio."""

    async def aio() -> Any:
        async with AsyncClient(url, **how) as client:
            return await client.run(steps())

    def plain() -> Any:
        with Client(url, **how) as client:
            return client.run(steps())

    for work in (plain, lambda: asyncio.run(aio())):
        try:
            yield work()
        except Unreachable as error:
            yield error


@contextmanager
def talker(speak: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server whose connections are each handed to `speak`."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            with line:
                speak(line)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def read() -> Steps[Any]:
    return send(Request("GET", "status/leader"))


def write() -> Steps[Any]:
    return send(Request("PUT", "kv/a", body=b"1"))


def test_requests_share_a_connection(server: Server) -> None:
    with Client(server.url) as client:
        for number in range(20):
            assert client.kv.put("a", b"%d" % number)
    assert server.connections == 1


async def test_requests_share_a_connection_in_asyncio(server: Server) -> None:
    async with AsyncClient(server.url) as client:
        for number in range(20):
            assert await client.kv.put("a", b"%d" % number)
        assert server.connections == 1
        await asyncio.gather(*(client.kv.get("a") for _ in range(5)))
    assert server.connections <= 6


def test_nobody_there_is_said_in_words_and_nothing_was_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for error in both(f"http://127.0.0.1:{port}", write):
        assert isinstance(error, Unreachable) and not error.sent
        assert "PUT /v1/kv/a" in str(error) and str(port) in str(error) and "refused" in str(error).lower()
    for error in both("unix:///nonexistent/plait.sock", write):
        assert isinstance(error, Unreachable) and "No such file" in str(error)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"", "ended within"),
        (b"SSH-2.0-x\r\n", "status line"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhi", "ended within"),
    ],
)
def test_what_is_not_an_answer_is_an_error_and_a_write_is_not_repeated(said: bytes, why: str) -> None:
    taken = []

    def speak(line: socket.socket) -> None:
        taken.append(line.recv(65536))
        line.sendall(said)

    with talker(speak) as url:
        for error in both(url, write):
            assert isinstance(error, Unreachable) and error.sent and why in str(error) and "is not known" in str(error)
    assert len(taken) == 2


def test_an_agent_that_does_not_answer_is_given_up_in_time() -> None:
    ended = threading.Event()
    with talker(lambda line: (ended.wait(20), None)[1]) as url:
        began = time.monotonic()
        for error in both(url, read, timeout_s=0.3):
            assert isinstance(error, Unreachable) and "no answer within 0.3 s" in str(error)
        assert time.monotonic() - began < 5
        ended.set()


def test_an_answer_that_comes_in_drops_does_not_extend_the_limit() -> None:
    def speak(line: socket.socket) -> None:
        try:
            line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            for _ in range(100):
                line.sendall(b"x")
                time.sleep(0.05)
        except OSError:
            pass  # the client has given up

    with talker(speak) as url:
        began = time.monotonic()
        assert all(isinstance(error, Unreachable) for error in both(url, read, timeout_s=0.3))
        assert time.monotonic() - began < 3


def test_a_kept_connection_that_died_is_replaced_without_a_word(server: Server) -> None:
    with Client(server.url) as client:
        client.kv.put("a", b"1")
        server.reset()
        time.sleep(0.1)
        assert client.kv.put("a", b"2"), "seen before it is used"


async def test_a_kept_connection_that_died_is_replaced_in_asyncio(server: Server) -> None:
    async with AsyncClient(server.url) as client:
        await client.kv.put("a", b"1")
        server.reset()
        await asyncio.sleep(0.1)
        assert await client.kv.put("a", b"2")


def test_a_read_is_repeated_if_its_kept_connection_dies_and_a_write_is_not() -> None:
    """The server answers the first request of each connection and ends it when the second one arrives."""

    def speak(line: socket.socket) -> None:
        line.recv(65536)
        line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue")
        line.recv(65536)

    def twice(second: Callable[[], Steps[Any]]) -> Callable[[], Steps[Any]]:
        def steps() -> Steps[Any]:
            yield from read()
            return (yield from second())

        return steps

    with talker(speak) as url:
        for answer in both(url, twice(read)):
            assert answer.status == 200
        for error in both(url, twice(write)):
            assert isinstance(error, Unreachable) and error.sent


def test_a_unix_socket(tmp_path: Path, server: Server) -> None:
    path = tmp_path / "agent.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def run() -> None:
        for _ in range(2):
            line, _ = listener.accept()
            with line:
                line.recv(65536)
                line.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"x"')

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert [answer.body for answer in both(f"unix://{path}", read)] == [b'"x"', b'"x"']
    thread.join()
    listener.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and a certificate of its own for the name `agent.test`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "agent.test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("agent.test")]), False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "agent.pem"
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return file


def test_tls_is_spoken_with_who_the_authority_vouches_for_and_nobody_else(
    certificate: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = server.url.replace("http:", "https:")
    for error in both(url, read, timeout_s=5):
        assert isinstance(error, Unreachable) and not error.sent and "certificate verify failed" in str(error)
    monkeypatch.setenv("CONSUL_CACERT", str(certificate))
    for error in both(url, read, timeout_s=5):
        assert isinstance(error, Unreachable) and "certificate is not valid for '127.0.0.1'" in str(error)
    monkeypatch.setenv("CONSUL_TLS_SERVER_NAME", "agent.test")
    assert [answer.status for answer in both(url, read, timeout_s=5)] == [200, 200]
    monkeypatch.delenv("CONSUL_CACERT")
    monkeypatch.setenv("CONSUL_HTTP_SSL_VERIFY", "false")
    assert [answer.status for answer in both(url, read, timeout_s=5)] == [200, 200]


def test_a_closed_client_refuses(server: Server) -> None:
    client = Client(server.url)
    client.close()
    with pytest.raises(Closed):
        client.kv.get("a")


# watches


def test_a_watch_is_ended_from_another_thread_in_the_middle_of_a_query(server: Server) -> None:
    with Client(server.url) as client:
        changes = client.kv.watch("a")
        assert next(changes) is None
        threading.Timer(0.2, changes.close).start()
        began = time.monotonic()
        assert list(changes) == []
        assert time.monotonic() - began < 5


def test_the_client_ends_its_watches(server: Server) -> None:
    client = Client(server.url)
    changes = client.kv.watch("a")
    assert next(changes) is None
    threading.Timer(0.2, client.close).start()
    assert list(changes) == []


def test_a_watch_survives_a_restart_of_the_agent(fake: FakeConsul) -> None:
    with serve(fake) as first, Client(first.url, timeout_s=1) as client:
        client.register(Service("web", 80))
        changes = client.watch("web")
        assert [one.port for one in next(changes)] == [80]
        port = first.server_address[1]
        first.shutdown()
        first.server_close()
        first.reset()
        fake.forget()
        fake.poll(Request("PUT", "agent/service/register", body=b'{"Name": "web", "Port": 81}'), 0)
        with serve(fake, port):
            assert [one.port for one in next(changes)] == [81]


async def test_a_watch_is_cancelled_in_asyncio_and_goes_on_where_it_was(server: Server) -> None:
    async with AsyncClient(server.url) as client:
        changes = client.kv.watch("a")
        assert await anext(changes) is None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await anext(changes)
        await client.kv.put("a", b"1")
        entry = await anext(changes)
        assert entry is not None and entry.value == b"1"


# registrations, endpoints, locks


def test_a_registration_lasts_as_long_as_its_block(server: Server, fake: FakeConsul) -> None:
    with Client(server.url) as client:
        with client.registration(Service("web", 80, ttl_s=1.0)) as registration:
            time.sleep(1.4)
            assert len(client.resolve("web")) == 1 and registration.trouble is None
            registration.critical("no database")
            assert client.resolve("web") == ()
            assert client.resolve("web", passing=False)[0].checks[1].output == "no database"
            registration.passing()
            registration.maintenance(True)
            assert client.resolve("web", passing=False)[0].status == "maintenance"
        assert fake.services == {}
        with pytest.raises(ZeroDivisionError), client.registration(Service("web", 80, ttl_s=0.3)):
            raise ZeroDivisionError
        assert fake.services == {}


async def test_a_registration_lasts_as_long_as_its_block_in_asyncio(server: Server, fake: FakeConsul) -> None:
    async with AsyncClient(server.url) as client:
        async with client.registration(Service("web", 80, ttl_s=1.0)) as registration:
            await asyncio.sleep(1.4)
            assert len(await client.resolve("web")) == 1 and registration.trouble is None
            await registration.warning("slow")
            assert (await client.resolve("web", passing=False))[0].status == "warning"
        assert fake.services == {}


def test_the_end_of_a_registration_without_the_agent_is_silent_only_if_its_ttl_ends_it(fake: FakeConsul) -> None:
    for service, loud in ((Service("web", 80, ttl_s=10), False), (Service("web", 80), True)):
        with Client("http://127.0.0.1:1", timeout_s=1) as client, serve(fake) as server:
            client._transport.settings = client.settings = Client(server.url).settings
            registration = client.registration(service)
            registration.__enter__()
            server.shutdown()
            server.server_close()
            server.reset()
            if loud:
                with pytest.raises(Unreachable):
                    registration.__exit__(None, None, None)
            else:
                registration.__exit__(None, None, None)


def test_endpoints_follow_the_service_and_leave_out_what_fails(server: Server) -> None:
    with Client(server.url) as client:
        for port in (80, 81):
            client.register(Service("web", port, id=f"web-{port}"))
        with client.endpoints("web", ejection=Ejection(failures=1)) as endpoints:
            used = []
            for _ in range(4):
                with endpoints.use() as instance:
                    used.append(instance.port)
            assert sorted(used) == [80, 80, 81, 81]
            with pytest.raises(ConnectionError), endpoints.use() as bad:
                raise ConnectionError
            for _ in range(4):
                with endpoints.use() as instance:
                    assert instance != bad
            client.deregister("web-80")
            client.deregister("web-81")
            deadline = time.monotonic() + 5
            while endpoints.instances and time.monotonic() < deadline:
                time.sleep(0.02)
            with pytest.raises(NoInstances), endpoints.use():
                pass
            threading.Timer(0.2, client.register, [Service("web", 82)]).start()
            with endpoints.use(timeout_s=5) as instance:
                assert instance.port == 82


async def test_endpoints_in_asyncio(server: Server) -> None:
    async with AsyncClient(server.url) as client:
        await client.register(Service("web", 80))
        async with client.endpoints("web") as endpoints:
            async with endpoints.use() as instance:
                assert instance.port == 80
            await client.deregister("web")
            async with asyncio.timeout(5):
                while endpoints.instances:  # noqa: ASYNC110 (the library tells nobody)
                    await asyncio.sleep(0.02)
            with pytest.raises(NoInstances):
                async with endpoints.use(timeout_s=0.1):
                    pass
            waiting = asyncio.get_running_loop().call_later(
                0.2, server.fake.poll, Request("PUT", "agent/service/register", body=b'{"Name":"web"}'), 0
            )
            async with endpoints.use(timeout_s=5) as instance:
                assert instance.name == "web"
            waiting.cancel()


def test_endpoints_say_at_once_why_there_is_nobody_to_ask() -> None:
    with Client("http://127.0.0.1:1", timeout_s=0.5) as client, pytest.raises(Unreachable), client.endpoints("web"):
        pass


async def test_endpoints_say_at_once_why_there_is_nobody_to_ask_in_asyncio() -> None:
    async with AsyncClient("http://127.0.0.1:1", timeout_s=0.5) as client:
        with pytest.raises(Unreachable):
            async with client.endpoints("web"):
                pass


def test_a_lock_excludes_and_tells_of_its_loss(server: Server, fake: FakeConsul) -> None:
    told: list[str] = []
    with Client(server.url) as client:
        lock = client.lock("a", lock_delay_s=0, on_loss=told.append)
        with lock:
            assert lock.held and lock.fence > 0
            with pytest.raises(NotAcquired, match=r"within 0\.3 s"), client.lock("a", timeout_s=0.3):
                pass
            lock.check()
        assert not lock.held
        with pytest.raises(LockLost, match="released, taken or deleted"), lock:
            client.kv.delete("a")
            assert lock.lost.wait(5)
            with pytest.raises(LockLost):
                lock.check()
        assert len(told) == 1
        assert fake.leases == {}
        with pytest.raises(ZeroDivisionError), lock:
            raise ZeroDivisionError
        with client.semaphore("sem", 2), client.semaphore("sem", 2), pytest.raises(NotAcquired), client.semaphore("sem", 2, timeout_s=0.2):
            pass


def test_a_lock_without_its_client_counts_as_lost(server: Server) -> None:
    client = Client(server.url)
    lock = client.lock("a")
    assert lock.acquire(0)
    client.close()
    with pytest.raises(LockLost, match="client was closed"):
        lock.check()


async def test_a_lock_without_its_client_counts_as_lost_in_asyncio(server: Server) -> None:
    client = AsyncClient(server.url)
    lock = client.lock("a")
    assert await lock.acquire(0)
    await client.aclose()
    with pytest.raises(LockLost, match="client was closed"):
        lock.check()


async def test_a_lock_that_is_lost_cancels_its_block_in_asyncio(server: Server, fake: FakeConsul) -> None:
    async with AsyncClient(server.url) as client:
        lock = client.lock("a", lock_delay_s=0)
        async with lock:
            assert lock.held
            with pytest.raises(NotAcquired):
                async with client.lock("a", timeout_s=0.3):
                    pass
        reached = False
        with pytest.raises(LockLost, match="released, taken or deleted"):
            async with lock:
                await client.kv.delete("a")
                await asyncio.sleep(10)
                reached = True
        assert not reached and fake.leases == {}
        task = asyncio.current_task()
        assert task is not None and task.cancelling() == 0
        async with client.lock("a", cancel=False) as kept:
            await client.kv.delete("a")
            await kept.lost.wait()
            with pytest.raises(LockLost):
                await kept.release()


async def test_cancelling_a_wait_for_a_lock_leaves_nothing_behind(server: Server, fake: FakeConsul) -> None:
    async with AsyncClient(server.url) as client, client.lock("a"):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await client.lock("a").acquire()
        assert len(fake.leases) == 1


async def test_somebody_elses_cancellation_is_not_swallowed(server: Server) -> None:
    async def hold(client: AsyncClient, held: asyncio.Event) -> None:
        async with client.lock("a"):
            held.set()
            await asyncio.sleep(10)

    async with AsyncClient(server.url) as client:
        held = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(hold(client, held))
            await held.wait()
            task.cancel()
        assert task.cancelled()
        assert await client.lock("a", lock_delay_s=0).acquire(1)


def test_a_leader_that_loses_its_term_stands_again(server: Server) -> None:
    terms: list[int] = []
    with Client(server.url) as client:

        def work(term: Any) -> str:
            terms.append(term.fence)
            if len(terms) == 1:
                client.kv.delete("leader")
                assert term.lost.wait(5)
                term.check()
            leader = client.watch_leader("leader")
            assert next(leader) == b"host-a"
            return "done"

        assert client.lead("leader", "host-a", work, lock_delay_s=0) == "done"
    assert len(terms) == 2 and terms[0] < terms[1]


async def test_a_leader_that_loses_its_term_stands_again_in_asyncio(server: Server) -> None:
    terms: list[int] = []
    async with AsyncClient(server.url) as client:

        async def work(term: Any) -> str:
            terms.append(term.fence)
            if len(terms) == 1:
                await client.kv.delete("leader")
                await asyncio.sleep(10)
            return "done"

        assert await client.lead("leader", "host-a", work, lock_delay_s=0) == "done"
    assert len(terms) == 2 and terms[0] < terms[1]


def test_many_threads_share_a_client(server: Server) -> None:
    with Client(server.url) as client:

        def add() -> None:
            for _ in range(10):
                while True:
                    entry = client.kv.get("count")
                    value = b"%d" % (int(entry.value if entry else 0) + 1)
                    if client.kv.put("count", value, cas=entry.modify_index if entry else 0):
                        break

        threads = [threading.Thread(target=add) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        entry = client.kv.get("count")
        assert entry is not None and entry.value == b"50"
