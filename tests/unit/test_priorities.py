# SPDX-License-Identifier: Apache-2.0
"""Priorities: words, marks, the queues of the host's link, and what is said where they cannot be kept. No kernel but the fake one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.cluster import FakeNode, nodes
from tests.support.consulapi import Cuttable

from plait.agent.config import parse_config
from plait.agent.health import Health
from plait.agent.uplink import CODE, UplinkQueues, UplinkSettings
from plait.kernel.dryrun import render
from plait.model.errors import ConfigError, NotSupported
from plait.model.limits import LABEL_PREFIX, UNSAID, Limit, Limits, limits_of
from plait.model.objects import NftChain, Op
from plait.model.tc import Classes
from plait.shaping import Limiting, Means, Uplink, mark_rules, uplink_objects

ALL = {"htb", "egress", "ingress"}


# --- words and marks


def test_a_priority_is_said_like_a_limit() -> None:
    assert limits_of({"plait.limit.priority": "bulk"}, LABEL_PREFIX) == Limits(priority="bulk")
    assert limits_of({"plait.limit.priority": "guaranteed", "plait.limit.in": "1M"}, LABEL_PREFIX).words() == ("in", "priority")
    with pytest.raises(ConfigError, match=r"plait\.limit\.priority: 'high' is no class; one of guaranteed, normal, bulk"):
        limits_of({"plait.limit.priority": "high"}, LABEL_PREFIX)
    assert Limits(priority="normal").over(Limits(Limit(0), priority="bulk")).holding() == UNSAID, "normal is a word too"


def test_marks_are_of_both_families_and_nobody_takes_the_best_one_where_queues_go_by_it() -> None:
    assert mark_rules("guaranteed", False, ("ip", "ip6")) == ("ip dscp set ef", "ip6 dscp set ef")
    assert mark_rules("bulk", True, ("ip",)) == ("ip dscp set cs1",)
    assert mark_rules("normal", True, ("ip",)) == ("ip dscp ef ip dscp set cs0",)
    assert mark_rules("normal", False, ("ip",)) == ()


# --- queues


def test_the_link_is_shared_by_weight_and_marks_lead_to_classes() -> None:
    classes, chain = uplink_objects(Uplink("eth0", 100_000_000, (6, 3, 1)), ALL)
    assert classes == Classes("eth0", 12_500_000, (7_500_000, 3_750_000, 1_250_000))
    assert isinstance(chain, NftChain) and chain.name == "to_eth0"
    assert chain.rules[0] == "meta priority set ip dscp map { cs1 : 7070:30, ef : 7070:10 }"


@pytest.mark.parametrize(
    ("uplink", "able"),
    [
        (Uplink("", 1_000_000), ALL),
        (Uplink("eth0", 0), ALL),
        (Uplink("eth0", 1_000_000, foreign="fq 8001:"), ALL),
        (Uplink("eth0", 1_000_000), ALL - {"htb"}),
        (Uplink("eth0", 1_000_000), ALL - {"egress"}),
    ],
    ids=["no link", "no rate", "somebody else's", "no htb", "no egress"],
)
def test_there_are_none_where_they_cannot_be(uplink: Uplink, able: set[str]) -> None:
    assert uplink_objects(uplink, able) == []


def test_they_are_shown_as_tc_lines() -> None:
    wanted = Classes("eth0", 1_000_000, (600_000, 300_000, 100_000))
    lines = render(Op("put", wanted))
    assert lines[0] == "tc qdisc add dev eth0 root handle 7070: htb default 20"
    assert lines[-1] == "tc class replace dev eth0 parent 7070:1 classid 7070:30 htb rate 800000bit ceil 8000000bit prio 2"
    assert render(Op("put", wanted, wanted)) == lines[1:]
    assert render(Op("del", None, wanted)) == ["tc qdisc del dev eth0 root"]


# --- the agent


class Root:
    def __init__(self) -> None:
        self.foreign, self.asked = "", 0

    def foreign_root(self, dev: str) -> str:
        self.asked += 1
        return self.foreign


def queues(rate: int, root: Root, health: Health, link: str, names: list[str], changes: list[str]) -> UplinkQueues:
    changed = lambda: changes.append("changed")  # noqa: E731
    return UplinkQueues(UplinkSettings(rate, (60, 30, 10)), root, health, lambda: link, lambda: names, changed)


async def test_what_somebody_else_has_is_left_and_named() -> None:
    root, health, changes = Root(), Health(lambda: 0.0), list[str]()
    one = queues(100_000_000, root, health, "eth0", [], changes)
    await one.look()
    assert one.now == Uplink("eth0", 100_000_000, (60, 30, 10)) and changes == [] and _texts(health) == []
    root.foreign = "fq 8001:"
    await one.look()
    assert one.now.foreign == "fq 8001:" and changes == ["changed"]
    assert _texts(health) == ["eth0 has the queueing discipline fq 8001: of somebody else at its root, which plait leaves"]
    root.foreign = ""
    await one.look()
    assert one.now.foreign == "" and changes == ["changed"] * 2 and _texts(health) == []


async def test_priorities_without_a_rate_are_named_and_the_kernel_is_not_asked() -> None:
    root, health, names = Root(), Health(lambda: 0.0), list[str]()
    one = queues(0, root, health, "eth0", names, [])
    await one.look()
    assert _texts(health) == [] and root.asked == 0
    names += ["web", "job"]
    await one.look()
    assert _texts(health) == ["nobody has said how fast eth0 is (uplink.rate), so that job, web only have marks"]


def test_what_the_kernel_lacks_is_named_where_it_is_wanted() -> None:
    one = queues(1_000_000, Root(), Health(lambda: 0.0), "eth0", [], [])
    assert one.lacking(ALL) == {}
    assert one.lacking({"egress"}) == {"priorities": "priorities on the host's link need sch_htb"}
    assert "sch_htb and chains at a link's egress" in one.lacking(set())["priorities"]
    assert queues(0, Root(), Health(lambda: 0.0), "eth0", [], []).lacking(set()) == {}


def _texts(health: Health) -> list[str]:
    return [one.text for one in health.active() if one.condition.code == CODE]


def test_the_configuration_says_rate_and_weights() -> None:
    assert parse_config({}, "f").uplink == UplinkSettings(0, (60, 30, 10))
    assert parse_config({"uplink": {"rate": "940M", "weights": "5/3/1"}}, "f").uplink == UplinkSettings(940_000_000, (5, 3, 1))
    for key, wrong, said in (
        ("rate", "fast", "f: uplink.rate: 'fast' is no rate"),
        ("weights", "60/40", "f: uplink.weights: '60/40' are no weights; write three numbers from 1 to 100"),
        ("weights", "60/40/0", "are no weights"),
        ("weights", "60/40/-1", "are no weights"),
    ):
        with pytest.raises(ConfigError, match=said):
            parse_config({"uplink": {key: wrong}}, "f")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[FakeNode]:
    store = Cuttable()
    async with nodes(store, tmp_path, "A") as (a,):
        yield a
    await store.close()


def marks(node: FakeNode) -> list[str]:
    rules = [rule for obj in node.kernel.objects.values() if isinstance(obj, NftChain) for rule in obj.rules]
    return [rule for rule in rules if "dscp set" in rule]


async def test_a_class_is_told_and_listed_and_taken_back(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    await node.attach("web", labels={"plait.limit.priority": "bulk"})
    assert marks(node) == ["ip dscp set cs1"] and node.book.with_priority() == ["web"]
    await node.book.tell("web", "", Limits(priority="guaranteed"))
    assert marks(node) == ["ip dscp set ef"]
    assert [(row["what"], row["manner"], row["by"], row["held"]) for row in await node.book.rows()] == [
        ("priority", "guaranteed", "command", True)
    ]
    await node.book.tell("web", "", Limits(priority="normal"))
    assert marks(node) == [] and node.book.with_priority() == []
    assert [(row["manner"], row["held"]) for row in await node.book.rows()] == [("normal", True)]
    await node.book.forget("web", "")
    assert marks(node) == ["ip dscp set cs1"]
    everything = node.kernel.capabilities()
    monkeypatch.setattr(node.kernel, "capabilities", lambda: everything - {"ingress"})
    with pytest.raises(NotSupported, match="rules of the family netdev that change frames"):
        await node.book.tell("web", "", Limits(priority="guaranteed"))
    assert Limiting(means=Means.of(set())).means.within(Limits(priority="bulk")) == UNSAID
