# SPDX-License-Identifier: Apache-2.0
"""Endpoints, whatever happens one after the other: what a node's plan looks at follows from what differs."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.policies import BLOCKS, NETWORKS, NODES, endpoint

from plait.ipam import stray_endpoints
from plait.model.cluster import Endpoint, Reach, Snapshot
from plait.model.egress import Egress, EgressGateway
from plait.model.limits import Limits
from plait.model.service import Service, ServicePort
from plait.plan import Local, plan_node
from plait.plan.exposed import HOST
from plait.plan.neighbours import Neighbours
from plait.plan.residents import Residents
from plait.policy.roster import differing
from plait.shaping import Limiting, Means

APART = {**NETWORKS, "default": replace(NETWORKS["default"], options={"layer2": "true", "isolated": "true"})}
SERVICE = Service("s", "default", IPv4Address("10.27.0.1"), (ServicePort("tcp", 80, 8080, 8000),), {"app": "a"})
OUT = Egress("out", "six", (EgressGateway("B"),), {"app": "a"})
START = Snapshot("A", 1, NODES, frozenset("AB"), NETWORKS, BLOCKS, services={SERVICE.ident: SERVICE}, egress={OUT.name: OUT})
KEYS = st.sampled_from([f"e{number}" for number in range(8)])
RECORDS = st.sampled_from([object() for _ in range(4)])


@given(st.dictionaries(KEYS, RECORDS), st.dictionaries(KEYS, RECORDS), st.dictionaries(KEYS, RECORDS))
def test_records_differ_that_are_not_the_same_ones(before: dict[str, Any], now: dict[str, Any], put: dict[str, Any]) -> None:
    for after in (now, {**before, **put}, dict(before), dict(reversed(before.items()))):
        found = differing(before, after)
        assert len(found) == len(set(found))
        assert set(found) == {key for key in {*before, *after} if before.get(key) is not after.get(key)}


class Whole(Residents):
    """As if a plan looked at all endpoints everywhere."""

    def of(self, snapshot: Snapshot) -> tuple[Snapshot, list[Endpoint]]:
        return snapshot, stray_endpoints(snapshot)


@st.composite
def endpoints(draw: st.DrawFn) -> Endpoint:
    """Of this node and another, at home and astray, containers and the hosts themselves."""
    number, node, network = draw(st.integers(1, 4)), draw(st.sampled_from("AB")), draw(st.sampled_from(("default", "six")))
    one = endpoint(number, node, network, draw(st.sampled_from(({}, {"app": "a"}, {"plait.limit.priority": "bulk"}))))
    return replace(one, node=draw(st.sampled_from((node, "A", "B"))), runtime=draw(st.sampled_from((one.runtime, one.runtime, HOST))))


def _near(snapshot: Snapshot) -> dict[str, Endpoint]:
    return {key: one for key, one in snapshot.endpoints.items() if one.node == snapshot.me or one.runtime == HOST}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_what_follows_events_is_what_the_whole_says(data: st.DataObject) -> None:
    """In between blocks of others, networks, limits and containers' namespaces that come and go, and other nodes that change."""
    snapshot, residents = replace(START, networks=data.draw(st.sampled_from((NETWORKS, APART)))), Residents()
    local = Local(fast_path=True, shortcut="eth0", underlay="eth0", links=frozenset({"eth0"}), residents=residents)
    path_mtu: dict[str, int] = {}
    local = replace(local, limiting=Limiting(means=Means.of({"ingress"})), path_mtu=path_mtu)
    for one in data.draw(st.lists(endpoints(), min_size=3, max_size=20)):
        one = one if one.network in snapshot.networks else replace(one, network="default")
        held = {key: other for key, other in snapshot.endpoints.items() if key != one.id}
        snapshot = replace(snapshot, endpoints=held if data.draw(st.integers(0, 3)) == 0 else {**held, one.id: one})
        match data.draw(st.integers(0, 11)):
            case 0:
                blocks = {key: block for key, block in BLOCKS.items() if block.node == "A" or data.draw(st.booleans())}
                snapshot = replace(snapshot, blocks=blocks)
            case 1:
                networks = data.draw(st.sampled_from((NETWORKS, APART, {"default": NETWORKS["default"]})))
                kept = {key: other for key, other in snapshot.endpoints.items() if other.network in networks}
                snapshot = replace(snapshot, networks=networks, endpoints=kept)
            case 2:
                told = data.draw(st.sampled_from(({}, {(one.network, one.name): Limits(priority="guaranteed")})))
                local = replace(local, limiting=replace(local.limiting, told=told))
            case 3:
                local = replace(local, netns=data.draw(st.sampled_from(({}, {one.id: "/proc/7/ns/net"}))))
            case 4:
                narrow = data.draw(st.sampled_from((1500, 1400)))
                snapshot = replace(snapshot, nodes={**NODES, "B": replace(NODES["B"], mtu=narrow)})
            case 5:
                alive, broken = data.draw(st.sampled_from(("A", "AB"))), data.draw(st.sampled_from(({}, {"pl-x1": ("B",)})))
                snapshot = replace(snapshot, alive=frozenset(alive), reach={"A": Reach("A", ("B",), broken), "B": Reach("B", ("A",))})
            case 6:
                path_mtu.update(B=data.draw(st.sampled_from((1500, 1300))))
                local = replace(local, underlay=data.draw(st.sampled_from(("", "eth0"))))
        near, strays = residents.of(snapshot)
        assert near == replace(snapshot, endpoints=_near(snapshot)) and strays == stray_endpoints(snapshot)
        assert plan_node(snapshot, local) == plan_node(snapshot, replace(local, residents=Whole(), neighbours=Neighbours()))


def test_what_is_made_of_endpoints_is_made_once() -> None:
    """Until something that it is made of is another."""
    one, two = endpoint(1, "A", "default", {}), endpoint(2, "A", "default", {})
    snapshot = Snapshot("A", 1, NODES, frozenset("AB"), NETWORKS, BLOCKS, {one.id: one})
    local = Local(fast_path=True)
    link = ("link", one.dev)
    before = plan_node(snapshot, local)
    more = plan_node(replace(snapshot, endpoints={one.id: one, two.id: two}), local)
    assert more[link] is before[link]
    moved = plan_node(replace(snapshot, networks={"default": replace(NETWORKS["default"], subnet=IPv4Network("10.0.0.0/8"))}), local)
    assert moved[link].through != before[link].through  # type: ignore[union-attr]
