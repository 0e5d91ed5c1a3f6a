# SPDX-License-Identifier: Apache-2.0
"""When a lane counts as working, what is asked for that, and what this node says of it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from plait.agent.echo import TIMEOUT_S, Lane, LaneAbsent
from plait.agent.lanes import LINK, LINK6, STEADY, TRIES, Lanes, Measured, lanes, reach
from plait.model.addr import IPAddress
from plait.model.cluster import Block, Network, Node, Reach, Snapshot

A, N = IPv4Address, IPv4Network
NODES = {n: Node(n, f"id-{n}", A(f"192.0.2.{i}"), 1500, f"02::0{i}", A(f"10.28.{i}.0")) for i, n in enumerate("ABC", 1)}
VXLAN = Network("default", N("10.28.0.0/16"), A("10.28.0.1"), 24)
EMPTY = replace(VXLAN, name="empty", subnet=N("10.30.0.0/16"), vni=9)
BLOCKS = [Block(name, N(f"10.{second}.2.0/24"), "B") for name, second in (("default", 28), ("here", 28), ("dual", 29))]
SNAPSHOT = Snapshot(
    "A",
    1,
    NODES,
    frozenset("ABC"),
    {"default": VXLAN, "here": replace(VXLAN, name="here", backend="none"), "empty": EMPTY},
    {(block.network, block.cidr): block for block in BLOCKS},
)
TO_B = ("B", "pl-x1"), Lane(A("10.28.1.0"), "pl-x1"), A("10.28.2.0")


def verdicts(words: str, up: bool | None = None) -> str:
    """What a lane counts as after each of the outcomes ("." answered, "x" lost): "+", "-", "?"."""
    lane = Measured(up)
    told = ""
    for outcome in words:
        lane.took(0.001 if outcome == "." else None)
        told += {True: "+", False: "-", None: "?"}[lane.up]
    return told


@pytest.mark.parametrize(
    ("up", "words", "told"),
    [
        (None, ".", "+"),
        (None, "xx.", "??+"),
        (None, "xxx..", "??---"),
        (True, "xx.xx.xxx.", "++++++++--"),
        (False, "..x..x...", "--------+"),
    ],
)
def test_a_lane_is_given_up_after_losses_in_a_row_and_believed_again_after_answers_in_a_row(up: bool | None, words: str, told: str) -> None:
    assert (TRIES, STEADY) == (3, 3)
    assert verdicts(words, up) == told


def test_who_answers_quickly_is_waited_for_less() -> None:
    lane = Measured()
    waited = [lane.patience_s]
    for rtt_s in (0.001, 0.1, 0.7):
        lane.took(rtt_s)
        waited.append(lane.patience_s)
    assert waited == [1.0, 0.5, 0.8, 1.0]


class Air:
    """What is asked and answered: lanes of `silent` lose everything, those of `absent` cannot be tried."""

    def __init__(self) -> None:
        self.silent: set[str] = set()
        self.absent: set[str] = set()
        self.asked: defaultdict[str, list[IPAddress]] = defaultdict(list)

    async def ask_by(self, lane: Lane, address: IPAddress, timeout_s: float = TIMEOUT_S) -> float | None:
        assert lane.source in (A("10.28.1.0"), NODES["A"].probe6)
        if lane.device in self.absent:
            raise LaneAbsent("no such device")
        self.asked[lane.device].append(address)
        return None if lane.device in self.silent else 0.001


async def test_a_lost_request_is_followed_by_others_at_once_until_the_verdict() -> None:
    air, subject = Air(), Lanes(lambda: SNAPSHOT, lambda said: None)
    for silent, asked in ((False, 1), (True, TRIES), (True, 1), (False, 1)):
        air.silent = {"pl-x1"} if silent else set()
        air.asked.clear()
        await subject.measure(air, *TO_B)
        assert len(air.asked["pl-x1"]) == asked


async def test_what_cannot_be_tried_is_not_judged() -> None:
    air, subject = Air(), Lanes(lambda: SNAPSHOT, lambda said: None)
    air.absent = {"pl-x1"}
    for _ in range(5):
        await subject.measure(air, *TO_B)
    known = subject.of("B", "pl-x1")
    assert known is not None and known.up is None and known.loss == 0


def test_every_other_node_is_asked_on_the_link_and_through_every_tunnel() -> None:
    found = lanes(replace(SNAPSHOT, alive=frozenset("AB")))
    assert found["B", LINK] == (Lane(A("10.28.1.0")), A("192.0.2.2"))
    assert found["B", "pl-x1"] == (Lane(A("10.28.1.0"), "pl-x1"), A("10.28.2.0"))
    assert found.keys() == {(node, device) for node in "BC" for device in (LINK, "pl-x1")}, "those that seem dead too"
    assert lanes(replace(SNAPSHOT, nodes={**NODES, "A": replace(NODES["A"], tunnel=None)})) == {}
    assert lanes(replace(SNAPSHOT, nodes={**NODES, "C": replace(NODES["C"], tunnel=None)})).keys() == {("B", LINK), ("B", "pl-x1")}


def test_nobody_is_asked_through_a_tunnel_that_leads_to_nobody() -> None:
    assert not any(device == "pl-x9" for _, device in lanes(SNAPSHOT))
    first = Block("empty", N("10.30.1.0/24"), "C")
    lived_in = replace(SNAPSHOT, blocks={**SNAPSHOT.blocks, ("empty", first.cidr): first})
    assert {node for node, device in lanes(lived_in) if device == "pl-x9"} == {"B", "C"}


def test_over_ipv6_the_tunnels_alone_are_asked() -> None:
    six = {name: replace(node, address=IPv6Address(f"2001:2::{i}")) for i, (name, node) in enumerate(NODES.items(), 1)}
    assert lanes(replace(SNAPSHOT, nodes=six)) == {key: lane for key, lane in lanes(SNAPSHOT).items() if key[1] != LINK}
    for name in "AB":
        mixed = lanes(replace(SNAPSHOT, nodes={**NODES, name: six[name]}))
        assert ("B", LINK) not in mixed and ("B", "pl-x1") in mixed, "nor is one of the other family on the link"


def with_links(nodes: dict[str, Node]) -> dict[str, Node]:
    return {name: replace(node, link6=IPv6Address(f"fe80::{i}")) for i, (name, node) in enumerate(nodes.items(), 1)}


def test_plain_ipv6_is_asked_for_on_the_link_where_a_network_has_it() -> None:
    nodes = with_links(NODES)
    assert lanes(replace(SNAPSHOT, nodes=nodes)) == lanes(SNAPSHOT), "nobody asks where no network has it"
    dual = replace(VXLAN, name="dual", subnet6=IPv6Network("fd00::/64"), gateway6=IPv6Address("fd00::1"))
    found = lanes(replace(SNAPSHOT, nodes=nodes, networks={"dual": dual}))
    assert found["B", LINK6] == (Lane(nodes["A"].probe6), nodes["B"].probe6)
    for without in "AB":
        halved = {**nodes, without: NODES[without]}
        assert ("B", LINK6) not in lanes(replace(SNAPSHOT, nodes=halved, networks={"dual": dual})), "IPv6 is off on a link"
    cloned = {**nodes, "B": replace(nodes["B"], link6=nodes["A"].link6)}
    assert ("B", LINK6) not in lanes(replace(SNAPSHOT, nodes=cloned, networks={"dual": dual})), "it would ask itself"


def test_over_ipv6_the_link_is_asked_by_arp_where_routes_can_use_it() -> None:
    six = {name: replace(node, address=IPv6Address(f"2001:2::{i}")) for i, (name, node) in enumerate(with_links(NODES).items(), 1)}
    found = lanes(replace(SNAPSHOT, nodes=six), "eth0")
    assert found["B", LINK] == (Lane(A("10.28.1.0"), "eth0"), A("10.28.2.0"))
    assert found["B", LINK6] == (Lane(six["A"].probe6), six["B"].probe6), "its next hop is of IPv6"
    assert ("B", LINK) not in lanes(replace(SNAPSHOT, nodes=six)), "a kernel without RTA_VIA"


def test_what_is_said_is_short_and_always_the_same() -> None:
    known = {("C", LINK): Measured(True), ("B", LINK): Measured(True), ("D", LINK): Measured(False), ("E", LINK): Measured()}
    known |= {("C", "pl-x1"): Measured(False), ("B", "pl-x1"): Measured(False), ("D", "pl-x1"): Measured(True)}
    known |= {("D", LINK6): Measured(True), ("C", LINK6): Measured(False), ("B", LINK6): Measured(True)}
    assert reach("A", known) == Reach("A", ("B", "C"), {"pl-x1": ("B", "C")}, ("B", "D"))


class Running:
    """Lanes that run with rounds as quick as they can be; `said` is what was told, `snapshot` what they see."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *said: Reach) -> None:
        for name in ("EVERY_S", "APART_S", "TELL_S"):
            monkeypatch.setattr(f"plait.agent.lanes.{name}", 0.001)
        self.said: list[Reach] = []
        self.more = asyncio.Event()
        self.snapshot = replace(SNAPSHOT, reach={r.node: r for r in said})
        self.air = Air()
        self.lanes = Lanes(lambda: self.snapshot, self.hear)

    def hear(self, said: Reach) -> None:
        self.said.append(said)
        self.more.set()

    async def until(self, wanted: Reach) -> None:
        """Run until that is said."""
        async with asyncio.timeout(5):
            running = asyncio.create_task(self.lanes.run(self.air))
            try:
                while not self.said or self.said[-1] != wanted:
                    self.more.clear()
                    await self.more.wait()
            finally:
                running.cancel()


async def test_a_change_is_said_and_said_back(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Running(monkeypatch)
    await subject.until(Reach("A", ("B", "C"), {}))
    subject.air.silent = {"pl-x1"}
    await subject.until(Reach("A", ("B", "C"), {"pl-x1": ("B", "C")}))
    subject.air.silent = {LINK}
    await subject.until(Reach("A"))
    assert len(subject.said) <= 20, "only what changed is said"


async def test_a_restart_changes_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    said = Reach("A", ("B",), {"pl-x1": ("C",)}, ("C",))
    subject = Running(monkeypatch, said)
    dual = replace(VXLAN, name="dual", subnet6=IPv6Network("fd00::/64"), gateway6=IPv6Address("fd00::1"))
    subject.snapshot = replace(subject.snapshot, nodes=with_links(NODES), networks={"dual": dual})
    subject.air.absent = {LINK, "pl-x1"}
    running = asyncio.create_task(subject.lanes.run(subject.air))
    await asyncio.sleep(0.05)
    running.cancel()
    assert not subject.said and reach("A", subject.lanes._lanes) == said


async def test_of_a_node_that_is_gone_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Running(monkeypatch)
    await subject.until(Reach("A", ("B", "C")))
    subject.snapshot = replace(subject.snapshot, nodes={n: NODES[n] for n in "AB"})
    await subject.until(Reach("A", ("B",)))
