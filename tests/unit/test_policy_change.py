# SPDX-License-Identifier: Apache-2.0
"""What applying policies would change, before anything is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.cluster import nodes
from tests.support.consulapi import Cuttable
from tests.unit.test_policies import DENY, TEAM, attach, elements, policies_of, store
from tests.unit.test_policy import DB_POLICY, cluster

from plait.model.errors import ConfigError
from plait.plan import policychange
from plait.plan.policychange import PolicyChange, policy_change
from plait.policy.tables import EVERYTHING, Table, both, in_words

__all__ = ["store"]
OPEN = Table((), False)


def change(before: str, after: str, me: str = "B") -> PolicyChange:
    return policy_change(cluster(before, me=me), cluster(after, me=me))


def rows(found: PolicyChange) -> list[tuple[str, str, str, str]]:
    return [(pair.source, pair.destination, in_words(pair.before), in_words(pair.after)) for pair in found.pairs]


def test_who_comes_under_a_policy_and_what_passes_then_is_said_for_all_hosts() -> None:
    found = change("", DB_POLICY, me="A")
    assert found.selected == (("ingress", "B/c1"),) and found.released == ()
    assert rows(found) == [
        ("A/c0", "B/c1", "everything", "tcp 3306"),
        ("B/c2", "B/c1", "everything", "nothing"),
        ("others", "B/c1", "everything", "nothing"),
    ]
    assert (found.compared, found.concerned) == (2, 2)
    assert (found.added, found.removed) == (0, 0), "on the host that has none of them"
    assert change("", DB_POLICY).added > 0


def test_taking_it_away_is_the_same_the_other_way_round() -> None:
    found = change(DB_POLICY, "")
    assert found.released == (("ingress", "B/c1"),) and rows(found)[0] == ("A/c0", "B/c1", "tcp 3306", "everything")
    assert found.removed == change("", DB_POLICY).added


def test_what_is_in_force_already_changes_nothing() -> None:
    assert change(DB_POLICY, DB_POLICY) == PolicyChange()


def test_a_range_is_named_and_has_its_own_row() -> None:
    block = DB_POLICY.replace("{podSelector: {matchLabels: {app: web}}}", "{ipBlock: {cidr: 192.0.2.0/24}}")
    assert ("192.0.2.0/24", "B/c1", "nothing", "tcp 3306") in rows(change(DB_POLICY, block))
    assert ("A/c0", "B/c1", "tcp 3306", "nothing") in rows(change(DB_POLICY, block))


def test_an_egress_has_its_workload_as_the_source() -> None:
    out = DB_POLICY.partition(", ingress:")[0] + ", policyTypes: [Egress]}\n"
    assert ("B/c1", "others", "everything", "nothing") in rows(change("", out))


def test_one_that_is_only_to_audit_changes_no_verdict() -> None:
    audit = DB_POLICY.replace("namespace: shop}", 'namespace: shop, annotations: {plait.audit: "true"}}', 1)
    found = change("", audit)
    assert found.pairs == () and found.selected == ()


def test_of_many_pairs_some_are_compared_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policychange, "MOST_PAIRS", 1)
    found = change("", DB_POLICY)
    assert (found.compared, found.concerned) == (1, 2) and len(found.pairs) == 2


def test_tables_are_put_together_and_said_in_words() -> None:
    web, some = Table((("tcp", 80, 90), ("udp", 53, 53)), True), Table((("tcp", 85, 95), ("udp", 0, 65535)), True)
    assert both(web, some) == Table((("tcp", 85, 90), ("udp", 53, 53)), True) == both(some, web)
    assert both(web, EVERYTHING) == web == both(EVERYTHING, web) and both(web, OPEN) == OPEN
    assert in_words(both(web, some)) == "tcp 85-90; udp 53; protocols without ports"
    assert in_words(replace(some, other=False)) == "tcp 85-95; udp"


async def test_a_plan_of_a_file_is_told_and_nothing_is_done(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await attach(a, "web", "web")
        await attach(a, "db", "db")
        policies = policies_of(a)
        found = await policies.plan(DENY + TEAM)
        assert [(row["name"], row["change"]) for row in found["applied"]] == [("default/db", "created"), ("shop", "created")]
        assert found["selected"] == ["A/db ingress"] and found["added"] > 0
        assert found["pairs"] == [{"source": "others", "destination": "A/db", "before": "everything", "after": "nothing"}]
        assert not a.view.snapshot.policies and not (await store.list("policies/")).items and not elements(a, "policed")
        await policies.apply(DENY + TEAM)
        again = await policies.plan(DENY + TEAM.replace(b"labels: {team: a}", b"labels: {}"))
        assert [row["change"] for row in again["applied"]] == ["unchanged", "removed"] and again["pairs"] == []
        with pytest.raises(ConfigError, match="line 5"):
            await policies.plan(DENY + b"\xff")
