# SPDX-License-Identifier: Apache-2.0
"""Which of many sockets may be read or written: over real ones."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator

import pytest
from tests.support.files import open_files
from tests.support.http import become

from plait.http.readiness import READ, WRITE, Readiness

POLL = "eventpoll"
"""What the kernel calls the file of epoll(7)."""


class Seen:
    """Keeps the events that it is told of, and does `then` first."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.then, self.events = then, list[int]()

    def ready(self, events: int) -> None:
        self.events.append(events)
        self.then()


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    made = [socket.socketpair() for _ in range(3)]
    yield made
    for pair in made:
        for sock in pair:
            sock.close()


async def test_each_is_told_what_it_waits_for_and_no_more(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    readiness, (here, there) = Readiness(), pairs[0]
    seen = Seen(lambda: here.recv(1))
    readiness.watch(here.fileno(), READ, seen)
    await asyncio.sleep(0.02)
    assert seen.events == []
    there.send(b"ab")
    await become(lambda: len(seen.events) == 2)
    assert set(seen.events) == {READ}, "as long as there is something"
    seen.then = lambda: readiness.watch(here.fileno(), 0, seen)
    readiness.watch(here.fileno(), READ | WRITE, seen)
    await become(lambda: len(seen.events) == 3)
    await asyncio.sleep(0.02)
    assert seen.events[2:] == [WRITE]


async def test_who_is_ended_by_another_in_the_same_round_is_not_called(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    readiness, seen = Readiness(), list[Seen]()

    def end_all() -> None:
        for here, _ in pairs:
            readiness.watch(here.fileno(), 0, seen[0])

    for here, there in pairs:
        seen.append(Seen(end_all))
        readiness.watch(here.fileno(), READ, seen[-1])
        there.send(b"x")
    await become(lambda: any(one.events for one in seen))
    await asyncio.sleep(0.02)
    assert sum(len(one.events) for one in seen) == 1


async def test_what_is_watched_no_more_wakes_nobody(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    class Counting(Readiness):
        looks = 0

        def _look(self) -> None:
            self.looks += 1
            super()._look()

    readiness, seen = Counting(), Seen()
    for here, _ in pairs[:2]:
        readiness.watch(here.fileno(), READ, seen)
    readiness.watch(pairs[0][0].fileno(), 0, seen)
    pairs[0][1].send(b"x")
    await asyncio.sleep(0.05)
    assert readiness.looks == 0 and seen.events == []
    readiness.watch(pairs[1][0].fileno(), 0, seen)


async def test_a_fault_of_one_is_told_and_the_others_are_served(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    readiness, faults, seen = Readiness(), list[tuple[str, object]](), list[Seen]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append((context["message"], context["exception"])))
    fault, place = ValueError("a fault"), pairs[0][0].fileno()

    def fail() -> None:
        readiness.watch(pairs[0][0].fileno(), 0, seen[0])
        raise fault

    for number, (here, there) in enumerate(pairs):
        seen.append(Seen(lambda here=here: here.recv(1)) if number else Seen(fail))
        readiness.watch(here.fileno(), READ, seen[-1])
        there.send(b"x")
    await become(lambda: all(one.events for one in seen))
    assert faults == [(f"in what watches file {place}", fault)]
    for here, _ in pairs:
        readiness.watch(here.fileno(), 0, seen[0])


async def test_no_file_is_open_while_nothing_is_watched(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    before, readiness, (here, there) = open_files(POLL), Readiness(), pairs[0]
    for _ in range(2):
        seen = Seen()
        readiness.watch(here.fileno(), 0, seen)
        assert open_files(POLL) == before
        readiness.watch(here.fileno(), READ, seen)
        there.send(b"x")
        await become(lambda seen=seen: seen.events)
        assert open_files(POLL) == before + 1
        readiness.watch(here.fileno(), 0, seen)
        readiness.watch(here.fileno(), 0, seen)
    assert open_files(POLL) == before
