# SPDX-License-Identifier: Apache-2.0
"""Who is announced to the neighbours on a link of the host, and when again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from tests.support.cluster import FakeNode, nodes

from plait.agent import announcer
from plait.agent.announcer import Announcer
from plait.model.addr import EitherAddress
from plait.runtimes.api import AttachRequest, NetworkRequest
from plait.store.memory import MemoryStore


@pytest.fixture
async def a(tmp_path: Path) -> AsyncIterator[FakeNode]:
    async with nodes(MemoryStore(), tmp_path, "A") as (a,):
        options = {"backend": "macvlan", "parent": "lo"}
        await a.ops.ensure_network(NetworkRequest("lan", IPv4Network("192.168.7.0/24"), options=options))
        yield a


class Link:
    """Takes announcements; of `absent` namespaces there is no link yet, those in `gone` are no more."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, str, EitherAddress]] = []
        self.absent: set[str] = set()
        self.gone: set[str] = set()

    def announce(self, netns: str, alias: str, mac: str, address: EitherAddress) -> bool:
        if netns in self.gone:
            raise FileNotFoundError(netns)
        if netns not in self.absent:
            self.heard.append((netns, alias, mac, address))
        return netns not in self.absent


async def test_each_is_announced_once_where_it_is_and_nobody_of_other_networks(a: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcer, "AGAIN_S", 0.01)
    link = Link()
    link.absent, link.gone = {"/run/ns/late"}, {"/run/ns/dead"}
    task = asyncio.create_task(Announcer(a.view, link.announce).run())
    for name, network in (("web", "lan"), ("late", "lan"), ("dead", "lan"), ("plain", "default")):
        await a.ops.attach(AttachRequest(f"e-{name}", network, "sandbox", name, name, netns=f"/run/ns/{name}"))
    web = a.ops.endpoints("sandbox")["e-web"]
    await a.until(lambda: link.heard == [("/run/ns/web", web.dev, web.mac, web.address)])
    link.absent = set()
    await a.until(lambda: [heard[0] for heard in link.heard] == ["/run/ns/web", "/run/ns/late"])
    await a.ops.detach("e-web")
    await asyncio.sleep(0.05)
    await a.ops.attach(AttachRequest("e-web", "lan", "sandbox", "web", "web", netns="/run/ns/web"))
    await a.until(lambda: [heard[0] for heard in link.heard] == ["/run/ns/web", "/run/ns/late", "/run/ns/web"])
    task.cancel()


async def test_both_addresses_are_announced_and_one_that_comes_later_too(a: FakeNode) -> None:
    link = Link()
    dual = NetworkRequest("both", IPv4Network("192.168.8.0/24"), options={"backend": "macvlan", "parent": "lo"}, ipv6=True)
    await a.ops.ensure_network(dual)
    task = asyncio.create_task(Announcer(a.view, link.announce).run())
    web = await a.ops.attach(AttachRequest("e-web", "both", "sandbox", "web", "web", netns="/run/ns/web"))
    assert web.address6 is not None
    await a.until(lambda: {heard[3] for heard in link.heard} == {web.address, web.address6})
    other = web.address6 + 1
    await a.ops.amend(web.id, lambda endpoint: replace(endpoint, address6=other))
    await a.until(lambda: [heard[3] for heard in link.heard][2:] == [other])
    task.cancel()
