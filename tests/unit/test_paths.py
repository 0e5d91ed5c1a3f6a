# SPDX-License-Identifier: Apache-2.0
"""Which path is chosen for which pair, and that no choice of any nodes lets a packet go in circles."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.agent.lanes import LINK, LINK6, Lanes, Measured
from plait.agent.paths import Paths
from plait.backends import Path
from plait.model.cluster import Network, Node, Reach, Snapshot, TunnelKey
from plait.model.objects import Route
from plait.plan import Local, choose, inner_mtu, network_mtu, plan_node

NAMES = "ABCDE"
NODES = {
    n: Node(n, f"id-{n}", IPv4Address(f"192.0.2.{i}"), 1500, f"02:00:00:00:00:0{i}", IPv4Address(f"10.28.{i}.0"))
    for i, n in enumerate(NAMES, 1)
}
NETWORKS = {
    backend: Network(backend, IPv4Network("10.28.0.0/16"), IPv4Address("10.28.0.1"), 24, backend)
    for backend in ("vxlan", "hybrid", "direct", "none")
}


def cluster(*reach: Reach, me: str = "A", alive: str = NAMES) -> Snapshot:
    return Snapshot(me, 1, NODES, frozenset(alive), NETWORKS, reach={r.node: r for r in reach})


def chosen(snapshot: Snapshot, backend: str, node: str) -> str:
    """The path in short: its kind, "+" and the relay, "?" if nothing works."""
    path = choose(snapshot, NETWORKS[backend])[node]
    if path is None:
        return ""
    return path.kind + (f"+{path.relay.name}" if path.relay else "") + "?" * (not path.works)


LINKED = Reach("A", ("B",)), Reach("B", ("A",))
CUT = Reach("A", (), {"pl-x1": ("B",)}), Reach("B", (), {"pl-x1": ("A",)})
CUT_BUT_LINKED = Reach("A", ("B",), {"pl-x1": ("B",)}), Reach("B", ("A",), {"pl-x1": ("A",)})
ALONE = Reach("A", (), {"pl-x1": tuple("BCDE")})


@pytest.mark.parametrize(
    ("reach", "vxlan", "hybrid", "direct"),
    [
        ((), "vxlan", "vxlan", ""),
        (LINKED, "vxlan", "direct", "direct"),
        (LINKED[:1], "vxlan", "vxlan", ""),
        (CUT_BUT_LINKED, "direct", "direct", "direct"),
        (CUT, "vxlan+E", "vxlan+E", ""),
        ((ALONE,), "vxlan?", "vxlan?", ""),
        ((*CUT, Reach("E", (), {"pl-x1": ("B",)})), "vxlan+D", "vxlan+D", ""),
        ((*CUT, *(Reach(n, (), {"pl-x1": ("B",)}) for n in "CDE")), "vxlan?", "vxlan?", ""),
        ((CUT[0], replace(CUT[0], linked=("C",)), CUT[1], Reach("C", ("A", "B")), Reach("B", ("C",))), "vxlan+E", "vxlan+E", "direct+C"),
    ],
)
def test_the_preferred_way_that_works_is_taken(reach: tuple[Reach, ...], vxlan: str, hybrid: str, direct: str) -> None:
    snapshot = cluster(*reach)
    assert (chosen(snapshot, "vxlan", "B"), chosen(snapshot, "hybrid", "B"), chosen(snapshot, "direct", "B")) == (vxlan, hybrid, direct)


@pytest.mark.parametrize("six", ["AB", "A", "B"])
def test_nodes_with_ipv6_addresses_count_as_linked_to_nobody_whatever_was_said_before(six: str) -> None:
    moved = {n: replace(NODES[n], address=IPv6Address(f"2001:2::{n}")) for n in six}
    snapshot = replace(cluster(*LINKED), nodes={**NODES, **moved})
    assert (chosen(snapshot, "hybrid", "B"), chosen(snapshot, "direct", "B")) == ("vxlan", "")
    plan = plan_node(snapshot, Local(underlay="eth0"))
    assert all(route.via is None or route.via.version == 4 for route in plan.values() if isinstance(route, Route) and route.dev == "eth0")


@pytest.mark.parametrize(("backend", "wanted"), [("vxlan", (1430, 1330)), ("hybrid", (1500, 1330)), ("wireguard", (1420, 1312))])
def test_ipv6_takes_twenty_bytes_more_of_what_is_wrapped(backend: str, wanted: tuple[int, int]) -> None:
    me, other = (replace(NODES[n], address=IPv6Address(f"2001:2::{n}")) for n in "AB")
    network = replace(NETWORKS["vxlan"], backend=backend)
    path = Path("wireguard" if backend == "wireguard" else "vxlan", "")
    assert (network_mtu(me, network), inner_mtu(me, other, network, path, {"B": 1400})) == wanted


BROKEN = {"pl-x1": ("B",)}, {"pl-x1": ("A",)}
FOUR, SIX = (Reach("A", ("B",)), Reach("B", ("A",))), (Reach("A", (), {}, ("B",)), Reach("B", (), {}, ("A",)))
TWICE = Reach("A", ("B",), {}, ("B",)), Reach("B", ("A",), {}, ("A",))


def cut_off(pair: tuple[Reach, Reach]) -> tuple[Reach, ...]:
    """These, and that no tunnel leads to B."""
    ends = (replace(reach, broken=broken) for reach, broken in zip(pair, BROKEN, strict=True))
    return (*ends, *(Reach(n, (), {"pl-x1": ("B",)}) for n in "CDE"))


@pytest.mark.parametrize("underlay", [4, 6])
@pytest.mark.parametrize(
    ("reach", "backend", "wanted", "why"),
    [
        (TWICE, "hybrid", ("direct", (4, 6)), "both are on one link"),
        (FOUR, "hybrid", ("vxlan", (4, 6)), "IPv6 does not pass on their link"),
        (SIX, "hybrid", ("vxlan", (4, 6)), "IPv4 does not pass on their link"),
        ((), "hybrid", ("vxlan", (4, 6)), "they share no link"),
        ((TWICE[0], FOUR[1]), "hybrid", ("vxlan", (4, 6)), "IPv6 does not pass on their link"),
        (TWICE, "direct", ("direct", (4, 6)), "both are on one link"),
        (FOUR, "direct", ("direct", (4,)), "both are on one link, where IPv6 does not pass"),
        (SIX, "direct", ("direct", (6,)), "both are on one link, where IPv4 does not pass"),
        (cut_off(TWICE), "vxlan", ("direct", (4, 6)), "nothing comes through the tunnel pl-x1; both are on one link"),
        (cut_off(FOUR), "vxlan", ("direct", (4,)), "both are on one link, where IPv6 does not pass"),
        (cut_off(SIX), "vxlan", ("direct", (6,)), "both are on one link, where IPv4 does not pass"),
    ],
)
def test_a_network_with_both_families_takes_the_way_that_both_can_take(
    reach: tuple[Reach, ...], backend: str, wanted: tuple[str, tuple[int, ...]], why: str, underlay: int
) -> None:
    """Over an underlay of IPv6 plain IPv4 needs the next hop of IPv6 too: without that it does not pass either."""
    nodes = {n: replace(node, link6=IPv6Address(f"fe80::{i}")) for i, (n, node) in enumerate(NODES.items(), 1)}
    if underlay == 6:
        nodes = {n: replace(node, address=IPv6Address(f"2001:2::{n}")) for n, node in nodes.items()}
    network = replace(NETWORKS[backend], subnet6=IPv6Network("fd00:31::/64"), gateway6=IPv6Address("fd00:31::1"))
    path = choose(replace(cluster(*reach), nodes=nodes, networks={backend: network}), network)["B"]
    if underlay == 6 and wanted[1] == (4,):
        assert path is None or not path.works
        return
    assert path is not None and (path.kind, path.families) == wanted and path.why == why and path.works


def test_a_relay_for_both_families_is_better_than_a_link_for_one() -> None:
    nodes = {n: replace(node, link6=IPv6Address(f"fe80::{i}")) for i, (n, node) in enumerate(NODES.items(), 1)}
    network = replace(NETWORKS["vxlan"], subnet6=IPv6Network("fd00:31::/64"), gateway6=IPv6Address("fd00:31::1"))
    path = choose(replace(cluster(*cut_off(FOUR)[:2]), nodes=nodes, networks={"vxlan": network}), network)["B"]
    assert path is not None and path.relay is not None and path.families == (4, 6)


def test_a_sandbox_network_has_no_paths() -> None:
    assert set(choose(cluster(*LINKED), NETWORKS["none"]).values()) == {None}


def test_another_tunnels_trouble_is_none_of_this_one() -> None:
    assert chosen(cluster(Reach("A", (), {"pl-x7": ("B",)})), "vxlan", "B") == "vxlan"


def test_both_ends_choose_one_relay_and_pairs_share_the_work() -> None:
    cut = {n: Reach(n, (), {"pl-x1": tuple(set("ABC") - {n})}) for n in "ABC"}
    relays = {}
    for here, there in ("AB", "BA", "AC", "CA", "BC", "CB"):
        relays[here + there] = chosen(cluster(*cut.values(), me=here), "vxlan", there)
    assert all(relays[a + b] == relays[b + a] for a, b in relays)
    assert set(relays.values()) == {"vxlan+D", "vxlan+E"}


def test_the_dead_relay_nothing() -> None:
    assert chosen(cluster(*CUT, alive="ABCD"), "vxlan", "B") == "vxlan+D"
    assert chosen(cluster(*CUT, alive="AB"), "vxlan", "B") == "vxlan?"
    assert chosen(cluster(*CUT, alive="AC"), "vxlan", "B") == "vxlan+C", "perhaps it is only the store that B does not reach"


names = st.sampled_from(NAMES)
reaches = st.builds(
    lambda node, linked, broken: Reach(node, tuple(sorted(linked - {node})), {"pl-x1": tuple(sorted(broken - {node}))}),
    names,
    st.frozensets(names),
    st.frozensets(names),
)


@given(st.lists(reaches, max_size=8, unique_by=lambda r: r.node), st.sampled_from(["vxlan", "hybrid", "direct"]), names, names)
def test_a_packet_is_relayed_once_and_arrives(reach: list[Reach], backend: str, here: str, there: str) -> None:
    """As long as all nodes know the same of each other, which they need not (`firewall.relay_objects` is for then)."""
    if here == there:
        return
    path = choose(cluster(*reach, me=here), NETWORKS[backend])[there]
    if path is not None and path.relay is not None:
        onward = choose(cluster(*reach, me=path.relay.name), NETWORKS[backend])[there]
        assert onward is not None and onward.relay is None and onward.works


def test_each_path_carries_what_its_kind_leaves() -> None:
    narrow = replace(NODES["B"], mtu=1400)
    for kind, relay, backend, mtu in (
        ("direct", None, "hybrid", 1400),
        ("vxlan", None, "hybrid", 1350),
        ("vxlan", NODES["C"], "vxlan", 1230),
        ("direct", NODES["C"], "hybrid", 1280),
    ):
        path = Path(kind, "", relay)
        assert inner_mtu(NODES["A"], narrow, NETWORKS[backend], path, {"C": 1280}) == mtu
    assert inner_mtu(NODES["A"], NODES["B"], NETWORKS["vxlan"], Path("direct", ""), {}) == 1450, "no more than the containers' own"


class Book:
    """The paths of node A, at a time that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.lanes = Lanes(lambda: cluster(), lambda reach: None)
        self.paths = Paths(self.lanes, dict, lambda: self.now)

    def see(self, now: float, *reach: Reach, alive: str = NAMES) -> dict[str, Any]:
        """The row of node B and network vxlan."""
        self.now = now
        self.paths.observe(replace(cluster(*reach, alive=alive), networks={"vxlan": NETWORKS["vxlan"], "none": NETWORKS["none"]}))
        return dict(next(row for row in self.paths.rows() if row["node"] == "B"))


def test_people_are_shown_since_when_and_why() -> None:
    book = Book()
    assert (first := book.see(1))["since"] == 1 and first["kind"] == "vxlan" and first["networks"] == ["vxlan"]
    assert book.see(2)["since"] == 1
    relayed = book.see(3, *CUT)
    assert (relayed["kind"], relayed["relay"], relayed["first"], relayed["since"]) == ("relay", "E", "vxlan", 3)
    assert relayed["why"] == "nothing comes through the tunnel pl-x1; E reaches it"
    assert book.paths.troubles() == ({"B": "to B by relay E: nothing comes through the tunnel pl-x1; E reaches it"}, {})
    book.see(4, *CUT_BUT_LINKED)
    assert book.paths.troubles() == ({"B": "to B by direct: nothing comes through the tunnel pl-x1; both are on one link"}, {})
    assert book.see(5, ALONE)["kind"] == "none"
    detours, lost = book.paths.troubles()
    assert not detours and set(lost) == set("BCDE") and "no packet of network vxlan comes to B" in lost["B"]
    book.see(6, ALONE, alive="AC")
    assert set(book.paths.troubles()[1]) == {"C"}, "of nodes that give no sign of life this is not said too"
    assert book.see(7)["since"] == 7 and book.paths.troubles() == ({}, {})


def test_who_carries_what_two_behind_address_translation_send_is_shown_and_no_trouble() -> None:
    book, secret = Book(), replace(NETWORKS["vxlan"], name="secret", backend="wireguard")
    keys = {name: replace(NODES[name], wireguard=TunnelKey(name * 44, 7472, nat=name in "AB")) for name in "ABC"}
    for alive, kind, relay in (("ABC", "relay", "C"), ("AB", "wireguard", "")):
        book.paths.observe(replace(cluster(alive=alive), nodes=keys, networks={"secret": secret}))
        rows = {row["node"]: row for row in book.paths.rows()}
        assert (rows["B"]["kind"], rows["B"]["relay"]) == (kind, relay) and rows["C"]["kind"] == "wireguard"
        assert book.paths.troubles() == ({}, {})
        assert (rows["B"]["why"] == "both are behind address translation; C reaches both") == bool(relay)


def test_people_are_told_of_a_family_that_has_no_path() -> None:
    book = Book()
    nodes = {n: replace(node, link6=IPv6Address(f"fe80::{i}")) for i, (n, node) in enumerate(NODES.items(), 1)}
    network = replace(NETWORKS["direct"], subnet6=IPv6Network("fd00:31::/64"), gateway6=IPv6Address("fd00:31::1"))
    seen = replace(cluster(*FOUR, alive="AB"), nodes=nodes, networks={"direct": network})
    lane, lane6 = Measured(), Measured()
    book.lanes._lanes |= {("B", LINK): lane, ("B", LINK6): lane6}
    lane.took(0.002)
    lane6.took(None)
    book.paths.observe(seen)
    assert book.paths.troubles() == (
        {},
        {"B": "no IPv6 packet of network direct comes to B: both are on one link, where IPv6 does not pass"},
    )
    row = next(row for row in book.paths.rows() if row["node"] == "B")
    assert (row["rtt_ms"], row["loss"], row["rtt6_ms"], row["loss6"]) == (2.0, 0.0, None, 1.0)
    book.paths.observe(replace(seen, reach={r.node: r for r in TWICE}))
    assert book.paths.troubles() == ({}, {})


def test_people_are_shown_what_was_measured_of_the_first_step() -> None:
    book = Book()
    assert (book.see(1)["rtt_ms"], book.see(1)["loss"]) == (None, None)
    lane = book.lanes._lanes["E", "pl-x1"] = Measured()
    for rtt_s in (0.002, None, None, 0.004):
        lane.took(rtt_s)
    row = book.see(2, *CUT)
    assert (row["rtt_ms"], row["loss"]) == (4.0, 0.5)
