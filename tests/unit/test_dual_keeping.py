# SPDX-License-Identifier: Apache-2.0
"""What is kept of IPv4 addresses is kept of the IPv6 addresses that go with them: excluded, reserved, in a range, lent, checked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest
from tests.support.cluster import FakeNode, nodes
from tests.support.consulapi import Cuttable

from plait.agent.ipamview import ipam_view
from plait.agent.keys import alive_key
from plait.agent.ranges import parse_ranges
from plait.ipam import in_use_elsewhere
from plait.ipam.check import Local as Known
from plait.ipam.check import findings
from plait.ipam.merge import conflicts, export
from plait.model.addr import parse_range
from plait.model.cluster import Endpoint
from plait.model.errors import Conflict
from plait.model.objects import Route
from plait.plan import Local, plan_node
from plait.runtimes.api import AttachRequest, NetworkRequest, paired
from plait.store.api import Put

A, N, A6, N6 = IPv4Address, IPv4Network, IPv6Address, IPv6Network
WANTED = NetworkRequest(
    "dual", N("10.31.0.0/24"), block_prefix=26, subnet6=N6("fd00:31::/64"), excluded=(parse_range("10.31.0.9"), parse_range("10.31.0.66"))
)
RANGE = '[[range]]\nnetwork = "dual"\naddresses = ["10.31.0.40/30"]\ncontainers = "db-*"\n'


@pytest.fixture
async def store() -> AsyncIterator[Cuttable]:
    store = Cuttable()
    yield store
    await store.close()


async def attach(node: FakeNode, name: str, four: str = "", six: str = "") -> Endpoint:
    wanted = {"address": A(four) if four else None, "address6": A6(six) if six else None}
    return await node.ops.attach(AttachRequest(f"{node.name}.{name}", "dual", "sandbox", name, name, **wanted))  # type: ignore[arg-type]


async def _dual(*made: FakeNode) -> None:
    """A network that all know; something of its first block is reserved, something kept for a range."""
    first = made[0]
    await first.store.txn([], [Put(alive_key(node.name), b"1") for node in made])
    await first.ops.ensure_network(WANTED)
    await attach(first, "first")
    await first.addresses.assigned.reserve(first.view.snapshot.networks["dual"], "db", A("10.31.0.7"))
    for node in made:
        node.ranges = parse_ranges(RANGE, "ranges.toml")
        await node.until(lambda node=node: ("dual", A("10.31.0.7")) in node.view.snapshot.assigned)
        await node.until(lambda node=node: ("dual", N("10.31.0.0/26")) in node.view.snapshot.blocks)
        await node.until(lambda node=node: len(node.view.snapshot.alive) == len(made))


@pytest.mark.parametrize("four", ["", "10.31.0.20"])
@pytest.mark.parametrize(
    ("six", "says"),
    [
        ("fd00:31::9", r"10\.31\.0\.9 of network 'dual' is excluded"),
        ("fd00:31::7", r"10\.31\.0\.7 of network 'dual' is reserved for 'db'"),
        ("fd00:31::29", r"10\.31\.0\.41 of network 'dual' is in range 'db-\*' .* of which 'web' is no member"),
    ],
)
async def test_an_ipv6_address_is_refused_with_the_words_of_the_one_it_goes_with(
    store: Cuttable, tmp_path: Path, four: str, six: str, says: str
) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await _dual(a)
        before = [r for r in a.addresses.reservations() if r.live]
        with pytest.raises(Conflict, match=says):
            await attach(a, "web", four, six)
        assert [r for r in a.addresses.reservations() if r.live] == before
        await a.ops.reserve("dual", "docker:mac")
        with pytest.raises(Conflict, match=says.replace("'web'", ".*")):
            await a.ops.reserve6("dual", "docker:mac", A6(six))


async def test_whose_it_is_gets_it_and_keeps_its_ipv4_address_in_mind(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await _dual(a)
        await a.ops.reserve("dual", "docker:mac", A("10.31.0.44"), "db")
        assert await a.ops.reserve6("dual", "docker:mac", A6("fd00:31::7"), "db") == A6("fd00:31::7")
        db = await attach(a, "db", "10.31.0.44", "fd00:31::7")
        member = await attach(a, "db-1", "10.31.0.42", "fd00:31::2b")
        assert (member.address6, db.address6) == (A6("fd00:31::2b"), A6("fd00:31::7"))
        await a.ops.detach(member.id)
        assert (await attach(a, "db-1")).address == A("10.31.0.42")
        web = await attach(a, "web", "10.31.0.20", "fd00:31::15")
        await a.ops.detach(web.id)
        assert (await attach(a, "web")).address == A("10.31.0.20"), "not the one that its IPv6 address went with"


async def test_one_that_is_lent_leads_to_who_has_it_and_is_shown_as_such(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A", "B") as (a, b):
        await _dual(a, b)
        db = await attach(b, "db", "10.31.0.70", "fd00:31::7")
        assert b.addresses.is_live("dual", A("10.31.0.7"))
        await b.publisher.publish()
        await a.until(lambda: db.id in a.view.snapshot.endpoints)
        routes = {str(o.dst) for o in plan_node(a.view.snapshot, Local(ipv6=True)).values() if isinstance(o, Route)}
        assert {"fd00:31::7/128", "10.31.0.70/32"} <= routes
        assert in_use_elsewhere(a.view.snapshot, "dual") >= {A("10.31.0.7"), A("10.31.0.70")}
        rows = {row["address"]: row for row in ipam_view(a.view.snapshot, ())["addresses"]}
        assert (rows["10.31.0.7"]["name"], rows["10.31.0.7"]["lent_by"], rows["10.31.0.7"]["address6"]) == ("db", "A", "fd00:31::7")
        assert (rows["10.31.0.70"]["lent_by"], rows["10.31.0.70"]["address6"]) == ("", "")
        assert findings(b.view.snapshot, Known(tuple(b.addresses.reservations()))) == []
        await b.ops.detach(db.id)
        await b.until(lambda: not b.view.snapshot.assigned["dual", A("10.31.0.7")].node)


async def test_what_uses_it_stands_against_a_reservation_and_is_found_by_the_check(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await _dual(a)
        web = await attach(a, "web", "10.31.0.20", "fd00:31::15")
        with pytest.raises(Conflict, match="web on node A uses it"):
            await a.addresses.assigned.reserve(a.view.snapshot.networks["dual"], "other", A("10.31.0.21"))
        held = tuple(a.addresses.reservations())
        assert findings(a.view.snapshot, Known(held)) == []
        less = tuple(r for r in held if r.owner != paired(web.id))
        assert [(f.kind, f.address) for f in findings(a.view.snapshot, Known(less))] == [("unheld", "10.31.0.21")]
        a.view.put(replace(web, address6=A6("fd00:31::9")))
        found = {(f.kind, f.address) for f in findings(a.view.snapshot, Known(held))}
        assert found == {("kept", "10.31.0.9"), ("unheld", "10.31.0.9"), ("unused", "10.31.0.21")}
        assert a.ops.idle() and {r.owner for r in a.ops.idle()} == {paired(web.id)}


async def test_two_clusters_that_both_use_one_are_told(store: Cuttable, tmp_path: Path) -> None:
    async with nodes(store, tmp_path, "A") as (a,):
        await _dual(a)
        await attach(a, "web", "10.31.0.20", "fd00:31::15")
        here = export(a.view.snapshot)
        moved = replace(here.endpoints[1], id="B.x", name="x", address=A("10.31.0.90"), address6=A6("fd00:31::15"))
        found = [clash for clash in conflicts(here, replace(here, endpoints=(moved,))) if clash.kind == "address"]
        assert len(found) == 1 and "web" in found[0].here and "x on" in found[0].there
