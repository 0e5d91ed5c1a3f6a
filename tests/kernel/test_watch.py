# SPDX-License-Identifier: Apache-2.0
"""Which changes are an event, in a namespace that the test made."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

import pytest
from tests.support.kernel import PLAN, converge, make_linux, own_namespace, sh

from plait.kernel.linux.netns import in_thread
from plait.kernel.linux.watch import read_words, watch_kernel

pytestmark = pytest.mark.root
QUIET_S = 0.15
Events = Callable[[], Awaitable[list[str]]]


def watching(body: Callable[[Events], Awaitable[None]]) -> None:
    """Run `body` in a new namespace that holds a plan. What it is given returns the words since the last call, after a quiet while."""

    async def main() -> None:
        words: list[str] = []

        async def collect() -> None:
            async for word in watch_kernel():
                words.append(word)  # noqa: PERF401 (each as it comes)

        async def since() -> list[str]:
            await asyncio.sleep(QUIET_S)
            found = list(words)
            words.clear()
            return found

        task = asyncio.create_task(collect())
        while "neigh" in await since():  # new links have some of their own
            pass
        await body(since)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    def work() -> None:
        kernel = make_linux()
        converge(kernel, PLAN)
        try:
            asyncio.run(main())
        finally:
            kernel.close()

    in_thread(work)


@pytest.mark.parametrize(
    ("word", "harm"),
    [
        ("link", "ip link del pl-e1"),
        ("link", "ip link set pl-x1 mtu 1300"),
        ("link", "ip link set pl-x1 down"),
        ("addr", "ip addr del 10.28.0.1/32 dev pl-gw"),
        ("route", "ip route del 10.28.2.0/24"),
        ("route", "ip rule del pref 11202"),
        ("route", "ip -6 rule del pref 11202"),
        ("neigh", "ip neigh del 10.28.2.0 dev pl-x1"),
        ("neigh", "ip neigh change 10.28.2.0 dev pl-x1 lladdr 02:00:00:00:00:44"),
        ("neigh", "bridge fdb del 02:00:00:00:00:03 dev pl-x1"),
        ("neigh", "bridge fdb del 02:00:00:00:00:35 dev pl-e5 master"),
        ("neigh", "bridge fdb del 02:00:00:00:00:37 dev pl-x3 master"),
        ("neigh", "bridge fdb del 00:00:00:00:00:00 dev pl-x3 dst 198.18.0.2"),
        ("link", "bridge link set dev pl-x3 flood on"),
        ("tc", "tc qdisc del dev pl-e1 root"),
        ("tc", "tc qdisc change dev pl-i1 root handle 70: tbf rate 1mbit burst 16kb limit 64kb"),
        ("tc", "tc filter del dev pl-e1 ingress pref 111"),
        ("nft", "nft flush ruleset"),
        ("nft", "nft delete element inet plait pools '{ 10.28.0.0/16 }'"),
        ("nft", "nft insert rule inet plait plain drop"),
        ("nft", "nft flush chain ip filter DOCKER-USER"),
    ],
)
def test_harm_is_an_event(word: str, harm: str) -> None:
    async def body(since: Events) -> None:
        sh(harm)
        assert word in await since()

    watching(body)


@pytest.mark.parametrize("dev", ["eth0", "pl-e1"])
def test_neighbours_that_the_kernel_learns_are_none(dev: str) -> None:
    async def body(since: Events) -> None:
        for number in range(2, 20):
            sh(f"ip neigh replace 198.18.0.{number} dev {dev} lladdr 02:00:00:00:01:{number:02x} nud reachable")
        assert "neigh" not in await since()

    watching(body)


def test_macs_that_a_bridge_learns_are_none() -> None:
    async def body(since: Events) -> None:
        sh("ip link set pl-p5 up")
        while await since():
            pass
        for number in range(2, 20):
            sh(f"bridge fdb replace 02:00:00:00:01:{number:02x} dev pl-e5 master dynamic")
        assert "neigh" not in await since()

    watching(body)


def test_what_routers_announce_is_none() -> None:
    async def body(since: Events) -> None:
        sh("for n in $(seq 200); do echo route add 10.99.$n.0/24 dev pl-gw table 1120001 proto bird; done | ip -batch -")
        assert "route" not in await since()
        sh("ip route add 10.99.0.0/24 dev pl-gw table 7 proto bird")
        assert "route" in await since()

    watching(body)


def test_a_burst_is_few_words() -> None:
    async def body(since: Events) -> None:
        sh("for n in $(seq 200); do echo route add 10.99.$n.0/24 dev pl-gw; done | ip -batch -")
        words = await since()
        assert 1 <= words.count("route") < 100

    watching(body)


def test_missed_events_are_told() -> None:
    def work() -> None:
        own_namespace()
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.bind((0, 0x1))
            sh("for n in $(seq 50); do echo link add b$n type bridge; done | ip -batch -")
            assert "overrun" in read_words(sock, False)
            assert read_words(sock, False) == set()

    in_thread(work)


def test_the_sockets_are_closed_with_the_watch() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        words = watch_kernel()
        waiting = asyncio.ensure_future(anext(words))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        await words.aclose()  # type: ignore[attr-defined]
        assert not loop._selector.get_map() or len(loop._selector.get_map()) == 1  # type: ignore[attr-defined]

    def work() -> None:
        own_namespace()
        asyncio.run(main())

    in_thread(work)
