# SPDX-License-Identifier: Apache-2.0
"""What is concluded of which datagrams come through, what is kept of it, and who is answered."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tests.unit.test_lanes import SNAPSHOT

from plait.agent import checksums
from plait.agent.checksums import SIZE, TRIES, Checksums
from plait.agent.echo import Lane
from plait.agent.journal import Journal
from plait.agent.lanes import LINK, Lanes, Measured

DEV = "pl-x1"
BROKEN = (True, False)
"""Only what has no checksum is answered."""


@contextmanager
def journal_of(folder: Path) -> Iterator[Journal]:
    journal = Journal(folder / "journal.db")
    try:
        yield journal
    finally:
        journal.close()


class Wire:
    """What is answered of the datagrams without and with a checksum, by node; whoever is not named answers both."""

    def __init__(self) -> None:
        self.answers: dict[IPv4Address, tuple[bool, bool]] = {}
        self.asked: list[tuple[IPv4Address, bool]] = []

    async def answered(self, lane: Lane, address: IPv4Address, checksum: bool) -> bool:
        assert lane == Lane(IPv4Address("10.28.1.0"), DEV)
        self.asked.append((address, checksum))
        return self.answers.get(address, (True, True))[checksum]


B, C = IPv4Address("10.28.2.0"), IPv4Address("10.28.3.0")


class Subject:
    """The checksums of node A, whose tunnels to `up` work."""

    def __init__(self, journal: Journal, up: str = "BC", kernel: str = "6.1") -> None:
        lanes = Lanes(lambda: SNAPSHOT, lambda said: None)
        lanes._lanes |= {(node, device): Measured(True) for node in up for device in (DEV, LINK)}
        self.changes: list[frozenset[str]] = []
        self.checksums = Checksums(journal, lambda: SNAPSHOT, lanes, lambda: self.changes.append(self.checksums.software), kernel)
        self.wire = Wire()

    async def look(self, *answers: tuple[bool, bool]) -> frozenset[str]:
        """One round in which B answers so; the devices without offload after it."""
        self.wire.asked.clear()
        self.wire.answers = dict(zip((B, C), answers, strict=False))
        await self.checksums.look(self.wire)
        return self.checksums.software


@pytest.mark.parametrize("answer", [(True, True), (False, True), (False, False)])
async def test_a_tunnel_is_judged_only_by_what_comes_through_without_a_checksum(tmp_path: Path, answer: tuple[bool, bool]) -> None:
    with journal_of(tmp_path) as journal:
        subject = Subject(journal)
        assert await subject.look(answer) == frozenset() and not subject.changes and not subject.checksums.texts


async def test_a_healthy_tunnel_costs_one_datagram_and_a_broken_one_is_asked_several_times(tmp_path: Path) -> None:
    with journal_of(tmp_path) as journal:
        subject = Subject(journal)
        await subject.look()
        assert subject.wire.asked == [(B, True), (C, True)]
        assert await subject.look(BROKEN) == {DEV} and subject.changes == [{DEV}]
        assert subject.wire.asked == [(B, True), (B, False)] * TRIES + [(C, True)]
        assert subject.checksums.texts[DEV].endswith("to B, what has none does: pl-x1 computes checksums in software from now on")


async def test_a_tunnel_through_which_nothing_comes_is_not_asked(tmp_path: Path) -> None:
    with journal_of(tmp_path) as journal:
        subject = Subject(journal, up="C")
        assert await subject.look(BROKEN) == frozenset() and subject.wire.asked == [(C, True)]


async def rounds(subject: Subject, monkeypatch: pytest.MonkeyPatch, *answers: tuple[bool, bool]) -> int:
    """Run for a moment, B answering so one round after the other and the last ever after; how often B was asked."""
    monkeypatch.setattr(checksums, "FIRST_EVERY_S", 0.001)
    left, asked = list(answers), 0

    async def no_responder() -> None:
        pass

    class OneByOne(Wire):
        async def answered(self, lane: Lane, address: IPv4Address, checksum: bool) -> bool:
            nonlocal asked
            if address == B and checksum and self.answers.get(B) != BROKEN:
                asked += 1
                self.answers[B] = left.pop(0) if len(left) > 1 else left[0]
            return await super().answered(lane, address, checksum)

    monkeypatch.setattr(subject.checksums, "_respond", no_responder)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await subject.checksums.run(wire := OneByOne())
    assert wire.asked.count((C, True)) == 1, "what is known of one already is not asked because of another"
    return asked


async def test_where_nothing_could_be_told_it_is_tried_again_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with journal_of(tmp_path) as journal:
        subject = Subject(journal)
        assert await rounds(subject, monkeypatch, (False, False), BROKEN) == 2
        assert subject.checksums.software == {DEV} and subject.changes == [{DEV}]


async def test_one_that_never_answers_is_not_asked_all_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with journal_of(tmp_path) as journal:
        assert await rounds(Subject(journal), monkeypatch, (False, False)) == TRIES


async def test_one_that_is_down_does_not_have_the_others_asked_every_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with journal_of(tmp_path) as journal:
        assert await rounds(Subject(journal, up="C"), monkeypatch, (True, True)) == 0


async def test_the_first_tunnel_is_looked_at_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with journal_of(tmp_path) as journal:
        subject = Subject(journal)
        monkeypatch.setattr(subject.checksums, "_snapshot", lambda: alone if len(looked) < 2 else SNAPSHOT)
        alone, looked, look = replace(SNAPSHOT, nodes={SNAPSHOT.me: SNAPSHOT.nodes[SNAPSHOT.me]}), [], subject.checksums.look

        async def counted(wire: Wire, everyone: bool) -> None:
            looked.append(everyone)
            await look(wire, everyone)

        monkeypatch.setattr(subject.checksums, "look", counted)
        assert await rounds(subject, monkeypatch, (True, True)) == 1 and looked[0] and not looked[1]


async def test_that_it_did_not_help_is_said(tmp_path: Path) -> None:
    with journal_of(tmp_path) as journal:
        subject = Subject(journal)
        await subject.look(BROKEN)
        assert await subject.look(BROKEN) == {DEV} and len(subject.changes) == 1
        assert "something between the hosts changes packets" in subject.checksums.texts[DEV]


async def test_it_is_remembered_until_another_kernel_runs(tmp_path: Path) -> None:
    with journal_of(tmp_path) as journal:
        await Subject(journal).look(BROKEN)
    with journal_of(tmp_path) as journal:
        assert Subject(journal).checksums.software == {DEV} and DEV in Subject(journal).checksums.texts
        newer = Subject(journal, kernel="6.2").checksums
        assert newer.software == frozenset() and not newer.texts


@asynccontextmanager
async def responding(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[str, bytes], socket.socket]]:
    """Node A answers on 127.0.0.1 for as long as this lasts; B is 127.0.0.2. Gives what sends it a datagram from an address."""
    nodes = {name: replace(node, tunnel=IPv4Address(f"127.0.0.{i}")) for i, (name, node) in enumerate(SNAPSHOT.nodes.items(), 1)}
    snapshot = replace(SNAPSHOT, nodes=nodes)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(checksums, "PORT", free.getsockname()[1])
    monkeypatch.setattr(checksums, "APART_S", 0.001)
    subject = Checksums(journal, lambda: snapshot, Lanes(lambda: snapshot, lambda said: None), lambda: None, "6.1")

    def send(source: str, body: bytes) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sock.bind((source, 0))
        sock.sendto(body, ("127.0.0.1", checksums.PORT))
        return sock

    task = asyncio.create_task(subject._respond())
    await asyncio.sleep(0.01)
    try:
        yield send
    finally:
        task.cancel()


async def test_only_nodes_are_answered_and_only_what_they_send(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with journal_of(tmp_path) as journal:
        async with responding(journal, monkeypatch) as send:
            strangers = [send("127.0.0.9", b"x" * SIZE), send("127.0.0.2", b"short"), send("127.0.0.2", b"x" * (SIZE + 1))]
            with send("127.0.0.2", b"y" * SIZE) as sock:
                async with asyncio.timeout(2):
                    assert await asyncio.get_running_loop().sock_recv(sock, 100) == b"y" * SIZE
            for stranger in strangers:
                with stranger, pytest.raises(BlockingIOError):
                    stranger.recv(100)


async def test_it_is_answered_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that is closed between two rounds, even for a moment, has what comes then refused."""
    monkeypatch.setattr(checksums, "EVERY_S", 0.02)
    with journal_of(tmp_path) as journal:
        async with responding(journal, monkeypatch) as send:
            monkeypatch.setattr(checksums, "APART_S", 60)
            await asyncio.sleep(0.1)
            with send("127.0.0.2", b"y" * SIZE) as sock:
                async with asyncio.timeout(2):
                    assert await asyncio.get_running_loop().sock_recv(sock, 100) == b"y" * SIZE
