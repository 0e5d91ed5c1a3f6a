# SPDX-License-Identifier: Apache-2.0
"""The other nodes as each network has them: made once, and not at all where nobody is to be reached."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from plait.model.cluster import Block, Network, Node, Snapshot
from plait.plan import Local, plan_node

COUNT = 40
DEFAULT = Network("default", IPv4Network("10.28.0.0/16"), IPv4Address("10.28.0.1"), 24)
NEW = Network("new", IPv4Network("10.29.0.0/16"), IPv4Address("10.29.0.1"), 24, vni=2)


def _node(number: int) -> Node:
    mac, tunnel = f"02:00:00:00:00:{number:02x}", IPv4Address(f"10.28.{number}.0")
    return Node(f"h{number}", f"id{number}", IPv4Address("198.18.0.1") + number, vtep_mac=mac, tunnel=tunnel)


def _blocks(network: str, second: int, numbers: Iterable[int]) -> dict[tuple[str, IPv4Network], Block]:
    found = [Block(network, IPv4Network(f"10.{second}.{number}.0/24"), f"h{number}") for number in numbers]
    return {(block.network, block.cidr): block for block in found}


def _cluster(count: int) -> Snapshot:
    nodes = {f"h{number}": _node(number) for number in range(count)}
    blocks = _blocks("default", 28, range(count))
    return Snapshot("h0", 1, nodes, frozenset(nodes), {"default": DEFAULT}, blocks)


def _with(snapshot: Snapshot, network: Network) -> Snapshot:
    return replace(snapshot, networks={**snapshot.networks, network.name: network})


@pytest.mark.parametrize("options", [{}, {"backend": "hybrid"}, {"backend": "direct"}, {"layer2": "true"}, {"backend": "bridge"}])
def test_a_network_of_nobody_costs_the_same_among_any_number_of_hosts(options: dict[str, str]) -> None:
    network = replace(NEW, backend=options.get("backend", "vxlan"), options=options)
    local, counts = Local(underlay="eth0"), []
    for count in (3, COUNT):
        without = _cluster(count)
        counts.append(len(plan_node(_with(without, network), local)) - len(plan_node(without, local)))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("number", [0, 1])
def test_with_its_first_block_all_are_neighbours(number: int) -> None:
    """Whosever it is: any of them may be asked to relay, and answers to the hosts themselves take the same way."""
    plan = plan_node(replace(_with(_cluster(3), NEW), blocks=_cluster(3).blocks | _blocks("new", 29, [number])), Local())
    assert {key for key in plan if key[0] == "neigh" and key[1] == "pl-x2"} == {("neigh", "pl-x2", f"10.28.{n}.0") for n in (1, 2)}
    assert (("route", "10.29.1.0/24", "0") in plan) == (number == 1)


def test_what_leads_to_other_nodes_is_made_once() -> None:
    local, without = Local(), _cluster(COUNT)
    first = plan_node(without, local)
    second = plan_node(_with(without, NEW), local)
    rows = [key for key in first if key[0] in ("neigh", "fdb")]
    assert len(rows) == 2 * (COUNT - 1) and all(second[key] is first[key] for key in rows)
    lost = replace(_with(without, NEW), blocks=_blocks("default", 28, range(COUNT - 1)))
    third = plan_node(lost, local)
    assert ("route", f"10.28.{COUNT - 1}.0/24", "0") in second and ("route", f"10.28.{COUNT - 1}.0/24", "0") not in third
    assert third == plan_node(lost, Local())
