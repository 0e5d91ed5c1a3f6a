# SPDX-License-Identifier: Apache-2.0
"""A container that begins among services, without a listing of the kernel: what judges it is in force with it, whatever others did."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from tests.support.kernel import make_linux, sh
from tests.support.policies import BLOCKS, NETWORKS, NODES, endpoint

from plait.agent.kernelwork import KernelWork
from plait.kernel.linux.netns import in_thread
from plait.model.cluster import Snapshot
from plait.model.service import Service, ServicePort
from plait.plan import Local, plan_node

pytestmark = pytest.mark.root
OLD, NEW = endpoint(1, "A", "default", {"app": "a"}), endpoint(2, "A", "default", {"app": "a"})
SERVICE = Service("s", "default", IPv4Address("10.27.0.1"), (ServicePort("tcp", 80, 8080),), {"app": "a"})
BEFORE = Snapshot(
    "A", 1, NODES, frozenset("AB"), {"default": NETWORKS["default"]}, BLOCKS, {OLD.id: OLD}, services={SERVICE.ident: SERVICE}
)
AFTER = replace(BEFORE, endpoints={OLD.id: OLD, NEW.id: NEW})
LOCAL = Local(fast_path=True)
Body = Callable[[KernelWork], Awaitable[None]]


def with_work(body: Body) -> None:
    async def run() -> None:
        work = KernelWork(make_linux())
        try:
            for _ in range(2):
                assert not (await work.converge(lambda: plan_node(BEFORE, LOCAL), True)).failed
            await body(work)
        finally:
            work.close()

    in_thread(lambda: asyncio.run(run()))


HARM = {
    "nothing": "true",
    "all rules": "nft flush ruleset",
    "a chain's rules": "nft flush chain inet plait vip_out",
    "elements of a set": "nft flush set inet plait vip_ends",
    "a table of somebody else": "nft add table inet foreign",
    "the other link": f"ip link del {OLD.dev}",
    "its route": f"ip route del {OLD.address}",
    "the link of gateways": "ip link del pl-gw",
}


@pytest.mark.parametrize("harm", HARM)
def test_rules_are_whole_when_a_container_begins_and_all_is_after_the_next_pass(harm: str) -> None:
    async def body(work: KernelWork) -> None:
        rules = "nft list table inet plait"
        sh(HARM[harm])
        assert not (await work.converge(lambda: plan_node(AFTER, LOCAL), True, NEW.dev)).failed
        begun = sh(rules), sh(f"ip route get {NEW.address}"), sh(f"nft list chain netdev plait {NEW.dev}")
        assert NEW.dev in begun[1] and "drop" in sh("nft list chain netdev plait forged")
        for _ in range(2):
            last = await work.converge(lambda: plan_node(AFTER, LOCAL), True)
        assert last.writes == 0 and sh(rules) == begun[0]
        assert "goto vip_random2" in begun[0] and f"{NEW.address} . tcp . 8080" in begun[0]

    with_work(body)


def test_a_container_whose_link_went_unseen_has_it_again() -> None:
    async def body(work: KernelWork) -> None:
        assert not (await work.converge(lambda: plan_node(AFTER, LOCAL), True, NEW.dev)).failed
        sh(f"ip link del {NEW.dev}")
        assert not (await work.converge(lambda: plan_node(AFTER, LOCAL), True, NEW.dev)).failed
        assert NEW.dev in sh(f"ip route get {NEW.address}")

    with_work(body)
