# SPDX-License-Identifier: Apache-2.0
"""Which instance is chosen, and which are left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.client.balance import Balancer, Ejection, Policy, Zone
from plait.client.errors import NoInstances
from plait.client.types import Instance
from plait.model.errors import ConfigError


def fair(policy: Policy = "round_robin", ejection: Ejection | None = None, zone: Zone | None = None) -> Balancer:
    """One whose choice among equals is the order of the answer."""
    return Balancer(policy, ejection, zone, lambda: 0.0)


def some(count: int, **how: int) -> list[Instance]:
    return [Instance(f"w{n}", "web", "a", f"192.0.2.{n}", 80, weight=how.get(f"w{n}", 1)) for n in range(count)]


def taken(balancer: Balancer, times: int, now: float = 0.0, ok: bool = True) -> list[str]:
    found = []
    for _ in range(times):
        instance = balancer.take(now)
        balancer.give_back(instance, ok, now)
        found.append(instance.id)
    return found


def test_round_robin_takes_one_after_the_other_also_while_instances_come_and_go() -> None:
    balancer = fair()
    balancer.update(some(3))
    assert taken(balancer, 4) == ["w0", "w1", "w2", "w0"]
    balancer.update(some(4))
    assert taken(balancer, 4) == ["w1", "w2", "w0", "w3"]
    balancer.update(some(4)[1:])
    assert taken(balancer, 3) == ["w1", "w2", "w3"]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_weighted_is_exact_in_each_round_and_evenly_spread(weights: list[int]) -> None:
    balancer = fair("weighted")
    balancer.update(some(len(weights), **{f"w{n}": weight for n, weight in enumerate(weights)}))
    total = sum(weights)
    for _ in range(2):
        assert Counter(taken(balancer, total)) == {f"w{n}": weight for n, weight in enumerate(weights)}
    found = taken(balancer, 2 * total)
    for n, weight in enumerate(weights):
        places = [place for place, name in enumerate(found) if name == f"w{n}"]
        gaps = [after - before for before, after in pairwise(places)]
        assert max(gaps, default=0) <= 2 * -(-total // weight), "nobody waits for twice its turn"


def test_least_used_takes_the_idlest_for_its_weight() -> None:
    balancer = fair("least_used")
    balancer.update(some(2, w0=2))
    held = [balancer.take(0.0) for _ in range(6)]
    assert Counter(instance.id for instance in held) == {"w0": 4, "w1": 2}
    balancer.give_back(next(one for one in held if one.id == "w1"), True, 0.0)
    assert balancer.take(0.0).id == "w1"


def test_nearest_takes_the_first_and_moves_on_only_while_it_is_left_out() -> None:
    balancer = fair("nearest", Ejection(failures=2, eject_s=10))
    balancer.update(some(3))
    assert taken(balancer, 3) == ["w0"] * 3
    taken(balancer, 2, ok=False)
    assert taken(balancer, 2, now=9.9) == ["w1", "w1"]
    assert taken(balancer, 1, now=10.0) == ["w0"]


def test_a_zone_is_left_only_while_nothing_in_it_works() -> None:
    near, far = some(4)[:2], some(4)[2:]
    balancer = fair(zone=Zone("zone", "a"), ejection=Ejection(failures=1, eject_s=10))
    balancer.update([replace(one, node_meta={"zone": "a"}) for one in near] + [replace(one, node_meta={"zone": "b"}) for one in far])
    assert set(taken(balancer, 10)) == {"w0", "w1"}
    taken(balancer, 2, ok=False)
    assert set(taken(balancer, 10, now=5.0)) == {"w2", "w3"}
    assert set(taken(balancer, 10, now=10.0)) == {"w0", "w1"}


@pytest.mark.parametrize("policy", ["round_robin", "weighted", "least_used", "nearest"])
def test_an_instance_of_weight_0_is_taken_only_if_there_is_no_other(policy: Policy) -> None:
    balancer = fair(policy)
    balancer.update(some(2, w0=0))
    assert taken(balancer, 3) == ["w1"] * 3
    balancer.update(some(1, w0=0))
    assert taken(balancer, 2) == ["w0"] * 2


def test_failing_instances_are_left_out_longer_each_time_and_return_on_success() -> None:
    balancer = fair(ejection=Ejection(failures=3, eject_s=10, eject_max_s=35, share=0.5))
    good, bad = some(2)
    balancer.update([good, bad])

    def fail(now: float, times: int) -> None:
        for _ in range(times):
            balancer.give_back(bad, False, now)

    fail(0.0, 2)
    balancer.give_back(bad, True, 0.0)
    fail(0.0, 2)
    assert balancer.ejected(0.0) == (), "only failures in a row count"
    fail(0.0, 1)
    assert balancer.ejected(9.9) == (bad,) and set(taken(balancer, 5, now=9.9)) == {"w0"}
    for began, length in ((10.0, 20.0), (30.0, 35.0), (65.0, 35.0)):
        assert balancer.ejected(began) == ()
        fail(began, 1)
        assert balancer.ejected(began + length - 0.1) == (bad,), "after its return one failure is enough"
    balancer.give_back(bad, True, 100.0)
    fail(100.0, 2)
    assert balancer.ejected(100.0) == (), "a success starts it all anew"


@given(st.integers(1, 12), st.floats(0, 0.99), st.lists(st.integers(0, 11), max_size=60))
def test_no_more_than_the_share_is_left_out(count: int, share: float, failing: list[int]) -> None:
    balancer = fair(ejection=Ejection(failures=1, share=share))
    instances = some(count)
    balancer.update(instances)
    for number in failing:
        balancer.give_back(instances[number % count], False, 0.0)
    assert len(balancer.ejected(0.0)) <= int(count * share)
    assert balancer.take(0.0) not in balancer.ejected(0.0)


def test_if_only_left_out_ones_remain_they_are_used() -> None:
    balancer = fair(ejection=Ejection(failures=1))
    balancer.update(some(2))
    taken(balancer, 1, ok=False)
    balancer.update(some(1))
    assert taken(balancer, 1) == ["w0"]


def test_a_new_address_under_an_old_name_begins_with_a_clean_record() -> None:
    balancer = fair(ejection=Ejection(failures=1))
    balancer.update(some(2))
    taken(balancer, 1, ok=False)
    balancer.update([replace(some(1)[0], port=81), some(2)[1]])
    assert balancer.ejected(0.0) == ()


def test_what_is_given_back_late_is_ignored() -> None:
    balancer = fair()
    balancer.update(some(1))
    gone = balancer.take(0.0)
    balancer.update([])
    balancer.give_back(gone, False, 0.0)
    with pytest.raises(NoInstances):
        balancer.take(0.0)


def test_values_that_make_no_sense_are_refused() -> None:
    for how in ({"failures": -1}, {"eject_s": 0}, {"eject_s": 10, "eject_max_s": 5}, {"share": 1.0}):
        with pytest.raises(ConfigError):
            Ejection(**how)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="policy"):
        fair("best")  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["round_robin", "weighted", "least_used"])
def test_programs_that_start_together_do_not_all_begin_with_the_same_instance(policy: Policy) -> None:
    first = set()
    for _ in range(60):
        balancer = Balancer(policy)
        balancer.update(some(3))
        first.add(balancer.take(0.0).id)
    assert first == {"w0", "w1", "w2"}
