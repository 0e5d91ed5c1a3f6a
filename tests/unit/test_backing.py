# SPDX-License-Identifier: Apache-2.0
"""Who stands behind a service, in what state, with what share."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.policies import BLOCKS, NETWORKS, NODES, endpoint

from plait.model.cluster import Container, Endpoint, Instance, Snapshot
from plait.model.discovery import Check, Status
from plait.model.service import Service, ServicePort
from plait.plan.backing import AFFINE_SLOTS, MOST_SLOTS, Backend, Backing, chosen, headless, slots

A = IPv4Address
SHOP = Service("shop", "default", A("10.27.0.9"), (ServicePort("tcp", 80, 8080),), {"app": "shop", "tier": "web"})
LABELS = {"app": "shop", "tier": "web"}


def cluster(*endpoints: Endpoint, **more: object) -> Snapshot:
    made = {one.id: one for one in endpoints}
    return replace(Snapshot("A", 1, NODES, frozenset("AB"), NETWORKS, BLOCKS, made, services={SHOP.ident: SHOP}), **more)  # type: ignore[arg-type]


def found(snapshot: Snapshot, service: Service = SHOP) -> dict[str, str]:
    return {one.name: one.state for one in Backing(snapshot).of(service)}


def test_all_labels_the_namespace_and_the_network_count() -> None:
    snapshot = cluster(
        endpoint(1, "A", "default", LABELS),
        endpoint(2, "B", "default", {**LABELS, "more": "x"}),
        endpoint(3, "A", "default", {"app": "shop"}),
        endpoint(4, "A", "six", LABELS),
        endpoint(5, "A", "default", {**LABELS, "plait.namespace": "other"}),
    )
    assert found(snapshot) == {"c1": "ready", "c2": "ready"}
    assert found(snapshot, replace(SHOP, namespace="other")) == {"c5": "ready"}
    assert found(snapshot, replace(SHOP, network="six")) == {"c4": "ready"}
    assert found(snapshot, replace(SHOP, selector={})) == {}


def test_containers_are_found_by_what_they_are_registered_as() -> None:
    one = endpoint(1, "A", "default", {})
    web = {("A", "i"): Instance("i", "web", "A", str(one.address), 80)}
    assert found(cluster(one, instances=web), replace(SHOP, selector={"plait.service.web": "true"})) == {"c1": "ready"}


def test_a_container_on_the_engines_own_bridge_counts_while_it_runs() -> None:
    box = Container("k1", "box", "A", "docker", labels=LABELS, addresses={"default": A("10.28.1.77")})
    assert found(cluster(containers={("A", "k1"): box})) == {"box": "ready"}
    assert found(cluster(containers={("A", "k1"): replace(box, state="exited")})) == {}


@pytest.mark.parametrize(
    ("status", "about", "state"),
    [("critical", "i1", "unhealthy"), ("warning", "i1", "ready"), ("critical", "", "unhealthy"), ("critical", "other", "ready")],
)
def test_checks_of_what_is_registered_for_it_and_of_its_node_count(status: Status, about: str, state: str) -> None:
    one = endpoint(1, "A", "default", LABELS)
    checks = {("A", "k"): Check("k", "A", "k", status, service_id=about)}
    for instance in (Instance("i1", "any", "A", str(one.address), 8080), Instance("i1", "any", "A", container="c1")):
        assert found(cluster(one, instances={("A", "i1"): instance}, checks=checks)) == {"c1": state}


def test_one_is_unhealthy_by_its_engine_and_down_by_its_registration() -> None:
    one = endpoint(1, "A", "default", LABELS)
    sick = Container("k1", "c1", "A", "docker", health="unhealthy")
    assert found(cluster(one, containers={("A", "k1"): sick})) == {"c1": "unhealthy"}
    assert found(cluster(one, containers={("A", "k1"): replace(sick, health="starting")})) == {"c1": "ready"}
    assert found(cluster(one, instances={("A", "i"): Instance("i", "x", "A", container="c1", down=True)})) == {"c1": "unhealthy"}


def test_a_node_without_a_sign_of_life_is_away_but_never_this_one() -> None:
    snapshot = cluster(endpoint(1, "A", "default", LABELS), endpoint(2, "B", "default", LABELS), alive=frozenset())
    assert found(snapshot) == {"c1": "ready", "c2": "away"}


def test_who_drains_does_so_whatever_its_checks_say() -> None:
    snapshot = cluster(endpoint(1, "A", "default", LABELS), endpoint(2, "B", "default", {**LABELS, "plait.vip.weight": "0"}))
    assert found(snapshot, replace(SHOP, drained=("A/c1",))) == {"c1": "draining", "c2": "draining"}
    assert chosen(SHOP, Backing(snapshot).of(SHOP), "A")[0].name == "c1"


@pytest.mark.parametrize(("label", "weight"), [("7", 7), ("0", 0), ("9999", 100), ("-1", 5), ("much", 5), ("", 5)])
def test_a_weight_is_the_labels_else_the_registrations(label: str, weight: int) -> None:
    one = endpoint(1, "A", "default", {**LABELS, "plait.vip.weight": label} if label else LABELS)
    instance = Instance("i", "shop", "A", container="c1", weight_passing=5, weight_warning=2)
    checks = {("A", "k"): Check("k", "A", "k", "warning", service_id="i")}
    (backend,) = Backing(cluster(one, instances={("A", "i"): instance})).of(SHOP)
    assert backend.weight == weight
    if not label:
        (backend,) = Backing(cluster(one, instances={("A", "i"): instance}, checks=checks)).of(SHOP)
        assert backend.weight == 2


def test_local_first_is_local_as_long_as_there_is_one() -> None:
    near, far = Backend(A("10.28.1.2"), "A", "near"), Backend(A("10.28.2.2"), "B", "far")
    local = replace(SHOP, local_first=True)
    assert chosen(local, [near, far], "A") == [near] and chosen(local, [near, far], "C") == [near, far]
    assert chosen(local, [replace(near, state="unhealthy"), far], "A") == [far]
    assert chosen(SHOP, [near, far], "A") == [near, far]


_weights = st.lists(st.integers(1, 100), min_size=1, max_size=200).map(
    lambda found: [Backend(A(0x0A1C0100 + n), "A", f"c{n}", weight) for n, weight in enumerate(found)]
)


@given(_weights)
def test_everybody_has_slots_by_its_weight(backends: list[Backend]) -> None:
    shares = Counter(slots(SHOP, backends))
    assert set(shares) == {one.address for one in backends}
    assert shares.total() <= max(MOST_SLOTS, len(backends)) + len(backends)
    total = sum(one.weight for one in backends)
    if total <= MOST_SLOTS:
        assert all(shares[one.address] * total == one.weight * shares.total() for one in backends)


@given(_weights.filter(lambda found: len(found) > 1), st.data())
def test_with_affinity_one_that_goes_moves_nobody_elses_clients(backends: list[Backend], data: st.DataObject) -> None:
    affine = replace(SHOP, affinity=True)
    gone = data.draw(st.sampled_from(backends))
    before, after = slots(affine, backends), slots(affine, [one for one in backends if one != gone])
    assert len(before) == len(after) == AFFINE_SLOTS
    assert all(now == then for then, now in zip(before, after, strict=True) if then != gone.address)


def test_nobody_has_no_slots() -> None:
    assert slots(SHOP, []) == slots(replace(SHOP, affinity=True), []) == ()


def test_of_headless_ones_those_who_are_ready_are_told() -> None:
    bare = replace(SHOP, address=None)
    snapshot = cluster(endpoint(1, "A", "default", LABELS), endpoint(2, "B", "default", LABELS), alive=frozenset("A"))
    assert headless(snapshot) == {}
    assert headless(replace(snapshot, services={bare.ident: bare})) == {bare.ident: (snapshot.endpoints["e1"].address,)}


def test_a_container_has_its_addresses_of_both_families() -> None:
    one, bare = endpoint(1, "A", "six", LABELS), replace(SHOP, address=None, network="six")
    snapshot = cluster(one, services={bare.ident: bare})
    assert [(each.address, each.address6) for each in Backing(snapshot).of(bare)] == [(one.address, one.address6)]
    assert headless(snapshot) == {bare.ident: (one.address, one.address6)}
