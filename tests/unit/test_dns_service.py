# SPDX-License-Identifier: Apache-2.0
"""The real child process behind DnsService, on loopback: what comes over sockets, what survives a kill, a flood, a reload."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import dnslib
import pytest
from tests.support import dns
from tests.support.dns import HOST, Pair, answering, exchange, free_port

from plait.dns import message as m
from plait.dns.table import HIDDEN, Table
from plait.dns.zone import build_table
from plait.model.cluster import Container, Instance, Network, Node, Snapshot
from plait.serve.dns_core import Core
from plait.serve.dns_holder import held, holder
from plait.serve.dns_link import Upstreams
from plait.serve.dns_parent import DnsService, DnsUnavailable
from plait.serve.dns_process import DnsProcess
from plait.serve.dns_tcp import TcpServer


def table(count: int = 1, serial: int = 1) -> Table:
    """`web` with `count` instances 10.28.1.0 and up, and a container `c<serial>`."""
    nodes = {"a": Node("a", "1", IPv4Address("192.0.2.1"))}
    instances = {("a", str(n)): Instance(str(n), "web", "a", f"10.28.1.{n}", 80) for n in range(count)}
    networks = {"default": Network("default", IPv4Network("10.28.0.0/16"), IPv4Address("10.28.255.254"), 20)}
    container = Container("c", f"c{serial}", "a", "docker", addresses={"default": IPv4Address("10.28.0.2")})
    return build_table(
        Snapshot(me="a", revision=serial, nodes=nodes, networks=networks, instances=instances, containers={("a", "c"): container})
    )


ask = partial(dns.ask, timeout=2.0)


async def dig(address: Pair, *arguments: str) -> str:
    command = ["dig", f"@{address[0]}", "-p", str(address[1]), "+tries=1", "+time=2", *arguments]
    return (await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=10)).stdout


@pytest.fixture
async def crashes() -> list[str]:
    return []


@pytest.fixture
async def service(crashes: list[str]) -> AsyncIterator[DnsService]:
    service = DnsService(on_crash=crashes.append)
    await service.start()
    yield service
    await service.close()


@pytest.fixture
async def where(service: DnsService) -> Pair:
    address = (HOST, free_port())
    await service.set_table(table())
    assert await service.set_listen({address}) == ()
    return address


async def test_dig_over_udp_and_tcp(service: DnsService, where: Pair) -> None:
    for transport in ("+notcp", "+tcp"):
        answer = await dig(where, transport, "WEB.service.consul")
        assert "status: NOERROR" in answer and "flags: qr aa rd;" in answer
        assert "WEB.service.consul.\t0\tIN\tA\t10.28.1.0" in answer
    assert "status: NXDOMAIN" in await dig(where, "nix.service.consul")
    assert "status: REFUSED" in await dig(where, "example.org")
    assert "status: NOTIMP" in await dig(where, "consul", "AXFR", "+tcp") or "Transfer failed" in await dig(where, "consul", "AXFR")


async def test_fifty_addresses_by_every_transport(service: DnsService, where: Pair) -> None:
    await service.set_table(table(50))
    wanted = {f"10.28.1.{n}" for n in range(50)}
    assert set((await dig(where, "+short", "+bufsize=1232", "web.service.consul")).split()) == wanted
    assert set((await dig(where, "+short", "+tcp", "web.service.consul")).split()) == wanted
    cut = await ask("web.service.consul", where)
    assert cut.header.tc == 1 and 20 < len(cut.rr) < 50
    assert "Truncated, retrying in TCP mode" in await dig(where, "+noedns", "web.service.consul")
    firsts = {str((await ask("web.service.consul", where)).rr[0].rdata) for _ in range(40)}
    assert len(firsts) > 3, "the order changes from answer to answer"


def exchange_tcp(data: bytes, address: Pair) -> bytes:
    with socket.create_connection(address, timeout=5) as tcp, tcp.makefile("rb") as stream:
        tcp.sendall(len(data).to_bytes(2, "big") + data)
        return stream.read(int.from_bytes(stream.read(2), "big"))


@pytest.mark.parametrize("count", [1, 9, 50, 500, 5000])
async def test_many_instances_over_every_transport(service: DnsService, where: Pair, count: int) -> None:
    nodes = {"a": Node("a", "1", IPv4Address("192.0.2.1"))}
    instances = {("a", str(n)): Instance(str(n), "web", "a", f"10.28.{n // 250}.{n % 250}", 80) for n in range(count)}
    await service.set_table(build_table(Snapshot(me="a", nodes=nodes, instances=instances)))
    for qtype, most in (("A", 4000), ("SRV", 950)):
        plain, edns = dnslib.DNSRecord.question("web.service.consul", qtype), dnslib.DNSRecord.question("web.service.consul", qtype)
        edns.add_ar(dnslib.EDNS0(udp_len=1232))
        for data, limit in ((bytes(plain.pack()), 512), (bytes(edns.pack()), 1232)):
            response = await asyncio.to_thread(exchange, data, where, 2.0)
            record = dnslib.DNSRecord.parse(response)
            assert len(response) <= limit and record.rr and record.header.tc == (len(record.rr) < count)
            whole = dnslib.DNSRecord.parse(await asyncio.to_thread(exchange_tcp, data, where))
            assert len(whole.rr) == count if count <= most else len(whole.rr) > most and whole.header.tc == 1
            assert len({str(rr.rdata) for rr in whole.rr}) == len(whole.rr)


async def test_a_new_table_is_in_force_on_return(service: DnsService, where: Pair) -> None:
    for serial in range(2, 30):
        await service.set_table(table(1, serial))
        assert (await ask(f"c{serial}", where)).header.rcode == m.NOERROR
        assert (await ask(f"c{serial - 1}", where)).header.rcode == m.NXDOMAIN


async def test_the_serial_is_the_time_of_the_last_change(service: DnsService, where: Pair) -> None:
    before = int(time.time())
    for serial in (9, 2):
        await service.set_table(table(1, serial))
        (soa,) = (await ask("consul", where, qtype="SOA")).rr
        assert before <= soa.rdata.times[0] <= time.time()


async def test_concurrent_tables_coalesce_and_the_last_one_wins(service: DnsService, where: Pair) -> None:
    await asyncio.gather(*(service.set_table(table(1, serial)) for serial in range(2, 60)))
    assert (await ask("c59", where)).header.rcode == m.NOERROR
    assert (await service.stats()).names == len([name for name in table(1, 59).names if not name.startswith(HIDDEN)])


async def test_a_killed_child_is_back_within_a_second_with_everything(service: DnsService, where: Pair, crashes: list[str]) -> None:
    before = await service.stats()
    os.kill(before.pid, signal.SIGKILL)
    start = time.monotonic()
    while time.monotonic() - start < 5:
        with contextlib.suppress(OSError):
            query = bytes(dnslib.DNSRecord.question("c1").pack())
            assert dnslib.DNSRecord.parse(await asyncio.to_thread(exchange, query, where, 0.2)).rr
            break
        await asyncio.sleep(0.01)
    assert time.monotonic() - start < 1.0
    await service.set_table(table(1, 5))
    assert (await ask("c5", where)).rr
    after = await service.stats()
    assert after.pid != before.pid and after.restarts == 1
    assert crashes == ["the DNS child ended: killed by signal 9; it is started again"]


async def test_a_table_set_while_the_child_dies_is_acknowledged_by_the_next(service: DnsService, where: Pair) -> None:
    os.kill((await service.stats()).pid, signal.SIGKILL)
    await service.set_table(table(1, 9))
    assert (await ask("c9", where)).rr


async def test_a_hanging_child_is_replaced(service: DnsService, where: Pair, crashes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plait.serve.dns_process.CALL_TIMEOUT", 1.0)
    monkeypatch.setattr("plait.serve.dns_parent.ACKNOWLEDGE_TIMEOUT", 2.0)
    os.kill((await service.stats()).pid, signal.SIGSTOP)
    with contextlib.suppress(DnsUnavailable):
        await service.set_table(table(1, 3))
    await service.set_table(table(1, 4))
    assert (await ask("c4", where)).rr
    assert len(crashes) == 1 and "did not answer" in crashes[0]


PARENT = """
import asyncio
from plait.serve.dns_parent import DnsService

async def main():
    service = DnsService(on_crash=print)
    await service.start()
    print((await service.stats()).pid, flush=True)
    await asyncio.sleep(30)

asyncio.run(main())
"""


def runs(pid: int) -> bool:
    """Whether `pid` is a process that has not ended, waited for or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_the_child_ends_with_its_parent() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    pid = int(await asyncio.wait_for(process.stdout.readline(), 10))
    process.kill()
    await process.wait()
    for _ in range(100):
        if not runs(pid):
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"child {pid} outlived its parent")


async def test_close_leaves_nothing_and_can_be_repeated(crashes: list[str]) -> None:
    service = DnsService(on_crash=crashes.append)
    await service.set_table(table())
    await service.start()
    pid = (await service.stats()).pid
    started = time.monotonic()
    await service.close()
    await service.close()
    assert time.monotonic() - started < 0.9, "it ends by the closed link, not by a kill"
    assert not runs(pid) and crashes == []
    with pytest.raises(DnsUnavailable):
        await service.stats()


async def test_a_child_that_cannot_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plait.serve.dns_process.CALL_TIMEOUT", 0.3)
    monkeypatch.setattr("plait.serve.dns_parent.ACKNOWLEDGE_TIMEOUT", 0.6)
    crashes: list[str] = []
    service = DnsService(on_crash=crashes.append, python="/bin/false")
    with pytest.raises(DnsUnavailable, match="did not acknowledge"):
        await service.start()
    await service.close()
    assert crashes and "did not start" in crashes[0]


async def test_listening_changes_without_closing_the_others(service: DnsService, where: Pair) -> None:
    second = ("127.0.0.2", where[1])
    with socket.create_connection(where, timeout=2) as kept:
        await service.set_listen({where, second})
        assert (await ask("c1", second)).rr
        await service.set_listen({second})
        query = bytes(dnslib.DNSRecord.question("c1").pack())
        kept.sendall(len(query).to_bytes(2, "big") + query)
        assert kept.recv(2)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.to_thread(exchange, query, where)
    assert (await ask("c1", second)).rr


async def test_a_held_port_names_its_holder_and_is_taken_when_it_is_free(
    service: DnsService, where: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plait.serve.dns_parent.BIND_RETRY", 0.1)
    port = free_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((HOST, port))
        errors = await service.set_listen({where, (HOST, port)})
        assert [(e.protocol, e.address, e.port) for e in errors] == [("udp", HOST, port)]
        assert f"(pid {os.getpid()})" in str(errors[0]) and f"{HOST}:{port}/udp" in str(errors[0])
        assert (await ask("c1", where)).rr, "the other address is served"
    for _ in range(100):
        if not service.bind_errors:
            break
        await asyncio.sleep(0.05)
    assert (await ask("c1", (HOST, port))).rr


def test_the_holder_of_a_tcp_port_is_found() -> None:
    with socket.socket() as tcp:
        tcp.bind(("0.0.0.0", 0))
        assert holder("tcp", HOST, tcp.getsockname()[1]) == "", "bound, but not listening"
        tcp.listen()
        assert f"(pid {os.getpid()})" in holder("tcp", HOST, tcp.getsockname()[1])
    assert holder("tcp", HOST, free_port()) == ""


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_port_that_could_not_be_had_is_known_before(kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind(("0.0.0.0", 0))
        port = other.getsockname()[1]
        if kind == socket.SOCK_STREAM:
            other.listen()
        protocol = "udp" if kind == socket.SOCK_DGRAM else "tcp"
        assert held(HOST, (free_port(), port)).startswith(f"{HOST}:{port}/{protocol} is held by ")
        assert f"(pid {os.getpid()})" in held(HOST, (port,))
    for _ in range(2):
        assert f"(pid {os.getpid()})" not in held(HOST, (port,)), "nothing of the look stays; another process may have it by now"


async def test_junk_is_survived(service: DnsService, where: Pair) -> None:
    random_bytes = os.urandom
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        for size in (0, 1, 2, 11, 12, 13, 40, 512, 2048, 2049, 9000):
            for _ in range(20):
                udp.sendto(random_bytes(size), where)
    for junk in (b"", b"\0", b"\0\0", b"\xff\xff" + random_bytes(60000), random_bytes(5000)):
        with socket.create_connection(where, timeout=2) as tcp:
            tcp.sendall(junk)
    assert (await ask("c1", where)).rr
    stats = await service.stats()
    assert stats.restarts == 0 and stats.counters["dropped"] > 0


async def test_no_upstream_is_ourselves(service: DnsService, where: Pair) -> None:
    """Whatever comes first, the upstream or that plait listens there; with the listener gone the upstream is asked again."""
    other = (HOST, free_port())
    await service.set_upstreams(Upstreams([where]))
    assert (await ask("example.org", where)).header.rcode == m.REFUSED
    async with upstream() as (address, asked):
        await service.set_upstreams(Upstreams([where, address]))
        assert (await ask("example.org", where)).header.rcode == m.NOERROR and len(asked) == 1
    await service.set_upstreams(Upstreams([other], timeout=0.2))
    assert (await ask("example.org", where)).header.rcode == m.SERVFAIL
    await service.set_listen({where, other})
    assert (await ask("example.org", where)).header.rcode == m.REFUSED
    await service.set_listen({where})
    assert (await ask("example.org", where)).header.rcode == m.SERVFAIL


@contextlib.asynccontextmanager
async def upstream(rcode: int = 0, answers: int = 1) -> AsyncIterator[tuple[Pair, list[dnslib.DNSRecord]]]:
    """A resolver that answers every name over UDP and TCP with `rcode` and `answers` addresses; what it was asked."""
    asked: list[dnslib.DNSRecord] = []

    def respond(data: bytes, _: bool) -> bytes:
        query = dnslib.DNSRecord.parse(data)
        asked.append(query)
        reply = query.reply(aa=0)
        reply.header.rcode = rcode
        for number in range(answers):
            reply.add_answer(*dnslib.RR.fromZone(f"{query.q.qname} 60 A 198.51.{number // 256}.{number % 256}"))
        return bytes(reply.pack())

    async with answering(respond) as address:
        yield address, asked


async def test_foreign_names_go_upstream_over_the_clients_transport(service: DnsService, where: Pair) -> None:
    async with upstream(answers=100) as (address, asked):
        await service.set_upstreams(Upstreams([address]))
        answer = await dig(where, "+tcp", "big.example.org")
        assert answer.count("198.51.0.") == 100 and "ra" in answer.split("flags:")[1].split(";")[0]
        assert (await ask("small.example.org", where)).header.rcode == m.NOERROR
        assert (await ask("c1", where)).header.ra == 1
        assert [str(query.q.qname) for query in asked] == ["big.example.org.", "small.example.org."]
        await service.set_upstreams(Upstreams([]))
        assert (await ask("small.example.org", where)).header.rcode == m.REFUSED


async def test_the_next_upstream_answers_for_one_that_refuses_or_is_absent(service: DnsService, where: Pair) -> None:
    async with upstream(rcode=m.SERVFAIL) as (broken, broken_asked), upstream() as (good, _):
        absent = (HOST, free_port())
        await service.set_upstreams(Upstreams([absent, broken, good]))
        assert (await ask("one.example.org", where)).rr
        assert (await ask("two.example.org", where)).rr
        assert "198.51.0.0" in await dig(where, "+tcp", "three.example.org")
        assert len(broken_asked) == 1, "the one that answered is asked first from then on"
        await service.set_upstreams(Upstreams([absent]))
        assert (await ask("one.example.org", where)).header.rcode == m.SERVFAIL


async def test_a_silent_upstream_holds_up_nobody_and_is_bounded(service: DnsService, where: Pair) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        silent.bind((HOST, 0))
        await service.set_upstreams(Upstreams([silent.getsockname()]))
        client.connect(where)
        client.settimeout(4)
        for number in range(300):
            client.send(bytes(dnslib.DNSRecord.question(f"n{number}.example.org").pack()))
        started = time.monotonic()
        assert (await ask("c1", where)).rr
        assert time.monotonic() - started < 0.5
        early = [await asyncio.to_thread(client.recv, 512) for _ in range(44)]
        assert time.monotonic() - started < 1.5 and {data[3] & 0xF for data in early} == {m.SERVFAIL}
        late = [await asyncio.to_thread(client.recv, 512) for _ in range(256)]
        assert 1.5 < time.monotonic() - started < 4 and {data[3] & 0xF for data in late} == {m.SERVFAIL}
    counters = (await service.stats()).counters
    assert (counters["forwarded"], counters["forward_rejected"], counters["forward_failed"]) == (256, 44, 256)


async def test_forged_responses_are_ignored(service: DnsService, where: Pair) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((HOST, 0))
        server.settimeout(3)
        await service.set_upstreams(Upstreams([server.getsockname()]))
        waiting = asyncio.create_task(ask("x.example.org", where))
        data, client = await asyncio.to_thread(server.recvfrom, 512)
        reply = dnslib.DNSRecord.parse(data).reply()
        other = dnslib.DNSRecord.question("y.example.org").reply()
        other.header.id = reply.header.id
        wrong_id = bytes((data[0] ^ 1, data[1])) + bytes(reply.pack())[2:]
        for forged in (b"", data, wrong_id, bytes(other.pack()), bytes(reply.pack())[:14]):
            server.sendto(forged, client)
        await asyncio.sleep(0.05)
        assert not waiting.done()
        reply.add_answer(*dnslib.RR.fromZone("x.example.org 60 A 198.51.100.1"))
        server.sendto(bytes(reply.pack()), client)
        assert str((await waiting).rr[0].rdata) == "198.51.100.1"


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")), 3)


async def test_tcp_pipelines_in_any_pieces_even_to_a_slow_reader(service: DnsService, where: Pair) -> None:
    await service.set_table(table(50))
    query = bytes(dnslib.DNSRecord.question("web.service.consul").pack())
    reader, writer = await asyncio.open_connection(*where, limit=1024)
    count = 3000
    stream = b"".join((len(query).to_bytes(2, "big") + n.to_bytes(2, "big") + query[2:]) for n in range(count))
    sending = asyncio.create_task(_send_in_pieces(writer, stream))
    await asyncio.sleep(0.3)
    assert [int.from_bytes((await read_frame(reader))[:2], "big") for _ in range(count)] == list(range(count))
    await sending
    writer.close()
    await writer.wait_closed()


async def _send_in_pieces(writer: asyncio.StreamWriter, stream: bytes) -> None:
    for at in (0, 1, 2, 3, 40, 41):
        writer.write(stream[at : at + 1] if at < 3 else b"")
        await writer.drain()
    writer.write(stream[3:])
    await writer.drain()


async def test_pipelined_queries_that_fail_at_once_do_not_pile_up(service: DnsService, where: Pair) -> None:
    await service.set_upstreams(Upstreams([(HOST, 1)]))
    query = bytes(dnslib.DNSRecord.question("x.example.org").pack())
    reader, writer = await asyncio.open_connection(*where)
    writer.write((len(query).to_bytes(2, "big") + query) * 2000)
    for _ in range(2000):
        assert (await read_frame(reader))[3] & 0xF == m.SERVFAIL
    writer.close()
    await writer.wait_closed()
    assert (await service.stats()).restarts == 0


async def test_the_oldest_connection_makes_room(service: DnsService, where: Pair) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(where, timeout=2)) for _ in range(260)]
        assert "status: NOERROR" in await dig(where, "+tcp", "c1")
        assert await asyncio.to_thread(clients[0].recv, 1) == b""
    assert (await service.stats()).counters["tcp_evicted"] >= 4


@pytest.mark.root
async def test_a_gateway_address_is_answered_on_once_it_exists() -> None:
    """In a namespace of its own: bind first, address later, reply from the address that was asked."""
    script = """
import asyncio, subprocess
from plait.serve.dns_parent import DnsService
from plait.dns.table import EMPTY

async def main():
    service = DnsService(on_crash=print)
    await service.start()
    assert await service.set_listen({("10.28.255.254", 53)}) == ()
    subprocess.run(["ip", "addr", "add", "10.28.255.254/32", "dev", "lo"], check=True)
    process = await asyncio.create_subprocess_exec("dig", "@10.28.255.254", "+tries=1", "x.consul")
    assert await asyncio.wait_for(process.wait(), 10) == 0
    await service.close()

asyncio.run(main())
"""
    command = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", sys.executable, "-c", script]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and "status: NXDOMAIN" in done.stdout, done.stdout + done.stderr


def test_idle_connections_are_closed_in_time() -> None:
    core = Core()
    server = TcpServer(core)
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(2):
            ours, theirs = socket.socketpair()
            theirs.setblocking(False)
            clients.append(stack.enter_context(ours))
            server.admit(theirs)
        assert server.next_deadline() is not None
        query = bytes(dnslib.DNSRecord.question("c1").pack())
        clients[0].sendall(len(query).to_bytes(2, "big") + query)
        clients[1].sendall(b"\0")  # half a prefix is no query: it buys no time
        time.sleep(0.05)
        core.reactor.poll(0)
        deadline = server.next_deadline()
        assert deadline is not None
        server.sweep(deadline)
        assert clients[1].recv(1) == b""
        clients[0].settimeout(1)
        assert clients[0].recv(2)
        later = server.next_deadline()
        assert later is not None and later > deadline
        server.sweep(later)
        assert server.next_deadline() is None


async def test_an_answer_that_comes_with_the_cancellation_does_not_swallow_it() -> None:
    """asyncio.wait_for does so before Python 3.12, and the supervisor of the child would go on for ever."""
    child = object.__new__(DnsProcess)
    child._listener = asyncio.create_task(asyncio.sleep(60))  # type: ignore[arg-type]
    child._answers = {}
    asking = asyncio.create_task(child._answer_to(1))
    await asyncio.sleep(0)
    child._answers[1].set_result("late")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    child._listener.cancel()
