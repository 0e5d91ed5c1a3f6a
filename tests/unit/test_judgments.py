# SPDX-License-Identifier: Apache-2.0
"""Counts by rule, drops and would-be drops, from what a kernel has counted."""

from __future__ import annotations

import itertools
from dataclasses import replace
from ipaddress import ip_address

import pytest
from tests.unit.test_policies import Counted
from tests.unit.test_policy import DB, DB_POLICY, OTHER, WEB, cluster

from plait.agent import judgments
from plait.agent.judgments import Judgments
from plait.agent.view import View
from plait.kernel.linux.judged import parse_judged, read_judged
from plait.kernel.linux.nft import NftError
from plait.model.cluster import Snapshot
from plait.model.errors import NotSupported
from plait.policy.evaluate import Packet, world_of
from plait.policy.kubernetes import read_policies
from plait.policy.tally import rulings

AUDIT = DB_POLICY.replace("namespace: shop}", 'namespace: shop, annotations: {plait.audit: "true"}}', 1)
DENIED = Packet(OTHER.address, DB.address, "tcp", 3306)
ALLOWED = Packet(WEB.address, DB.address, "tcp", 3306)


class Fixed(View):
    """A view of one Snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__("B")
        self.now = snapshot

    @property
    def snapshot(self) -> Snapshot:
        return self.now


def counting(snapshot: Snapshot, kernel: Counted) -> Judgments:
    return Judgments(Fixed(snapshot), kernel, itertools.count(100.0).__next__)


def told(text: str, packet: Packet, node: str = "B") -> list[tuple[str, bool, tuple[str, ...], str, bool]]:
    found = rulings(world_of(cluster(text)), node, packet)
    return [(one.direction, one.allowed, tuple("/".join(policy) for policy in one.policies), one.where, one.audit) for one in found]


def test_each_host_tells_of_its_own_side_by_which_rule() -> None:
    assert told(DB_POLICY, ALLOWED) == [("ingress", True, ("shop/db",), "ingress[0]", False)]
    assert told(DB_POLICY, DENIED) == [("egress", True, (), "", False), ("ingress", False, ("shop/db",), "", False)]
    assert told(DB_POLICY, ALLOWED, "A") == [("egress", True, (), "", False)]


def test_a_policy_to_audit_decides_nothing_and_is_told_of_all_the_same() -> None:
    assert told(AUDIT, DENIED) == [
        ("egress", True, (), "", False),
        ("ingress", True, (), "", False),
        ("ingress", False, ("shop/db",), "", True),
    ]
    assert told(AUDIT, ALLOWED) == [("ingress", True, (), "", False), ("ingress", True, ("shop/db",), "ingress[0]", True)]


def test_what_is_dropped_anyway_would_not_be_dropped_by_a_policy_to_audit() -> None:
    closed = DB_POLICY.replace("name: db", "name: closed").partition(", ingress:")[0] + ", ingress: []}\n"
    assert told(f"{closed}---\n{AUDIT}", DENIED)[1:] == [("ingress", False, ("shop/closed",), "", False)]


async def test_connections_are_counted_by_rule_and_drops_listed() -> None:
    kernel = Counted({ALLOWED: 3, DENIED: 2})
    found = counting(cluster(DB_POLICY, me="B"), kernel)
    await found.look()
    policy = read_policies(DB_POLICY).policies[0]
    assert found.totals(policy) == (3, 2)
    assert [(r["rule"], r["allowed"], r["denied"]) for r in found.rules(policy)] == [("ingress[0]", 3, 0), ("", 0, 2)]
    (row,) = await found.drops()
    assert (row["source"], row["destination"]) == (f"{OTHER.name} ({OTHER.address})", f"{DB.name} ({DB.address})")
    assert (row["protocol"], row["port"], row["policies"], row["rule"], row["count"], row["audit"]) == (
        "tcp",
        3306,
        ["shop/db"],
        "",
        2,
        False,
    )


async def test_what_was_counted_before_is_not_counted_again_and_what_began_anew_is() -> None:
    kernel = Counted({ALLOWED: 3})
    found = counting(cluster(DB_POLICY, me="B"), kernel)
    policy = read_policies(DB_POLICY).policies[0]
    for number, total in ((3, 3), (3, 3), (5, 5), (1, 6)):
        kernel.packets[ALLOWED] = number
        await found.look()
        assert found.totals(policy) == (total, 0)
    kernel.packets.clear()
    await found.look()
    kernel.packets[ALLOWED] = 1
    await found.look()
    assert found.totals(policy) == (7, 0)


async def test_a_policy_to_audit_lists_what_it_would_drop() -> None:
    found = counting(cluster(AUDIT, me="B"), Counted({DENIED: 2}))
    (row,) = await found.drops()
    assert row["audit"] and row["policies"] == ["shop/db"] and row["count"] == 2


async def test_what_a_policy_decided_goes_with_it() -> None:
    found = counting(cluster(DB_POLICY, me="B"), Counted({DENIED: 2}))
    await found.look()
    found._view.now = cluster(AUDIT.replace("name: db", "name: other"), me="B")  # type: ignore[attr-defined]
    found._kernel.packets = {}  # type: ignore[attr-defined]
    assert await found.drops() == [] and found.totals(read_policies(DB_POLICY).policies[0]) == (0, 0)


async def test_many_kinds_are_judged_one_look_after_the_other_and_the_latest_drops_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judgments, "_AT_ONCE", 3)
    monkeypatch.setattr(judgments, "MOST_DROPS", 4)
    kernel = Counted({replace(DENIED, port=port): 1 for port in range(1, 6)})
    found = counting(cluster(DB_POLICY, me="B"), kernel)
    policy = read_policies(DB_POLICY).policies[0]
    await found.look()
    assert found.totals(policy) == (0, 3)
    await found.look()
    assert found.totals(policy) == (0, 5)
    assert [row["port"] for row in await found.drops()] == [5, 4, 3, 2]


async def test_without_policies_nothing_is_kept_and_a_kernel_that_cannot_is_named() -> None:
    kernel = Counted({DENIED: 2})
    found = counting(cluster(DB_POLICY, me="B"), kernel)
    kernel.broken = True
    await found.look()
    assert found.totals(read_policies(DB_POLICY).policies[0]) == (0, 0), "it is asked again"
    kernel.broken = False
    await found.look()
    found._view.now = cluster("", me="B")  # type: ignore[attr-defined]
    assert await found.drops() == []
    assert found.totals(read_policies(DB_POLICY).policies[0]) == (0, 0)
    kernel.able = False
    with pytest.raises(NotSupported, match="nft_dynset"):
        await found.drops()


def test_what_nft_prints_is_read() -> None:
    text = """\tset judged {
\t\telements = { 10.28.1.2 . 10.28.1.3 . tcp . 81 counter packets 3 bytes 180 expires 59s996ms,
\t\t\t     fd00::1 . fd00::2 . ipv6-icmp counter packets 1 bytes 84 expires 1s, 10.28.1.2 . 10.28.1.3 . 50 counter packets 7 bytes 1 }
"""
    assert parse_judged(text) == {
        Packet(ip_address("10.28.1.2"), ip_address("10.28.1.3"), "tcp", 81): 3,
        Packet(ip_address("fd00::1"), ip_address("fd00::2"), "ipv6-icmp", 0): 1,
        Packet(ip_address("10.28.1.2"), ip_address("10.28.1.3"), "50", 0): 7,
    }


class NoSets:
    def run(self, script: str, handles: bool = False, counters: bool = False) -> str:
        raise NftError("No such file or directory")


def test_where_nothing_is_counted_there_is_nothing() -> None:
    assert read_judged(NoSets()) == {}
