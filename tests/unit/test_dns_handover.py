# SPDX-License-Identifier: Apache-2.0
"""Every query counted, over UDP and TCP, while the DNS process gets a new configuration, is followed by another, or is killed."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tests.support.dns import HOST, Pair, ask, free_port
from tests.support.dnsload import Load, PipelinedLoad, TcpLoad, UdpLoad, running, slow_resolver

from plait.dns import message as m
from plait.dns.options import Options
from plait.dns.table import Table
from plait.dns.zone import build_table
from plait.model.cluster import Instance, Node, Snapshot
from plait.serve import dns_handover
from plait.serve.dns_child import Child
from plait.serve.dns_link import Upstreams
from plait.serve.dns_parent import DnsService
from plait.serve.dns_reactor import READ, WRITE


def table(serial: int = 1, name: str = "web") -> Table:
    """`web` with as many instances as `serial` says, and `web<serial>`."""
    nodes = {"a": Node("a", "1", IPv4Address("192.0.2.1"))}
    instances = {("a", str(n)): Instance(str(n), name, "a", f"10.28.1.{n}", 80) for n in range(serial)}
    instances["a", "one"] = Instance("one", f"{name}{serial}", "a", "10.28.2.1", 80)
    return build_table(Snapshot(me="a", revision=serial, nodes=nodes, instances=instances))


@contextlib.asynccontextmanager
async def agent(path: Path | None = None, crashes: list[str] | None = None) -> AsyncIterator[DnsService]:
    service = DnsService(on_crash=(crashes if crashes is not None else []).append, successors=path)
    await service.start()
    try:
        yield service
    finally:
        await service.close()


def loads(where: Pair) -> list[Load]:
    return [UdpLoad(where), TcpLoad(where), PipelinedLoad(where), UdpLoad(where, "www.example.org")]


def assert_none_lost(counted: list[Load]) -> None:
    print(*counted, sep="\n")
    for load in counted:
        assert load.asked > 20 and (load.answered, load.wrong) == (load.asked, 0), str(load)


def reaped(pid: int) -> bool:
    """Whether the process, a child of this one, has ended; it is waited for then."""
    try:
        return os.waitpid(pid, os.WNOHANG) != (0, 0)
    except ChildProcessError:
        return True


async def ended(pid: int) -> bool:
    """Whether it ends within two seconds."""
    for _ in range(100):
        if reaped(pid):
            return True
        await asyncio.sleep(0.02)
    return False


async def test_no_query_is_lost_while_tables_and_configuration_change() -> None:
    where = (HOST, free_port())
    with slow_resolver(0.05) as upstream, slow_resolver(0.02) as other:
        async with agent() as service:
            await service.set_table(table())
            await service.set_upstreams(Upstreams([upstream]))
            await service.set_listen({where})
            with running(*(counted := loads(where))):
                for serial in range(2, 80):
                    await service.set_table(table(serial))
                    if serial % 20 == 0:
                        await service.set_listen({where, (HOST, free_port())})
                        await service.set_options(Options(node_ttl=serial, service_ttl={b"web": serial}))
                        await service.set_upstreams(Upstreams([other if serial % 40 else upstream], timeout=serial))
                    await asyncio.sleep(0.005)
    assert_none_lost(counted)


async def test_no_query_is_lost_while_one_agent_follows_another(tmp_path: Path) -> None:
    """With nobody there but the child of the agent that ended, for a while each time."""
    where, path = (HOST, free_port()), tmp_path / "dns.sock"
    with slow_resolver(0.1) as upstream, contextlib.ExitStack() as stack:
        counted: list[Load] = []
        before = 0
        for serial in range(1, 6):
            async with agent(path) as service:
                assert service.followed is (serial > 1)
                await service.set_table(table(serial))
                await service.set_upstreams(Upstreams([upstream]))
                assert await service.set_listen({where}) == ()
                assert not service.followed
                if serial == 1:
                    counted = loads(where)
                    stack.enter_context(running(*counted))
                else:
                    assert await ended(before)
                assert (await ask(f"web{serial}.service.consul", where)).rr
                before = (await service.stats()).pid
                await asyncio.sleep(0.2)
            await asyncio.sleep(0.2)
        stack.close()
        assert_none_lost(counted)
        dns_handover.dismiss(path)
        assert await ended(before)


async def test_a_child_without_agent_answers_what_it_knew_and_what_the_agent_knows_not(tmp_path: Path) -> None:
    where, path = (HOST, free_port()), tmp_path / "dns.sock"
    async with agent(path) as service:
        await service.set_table(table())
        await service.set_listen({where})
        pid = (await service.stats()).pid
    assert (await ask("web.service.consul", where)).rr
    assert (await ask("any.query.consul", where)).header.rcode == m.SERVFAIL
    assert path.stat().st_mode & 0o777 == 0o600
    dns_handover.dismiss(path)
    assert await ended(pid)
    dns_handover.dismiss(path)
    async with agent() as service:
        assert await service.set_listen({where}) == (), "its port is free"


def test_a_child_that_nobody_follows_is_ended_by_the_kernel_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alarms: list[int] = []
    monkeypatch.setattr(signal, "alarm", alarms.append)
    ours, theirs = socket.socketpair()
    with theirs, dns_handover.listen(tmp_path / "dns.sock") as successors, contextlib.closing(socket.socket()) as descriptors:
        child = Child(theirs, descriptors, successors)
        with ours:
            child._ready(WRITE)
            assert alarms == []
        child._ready(READ)
        assert alarms == [dns_handover.LINGER]
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as gone:
            gone.connect(str(tmp_path / "dns.sock"))
        child._greet(READ)
        assert alarms == [dns_handover.LINGER], "who connects and goes away is no successor"


async def test_a_hung_predecessor_is_ended_and_its_sockets_opened_anew(tmp_path: Path) -> None:
    where, path = (HOST, free_port()), tmp_path / "dns.sock"
    async with agent(path) as service:
        await service.set_listen({where})
        pid = (await service.stats()).pid
        os.kill(pid, signal.SIGSTOP)
    async with agent(path) as service:
        assert not service.followed and await ended(pid)
        await service.set_table(table())
        assert await service.set_listen({where}) == ()
        assert (await ask("web.service.consul", where)).rr
        pid = (await service.stats()).pid
    dns_handover.dismiss(path)
    assert await ended(pid)


async def test_a_killed_child_loses_what_it_had_in_hand_alone() -> None:
    """New queries and connections wait in the sockets, which the agent holds, for the next child."""
    where, crashes = (HOST, free_port()), list[str]()
    async with agent(crashes=crashes) as service:
        await service.set_table(table())
        await service.set_listen({where})
        with running(*(counted := [UdpLoad(where), UdpLoad(where), TcpLoad(where)])):
            for kills in range(1, 5):
                await asyncio.sleep(0.3)
                os.kill((await service.stats()).pid, signal.SIGKILL)
                await service.set_table(table(kills + 1))
        print(*counted, sep="\n")
        assert (await service.stats()).restarts == 4
    for load in counted:
        assert load.asked - load.answered <= 4 * 16 and load.wrong == 0, str(load)


async def test_a_query_sent_while_there_is_no_child_is_answered_by_the_next() -> None:
    where, started = (HOST, free_port()), time.monotonic()
    async with agent() as service:
        await service.set_table(table())
        await service.set_listen({where})
        for _ in range(3):
            os.kill((await service.stats()).pid, signal.SIGKILL)
            with socket.create_connection(where, timeout=2):
                assert (await ask("web.service.consul", where)).rr
            await service.set_table(table())
    assert time.monotonic() - started < 10
