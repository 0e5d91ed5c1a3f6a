# SPDX-License-Identifier: Apache-2.0
"""Policies by names of hosts: what they decide of what DNS has answered, what a change of it costs, and what of it is remembered."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_address

import pytest
from tests.support.nftwalk import Walk
from tests.support.policies import NAMED
from tests.unit.test_policy import WEB, cluster
from tests.unit.test_policy_change import change, rows

from plait.model.cluster import Snapshot
from plait.model.objects import NftSet
from plait.plan import Local, plan_node
from plait.plan.policy import Policing
from plait.policy.answers import Answers
from plait.policy.compile import Recompiling, compile_node
from plait.policy.evaluate import Packet, Verdict, evaluate, world_of
from plait.policy.kubernetes import read_policies

A = IPv4Address
API, WWW, APEX = A("203.0.113.1"), A("203.0.113.2"), A("203.0.113.3")
ANSWERED = {API: frozenset({"api.example.com"}), WWW: frozenset({"a.b.example.org"}), APEX: frozenset({"example.org"})}


def answered(text: str = NAMED, given: dict[IPv4Address, frozenset[str]] = ANSWERED) -> Snapshot:
    return replace(cluster(text), answered=given)


def judged(snapshot: Snapshot, to: IPv4Address, port: int = 443) -> Verdict:
    return evaluate(world_of(snapshot), Packet(WEB.address, to, "tcp", port))


def test_a_name_is_what_dns_gave_for_it_and_a_wildcard_each_name_below() -> None:
    snapshot = answered()
    walk = Walk(plan_node(snapshot, Local()).values())
    for to, port, passes in ((API, 443, True), (API, 80, False), (WWW, 443, True), (APEX, 443, False), (A("203.0.113.9"), 443, False)):
        assert judged(snapshot, to, port).allowed == passes == walk.passes(Packet(WEB.address, to, "tcp", port)), (to, port)
    assert not judged(answered(given={}), API).allowed, "what nobody has asked for is no name's"


def test_it_is_said_that_it_was_the_name() -> None:
    (side,) = judged(answered(), WWW).sides
    assert (side.policy, side.where) == (("_cluster", "out"), "egress[0]")
    assert side.why == "Accept by tier Admin, since DNS gave 203.0.113.2 for a.b.example.org"
    (side,) = judged(answered(), APEX).sides
    assert side.why == "Deny by tier Admin" and side.where == "egress[1]"


def test_a_name_never_means_a_container() -> None:
    """Whoever answers for a name may say what he likes, so it opens nothing inside."""
    db = A("10.28.2.3")
    snapshot = answered(given={db: frozenset({"api.example.com"})})
    assert db in world_of(snapshot).known and not judged(snapshot, db).allowed
    assert not Walk(plan_node(snapshot, Local()).values()).passes(Packet(WEB.address, db, "tcp", 443))


def test_a_rule_before_it_decides_before_it() -> None:
    first = "  egress:\n  - {action: Deny, to: [{networks: [203.0.113.1/32]}]}\n"
    snapshot = answered(NAMED.replace("  egress:\n", first))
    assert not judged(snapshot, API).allowed and judged(snapshot, WWW).allowed


def test_an_address_more_is_one_element_more_and_one_less_is_one_less() -> None:
    remembering = Policing()
    compiled, local = Recompiling(), Local(policing=remembering)
    before = plan_node(answered(), local)
    held = compiled(answered())
    for given in ({**ANSWERED, A("203.0.113.9"): frozenset({"x.example.org"})}, ANSWERED, {API: ANSWERED[API]}, {}, ANSWERED):
        snapshot = answered(given=given)
        assert plan_node(snapshot, local) == plan_node(snapshot, Local(policing=Policing()))
        assert compiled(snapshot) == compile_node(world_of(snapshot), "A")
    assert compiled(answered()) == held
    more = plan_node(answered(given={**ANSWERED, A("203.0.113.9"): frozenset({"x.example.org"})}), local)
    differing = [key for key in {*before, *more} if before.get(key) != more.get(key)]
    assert len(differing) == 1
    old, new = before[differing[0]], more[differing[0]]
    assert isinstance(old, NftSet) and isinstance(new, NftSet)
    (element,) = new.elements ^ old.elements
    assert element.startswith("203.0.113.9 : goto pp_")
    assert [key for key, obj in plan_node(answered(given=dict(ANSWERED)), local).items() if before[key] != obj] == []


def test_names_that_no_rule_has_are_nothing_in_the_kernel() -> None:
    given = {API: frozenset({"other.example"}), APEX: frozenset({"example.org"})}
    assert plan_node(answered(given=given), Local()) == plan_node(answered(given={}), Local())


def test_one_to_audit_says_what_it_would_do_and_does_nothing() -> None:
    snapshot = answered(NAMED.replace("{name: out}", '{name: out, annotations: {plait.audit: "true"}}'))
    world = world_of(snapshot)
    for to, would in ((API, True), (APEX, False)):
        packet = Packet(WEB.address, to, "tcp", 443)
        assert evaluate(world, packet).allowed and evaluate(world, packet, audited=True).allowed == would


def test_a_plan_says_what_passes_to_a_name_whatever_dns_has_answered() -> None:
    found = rows(change("", NAMED, me="A"))
    assert ("A/c0", "*.example.org", "everything", "tcp 443") in found and ("A/c0", "api.example.com", "everything", "tcp 443") in found
    assert ("A/c0", "0.0.0.0/0", "everything", "nothing") in found
    other = rows(change(NAMED, NAMED.replace("443", "8443").replace("api.example.com, ", ""), me="A"))
    assert [row for row in other if row[0] == "A/c0"] == [
        ("A/c0", "*.example.org", "tcp 443", "tcp 8443"),
        ("A/c0", "api.example.com", "tcp 443", "nothing"),
    ]
    ranged = rows(change("", NAMED.replace("0.0.0.0/0", "203.0.113.0/24"), me="A"))
    assert ("A/c0", "api.example.com in 203.0.113.0/24", "everything", "tcp 443") in ranged
    assert not [row for row in ranged if row[1] == "api.example.com"], "elsewhere everything passes, as before"


def test_a_name_is_judged_as_the_wildcards_over_it() -> None:
    wide = read_policies(NAMED).policies[0]
    assert wide.egress is not None
    narrow = NAMED.replace('"*.example.org"', "www.example.org")
    assert not [row for row in rows(change(NAMED, narrow, me="A")) if row[1] == "www.example.org"], "it passed before by the wildcard"


# --- what is remembered


def test_an_answer_counts_until_its_end_and_a_later_one_longer() -> None:
    answers = Answers()
    answers.add({("a.example", API): 10.0, ("b.example", API): 20.0, ("a.example", WWW): 5.0})
    assert answers.known == {API: {"a.example", "b.example"}, WWW: {"a.example"}} and answers.next_end() == 5.0
    known = answers.known
    answers.add({("a.example", API): 30.0, ("b.example", API): 15.0})
    answers.expire(4.0)
    assert answers.known is known, "nothing is known that was not"
    answers.expire(15.0)
    assert answers.known == {API: {"a.example", "b.example"}}, "a later answer takes nothing away"
    answers.expire(20.0)
    assert answers.known == {API: {"a.example"}} and len(answers) == 1 and dict(answers) == {("a.example", API): 30.0}
    answers.expire(30.0)
    assert answers.known == {} and answers.next_end() is None and len(answers) == 0


@pytest.mark.parametrize(("most", "most_of_name"), [(100, 10), (25, 10), (3, 10)])
def test_it_is_bounded_and_what_ends_first_goes(most: int, most_of_name: int) -> None:
    answers = Answers(most, most_of_name)
    for number in range(200):
        answers.add(
            {(f"n{number % 5}.example", ip_address(number)): float(number), ("hot.example", ip_address(1 << 20 | number)): number + 0.5}
        )
        assert len(answers) <= most
    counts = {name: sum(1 for (one, _), _ in answers if one == name) for (name, _), _ in answers}
    assert max(counts.values()) <= most_of_name and counts["hot.example"] == min(most_of_name, counts["hot.example"])
    assert len(answers) == min(most, 6 * most_of_name)
    assert min(until for _, until in answers) >= 200 - max(most, 5 * most_of_name)
    assert set(answers.known) == {address for (_, address), _ in answers}
