# SPDX-License-Identifier: Apache-2.0
"""What a container on a link of the host sends while nothing judges it in its namespace, as before its process starts or once it has
changed nft there: a packet socket at the other end of the host's link sees what leaves, one in a neighbour what passes from child to child.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.kernel.test_child_guard import FRAMES, LAN, LIED, ME, PEER, QUIET_S, WAIT_S, OnWire, Wire, on_wire
from tests.kernel.test_guard import ARP, EVERYBODY, IP4, IP6, OTHER_MAC, claim, ethernet, ip4, ip6, udp
from tests.kernel.test_port_guard import HONEST
from tests.support import afxdp

from plait.kernel.linux.netns import inside
from plait.model.cluster import Endpoint, Snapshot
from plait.model.leases import Leased
from plait.model.objects import KernelObject, Op
from plait.model.spoofing import LABEL
from plait.plan.guard import FORGERS, guard_objects
from plait.plan.wires import CHILD_FORGERS, wire_objects
from plait.reconcile.order import order

pytestmark = pytest.mark.root
__all__ = ["on_wire"]
OWN_MAC, PEERS_MAC = (bytes.fromhex(e.mac.replace(":", "")) for e in (ME, PEER))
FORGED = {name: frame for name, frame in FRAMES.items() if frame[6:12] == OWN_MAC}
AT_PEER = (PEER.name, "eth0")


def judge(wire: Wire, *endpoints: Endpoint) -> list[KernelObject]:
    """Have the host judge what these send."""
    nobody = guard_objects(Snapshot("A", 1, {}, frozenset(), {}), [], (), {})
    objects = [*nobody, *wire_objects([(LAN, e) for e in endpoints], {e.id: e.present for e in endpoints})]
    before = wire.kernel.owned()
    assert not wire.kernel.apply(order(Op("put", one, before.get(one.key)) for one in objects)).failed
    held = wire.kernel.owned()
    assert [one for one in objects if held.get(one.key) != one] == [], "as it is listed"
    return objects


def dropped(wire: Wire, endpoint: Endpoint = ME) -> int:
    return wire.kernel.counted_links(CHILD_FORGERS).get(endpoint.mac, 0)


@pytest.mark.parametrize("how", [{}, {"bypass": 1}, {"told": LIED}], ids=["plain", "past queues", "told as another protocol"])
def test_what_is_forged_leaves_neither_the_host_nor_to_a_neighbour(on_wire: OnWire, how: dict[str, int]) -> None:
    def body(wire: Wire) -> None:
        judge(wire, ME, PEER)
        for name, frame in FORGED.items():
            before = dropped(wire)
            assert not wire.hears(frame, QUIET_S, **how), name
            assert dropped(wire) == before + 1, name
            assert frame[:6] != PEERS_MAC or not wire.hears(frame, QUIET_S, AT_PEER, **how), name
        assert dropped(wire, PEER) == 0

    on_wire(body)


def test_so_does_not_what_goes_past_all_hooks_of_its_link(on_wire: OnWire) -> None:
    def body(wire: Wire) -> None:
        def send(frame: bytes) -> None:
            with (wire.folder / ME.name).open() as file, inside(file.fileno()):
                afxdp.send("eth0", frame)

        wire.put(*wire.guard(ME))
        forged = ethernet(ME.mac, EVERYBODY, IP4, ip4("203.0.113.9", "255.255.255.255", udp(7)))
        assert wire.hears(forged, WAIT_S, by=send), "the guard in its namespace does not see it"
        judge(wire, ME, PEER)
        assert not wire.hears(forged, QUIET_S, by=send) and dropped(wire) == 1
        assert not wire.hears(HONEST["ARP"], QUIET_S, by=send) and dropped(wire) == 2, "of which the kernel does not say what it is"
        judge(wire, replace(ME, labels={LABEL: "allow"}), PEER)
        assert wire.hears(forged, WAIT_S, by=send)

    on_wire(body)


def test_what_is_its_own_passes(on_wire: OnWire) -> None:
    def body(wire: Wire) -> None:
        judge(wire, ME, PEER)
        far = {name: frame for name, frame in HONEST.items() if frame[:6] != PEERS_MAC}
        assert [name for name, frame in far.items() if not wire.hears(frame, WAIT_S)] == []
        near = {name: frame for name, frame in HONEST.items() if name not in far}
        assert [name for name, frame in near.items() if not wire.hears(frame, WAIT_S, AT_PEER)] == []
        assert wire.kernel.counted_links(CHILD_FORGERS) == wire.kernel.counted_links(FORGERS) == {}

    on_wire(body)


def test_who_has_lost_its_lease_has_ipv6_all_the_same(on_wire: OnWire) -> None:
    lost = replace(ME, leased=Leased(24, lost=True))
    assert lost.address not in lost.present

    def body(wire: Wire) -> None:
        judge(wire, lost)
        for name in ("DHCP", "search for duplicates", "solicitation", "echo", "another protocol"):
            assert wire.hears(HONEST[name], WAIT_S), name
        before = ethernet(ME.mac, EVERYBODY, IP4, ip4(str(ME.address), "255.255.255.255", udp(7)))
        assert not wire.hears(before, QUIET_S) and not wire.hears(HONEST["ARP"], QUIET_S) and dropped(wire) == 2

    on_wire(body)


def test_a_mac_that_nobody_knows_is_kept_from_their_addresses_alone(on_wire: OnWire) -> None:
    def body(wire: Wire) -> None:
        judge(wire, ME, PEER)
        theirs, nobodys = str(PEER.address), "10.28.2.99"
        frames = {
            "IPv4": lambda a: ethernet(OTHER_MAC, EVERYBODY, IP4, ip4(a, "255.255.255.255", udp(7))),
            "ARP": lambda a: ethernet(OTHER_MAC, EVERYBODY, ARP, claim(OTHER_MAC, a)),
        }
        for number, (name, frame) in enumerate(frames.items(), 1):
            assert not wire.hears(frame(theirs), QUIET_S) and wire.kernel.counted_links(FORGERS) == {"eth1": number}, name
            assert wire.hears(frame(nobodys), WAIT_S), name
        six = ethernet(OTHER_MAC, "33:33:00:00:00:01", IP6, ip6(str(PEER.address6), "ff02::1", udp(7)))
        assert not wire.hears(six, QUIET_S) and wire.kernel.counted_links(FORGERS) == {"eth1": 3}

    on_wire(body)


def test_who_may_forge_does_and_the_others_do_not(on_wire: OnWire) -> None:
    def body(wire: Wire) -> None:
        objects = judge(wire, replace(ME, labels={LABEL: "allow"}), PEER)
        assert ("nft", "chain", ME.dev, "netdev") not in {one.key for one in objects}
        heard = {
            name: wire.hears(frame, WAIT_S) or wire.hears(frame, WAIT_S, AT_PEER) for name, frame in FRAMES.items() if "tag" not in name
        }
        assert all(heard.values()), heard
        assert wire.kernel.counted_links(CHILD_FORGERS) == {}

    on_wire(body)


def test_nobody_is_judged_whose_mac_does_not_tell_who_it_is() -> None:
    own = {ME.id: ME.present}
    assert wire_objects([(LAN, ME)], own) != []
    for other in (replace(LAN, backend="ipvlan"), replace(LAN, options={**LAN.options, "mode": "passthru"})):
        assert wire_objects([(other, ME)], own) == []
    switched = replace(LAN, backend="vlan", options={"parent": "br0", "vlan": "7", "switch": "openvswitch"})
    assert wire_objects([(switched, ME)], own) == [] == wire_objects([], {})
