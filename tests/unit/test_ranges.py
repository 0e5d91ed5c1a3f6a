# SPDX-License-Identifier: Apache-2.0
"""ranges.toml: what it may say, what stays in force when it is wrong, and who gets which address then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.cluster import FakeNode, nodes
from tests.support.consulapi import Cuttable

from plait.agent.health import Health
from plait.agent.journal import Journal
from plait.agent.keys import alive_key
from plait.agent.ranges import RangesFile, differing, digest, misplaced, parse_ranges
from plait.ipam import Asker, refusal
from plait.model.cluster import Network, Node, Snapshot
from plait.model.errors import ConfigError, Conflict, PoolExhausted
from plait.runtimes.api import NetworkRequest
from plait.store.api import Put

A = IPv4Address
MESH = Network("mesh", IPv4Network("10.40.0.0/16"), A("10.40.0.1"), 24)
GOOD = """
# for the databases
[[range]]
name = "databases"
network = "mesh"
addresses = ["10.40.1.0/30", "10.40.2.11-10.40.2.12"]
containers = "db-*"

[[range]]
network = "mesh"
addresses = ["10.40.3.3"]
labels = "tier=web,env in (prod, stage)"
"""


def test_members_are_told_by_name_or_label() -> None:
    databases, web = parse_ranges(GOOD, "f")
    assert (databases.name, web.name) == ("databases", "tier=web,env in (prod, stage)")
    assert str(databases) == "range 'databases' (10.40.1.0/30, 10.40.2.11-10.40.2.12)"
    assert databases.is_for("db-1", {}) and not databases.is_for("DB-1", {}) and not databases.is_for("adb-1", {})
    assert web.is_for("any", {"tier": "web", "env": "stage"}) and not web.is_for("any", {"tier": "web"})
    assert not web.is_for("", {"tier": "web", "env": "prod"}), "who is not known is no member"
    both = parse_ranges(GOOD.replace('"db-*"', '"db-*"\nlabels = "a=b"'), "f")[0]
    assert both.is_for("db-1", {"a": "b"}) and not both.is_for("db-1", {}) and not both.is_for("x", {"a": "b"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("[[range]]\nnetwork", "[[range]\nnetwork"), r"not valid TOML: .*line 9"),
        (('network = "mesh"\naddresses = ["10.40.3.3"]', 'addresses = ["10.40.3.3"]'), "line 9: range 2: network.*must be a text"),
        (('addresses = ["10.40.3.3"]', "addresses = []"), "line 9: range 2: addresses.*must be a list"),
        (('["10.40.3.3"]', '["10.40.3.3/24"]'), "line 9: range 2: addresses.*host bits"),
        (('["10.40.3.3"]', '["10.40.3.3-10.40.3.1"]'), "line 9: range 2: addresses.*behind"),
        (('["10.40.3.3"]', '["fd00::1"]'), "line 9: range 2: addresses.*no range"),
        (('["10.40.3.3"]', '["10.40.16.0/20", "10.40.3.3"]'), "line 9: range 2: addresses.*more than 4096"),
        (('["10.40.3.3"]', '["10.40.1.3"]'), "line 9.*'10.40.1.3' overlaps 10.40.1.0/30 of range 'databases'"),
        (('labels = "tier=web,env in (prod, stage)"', ""), "line 9: range 2.*not for whom"),
        (("tier=web,env in (prod, stage)", "tier=web,,"), "line 9: range 2: labels.*no label selector"),
        (('containers = "db-*"', "containers = 7"), "line 3: range 1: containers.*must be a text"),
        (('containers = "db-*"', 'container = "db-*"'), "line 3: range 1.*'container' is not a known key"),
        (("# for the databases", "x = 1"), "'x' is not a known key"),
        (("[[range]]\nnetwork", '[[range]]\nname = "databases"\nnetwork'), "line 9.*'databases' is the name of an earlier"),
    ],
)
def test_a_wrong_file_is_refused_with_line_and_reason(change: tuple[str, str], words: str) -> None:
    assert change[0] in GOOD
    with pytest.raises(ConfigError, match=words):
        parse_ranges(GOOD.replace(*change), "f")


@pytest.mark.parametrize("text", ["range = 7", "range = [7]", '[range]\nnetwork = "x"'])
def test_strange_shapes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_ranges(text, "f")


@given(st.text(max_size=200))
def test_whatever_the_file_holds_it_is_read_or_refused(text: str) -> None:
    try:
        parse_ranges(text, "f")
    except ConfigError:
        return


@given(st.integers(0, 1 << 11), st.sampled_from(["", "db-1", "web"]), st.sampled_from([{}, {"tier": "web", "env": "prod"}]))
def test_every_address_is_for_members_or_for_the_others(number: int, name: str, labels: dict[str, str]) -> None:
    address = A(int(MESH.subnet.network_address) + number)
    ranges = parse_ranges(GOOD, "f")
    mine = [one for one in ranges if one.is_for(name, labels)]
    allowed = not refusal(MESH, address, Asker(name, labels), None, ranges)
    assert allowed == (any(address in one for one in mine) if mine else not any(address in one for one in ranges))


def test_the_digest_is_of_what_is_said_and_not_of_how() -> None:
    first, second = GOOD.split("\n\n")
    assert digest(parse_ranges(GOOD, "f")) == digest(parse_ranges(f"{second}\n\n{first}\n# more", "g")) != ""
    assert digest(parse_ranges(GOOD.replace("10.40.3.3", "10.40.3.4"), "f")) != digest(parse_ranges(GOOD, "f"))
    assert digest(()) == ""


def test_hosts_that_differ_are_named() -> None:
    known = {n: Node(n, n, A("198.18.0.1"), ranges=r) for n, r in (("A", "one"), ("B", "two"), ("C", ""), ("D", "one"), ("E", "gone"))}
    found = differing(Snapshot("A", nodes=known, alive=frozenset("ABCD")))
    assert found == {"B": "B has ranges two, A ranges one", "C": "C has no ranges, A ranges one"}
    assert differing(Snapshot("Z")) == {}


def test_a_range_outside_its_network_is_named() -> None:
    ranges = parse_ranges(GOOD, "f")
    assert misplaced(ranges, {"mesh": MESH}) == misplaced(ranges, {}) == []
    small = replace(MESH, subnet=IPv4Network("10.40.0.0/23"))
    assert misplaced(ranges, {"mesh": small})[0] == ("10.40.2.11-10.40.2.12 of range 'databases' is no part of network mesh (10.40.0.0/23)")


class File:
    """A ranges file, its journal and its health."""

    def __init__(self, folder: Path) -> None:
        self.path, self.folder = folder / "ranges.toml", folder
        self.health = Health(lambda: 0.0)
        self.changes = 0
        self.journal: Journal | None = None
        self.again()

    def again(self) -> None:
        """The agent is started again."""
        if self.journal is not None:
            self.journal.close()
        self.journal = Journal(self.folder / "journal.db")
        self.file = RangesFile(self.path, self.journal, self.health, self._changed)

    def _changed(self) -> None:
        self.changes += 1

    async def says(self, text: str | None) -> int:
        """Number of ranges in force after that."""
        self.path.unlink(missing_ok=True) if text is None else self.path.write_text(text)
        await self.file.look()
        return len(self.file.ranges)

    @property
    def refused(self) -> list[str]:
        return [active.text for active in self.health.active()]


@pytest.fixture
def f(tmp_path: Path) -> Iterator[File]:
    made = File(tmp_path)
    yield made
    assert made.journal is not None
    made.journal.close()


async def test_a_wrong_file_leaves_the_one_in_force_also_over_a_restart(f: File) -> None:
    assert await f.says(None) == 0 and f.changes == 0
    assert await f.says(GOOD) == 2 and f.changes == 1
    assert await f.says(GOOD + "nonsense") == 2 and "ranges of before stay" in f.refused[0]
    assert await f.says(GOOD + "nonsense") == 2 and f.changes == 1
    f.again()
    await f.file.look()
    assert len(f.file.ranges) == 2 and f.refused
    assert await f.says(GOOD) == 2 and not f.refused, "back to what is in force"
    assert await f.says(None) == 0 and f.changes == 2
    f.again()
    assert f.file.ranges == ()


async def test_a_file_that_cannot_be_read_changes_nothing(f: File) -> None:
    await f.says(GOOD)
    f.path.write_bytes(b"\xff\xfe")
    await f.file.look()
    assert len(f.file.ranges) == 2 and "is not taken" in f.refused[0]
    assert await f.says(GOOD) == 2 and not f.refused


async def test_it_is_followed(f: File, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plait.agent.ownfile.EVERY_S", 0.01)
    following = asyncio.create_task(f.file.run())
    f.path.write_text(GOOD)
    async with asyncio.timeout(5):
        while not f.file.ranges:  # noqa: ASYNC110 (nothing tells of it)
            await asyncio.sleep(0.01)
    following.cancel()


# --- who gets what


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[list[FakeNode]]:
    store = Cuttable()
    async with nodes(store, tmp_path, "A", "B", "C") as made:
        for node in made:
            node.ranges += parse_ranges(GOOD, "f")
        await made[0].ops.ensure_network(NetworkRequest("mesh", MESH.subnet))
        await store.txn([], [Put(alive_key(node.name), b"1") for node in made])
        for node in made:
            await node.until(lambda node=node: "mesh" in node.view.snapshot.networks and len(node.view.snapshot.alive) == 3)
            await node.addresses.maintain()
        yield made
    await store.close()


RANGE = {A(f"10.40.1.{n}") for n in range(4)} | {A("10.40.2.11"), A("10.40.2.12")}


async def test_members_on_every_host_get_only_from_their_range_and_others_never(three: list[FakeNode]) -> None:
    got: set[IPv4Address] = set()
    for number in range(6):
        node = three[number % 3]
        got.add(await node.attach(f"db-{number}", "mesh"))
        assert await node.attach(f"web-{number}", "mesh") not in RANGE
    assert got == RANGE
    with pytest.raises(PoolExhausted, match=r"range 'databases' .* has no address left: 6 addresses, in use by .*ranges\.toml"):
        await three[0].attach("db-more", "mesh")
    await three[1].detach("db-4")
    await three[1].addresses.maintain()
    for node in three:
        await node.publisher.publish()
    await three[1].addresses.maintain()
    await three[0].until(lambda: all(e.name != "db-4" for e in three[0].view.snapshot.endpoints.values()))
    assert await three[1].attach("db-more", "mesh") in RANGE


async def test_a_stranger_that_asks_for_one_is_refused_with_the_ranges_name(three: list[FakeNode]) -> None:
    for node in three:
        with pytest.raises(Conflict, match=r"10\.40\.1\.2 of network 'mesh' is in range 'databases' .* of which 'web' is no member"):
            await node.attach("web", "mesh", "10.40.1.2")
        with pytest.raises(Conflict, match=r"10\.40\.200\.2 of network 'mesh' is not in range 'databases'"):
            await node.attach("db-1", "mesh", "10.40.200.2")
    assert await three[2].attach("db-1", "mesh", "10.40.1.2") == A("10.40.1.2")
    assert await three[1].attach("w", "mesh", "10.40.3.3", {"tier": "web", "env": "prod"}) == A("10.40.3.3")


async def test_a_member_gets_its_address_again_and_a_reservation_counts_more(three: list[FakeNode]) -> None:
    a, b, _ = three
    first = await b.attach("db-1", "mesh")
    await a.attach("db-2", "mesh")
    await b.detach("db-1")
    await b.addresses.maintain()
    assert await b.attach("db-1", "mesh") == first
    await a.addresses.assigned.reserve(a.view.snapshot.networks["mesh"], "db-9", A("10.40.77.7"))
    assert await a.attach("db-9", "mesh") == A("10.40.77.7")


async def test_many_members_at_once_on_three_hosts_never_share_one(three: list[FakeNode]) -> None:
    results = await asyncio.gather(*(three[n % 3].attach(f"db-{n}", "mesh") for n in range(9)), return_exceptions=True)
    got = [r for r in results if isinstance(r, IPv4Address)]
    assert len(set(got)) == len(got) >= 4 and set(got) <= RANGE
    assert all(isinstance(r, IPv4Address | PoolExhausted) for r in results), results
