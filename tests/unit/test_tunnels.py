# SPDX-License-Identifier: Apache-2.0
"""What is said of encrypted tunnels: proved, silent and since when, clear packets; the node's own key file."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plait.agent.health import Health
from plait.agent.rotation import Doors, Rotation
from plait.agent.tunnelkeys import key_file, new_key, own_public_key
from plait.agent.tunnels import Tunnels, far_ends
from plait.backends.wireguard import SPARE, relay_of
from plait.kernel.linux.wgdevice import Device, Peer, key_text
from plait.model.cluster import Network, Node, Snapshot, TunnelKey
from plait.model.errors import ConfigError

A, N = IPv4Address, IPv4Network
KEYS = {name: key_text(name.encode() * 32) for name in "ABCD"}
SECRET = Network("secret", N("10.29.0.0/16"), A("10.29.0.1"), 24, backend="wireguard")


def node(name: str, number: int) -> Node:
    return Node(name, name, A(f"198.18.0.{number}"), wireguard=TunnelKey(KEYS[name], 7472, A(f"10.29.{number}.0")))


NODES = {"A": node("A", 1), "B": node("B", 2), "C": replace(node("C", 3), wireguard=None), "D": node("D", 4)}
CLUSTER = Snapshot("A", 1, NODES, frozenset("ABC"), {"secret": SECRET})


class World:
    """A clock, a device and hosts that answer or do not."""

    def __init__(self) -> None:
        self.now, self.dropped, self.answers, self.marks = 1_700_000_000.0, 0, True, 0
        self.device: Device | None = Device(KEYS["A"], 7472, (Peer(KEYS["B"], (A("198.18.0.2"), 7472), handshake=1_699_999_990.0),))
        self.health = Health(lambda: self.now)
        self.tunnels = Tunnels(lambda: CLUSTER, self, self.health, self._mark, lambda: self.now)

    wireguard_repairs = 2

    def wireguard(self, name: str) -> Device | None:
        return self.device

    def counted(self, chains: Sequence[str]) -> int:
        return self.dropped

    def _mark(self) -> None:
        self.marks += 1

    def round(self, seconds: float = 2.0) -> None:
        """One round, and the time that it takes."""
        asked = far_ends(CLUSTER).keys()
        asyncio.run(self.tunnels.conclude(asked, asked if self.answers else set(), seconds))
        self.now += seconds

    def texts(self, code: str) -> dict[str, str]:
        return {active.subject: active.text for active in self.health.active() if active.condition.code == code}


def test_only_living_nodes_that_can_encrypt_are_asked_and_nobody_by_a_node_that_cannot() -> None:
    assert far_ends(CLUSTER) == {"B": A("10.29.2.0")}
    assert far_ends(replace(CLUSTER, me="C")) == {} and far_ends(replace(CLUSTER, me="X")) == {}


def test_proved_while_answered_and_silent_after_five_rounds_with_the_moment_of_the_last_answer() -> None:
    world = World()
    world.round()
    assert world.tunnels.known["B"].proved and world.tunnels.known["B"].handshake == 1_699_999_990.0
    world.answers = False
    for _ in range(5):
        world.round()
    assert not world.texts("tunnel-silent")
    for _ in range(2):
        world.round()
    assert not world.tunnels.known["B"].proved
    text = world.texts("tunnel-silent")["B"]
    assert "since 2023-11-14 22:13:20 UTC" in text and "latest handshake was at 2023-11-14 22:13:10 UTC" in text
    assert "UDP to 198.18.0.2:7472 is blocked, or B uses another key" in text
    world.answers = True
    world.round()
    assert world.tunnels.known["B"].proved and not world.texts("tunnel-silent")


@pytest.mark.parametrize(
    ("device", "says"),
    [
        (None, "device pl-wg does not answer"),
        (Device(KEYS["A"], 7472), "does not have the key that B published"),
        (Device(KEYS["A"], 7472, (Peer(KEYS["B"]),)), "no handshake yet; either UDP to an address that is not known yet"),
    ],
)
def test_the_cause_as_far_as_it_is_seen_from_here(device: Device | None, says: str) -> None:
    world = World()
    world.device, world.answers = device, False
    for _ in range(8):
        world.round()
    assert says in world.texts("tunnel-silent")["B"]


def test_a_device_that_is_not_as_it_was_made_is_put_right() -> None:
    world = World()
    world.round()
    assert world.marks == 0
    world.device = Device(KEYS["C"], 7472)
    world.round()
    assert world.marks == 1


def test_clear_packets_are_a_condition_for_a_minute_and_counted_over_rewritten_chains() -> None:
    world = World()
    world.round()
    assert not world.texts("clear-traffic")
    for count in (3, 5, 1):  # the chain was written anew before the last
        world.dropped = count
        world.round()
    assert world.texts("clear-traffic")[""].startswith("6 packets since")
    for _ in range(31):
        world.round()
    assert not world.texts("clear-traffic")
    figures = {reading.name.rpartition(".")[2]: reading.value for reading in world.tunnels.readings()}
    assert figures == {"clear_drops": 6.0, "repairs": 2.0, "tunnels_proved": 1.0}


def test_who_is_heard_from_elsewhere_is_told_and_an_old_session_says_nothing() -> None:
    world = World()
    world.round()
    assert world.tunnels.elsewhere == () and world.marks == 0
    moved = Peer(KEYS["B"], (A("203.0.113.7"), 40000), handshake=world.now - 10)
    world.device = Device(KEYS["A"], 7472, (moved,))
    for _ in range(2):
        world.round()
    assert world.tunnels.elsewhere == ("B",) and world.marks == 1, "said once"
    world.device = Device(KEYS["A"], 7472, (replace(moved, handshake=world.now - 200),))
    world.round()
    assert world.tunnels.elsewhere == () and world.marks == 2


def test_a_node_learns_from_others_that_it_is_behind_nat(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    assert not world.tunnels.behind_nat()
    far = replace(NODES["B"], wireguard=TunnelKey(KEYS["B"], 7472, A("10.29.2.0"), elsewhere=("A",)))
    monkeypatch.setitem(NODES, "B", far)
    assert world.tunnels.behind_nat()


def test_two_behind_nat_choose_the_same_relay_and_others_none() -> None:
    hidden = {name: replace(node(name, 1), wireguard=TunnelKey(KEYS[name], 7472, nat=True)) for name in "AB"}
    (a, b), c, d = hidden.values(), node("C", 3), node("D", 4)
    own = {name: n.wireguard for name, n in (*hidden.items(), ("C", c))}
    assert all(own.values())
    assert relay_of(own["A"], b, [b, d, c]) == c and relay_of(own["B"], a, [d, c, a]) == c  # type: ignore[arg-type]
    assert relay_of(own["A"], b, [b, replace(c, wireguard=None), d]) == d  # type: ignore[arg-type]
    assert relay_of(own["A"], b, [b]) is None and relay_of(own["A"], c, [c, d]) is None  # type: ignore[arg-type]
    assert relay_of(own["C"], a, [a, d]) is None  # type: ignore[arg-type]


def rotation_of(view: Any, lib: Path) -> Rotation:
    store: Any = None
    return Rotation(view, store, {}, lib, 0, Doors(lambda: None, lambda: asyncio.sleep(0)))


def test_a_key_file_that_is_damaged_later_ends_nothing(tmp_path: Path) -> None:
    view: Any = SimpleNamespace(me="A", snapshot=CLUSTER, subscribe=lambda tell: None)
    rotation = rotation_of(view, tmp_path)
    before = rotation.key(None)
    key_file(tmp_path).write_text("nonsense")
    assert rotation.key(None) == before


@pytest.mark.parametrize("spare", ["the record's", "nobody's"])
def test_a_spare_key_that_the_record_does_not_name_is_gone_after_a_start(tmp_path: Path, spare: str) -> None:
    own_public_key(tmp_path)
    known = new_key(tmp_path, SPARE) if spare == "the record's" else ""
    key_file(tmp_path, SPARE).touch()
    me = replace(node("A", 1), wireguard=TunnelKey(KEYS["A"], 7472, A("10.29.1.0"), known, 7 if known else 0))
    view: Any = SimpleNamespace(me="A", snapshot=replace(CLUSTER, nodes={"A": me}), subscribe=lambda tell: None)
    assert rotation_of(view, tmp_path).key(None).spare == known
    assert key_file(tmp_path, SPARE).exists() == bool(known)


def test_the_key_is_made_once_for_root_alone_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    first = own_public_key(tmp_path)
    assert own_public_key(tmp_path) == first and key_file(tmp_path).stat().st_mode & 0o777 == 0o600
    assert new_key(tmp_path) != first and own_public_key(tmp_path) != first
    key_file(tmp_path).write_text("nonsense")
    with pytest.raises(ConfigError, match=r"pl-wg\.key.*nonsense|pl-wg\.key") as refused:
        own_public_key(tmp_path)
    assert "nonsense" not in str(refused.value)
