# SPDX-License-Identifier: Apache-2.0
"""Rotations of WireGuard keys, with words that reach others late and in any order of steps: no node ever sends into a tunnel whose two ends
do not know each other's keys, and every rotation ends with new keys and no spare device.

The nodes are real `Rotation`s; the store, the kernels and the echoes between them are a model.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.agent import rotation
from plait.agent.echo import LOST, Echoed
from plait.agent.keys import rotate_key
from plait.agent.rotation import Doors, Rotation
from plait.backends.wireguard import DEVICE, SPARE
from plait.model.cluster import Node, Snapshot, TunnelKey

NAMES = "ABC"
ADDRESSES = {name: IPv4Address(f"10.29.{number}.0") for number, name in enumerate(NAMES)}


@dataclass
class Kernel:
    """What a node's kernel holds: its own key by device, the others' keys by device, the device that leads to each."""

    own: dict[str, str] = field(default_factory=dict)
    peers: dict[str, dict[str, str]] = field(default_factory=lambda: {DEVICE: {}, SPARE: {}})
    routes: dict[str, str] = field(default_factory=dict)


class Host:
    """One node: its view, its kernel, its rotation."""

    def __init__(self, world: World, name: str, lib: Path) -> None:
        lib.mkdir()
        self.world, self.me, self.kernel = world, name, Kernel()
        self.snapshot = Snapshot(name, nodes={}, alive=frozenset(NAMES))
        self.lib = lib
        self.start()

    def start(self) -> None:
        """Its agent starts, or starts again after a SIGKILL: what it knows is in its record and its files."""
        store: Any = self.world
        view: Any = self
        self.rotation = Rotation(view, store, self.world.items, self.lib, 0, Doors(self.refresh, self.apply))

    def subscribe(self, changed: Callable[[frozenset[str]], None]) -> None:
        pass

    def refresh(self) -> None:
        node = Node(self.me, self.me, IPv4Address("198.18.0.1"), wireguard=self.rotation.key(ADDRESSES[self.me]))
        if self.snapshot.nodes.get(self.me) != node:
            self.learn(node)
            for other in NAMES:
                if other != self.me:
                    self.world.mail[self.me, other].append(node)

    def learn(self, node: Node) -> None:
        self.snapshot = replace(self.snapshot, nodes={**self.snapshot.nodes, node.name: node})

    async def apply(self) -> None:
        """One pass: as the backend plans."""
        own = self.rotation.key(None)
        others = {n.name: n.wireguard for n in self.snapshot.nodes.values() if n.name != self.me and n.wireguard is not None}
        spare = {name: key.spare for name, key in others.items() if own.spare and key.spare}
        self.kernel.own = {DEVICE: own.public, **({SPARE: own.spare} if own.spare else {})}
        self.kernel.peers = {DEVICE: {name: key.public for name, key in others.items()}, SPARE: spare}
        moved = self.rotation.moved if own.spare else ()
        self.kernel.routes = {name: SPARE if name in moved else DEVICE for name in others}
        self.world.check(self.me)

    async def probe(self, address: IPv4Address, device: str, source: IPv4Address) -> Echoed:
        other = next(name for name, of in ADDRESSES.items() if of == address)
        back = self.world.hosts[other].kernel.routes.get(self.me, DEVICE)
        return Echoed(0.001) if self.world.carries(self.me, other, device) and self.world.carries(other, self.me, back) else LOST


class World:
    def __init__(self, folder: Path) -> None:
        self.items: dict[str, Any] = {}
        self.mail: dict[tuple[str, str], list[Node]] = {(a, b): [] for a in NAMES for b in NAMES if a != b}
        self.lost: list[str] = []
        self.watching = False
        self.hosts = {name: Host(self, name, folder / name) for name in NAMES}

    async def txn(self, compares: object, ops: list[Any]) -> None:
        for op in ops:
            self.items.pop(op.key, None)

    def carries(self, sender: str, receiver: str, device: str) -> bool:
        """Both ends have the device and know each other's key of it."""
        one, two = self.hosts[sender].kernel, self.hosts[receiver].kernel
        if device not in one.own or device not in two.own:
            return False
        return one.peers[device].get(receiver) == two.own[device] and two.peers[device].get(sender) == one.own[device]

    def check(self, _: str) -> None:
        """No packet is lost in this moment, from whoever to whomever."""
        for a, b in self.mail:
            device = self.hosts[a].kernel.routes.get(b)
            if self.watching and device is not None and not self.carries(a, b, device):
                self.lost.append(f"{a} to {b} by {device}")

    async def act(self, what: tuple[str, str, str]) -> None:
        kind, a, b = what
        if kind == "ask":
            self.items[rotate_key(a)] = type("Item", (), {"key": rotate_key(a)})
        elif kind == "mail" and a != b and self.mail[a, b]:
            self.hosts[b].learn(self.mail[a, b].pop(0))
            await self.hosts[b].apply()
        elif kind == "restart":
            self.hosts[a].start()
            self.hosts[a].refresh()
            await self.hosts[a].apply()
        elif kind == "step":
            await self.hosts[a].rotation.step(self.hosts[a].probe)

    async def rest(self) -> None:
        """Everything arrives, and everybody goes on, until nobody has anything to do."""
        for _ in range(60):
            for pair in self.mail:
                while self.mail[pair]:
                    await self.act(("mail", *pair))
            for name in NAMES:
                await self.act(("step", name, name))
        assert not any(self.mail.values())


ACTIONS = st.tuples(
    st.sampled_from(("ask", "restart", "mail", "mail", "mail", "step", "step", "step")), st.sampled_from(NAMES), st.sampled_from(NAMES)
)


@pytest.fixture(autouse=True, scope="module")
def at_once() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rotation, "LINGER_S", 0.0)
        yield


def played(actions: list[tuple[str, str, str]]) -> tuple[World, dict[str, str]]:
    """The world after `actions` and then rest, and the keys before."""

    async def play(folder: Path) -> tuple[World, dict[str, str]]:
        world = World(folder)
        for host in world.hosts.values():
            host.refresh()
        await world.rest()
        before, world.watching = {name: host.kernel.own[DEVICE] for name, host in world.hosts.items()}, True
        for action in actions:
            await world.act(action)
        await world.rest()
        return world, before

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(play(Path(folder)))


@given(st.lists(ACTIONS, max_size=60))
@settings(max_examples=25, deadline=None)
def test_no_packet_is_lost_whatever_the_order_and_every_rotation_ends(actions: list[tuple[str, str, str]]) -> None:
    world, before = played(actions)
    assert world.lost == []
    for name, host in world.hosts.items():
        own = host.rotation.key(None)
        assert own == TunnelKey(own.public, own.port), f"{name} is not at rest: {own}"
        assert (host.kernel.own[DEVICE] != before[name]) == (("ask", name) in {action[:2] for action in actions})
        assert set(host.kernel.own) == {DEVICE} and set(host.kernel.routes.values()) == {DEVICE}


def test_the_model_finds_a_key_that_is_changed_under_those_who_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for the others the property does not hold: it can fail."""
    monkeypatch.setattr(rotation, "all_moved", lambda *_: True)
    world, _ = played([("ask", "A", "A")])
    assert world.lost
