# SPDX-License-Identifier: Apache-2.0
"""Whatever was wanted before and whatever failed on the way: only the last plan matters, and then nothing more is written."""

from __future__ import annotations

import errno
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from plait.kernel.fake import FakeKernel
from plait.model.objects import Addr, BridgeLink, Fdb, KernelObject, Neigh, NftChain, NftSet, Plan, Route, Sysctl, VxlanLink
from plait.model.wireguard import AllowedIp, WireguardLink, WireguardPeer
from plait.reconcile import diff, order
from plait.reconcile.order import rank

DEVS = ("pl-x1", "pl-gw")
KEYS = ("one", "two", "three")
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
A = IPv4Address


def objects_on(dev: str) -> st.SearchStrategy[KernelObject]:
    """Objects whose values vary while their keys stay: a comparison by key alone must be found out."""
    mac, number = st.sampled_from(MACS), st.integers(1, 3)
    return st.one_of(
        number.map(lambda n: Addr(dev, IPv4Interface(f"10.28.{n}.0/32"))),
        st.tuples(number, mac).map(lambda t: Neigh(dev, A(f"10.28.{t[0]}.0"), t[1])),
        st.tuples(mac, number).map(lambda t: Fdb(dev, t[0], A(f"198.18.0.{t[1]}"))),
        st.tuples(number, st.sampled_from((0, 1400))).map(lambda t: Route(IPv4Network(f"10.28.{t[0]}.0/24"), dev, mtu=t[1])),
    )


def in_wireguard() -> st.SearchStrategy[KernelObject]:
    """Peers, and rows that move between them."""
    endpoint = st.sampled_from((A("198.18.0.1"), A("198.18.0.2"))).map(lambda address: (address, 7472))
    return st.one_of(
        st.tuples(st.sampled_from(KEYS), endpoint, st.sampled_from((0, 25))).map(lambda t: WireguardPeer("pl-wg", *t)),
        st.tuples(st.integers(1, 3), st.sampled_from(KEYS)).map(lambda t: AllowedIp("pl-wg", IPv4Network(f"10.29.{t[0]}.0/24"), t[1])),
    )


def plans() -> st.SearchStrategy[Plan]:
    links: st.SearchStrategy[KernelObject] = st.one_of(
        st.tuples(st.sampled_from(MACS), st.sampled_from((1400, 1450))).map(lambda t: VxlanLink("pl-x1", 1, 4789, A("198.18.0.1"), *t)),
        st.sampled_from(MACS).map(lambda mac: BridgeLink("pl-gw", mac)),
        st.tuples(st.sampled_from(KEYS), st.sampled_from((7472, 7473))).map(lambda t: WireguardLink("pl-wg", *t, 1440)),
    )
    others: st.SearchStrategy[KernelObject] = st.one_of(
        st.sampled_from(("0", "1")).map(lambda v: Sysctl("ipv4/ip_forward", v)),
        st.frozensets(st.sampled_from(("10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"))).map(
            lambda e: NftSet("pools", "ipv4_addr", e, ("interval",))
        ),
        st.lists(st.sampled_from(("accept", "drop", "ct state new accept"))).map(lambda rules: NftChain("c", tuple(rules))),
    )

    def close(parts: tuple[list[KernelObject], list[KernelObject], list[KernelObject]]) -> Plan:
        plan: Plan = {obj.key: obj for obj in (*parts[0], *parts[2])}
        plan |= {obj.key: obj for obj in parts[1] if ("link", obj.dev) in plan}  # type: ignore[union-attr]
        return {key: obj for key, obj in plan.items() if not isinstance(obj, AllowedIp) or ("peer", obj.dev, obj.public) in plan}

    below = st.lists(st.one_of(*(objects_on(dev) for dev in DEVS), in_wireguard()), max_size=12)
    return st.tuples(st.lists(links, max_size=4), below, st.lists(others, max_size=4)).map(close)


def one_pass(kernel: FakeKernel, plan: Plan) -> int:
    ops = order(diff(plan, kernel.owned([k for k in plan if k[0] == "sysctl"]), True))
    kernel.apply(ops)
    return len(ops)


def settle(kernel: FakeKernel, plan: Plan) -> None:
    for _ in range(4):
        if not one_pass(kernel, plan):
            return
    raise AssertionError("no rest after four passes")


@given(st.lists(plans(), min_size=1, max_size=5))
def test_only_the_last_plan_matters_and_a_second_pass_is_silent(sequence: list[Plan]) -> None:
    kernel, fresh = FakeKernel(), FakeKernel()
    for plan in sequence:
        one_pass(kernel, plan)
    last = sequence[-1]
    settle(kernel, last)
    settle(fresh, last)
    sysctls = [k for k in last if k[0] == "sysctl"]
    assert kernel.owned(sysctls) == fresh.owned(sysctls) == last
    assert one_pass(kernel, last) == 0


@given(plans(), plans(), st.data())
def test_it_converges_whatever_is_refused_and_trampled_on_the_way(first: Plan, second: Plan, data: st.DataObject) -> None:
    kernel = FakeKernel()
    settle(kernel, first)
    for key in data.draw(st.lists(st.sampled_from(sorted(second)), max_size=4)) if second else ():
        kernel.fail_next(key, errno.EBUSY)
    one_pass(kernel, second)
    for key in data.draw(st.lists(st.sampled_from(sorted(kernel.objects)), max_size=3)) if kernel.objects else ():
        kernel.trample(key, None)
    settle(kernel, second)
    assert kernel.owned([k for k in second if k[0] == "sysctl"]) == second


@given(plans(), plans())
def test_apply_and_revert_restores(first: Plan, second: Plan) -> None:
    kernel = FakeKernel()
    settle(kernel, first)
    before = {k: o for k, o in kernel.objects.items() if k[0] != "sysctl"}
    settle(kernel, second)
    settle(kernel, first)
    assert {k: o for k, o in kernel.objects.items() if k[0] != "sysctl"} == before


@given(plans(), plans())
def test_nothing_is_deleted_before_the_first_snapshot(first: Plan, second: Plan) -> None:
    assert all(op.verb == "put" for op in diff(second, first, False))


@given(plans(), plans())
def test_puts_climb_and_deletions_fall(first: Plan, second: Plan) -> None:
    ops = order(diff(second, first, True))
    puts = [rank(op.subject) for op in ops if op.verb == "put"]
    deletions = [rank(op.subject) for op in ops if op.verb == "del"]
    assert puts == sorted(puts) and deletions == sorted(deletions, reverse=True)
    assert [op.verb for op in ops] == ["put"] * len(puts) + ["del"] * len(deletions)
