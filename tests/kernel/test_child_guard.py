# SPDX-License-Identifier: Apache-2.0
"""What a container on a link of the host sends: a packet socket at the other end of that link sees what leaves the host, one in another
container on it what goes from neighbour to neighbour, which nothing on the host sees."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from tests.kernel.test_guard import ARP, EVERYBODY, IP4, NETWORKS, ON_DOCKER, claim, ethernet, ip4, udp
from tests.kernel.test_port_guard import FORGED, HONEST
from tests.support.kernel import sh

from plait.kernel.linux import LinuxKernel, create_netns, delete_netns
from plait.kernel.linux.netns import in_thread, inside
from plait.model.cluster import Endpoint, Network
from plait.model.hostlinks import ChildGuard, ChildLink
from plait.model.objects import Op
from plait.model.spoofing import LABEL, OPTION
from plait.plan.guard import child_guard

pytestmark = pytest.mark.root
LAN = replace(NETWORKS["routed"], backend="macvlan", options={"parent": "eth1"})
ME, PEER = (replace(ON_DOCKER[f"docker-{name}"], dev=f"pl-e{name}") for name in ("me", "peer"))
QUIET_S, WAIT_S = 0.05, 1.0
BYPASS, SOL_PACKET = 20, 263
NO_FORGERIES = {"no whole header", "advertised behind a hop and options"}
"""What no stack takes for a packet, or for an advertisement; a program that reads headers itself drops it to be sure."""
FRAMES = {name: frame for name, frame in FORGED.items() if name not in NO_FORGERIES}
LIED = 0x88B5
NO_BUFFERS = (OSError,)
"""What the kernel says to a packet socket whose frame is dropped there (ENOBUFS)."""


class Wire:
    """A host with two containers on its link `eth1`, whose other end is `far`."""

    def __init__(self, kernel: LinuxKernel, folder: Path) -> None:
        self.kernel, self.folder = kernel, folder

    def link(self, endpoint: Endpoint) -> ChildLink:
        return ChildLink(endpoint.dev, "eth1", "macvlan", "bridge", str(self.folder / endpoint.name), endpoint.mac)

    def guard(self, endpoint: Endpoint, network: Network = LAN) -> list[ChildGuard]:
        return child_guard(network, endpoint, endpoint.present, str(self.folder / endpoint.name))

    def put(self, *objects: ChildLink | ChildGuard) -> None:
        assert not self.kernel.apply([Op("put", one) for one in objects]).failed

    def holds(self, guard: ChildGuard) -> list[ChildGuard]:
        found = self.kernel.owned([guard.key]).get(guard.key)
        return [found] if isinstance(found, ChildGuard) else []

    def dropped(self, endpoint: Endpoint = ME) -> int:
        return self.kernel.counted_children([(endpoint.dev, str(self.folder / endpoint.name))])[endpoint.dev]

    def socket(self, where: str, dev: str, kind: int) -> socket.socket:
        with (self.folder / where).open() as file, inside(file.fileno()):
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind))
        made.bind((dev, kind))
        return made

    def send(self, frame: bytes, told: int = 0, bypass: bool = False) -> None:
        with self.socket(ME.name, "eth0", 0) as mouth:
            if bypass:
                mouth.setsockopt(SOL_PACKET, BYPASS, 1)
            with contextlib.suppress(*NO_BUFFERS):
                mouth.sendto(frame, ("eth0", told))

    def hears(
        self, frame: bytes, wait_s: float, at: tuple[str, str] = ("host", "far"), by: Callable[[bytes], None] | None = None, **how: int
    ) -> bool:
        """Whether a packet socket at that place has the frame once it is sent, as `send` does or by another way."""
        with self.socket(*at, 3) as ear:
            ear.settimeout(wait_s)
            by(frame) if by is not None else self.send(frame, **how)
            with contextlib.suppress(TimeoutError):
                while True:
                    if frame[14:] in ear.recv(2000):
                        return True
        return False


@pytest.fixture
def on_wire(tmp_path: Path) -> Iterator[Callable[[Callable[[Wire], None]], None]]:
    paths = [tmp_path / name for name in ("host", ME.name, PEER.name)]

    def run(body: Callable[[Wire], None]) -> None:
        def work() -> None:
            with paths[0].open() as file, inside(file.fileno()):
                sh("ip link add eth1 type veth peer name far")
                for dev in ("eth1", "far"):
                    sh(f"sysctl -qw net.ipv6.conf.{dev}.disable_ipv6=1; ip link set {dev} up")
                with contextlib.closing(LinuxKernel()) as kernel:
                    if not {"macvlan", "egress"} <= kernel.capabilities():
                        pytest.skip("this kernel has no macvlan, or no nf_tables for what leaves a link")
                    wire = Wire(kernel, tmp_path)
                    wire.put(*map(wire.link, (ME, PEER)))
                    body(wire)

        in_thread(work)

    try:
        for path in paths:
            create_netns(path)
        yield run
    finally:
        for path in paths:
            delete_netns(path)


OnWire = Callable[[Callable[[Wire], None]], None]


@pytest.mark.parametrize("how", [{}, {"bypass": 1}, {"told": LIED}], ids=["plain", "past queues", "told as another protocol"])
def test_what_is_forged_leaves_neither_the_host_nor_to_a_neighbour(on_wire: OnWire, how: dict[str, int]) -> None:
    def body(wire: Wire) -> None:
        wire.put(*wire.guard(ME))
        for name, frame in FRAMES.items():
            before = wire.dropped()
            assert not wire.hears(frame, QUIET_S, **how), name
            assert wire.dropped() == before + 1, name
        poison = ethernet(ME.mac, EVERYBODY, ARP, claim(ME.mac, str(LAN.gateway)))
        assert not wire.hears(poison, QUIET_S, (PEER.name, "eth0"), **how)
        wire.kernel.apply([Op("del", None, one) for one in wire.guard(ME)])
        assert wire.hears(poison, WAIT_S, (PEER.name, "eth0"), **how), "the ear hears"

    on_wire(body)


def test_what_is_its_own_passes_and_without_a_guard_all_does(on_wire: OnWire) -> None:
    def body(wire: Wire) -> None:
        (guard,) = wire.guard(ME)
        wire.put(guard)
        passes = {name: frame for name, frame in HONEST.items() if frame[:6] != bytes.fromhex(PEER.mac.replace(":", ""))}
        assert [name for name, frame in passes.items() if not wire.hears(frame, WAIT_S)] == []
        near = {name: frame for name, frame in HONEST.items() if name not in passes}
        assert [name for name, frame in near.items() if not wire.hears(frame, WAIT_S, (PEER.name, "eth0"))] == []
        assert wire.dropped() == 0
        assert not wire.kernel.apply([Op("del", None, guard)]).failed and wire.holds(guard) == []
        assert wire.kernel.counted_children([(guard.dev, guard.netns)]) == {}
        seen = {name: frame for name, frame in FRAMES.items() if "tagged" not in name}  # a tag is told beside the frame
        heard = (wire.hears(frame, WAIT_S, (PEER.name, "eth0")) or wire.hears(frame, WAIT_S) for frame in seen.values())
        assert all(heard)

    on_wire(body)


def test_it_is_seen_whether_it_is_there_and_judges_by_these_addresses(on_wire: OnWire) -> None:
    def body(wire: Wire) -> None:
        (guard,), (other,) = wire.guard(ME), wire.guard(replace(ME, address=PEER.address))
        assert wire.holds(guard) == []
        wire.put(guard)
        assert wire.holds(guard) == [guard] != [other]
        wire.put(other)
        assert wire.holds(guard) == [other], "in place of the one before"
        honest = ethernet(ME.mac, EVERYBODY, IP4, ip4(str(ME.address), "10.28.9.9", udp(7)))
        assert not wire.hears(honest, QUIET_S)
        wire.put(wire.link(ME))
        wire.put(guard)
        assert wire.holds(guard) == [guard] and wire.hears(honest, WAIT_S), "after its link was made anew"
        enter = f"nsenter --net={guard.netns} nft"
        sh(f"{enter} delete chain netdev {guard.dev} own-{guard.digest}")  # as the end of its link does before Linux 6.16
        assert wire.holds(guard) == []
        wire.put(guard)
        assert wire.holds(guard) == [guard] and sh(f"{enter} list chain netdev {guard.dev} forged").count("counter name") == 1
        assert not wire.hears(FRAMES["another MAC"], QUIET_S) and wire.hears(honest, WAIT_S)
        sh(f"{enter} flush ruleset")
        assert wire.holds(guard) == []

    on_wire(body)


def test_one_that_cannot_be_says_why(on_wire: OnWire, tmp_path: Path) -> None:
    def body(wire: Wire) -> None:
        (guard,) = wire.guard(ME)
        lost = replace(guard, dev="pl-enone")
        (error,) = wire.kernel.apply([Op("put", lost)]).failed.values()
        assert "no link with the alias pl-enone" in str(error)
        (error,) = wire.kernel.apply([Op("put", replace(guard, rules=("ip saddr nonsense",)))]).failed.values()
        assert "nonsense" in str(error)
        nowhere = replace(guard, netns=str(tmp_path / "gone"))
        assert not wire.kernel.apply([Op("del", None, nowhere)]).failed and wire.holds(nowhere) == []

    on_wire(body)


def test_who_may_forge_or_has_the_link_alone_has_none(tmp_path: Path) -> None:
    made = partial(child_guard, own=ME.present, netns=str(tmp_path))
    assert made(LAN, ME) != []
    assert made(LAN, replace(ME, labels={LABEL: "allow"})) == []
    assert made(replace(LAN, options={**LAN.options, OPTION: "allow"}), ME) == []
    assert made(replace(LAN, options={**LAN.options, "mode": "passthru"}), ME) == []
    (shared,) = made(replace(LAN, backend="ipvlan"), replace(ME, mac=""))
    assert not any("ether saddr" in rule for rule in shared.rules) and any(str(ME.address) in rule for rule in shared.rules)
