# SPDX-License-Identifier: Apache-2.0
"""The rehearsal behind `plait plan`: the passes of the agent, over the dry run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
import pytest_asyncio

from plait.agent.kernelwork import ADDED, KernelWork
from plait.kernel.fake import FakeKernel
from plait.model.hostlinks import ChildLink, Key
from plait.model.objects import (
    NFT_FAST_FAMILY,
    Addr,
    EndpointLink,
    HookRule,
    KernelObject,
    NftChain,
    NftElement,
    NftSet,
    Op,
    Plan,
    Route,
    Sysctl,
    VxlanLink,
)

LINK = VxlanLink("pl-x1", 7, 4789, IPv4Address("198.18.0.1"), "02:00:00:00:00:01", 1450)
ROUTE = Route(IPv4Network("10.28.2.0/24"), "pl-x1", scope="link")
FORWARD = Sysctl("ipv4/ip_forward", "1")


def plan_of(*objects: KernelObject) -> Plan:
    return {obj.key: obj for obj in objects}


PLAN = plan_of(LINK, ROUTE, FORWARD)


class Setup:
    def __init__(self) -> None:
        self.kernel = FakeKernel([("ip", "filter", "DOCKER-USER")])
        self.work = KernelWork(self.kernel)


@pytest_asyncio.fixture
async def s() -> AsyncIterator[Setup]:
    setup = Setup()
    yield setup
    setup.work.close()


async def test_a_rehearsal_names_what_a_pass_then_does_and_does_nothing(s: Setup, caplog: pytest.LogCaptureFixture) -> None:
    rehearsed = await s.work.rehearse(lambda: PLAN)
    assert rehearsed == [Op("put", LINK), Op("put", FORWARD), Op("put", ROUTE)]
    assert (s.kernel.writes, s.kernel.objects, s.work.passes, caplog.messages) == (0, {}, 0, [])
    await s.work.converge(lambda: PLAN, True)
    assert s.kernel.writes == len(rehearsed)
    assert await s.work.rehearse(lambda: PLAN) == []


async def test_what_a_replaced_link_costs_is_rehearsed_too(s: Setup) -> None:
    await s.work.converge(lambda: PLAN, True)
    other = replace(LINK, vni=8)
    assert await s.work.rehearse(lambda: plan_of(other, ROUTE, FORWARD)) == [Op("put", other, LINK), Op("put", ROUTE)]


async def test_the_rules_that_judge_an_endpoint_come_before_its_link(s: Setup) -> None:
    """What somebody sends to its address may come in at any moment from then on. What stands on the link comes after it."""
    link = EndpointLink("pl-e1", 1450, peer="pl-p1", mac="02:00:00:00:00:0a")
    to_it = Route(IPv4Network("10.28.1.2/32"), "pl-e1", scope="link")
    judged = NftSet("policed", "ipv4_addr", frozenset({"10.28.1.2"}))
    entrance = NftChain("pl-e1", ("drop",), 'type filter hook ingress device "pl-e1" priority filter; policy accept;', NFT_FAST_FAMILY)
    await s.work.converge(lambda: PLAN, True)
    rehearsed = await s.work.rehearse(lambda: PLAN | plan_of(link, to_it, judged, entrance))
    assert rehearsed == [Op("put", judged), Op("put", link), Op("put", to_it), Op("put", entrance)]
    s.kernel.fail_next(judged.key)
    report = await s.work.converge(lambda: PLAN | plan_of(link, to_it, judged, entrance), True)
    assert set(report.failed) == {judged.key} and report.writes == 4


async def test_what_is_not_planned_any_more_is_deleted_last(s: Setup) -> None:
    await s.work.converge(lambda: PLAN, True)
    assert await s.work.rehearse(dict) == [Op("del", None, ROUTE), Op("del", None, LINK)]


async def test_a_bare_rehearsal_names_the_whole_plan(s: Setup) -> None:
    await s.work.converge(lambda: PLAN, True)
    assert await s.work.rehearse(lambda: PLAN, bare=True) == [Op("put", LINK), Op("put", FORWARD), Op("put", ROUTE)]


async def test_a_refused_operation_ends_the_rehearsal_and_is_not_in_it(s: Setup) -> None:
    stray = Addr("pl-none", IPv4Interface("10.28.0.1/32"))
    assert await s.work.rehearse(lambda: plan_of(stray, FORWARD)) == [Op("put", FORWARD)]


async def test_a_rehearsal_waits_for_the_one_door(s: Setup) -> None:
    results = await asyncio.gather(s.work.converge(lambda: PLAN, True), s.work.rehearse(lambda: PLAN))
    assert results[1] == []


async def test_what_is_planned_while_the_kernel_is_listed_is_not_taken_for_missing(s: Setup) -> None:
    """An engine tells where it has taken a link, in that moment: the link is there, and made anew it would lose its connections."""
    taken = ChildLink("pl-e1", "eth1", "macvlan", "bridge", "/proc/7/ns/net")
    s.kernel.objects[taken.key] = taken
    plans = [plan_of(replace(taken, netns="")), plan_of(taken)]
    report = await s.work.converge(lambda: plans.pop(0) if len(plans) > 1 else plans[0], True)
    assert report.writes == 0 and s.kernel.objects == {taken.key: taken}


async def test_a_pass_plans_once_what_the_one_before_had_to_ask_the_kernel_for(s: Setup) -> None:
    plans: list[Plan] = []

    def planned() -> Plan:
        plans.append(PLAN)
        return PLAN

    await s.work.converge(planned, True)
    plans.clear()
    assert (await s.work.converge(planned, True)).writes == 0
    assert len(plans) == 1


async def test_a_link_in_a_container_that_was_asked_for_and_is_planned_no_longer_is_left_to_who_took_it(s: Setup) -> None:
    taken = ChildLink("pl-e1", "eth1", "macvlan", "bridge", "/proc/7/ns/net")
    s.kernel.objects[taken.key] = taken
    await s.work.converge(lambda: plan_of(taken), True)
    assert (await s.work.converge(dict, True)).writes == 0 and s.kernel.objects == {taken.key: taken}


HOSTS = NftSet("hosts", "ipv4_addr", frozenset({"10.28.0.1"}))
MORE = replace(HOSTS, elements=HOSTS.elements | {"10.28.0.2"})
CHAIN = NftChain("judge", ("ip saddr @hosts accept",))


async def test_elements_are_hastened_and_the_pass_behind_writes_nothing(s: Setup) -> None:
    await s.work.converge(lambda: PLAN | plan_of(HOSTS, CHAIN), True)
    assert await s.work.hasten(lambda: [MORE, CHAIN])
    assert s.kernel.objects[HOSTS.key] == MORE
    assert (await s.work.converge(lambda: PLAN | plan_of(MORE, CHAIN), True)).writes == 0
    assert await s.work.hasten(lambda: [HOSTS, CHAIN]) and s.kernel.objects[HOSTS.key] == HOSTS


@pytest.mark.parametrize(
    "wanted",
    [
        [MORE, replace(CHAIN, rules=("drop",))],
        [MORE, replace(CHAIN, name="other")],
        [replace(MORE, flags=("interval",))],
        [MORE, NftSet("others", "ipv4_addr", frozenset())],
    ],
    ids=["another rule", "another chain", "another declaration", "another set"],
)
async def test_what_takes_more_than_elements_is_left_to_the_pass_whole(s: Setup, wanted: list[KernelObject]) -> None:
    await s.work.converge(lambda: PLAN | plan_of(HOSTS, CHAIN), True)
    assert not await s.work.hasten(lambda: wanted)
    assert s.kernel.objects[HOSTS.key] == HOSTS


async def test_nothing_is_hastened_before_a_pass_after_a_failed_one_or_after_a_refusal(s: Setup) -> None:
    assert not await s.work.hasten(lambda: [MORE])
    s.kernel.fail_next(ROUTE.key)
    await s.work.converge(lambda: PLAN | plan_of(HOSTS), True)
    assert not await s.work.hasten(lambda: [MORE])
    await s.work.converge(lambda: PLAN | plan_of(HOSTS), True)
    s.kernel.fail_next(HOSTS.key)
    assert not await s.work.hasten(lambda: [MORE])
    assert not await s.work.hasten(lambda: [MORE]), "nobody knows what the kernel has now"
    await s.work.converge(lambda: PLAN | plan_of(MORE), True)
    assert s.kernel.objects[HOSTS.key] == MORE and await s.work.hasten(lambda: [HOSTS])


async def test_guards_are_what_a_pass_made_and_no_rule_of_it_was_refused(s: Setup) -> None:
    pools = NftSet("pools", "ipv4_addr", frozenset({"10.28.0.0/16"}), ("interval",))
    other = NftSet("hosts", "ipv4_addr", frozenset({"10.28.0.1"}))
    s.kernel.fail_next(other.key)
    await s.work.converge(lambda: plan_of(pools, other), True)
    assert s.work.guards == {}, "the kernel takes the rules of a pass together or not at all"
    s.kernel.fail_next(ROUTE.key)
    await s.work.converge(lambda: plan_of(pools, other, LINK, ROUTE), True)
    assert s.work.guards == plan_of(pools)


BEGUN = EndpointLink("pl-e1", 1450, peer="pl-p1", mac="02:00:00:00:00:0a")
TO_IT = Route(IPv4Network("10.28.1.2/32"), "pl-e1", scope="link")
ANY = HookRule("ip", "filter", "DOCKER-USER", 'iifname "pl-*" accept')
STEADY = PLAN | plan_of(HOSTS, CHAIN, ANY)
WITH_IT = PLAN | plan_of(MORE, CHAIN, ANY, BEGUN, TO_IT)


@pytest.fixture
def listings(s: Setup, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """As many as there were."""
    found, owned = list[None](), s.kernel.owned

    def listed(probe: Iterable[Key] = ()) -> dict[Key, KernelObject]:
        found.append(None)
        return owned(probe)

    monkeypatch.setattr(s.kernel, "owned", listed)
    return found


async def test_an_endpoint_begins_without_a_listing_and_the_pass_behind_writes_nothing(s: Setup, listings: list[None]) -> None:
    await s.work.converge(lambda: STEADY, True)
    listings.clear()
    report = await s.work.converge(lambda: WITH_IT, True, "pl-e1")
    assert (report.writes, report.failed, listings, s.kernel.objects) == (3, {}, [], WITH_IT)
    assert (await s.work.converge(lambda: WITH_IT, True)).writes == 0
    assert await s.work.hasten(lambda: [HOSTS])


async def test_the_first_pass_is_no_beginning(s: Setup, listings: list[None]) -> None:
    await s.work.converge(lambda: WITH_IT, True, "pl-e1")
    assert listings and s.kernel.objects == WITH_IT


async def test_nothing_begins_under_rules_that_somebody_changed(s: Setup, listings: list[None]) -> None:
    await s.work.converge(lambda: STEADY, True)
    s.kernel.trample(CHAIN.key, replace(CHAIN, rules=()))
    listings.clear()
    await s.work.converge(lambda: WITH_IT, True, "pl-e1")
    assert listings and s.kernel.objects == WITH_IT


async def test_what_is_refused_at_a_beginning_is_tried_again_after_a_listing(s: Setup, listings: list[None]) -> None:
    await s.work.converge(lambda: STEADY, True)
    listings.clear()
    s.kernel.fail_next(TO_IT.key)
    assert not (await s.work.converge(lambda: WITH_IT, True, "pl-e1")).failed
    assert listings and s.kernel.objects == WITH_IT


async def test_no_link_is_made_before_a_listing_if_what_judges_it_was_refused(
    s: Setup, listings: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    await s.work.converge(lambda: STEADY, True)
    listings.clear()
    perform, made = s.kernel.perform, list[tuple[Key, bool]]()

    def noted(op: Op) -> None:
        made.append((op.key, bool(listings)))
        perform(op)

    monkeypatch.setattr(s.kernel, "perform", noted)
    s.kernel.fail_next(MORE.key)
    assert not (await s.work.converge(lambda: WITH_IT, True, "pl-e1")).failed
    assert made == [(MORE.key, True), (BEGUN.key, True), (TO_IT.key, True)]
    s.kernel.fail_next(CHAIN.key, times=2)
    other = replace(CHAIN, rules=("drop",))
    link = EndpointLink("pl-e2", 1450, peer="pl-p2", mac="02:00:00:00:00:0b")
    assert set((await s.work.converge(lambda: WITH_IT | plan_of(other, link), True, "pl-e2")).failed) == {CHAIN.key}


async def test_an_endpoint_whose_link_was_there_before_begins_with_a_listing(s: Setup, listings: list[None]) -> None:
    """It may have gone with its container, which nobody told."""
    await s.work.converge(lambda: WITH_IT, True)
    s.kernel.trample(BEGUN.key, None)
    listings.clear()
    await s.work.converge(lambda: WITH_IT, True, "pl-e1")
    assert listings and s.kernel.objects == WITH_IT


async def test_what_ends_and_what_others_did_to_links_is_left_to_the_pass_behind(s: Setup, listings: list[None]) -> None:
    await s.work.converge(lambda: STEADY | plan_of(Addr("pl-x1", IPv4Interface("10.28.0.1/32"))), True)
    s.kernel.trample(ROUTE.key, None)
    listings.clear()
    assert (await s.work.converge(lambda: WITH_IT, True, "pl-e1")).writes == 3 and not listings
    assert len(s.kernel.objects) == len(WITH_IT), "an address too many, a route too few"
    assert (await s.work.converge(lambda: WITH_IT, True)).writes == 2 and s.kernel.objects == WITH_IT


async def test_nothing_is_known_after_a_pass_that_nobody_waited_for(s: Setup, listings: list[None]) -> None:
    await s.work.converge(lambda: WITH_IT, True)
    passing = asyncio.create_task(s.work.converge(lambda: STEADY, True))
    while BEGUN.key in s.kernel.objects:  # noqa: ASYNC110
        await asyncio.sleep(0)
    passing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await passing
    listings.clear()
    await s.work.converge(lambda: WITH_IT, True, "pl-e2")
    assert listings and s.kernel.objects == WITH_IT


async def test_what_is_put_and_removed_between_passes_is_known(s: Setup, listings: list[None]) -> None:
    other = EndpointLink("pl-e2", 1450, peer="pl-p2", mac="02:00:00:00:00:0b")
    await s.work.converge(lambda: WITH_IT, True)
    await s.work.put([], gone=[TO_IT, BEGUN])
    await s.work.put([other, HOSTS], [None, MORE])
    listings.clear()
    assert (await s.work.converge(lambda: WITH_IT | plan_of(other), True, "pl-e1")).writes == 3
    assert not listings and s.kernel.objects == WITH_IT | plan_of(other)


@pytest.mark.parametrize("put", [NftElement(HOSTS, "10.28.0.9"), HOSTS], ids=["an element", "a set as if it were new"])
async def test_nothing_begins_after_a_put_that_leaves_open_what_a_set_has(s: Setup, listings: list[None], put: KernelObject) -> None:
    await s.work.converge(lambda: STEADY, True)
    s.kernel.objects[HOSTS.key] = other = replace(HOSTS, elements=HOSTS.elements | {"10.28.0.7"})
    await s.work.converge(lambda: PLAN | plan_of(other, CHAIN), True)
    await s.work.put([put])
    listings.clear()
    await s.work.converge(lambda: WITH_IT, True, "pl-e1")
    assert listings and s.kernel.objects == WITH_IT


async def test_what_is_new_is_put_without_a_listing(s: Setup, listings: list[None]) -> None:
    await s.work.converge(lambda: STEADY, True)
    listings.clear()
    report = await s.work.converge(lambda: WITH_IT, True, ADDED)
    assert (report.writes, report.failed, listings, s.kernel.objects) == (3, {}, [], WITH_IT)
    assert (await s.work.converge(lambda: WITH_IT, True, ADDED)).writes == 0 and not listings


async def test_what_takes_something_away_is_listed_for(s: Setup, listings: list[None]) -> None:
    await s.work.converge(lambda: WITH_IT, True)
    listings.clear()
    await s.work.converge(lambda: STEADY, True, ADDED)
    assert listings and s.kernel.objects == STEADY


@pytest.mark.parametrize("new", [HookRule("ip", "filter", "DOCKER-USER", "drop"), ChildLink("pl-e7", "eth1", "macvlan", "bridge")])
async def test_what_may_be_there_already_is_listed_for(s: Setup, listings: list[None], new: KernelObject) -> None:
    await s.work.converge(lambda: STEADY, True)
    listings.clear()
    await s.work.converge(lambda: {**STEADY, new.key: new}, True, ADDED)
    assert listings


async def test_somebody_elses_rules_are_listed_for(s: Setup, listings: list[None]) -> None:
    await s.work.converge(lambda: STEADY, True)
    s.kernel.trample(CHAIN.key, replace(CHAIN, rules=()))
    listings.clear()
    await s.work.converge(lambda: WITH_IT, True, ADDED)
    assert listings and s.kernel.objects == WITH_IT
