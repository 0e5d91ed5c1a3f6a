# SPDX-License-Identifier: Apache-2.0
"""The loop that keeps BIRD in line with the routing file and turns what it says into conditions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface
from pathlib import Path

import pytest
from tests.unit.test_routing import BGP, FILTERED, OSPF, PROTOCOLS, ROUTES, SIX, SNAPSHOT, service

from plait.agent import ownfile, routing
from plait.agent.birdprocess import BirdError
from plait.agent.health import Health
from plait.agent.journal import Journal
from plait.agent.routing import PATIENCE_S, RoutingLoop, router_id
from plait.model.cluster import Endpoint, Snapshot
from plait.model.errors import NotSupported
from plait.model.objects import Addr
from plait.model.routing import table_number
from plait.model.routingreport import RoutingView

TWO = BGP.replace("192.0.2.1", "198.18.0.3") + 'import = ["10.200.0.0/16"]\n' + OSPF.partition("[[ospf]]")[1] + '\nlinks = ["eth0"]\n'
UP = PROTOCOLS
DOWN = PROTOCOLS.replace("up     00:07:51.762  Established", "start  00:07:51.762  Active     ")


class Bird:
    """Takes every configuration and answers as it is told to."""

    log = Path("/run/bird.log")

    def __init__(self) -> None:
        self.starts, self.config, self.stopped = 0, "", 0
        self.protocols, self.refuses = UP, ""
        self.error: Exception | None = None
        self.answers = True

    async def bring(self, config: str) -> bool:
        if self.error is not None:
            raise self.error
        fresh, self.config = config != self.config, config
        return fresh

    async def ask(self, command: str) -> list[str]:
        if not self.answers:
            raise BirdError("BIRD cannot be asked at bird.ctl: No such file or directory")
        if command == "show protocols all":
            return self.protocols.splitlines()
        if command.startswith("show route filtered protocol"):
            by = command.split()[4]
            blocks = FILTERED.replace("\n1", "\n\n1").split("\n\n")
            return [line for block in blocks if f"[{by} " in block for line in block.splitlines()]
        lines = ROUTES.splitlines()
        table = command.removeprefix("show route primary table ").removesuffix(" where source != RTS_STATIC")
        return {"t_red": lines[:6], "t6_red": lines[6:]}[table]

    async def stop(self) -> bool:
        self.config, self.stopped = "", self.stopped + 1
        return True


class Tables:
    def __init__(self) -> None:
        self.flushed: list[tuple[int, ...]] = []
        self.can = frozenset({"ipv6"})

    def addresses(self) -> list[Addr]:
        return [Addr("eth0", IPv4Interface("198.18.0.1/24")), Addr("eth0", IPv6Interface("2001:2::1/64"))]

    def capabilities(self) -> frozenset[str]:
        return self.can

    def table_sizes(self) -> dict[int, int]:
        return {}

    def flush_tables(self, kept: tuple[int, ...] = ()) -> None:
        self.flushed.append(kept)


class View:
    snapshot: Snapshot = SNAPSHOT

    def subscribe(self, listener: Callable[[frozenset[str]], None]) -> None:
        self.listener = listener


class Case:
    """A loop with a file that the test writes; `passes` waits for some more looks."""

    def __init__(self, folder: Path) -> None:
        self.path, self.bird, self.tables, self.view = folder / "routing.toml", Bird(), Tables(), View()
        self.journal, self.health, self.now, self.changes = Journal(folder / "journal.db"), Health(lambda: 0.0), 0.0, 0
        parts = self.path, self.bird, self.view, self.tables, self.journal, self.health
        self.loop = RoutingLoop(*parts, self._changed, lambda: self.now)  # type: ignore[arg-type]

    def _changed(self) -> None:
        self.changes += 1

    async def passes(self, count: int = 3) -> None:
        await asyncio.sleep(0.02 * count)

    async def states(self, *wanted: str) -> RoutingView:
        """What `plait routing` tells, once its sessions are in just these states."""
        view = await self.loop.view()
        async with asyncio.timeout(5):
            while {row["state"] for row in view["sessions"]} != set(wanted):
                await asyncio.sleep(0.005)
                view = await self.loop.view()
        return view

    def texts(self, code: str) -> dict[str, str]:
        return {active.subject: active.text for active in self.health.active() if active.condition.code == code}


@pytest.fixture
async def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Case]:
    monkeypatch.setattr(routing, "EVERY_S", 0.005)
    monkeypatch.setattr(ownfile, "EVERY_S", 0.005)
    made = Case(tmp_path)
    running = asyncio.create_task(made.loop.run())
    yield made
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    made.journal.close()


async def test_without_a_file_there_is_no_daemon_and_nothing_is_left_of_an_earlier_one(case: Case) -> None:
    await case.passes()
    assert case.bird.config == "" and case.bird.stopped == 1 and case.tables.flushed == [()]
    assert await case.loop.view() == {"sessions": [], "announced": {}, "learned": [], "refused": []}


async def test_the_file_is_followed_and_an_entry_that_goes_leaves_no_routes(case: Case) -> None:
    case.path.write_text(TWO)
    await case.passes()
    assert "neighbor 198.18.0.3" in case.bird.config and case.changes == 1
    assert [table.number for table in case.loop.tables] == [table_number("red")] == list(case.tables.flushed[-1])
    case.path.write_text(TWO + "nonsense")
    await case.passes()
    assert "routing of before stay" in case.texts("routing-refused")[str(case.path)] and case.changes == 1
    case.path.unlink()
    await case.passes()
    assert case.bird.config == "" and case.tables.flushed[-1] == () and case.loop.tables == () and not case.health.active()


async def test_what_is_shown(case: Case) -> None:
    case.path.write_text(TWO)
    await case.passes()
    view = await case.loop.view()
    assert [(row["peer"], row["protocol"], row["up"], row["learned"], row["refused"]) for row in view["sessions"]] == [
        ("198.18.0.3", "bgp", True, 1, 2),
        ("area 0.0.0.0 on eth0", "ospf", True, 1, 3),
    ]
    assert view["announced"] == {"pink": [], "red": ["10.40.1.0/24", "10.40.2.9/32"]}
    assert view["learned"][0] == {"table": "red", "prefix": "10.200.0.0/16", "via": "198.18.0.4", "dev": "eth0"}
    assert [(row["prefix"], row["origin"], row["wrong"]) for row in view["refused"]] == [
        ("0.0.0.0/0", "AS 65003", True),
        ("10.28.99.0/24", "198.18.0.4", False),
    ], "the link that all share is in every area"


SIXES = (("198.18.0.3", "ipv4"), ("198.18.0.3", "ipv6"), ("area 0.0.0.0 on eth0", "ipv4"), ("area 0.0.0.0 on eth0", "ipv6"))


def dual(bgp: str = "UP", area: str = "Running") -> str:
    """What BIRD says where `TWO` is of both families."""
    six = f"  Channel ipv6\n    State:          {bgp}\n    Routes:         2 imported, 3 exported, 2 preferred\n\nbgp_2001"
    more = f"\nospf3_red_0_0_0_0 OSPF       t6_red     up     18:40:39.473  {area}\n  Channel ipv6\n    State:          UP\n"
    return PROTOCOLS.replace("\nbgp_2001", six, 1) + more


async def test_both_families_are_shown_of_a_network_that_has_them(case: Case) -> None:
    case.bird.protocols, case.view.snapshot = dual(), SIX
    case.path.write_text(TWO)
    await case.passes()
    view = await case.loop.view()
    assert tuple((row["peer"], row["family"]) for row in view["sessions"]) == SIXES and all(row["up"] for row in view["sessions"])
    assert [row["protocol"] for row in view["sessions"]] == ["bgp", "bgp", "ospf", "ospf3"]
    assert view["announced"]["red"][2:] == ["fd00:40::100/120", "fd00:40::209/128"]
    assert view["learned"][-1] == {"table": "red", "prefix": "2001:db8:200::/48", "via": "fe80::4c:c6ff:fe12:2", "dev": "eth0"}
    assert "ospf v3 ospf3_red" in case.bird.config and not case.texts("routing-down")
    case.tables.can = frozenset()
    await case.passes()
    assert "ipv6" not in case.bird.config and len((await case.loop.view())["sessions"]) == 2, "a kernel without IPv6"


async def test_a_family_that_a_router_does_not_speak_is_named_where_it_was_asked_for_or_was_there(case: Case) -> None:
    case.bird.protocols, case.view.snapshot = dual("DOWN", "Alone"), SIX
    case.path.write_text(TWO)
    await case.passes()
    case.now = PATIENCE_S
    await case.passes()
    assert case.texts("routing-down") == {}, "nothing of IPv6 is imported"
    assert [row["state"] for row in (await case.loop.view())["sessions"]][1::2] == ["ipv6 is not agreed on", "Alone"]
    case.path.write_text(TWO.replace('"10.200.0.0/16"', '"10.200.0.0/16", "2001:db8:200::/48"'))
    await case.passes()
    assert case.texts("routing-down") == {"198.18.0.3": "no ipv6 routes are exchanged: ipv6 is not agreed on"}
    case.bird.protocols = dual("DOWN")
    await case.passes()
    case.bird.protocols = dual("DOWN", "Alone")
    await case.passes()
    assert case.texts("routing-down")["area 0.0.0.0 on eth0"] == "no ipv6 routes are exchanged: Alone"


async def test_what_is_known_is_shown_before_bird_answers_and_while_it_does_not(case: Case) -> None:
    case.bird.answers = False
    starting = asyncio.Event()

    async def begun(_config: str) -> bool:
        return await starting.wait()

    case.bird.bring = begun  # type: ignore[method-assign]
    case.path.write_text(TWO)
    view = await case.states("starting")
    assert [(row["peer"], row["up"], row["state"]) for row in view["sessions"]] == [
        ("198.18.0.3", False, "starting"),
        ("area 0.0.0.0 on eth0", False, "starting"),
    ]
    assert view["announced"]["red"] == ["10.40.1.0/24", "10.40.2.9/32"] and view["learned"] == view["refused"] == []
    starting.set()
    await case.states("BIRD does not answer")
    assert case.texts("routing-daemon")
    case.bird.answers = True
    view = await case.states("Established", "Running")
    assert all(row["up"] for row in view["sessions"]) and view["learned"]
    starting.clear()
    await case.passes()
    case.bird.answers = False
    assert (await case.loop.view())["sessions"] == view["sessions"], "as of the last look"


async def test_wrong_announcements_are_a_condition_unless_another_node_makes_them(case: Case) -> None:
    case.path.write_text(TWO)
    await case.passes()
    assert case.texts("routing-wrong") == {
        "198.18.0.3": "198.18.0.3 announces 0.0.0.0/0 (the default route, which `import` does not name); refused"
    }
    case.view.snapshot = with_network("10.28.0.0/16")
    await case.passes()
    assert "10.28.99.0/24 (addresses of plait's network more)" in case.texts("routing-wrong")["area 0.0.0.0 on eth0"]
    case.view.snapshot = with_network("10.28.0.0/16", node="198.18.0.4")
    await case.passes()
    assert list(case.texts("routing-wrong")) == ["198.18.0.3"]


def with_network(subnet: str, node: str = "198.18.0.2") -> Snapshot:
    more = replace(SNAPSHOT.networks["red"], name="more", subnet=IPv4Network(subnet))
    nodes = SNAPSHOT.nodes | {"B": replace(SNAPSHOT.nodes["B"], address=IPv4Address(node))}
    return replace(SNAPSHOT, networks={**SNAPSHOT.networks, "more": more}, nodes=nodes)


async def test_services_are_announced_where_the_file_says_so_and_looked_through_once_a_second_at_most(case: Case) -> None:
    shop = service("shop", 9)
    endpoint = Endpoint("s", "red", "A", IPv4Address("10.40.1.9"), "02:00:00:00:00:02", "", "sandbox", labels={"app": "shop"})
    case.view.snapshot = replace(SNAPSHOT, services={shop.ident: shop}, endpoints={**SNAPSHOT.endpoints, "s": endpoint})
    case.path.write_text(TWO)
    await case.passes()
    assert "10.27.0.9/32" not in case.bird.config
    case.path.write_text(TWO.replace("networks =", "services = true\nnetworks ="))
    await case.passes()
    assert "route 10.27.0.9/32 blackhole;" in case.bird.config
    assert (await case.loop.view())["announced"]["red"] == ["10.27.0.9/32", "10.40.1.0/24", "10.40.2.9/32"]
    case.view.snapshot = replace(case.view.snapshot, endpoints=SNAPSHOT.endpoints)
    case.view.listener(frozenset({"endpoints"}))
    await case.passes()
    assert "10.27.0.9/32" in case.bird.config
    case.now += 1
    await case.passes()
    assert "10.27.0.9/32" not in case.bird.config


async def test_a_session_that_never_came_up_is_named_after_a_while(case: Case) -> None:
    case.bird.protocols = DOWN
    case.path.write_text(TWO)
    await case.passes()
    assert case.texts("routing-down") == {}
    case.now = PATIENCE_S
    await case.passes()
    assert case.texts("routing-down") == {"198.18.0.3": "no routes are exchanged: Active"}
    case.bird.protocols = UP
    await case.passes()
    assert case.texts("routing-down") == {}


async def test_a_session_that_was_up_is_named_at_once(case: Case) -> None:
    case.path.write_text(TWO)
    await case.passes()
    case.bird.protocols = DOWN
    await case.passes()
    assert list(case.texts("routing-down")) == ["198.18.0.3"]


def test_hosts_without_an_address_of_ipv4_have_ids_of_their_own() -> None:
    one, other = (replace(SNAPSHOT.nodes["A"], id=f"{n}", address=IPv6Address("2001:db8::1")) for n in (1, 2))
    assert router_id(one) not in (router_id(other), IPv4Address(0)) and router_id(SNAPSHOT.nodes["A"]) == IPv4Address("198.18.0.1")


async def test_networks_that_cannot_take_part_are_named(case: Case) -> None:
    case.path.write_text(TWO.replace('"pink"', '"shut", "dark", "link", "none"'))
    await case.passes()
    assert case.texts("routing-network") == {
        "shut": "network shut takes no part in routing: it is internal",
        "dark": "network dark takes no part in routing: it is encrypted, and nothing of it may leave in clear",
        "link": "network link takes no part in routing: its containers are on a link of the hosts, whose routers know it",
        "none": "network none takes no part in routing: there is no such network",
    }


@pytest.mark.parametrize("error", [BirdError("BIRD refuses: x"), NotSupported("BIRD 2 is not installed"), OSError(13, "denied")])
async def test_a_daemon_that_cannot_be_had_is_a_condition_and_is_tried_again(case: Case, error: Exception) -> None:
    case.path.write_text(TWO)
    case.bird.error = error
    await case.passes()
    assert str(error) in case.texts("routing-daemon")["bird"]
    case.bird.error = None
    await case.passes()
    assert not case.texts("routing-daemon") and case.bird.config
