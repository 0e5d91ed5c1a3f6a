# SPDX-License-Identifier: Apache-2.0
"""Two clusters that grew apart: every conflict is listed, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.agent.admin import AgentAdmin
from plait.ipam.merge import VERSION, ClusterExport, conflicts, export
from plait.model.cluster import Assigned, Block, Endpoint, HostRange, HostRanges, Network, Node, Snapshot
from plait.model.errors import ConfigError
from plait.store.codec import decode, encode

A, N = IPv4Address, IPv4Network
MESH = Network("mesh", N("10.40.0.0/16"), A("10.40.0.1"), 24)


def node(name: str, id_: str = "", address: str = "") -> Node:
    return Node(name, id_ or name, A(address or f"198.18.0.{ord(name[0])}"))


def endpoint(id_: str, name: str, address: str, node: str = "A") -> Endpoint:
    return Endpoint(id_, "mesh", node, A(address), "02:00:00:00:00:01", "pl-e", "docker", id_, name)


def cluster(**parts: Any) -> ClusterExport:
    return replace(ClusterExport(VERSION, nodes=(node("A"),), networks=(MESH,)), **parts)


HERE = cluster(
    blocks=(Block("mesh", N("10.40.1.0/24"), "A"),),
    endpoints=(endpoint("e1", "web", "10.40.1.2"),),
    assigned=(Assigned("mesh", A("10.40.1.9"), "db"),),
)
THERE = cluster(
    nodes=(node("B"),),
    blocks=(Block("mesh", N("10.40.2.0/24"), "B"),),
    endpoints=(endpoint("e2", "log", "10.40.2.2", "B"),),
    assigned=(Assigned("mesh", A("10.40.2.9"), "cache"),),
)


def test_what_fits_together_is_not_listed() -> None:
    assert conflicts(HERE, THERE) == conflicts(THERE, HERE) == conflicts(HERE, HERE) == []


@pytest.mark.parametrize(
    ("there", "kind", "here", "other"),
    [
        ({"nodes": (node("A", "another"),)}, "node", "node A (198.18.0.65)", "node A (198.18.0.65)"),
        ({"nodes": (node("B", address="198.18.0.65"),)}, "node", "node A (198.18.0.65)", "node B (198.18.0.65)"),
        ({"networks": (replace(MESH, block_prefix=26),)}, "network", "blocks of /24", "blocks of /26"),
        ({"networks": (MESH, replace(MESH, name="x", subnet=N("10.40.128.0/17")))}, "overlap", "network mesh", "network x 10.40.128.0/17"),
        ({"nodes": (node("B", address="10.40.7.7"),)}, "overlap", "network mesh", "node B (10.40.7.7)"),
        ({"blocks": (Block("mesh", N("10.40.1.0/24"), "B"),)}, "block", "10.40.1.0/24 of network mesh, node A", "node B"),
        ({"endpoints": (endpoint("e2", "log", "10.40.1.2", "B"),)}, "address", "web on node A (10.40.1.2", "log on node B (10.40.1.2"),
        ({"endpoints": (endpoint("e2", "WEB", "10.40.2.2", "B"),)}, "name", "web on node A", "WEB on node B"),
        ({"assigned": (Assigned("mesh", A("10.40.2.9"), "db"),)}, "reservation", "10.40.1.9 of network mesh for db", "10.40.2.9"),
        ({"assigned": (Assigned("mesh", A("10.40.1.9"), "web"),)}, "reservation", "for db", "for web"),
        ({"endpoints": (endpoint("e2", "log", "10.40.1.9", "B"),)}, "reservation", "10.40.1.9 of network mesh for db", "log on node B"),
        (
            {"networks": (), "host_ranges": (HostRanges("B", (HostRange(N("10.40.0.0/20"), "route dev tun0"),)),)},
            "overlap",
            "network mesh",
            "10.40.0.0/20 (route dev tun0 on node B)",
        ),
    ],
)
def test_each_conflict_is_listed_from_either_side(there: dict[str, Any], kind: str, here: str, other: str) -> None:
    found = [clash for clash in conflicts(HERE, replace(THERE, **there)) if clash.kind == kind]
    assert [(here in clash.here, other in clash.there) for clash in found] == [(True, True)], found
    mirrored = [clash for clash in conflicts(replace(THERE, **there), HERE) if clash.kind == kind]
    assert sorted((c.there, c.here, c.todo) for c in mirrored) == sorted((c.here, c.there, c.todo) for c in found)


PARTS = st.builds(
    lambda blocks, users, kept: cluster(
        nodes=(node("B"),),
        blocks=tuple(Block("mesh", N((f"10.40.{b}.0", 24)), "B") for b in sorted(blocks)),
        endpoints=tuple(endpoint(f"t{a}", f"n{name}", f"10.40.0.{a}", "B") for a, name in sorted(users.items())),
        assigned=tuple(Assigned("mesh", A(f"10.40.0.{a}"), f"n{name}") for a, name in sorted({v: k for k, v in kept.items()}.items())),
    ),
    st.sets(st.integers(0, 5)),
    st.dictionaries(st.integers(2, 9), st.integers(0, 5), max_size=5),
    st.dictionaries(st.integers(0, 5), st.integers(2, 9), max_size=3),
)


@given(PARTS, PARTS)
def test_the_list_is_exact(here: ClusterExport, there: ClusterExport) -> None:
    here = replace(
        here,
        nodes=(node("A"),),
        blocks=tuple(replace(b, node="A") for b in here.blocks),
        endpoints=tuple(replace(e, id=f"h{e.id}", node="A") for e in here.endpoints),
    )
    found = conflicts(here, there)
    kinds = {kind: sum(c.kind == kind for c in found) for kind in ("block", "address", "name", "reservation", "node", "network", "overlap")}
    assert kinds["block"] == len({b.cidr for b in here.blocks} & {b.cidr for b in there.blocks})
    assert kinds["address"] == sum(x.address == y.address for x in here.endpoints for y in there.endpoints)
    assert kinds["name"] == sum(x.name == y.name for x in here.endpoints for y in there.endpoints)
    kept = sum((x.name == y.name) != (x.address == y.address) for x in here.assigned for y in there.assigned)
    kept += sum(r.address == e.address and r.name != e.name for r in here.assigned for e in there.endpoints)
    kept += sum(r.address == e.address and r.name != e.name for r in there.assigned for e in here.endpoints)
    assert kinds["reservation"] == kept
    assert kinds["node"] == kinds["network"] == kinds["overlap"] == 0


def test_an_export_is_read_as_it_was_written() -> None:
    snapshot = Snapshot("A", nodes={"A": node("A")}, networks={"mesh": MESH}, endpoints={"e1": HERE.endpoints[0]})
    made = export(snapshot)
    assert decode(ClusterExport, encode(made), "x") == made and made.networks == (MESH,)


async def test_the_backend_refuses_what_is_no_export() -> None:
    admin = AgentAdmin(
        cast(Any, SimpleNamespace(view=SimpleNamespace(snapshot=Snapshot("A", nodes={"A": node("A")}, networks={"mesh": MESH}))))
    )
    other = replace(THERE, nodes=(node("A", "another"),))
    assert [row["kind"] for row in await admin.cluster_conflicts(encode(other))] == ["node"]
    assert decode(ClusterExport, await admin.export_cluster(), "x").nodes == (node("A"),)
    for wrong, words in ((b"{}", "export"), (b"nonsense", "export"), (encode(replace(other, version=9)), "another version")):
        with pytest.raises(ConfigError, match=words):
            await admin.cluster_conflicts(wrong)
