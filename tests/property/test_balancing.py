# SPDX-License-Identifier: Apache-2.0
"""Services, whatever happens one after the other: what is worked out from what differs is what is worked out from everything."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.policies import BLOCKS, NETWORKS, NODES, endpoint

from plait.model.cluster import Container, Instance, Snapshot
from plait.model.discovery import Check
from plait.model.service import Service, ServicePort
from plait.plan import Local, plan_node, prompt_objects
from plait.plan.balancing import Balancing

LABELS = ({"app": "a"}, {"app": "a", "tier": "x"}, {"app": "b", "plait.vip.weight": "3"}, {"app": "a", "plait.vip.weight": "0"}, {})
SELECTORS = ({"app": "a"}, {"app": "a"}, {"app": "b"}, {"app": "a", "tier": "x"}, {"plait.service.web": "true"}, {})
PORTS = (ServicePort("tcp", 80, 8080, 8000), ServicePort("udp", 53, 53)), (ServicePort("tcp", 80, 8080),)
ENDPOINTS = [endpoint(number, node, "default", {"app": "a"}) for number, node in ((1, "A"), (2, "A"), (3, "B"), (4, "B"))]
CONTAINERS = [Container(f"k{one.id}", one.name, one.node, "docker", labels=one.labels) for one in ENDPOINTS]
INSTANCES = [
    Instance("i1", "web", "A", "", 80, container="c1", weight_passing=2),
    Instance("i2", "web", "B", str(ENDPOINTS[2].address), 80),
]
SERVICES = [Service(f"s{n}", "default", IPv4Address(f"10.27.0.{n}"), PORTS[n - 1], SELECTORS[0], affinity=n == 2) for n in (1, 2)]
START = Snapshot(
    "A",
    1,
    NODES,
    frozenset("AB"),
    NETWORKS,
    BLOCKS,
    {one.id: one for one in ENDPOINTS},
    {(one.node, one.id): one for one in CONTAINERS},
    {(one.node, one.id): one for one in INSTANCES},
    services={one.ident: one for one in SERVICES},
)


LOCAL = Local(fast_path=True, shortcut="eth0", underlay="eth0", links=frozenset({"eth0"}))


@st.composite
def events(draw: st.DrawFn) -> tuple[str, Any, Any]:
    """A map of the snapshot, a key in it, and what stands there from now on (None: nothing)."""
    kind = draw(st.sampled_from(("endpoints", "containers", "instances", "checks", "checks", "services")))
    known = draw(st.sampled_from(ENDPOINTS))
    if kind == "endpoints":
        network = draw(st.sampled_from(("default", "default", "six")))
        record: Any = endpoint(int(known.id[1:]), known.node, network, draw(st.sampled_from(LABELS)))
        key: Any = record.id
        if draw(st.integers(0, 4)) == 0:  # two claim one address for a moment
            record = replace(record, address=draw(st.sampled_from(ENDPOINTS)).address)
    elif kind == "containers":
        where = draw(st.sampled_from(({}, {"default": known.address})))
        state, health = draw(st.sampled_from(("running", "exited"))), draw(st.sampled_from(("", "unhealthy")))
        labels = draw(st.sampled_from(LABELS))
        record = Container(f"k{known.id}", known.name, known.node, "docker", labels=labels, addresses=where, state=state, health=health)
        key = (known.node, record.id)
    elif kind == "instances":
        address, container = draw(st.sampled_from((("", known.name), (str(known.address), ""), ("", ""))))
        name, ident = draw(st.sampled_from(("web", "s1"))), draw(st.sampled_from(("i1", "i2")))
        record = Instance(ident, name, known.node, address, 80, container=container, weight_passing=draw(st.integers(1, 3)))
        key = (known.node, ident)
    elif kind == "checks":
        service, status = draw(st.sampled_from(("", "i1", "i2"))), draw(st.sampled_from(("passing", "warning", "critical")))
        record = Check(draw(st.sampled_from(("h1", "h2"))), known.node, status, service_id=service)
        key = (known.node, record.id)
    else:
        record = replace(
            draw(st.sampled_from(SERVICES)),
            selector=draw(st.sampled_from(SELECTORS)),
            network=draw(st.sampled_from(("default", "default", "six"))),
            local_first=draw(st.booleans()),
            drained=draw(st.sampled_from(((), ("A/c1",)))),
        )
        record = replace(record, address=draw(st.sampled_from((record.address, record.address, None))))
        key = record.ident
    return kind, key, draw(st.sampled_from((record, record, None)))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_what_follows_events_is_the_whole_plan(data: st.DataObject) -> None:
    """Two records at a time, too, and in between lost nodes and networks that come and go."""
    snapshot, local = START, replace(LOCAL, balancing=Balancing())
    plan_node(snapshot, local)
    for some in data.draw(st.lists(st.lists(events(), min_size=1, max_size=3), min_size=3, max_size=25)):
        for kind, key, record in some:
            held = {name: one for name, one in getattr(snapshot, kind).items() if name != key}
            snapshot = replace(snapshot, **{kind: held if record is None else {**held, key: record}})
        if data.draw(st.integers(0, 3)) == 0:
            alive, silent = data.draw(st.sampled_from((("AB", ""), ("A", ""), ("A", "B"))))
            networks = data.draw(st.sampled_from((NETWORKS, {"default": NETWORKS["default"]})))
            kept = {name: one for name, one in snapshot.endpoints.items() if one.network in networks}
            snapshot = replace(snapshot, alive=frozenset(alive), networks=networks, endpoints=kept)
            local = replace(local, silent=frozenset(silent))
        prompt = {one.key: one for one in prompt_objects(snapshot, local)}
        plan = plan_node(snapshot, local)
        assert prompt.items() <= plan.items()
        assert plan == plan_node(snapshot, replace(LOCAL, silent=local.silent, balancing=Balancing()))


def test_a_service_of_a_network_that_this_host_does_not_carry_is_left_out_as_long() -> None:
    six = replace(SERVICES[0], network="six", selector=SELECTORS[0])
    both = replace(START, services={six.ident: six, SERVICES[1].ident: SERVICES[1]})
    less = replace(both, networks={"default": NETWORKS["default"]})
    local = replace(LOCAL, balancing=Balancing())
    for snapshot in (both, less, both):
        assert plan_node(snapshot, local) == plan_node(snapshot, replace(LOCAL, balancing=Balancing()))
