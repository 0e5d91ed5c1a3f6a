# SPDX-License-Identifier: Apache-2.0
"""What a container on a port of a switch in user space sends: a packet socket on the host's side of its link sees what the switch does."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from tests.kernel.test_guard import (
    ARP,
    EVERYBODY,
    IP4,
    IP6,
    MARK,
    ON_DOCKER,
    advertisement,
    claim,
    ethernet,
    forgeries_of,
    icmp6,
    ip4,
    ip6,
    udp,
)
from tests.support.kernel import converge, own_namespace, sh

from plait.kernel.linux import LinuxKernel
from plait.kernel.linux.netns import in_thread
from plait.model.addr import link_local
from plait.model.hostlinks import guard_of
from plait.model.objects import EndpointLink, Op

pytestmark = pytest.mark.root
ME, PEER = ON_DOCKER["docker-me"], ON_DOCKER["docker-peer"]
LOCAL = str(link_local(ME.mac))
LINK = EndpointLink("pl-e1", 1500, answers=False, peer="pl-p1", mac=ME.mac)
GUARD = guard_of("pl-e1", ME.mac, ME.present)
GROUP = "33:33:00:00:00:01"
QUIET_S, WAIT_S = 0.05, 1.0
_ROUTER_ALERT, _OPTIONS = bytes((58, 0, 5, 2, 0, 0, 1, 0)), bytes((17, 0, 1, 4, 0, 0, 0, 0))
own = partial(ethernet, ME.mac)


def multicast(source: str) -> bytes:
    """A report of membership of groups, behind the option that goes with it."""
    return ip6(source, "ff02::16", _ROUTER_ALERT + bytes((143,)) + bytes(23) + MARK, 0, 1)


def behind(kind: int, length: int = 0, then: int = 58) -> bytes:
    """Another one's advertisement behind an extension header of that kind."""
    plain = advertisement(str(ME.address6), str(PEER.address6))
    return ip6(str(ME.address6), "ff02::1", bytes((then, length, 1, 4, 0, 0, 0, 0)) + bytes(8 * length) + plain[40:], kind, 255)


HONEST = {
    "IPv4": own(PEER.mac, IP4, ip4(str(ME.address), str(PEER.address), udp(7))),
    "IPv6": own(PEER.mac, IP6, ip6(str(ME.address6), str(PEER.address6), udp(7))),
    "ARP": own(EVERYBODY, ARP, claim(ME.mac, str(ME.address))),
    "DHCP": own(EVERYBODY, IP4, ip4("0.0.0.0", "255.255.255.255", udp(67, 68))),
    "IGMP": own("01:00:5e:00:00:16", IP4, ip4("0.0.0.0", "224.0.0.22", MARK, 2)),
    "search for duplicates": own(GROUP, IP6, icmp6("::", 135)),
    "groups without an address": own(GROUP, IP6, multicast("::")),
    "groups": own(GROUP, IP6, multicast(LOCAL)),
    "solicitation": own(GROUP, IP6, icmp6(LOCAL, 135)),
    "search for routers": own(GROUP, IP6, icmp6(LOCAL, 133)),
    "echo": own(GROUP, IP6, icmp6(str(ME.address6), 128)),
    "advertisement": own(GROUP, IP6, advertisement(str(ME.address6), str(ME.address6))),
    "link-local advertisement": own(GROUP, IP6, advertisement(LOCAL, LOCAL)),
    "options before UDP": own(PEER.mac, IP6, ip6(str(ME.address6), str(PEER.address6), _OPTIONS + udp(7), 60)),
    "a hop before UDP": own(PEER.mac, IP6, ip6(str(ME.address6), str(PEER.address6), _OPTIONS + udp(7), 0)),
    "another protocol": own(GROUP, 0x88B5, MARK + bytes(40)),
}
FORGED = forgeries_of(ME, PEER, PEER.mac, True) | {
    "tagged, as by priority": HONEST["IPv4"][:12] + bytes.fromhex("81000000") + HONEST["IPv4"][12:],
    "tagged by a provider": HONEST["IPv4"][:12] + bytes.fromhex("88a80000") + HONEST["IPv4"][12:],
    "nobody's behind a hop": own(PEER.mac, IP6, ip6("::", str(PEER.address6), _OPTIONS + udp(7), 0)),
    "advertised behind a hop and options": own(GROUP, IP6, behind(0, then=60)),
    "no whole header": own(PEER.mac, IP4, b"\x45" + bytes(9)),
    "advertised behind a hop": own(GROUP, IP6, behind(0)),
    "advertised behind two": own(GROUP, IP6, behind(0, 1)),
    "advertised behind a route": own(GROUP, IP6, behind(43)),
    "another port than DHCP's": own(EVERYBODY, IP4, ip4("0.0.0.0", "255.255.255.255", udp(68, 67))),
}


class Port:
    """The link, with its guard, the switch's ear at it and the container's mouth."""

    def __init__(self, kernel: LinuxKernel) -> None:
        self.kernel = kernel
        self.ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.ear.bind(("pl-e1", 3))
        self.mouth = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self.mouth.bind(("pl-p1", 0))

    @property
    def dropped(self) -> int:
        return self.kernel.counted_ports(["pl-e1", "pl-egone"])["pl-e1"]

    def hears(self, frame: bytes, wait_s: float) -> bool:
        self.mouth.send(frame)
        self.ear.settimeout(wait_s)
        with contextlib.suppress(TimeoutError):
            while True:
                if frame in self.ear.recv(2000):
                    return True
        return False


def at_port(body: Callable[[Port], None]) -> None:
    def work() -> None:
        own_namespace()
        with contextlib.closing(LinuxKernel()) as kernel, contextlib.ExitStack() as stack:
            assert not kernel.apply([Op("put", LINK), Op("put", GUARD)]).failed
            sh("sysctl -qw net.ipv6.conf.pl-p1.disable_ipv6=1 && ip link set pl-p1 up")
            port = Port(kernel)
            for sock in (port.ear, port.mouth):
                stack.enter_context(sock)
            body(port)

    in_thread(work)


def test_a_switch_that_reads_the_link_never_sees_what_is_forged() -> None:
    def body(port: Port) -> None:
        for name, frame in FORGED.items():
            before = port.dropped
            assert not port.hears(frame, QUIET_S), name
            assert port.dropped == before + 1, name

    at_port(body)


def test_what_is_its_own_passes_and_without_a_guard_all_does() -> None:
    def body(port: Port) -> None:
        assert [name for name, frame in HONEST.items() if not port.hears(frame, WAIT_S)] == [] and port.dropped == 0
        assert not port.kernel.apply([Op("del", None, GUARD)]).failed
        seen = {name: frame for name, frame in FORGED.items() if "tagged" not in name}  # a tag is told beside the frame
        assert [name for name, frame in seen.items() if not port.hears(frame, WAIT_S)] == []
        assert port.kernel.counted_ports(["pl-e1"]) == {}

    at_port(body)


def test_other_addresses_are_another_guard_and_the_same_none() -> None:
    def body(port: Port) -> None:
        plan = {obj.key: obj for obj in (LINK, GUARD)}
        assert converge(port.kernel, plan) == 0
        fresh = guard_of("pl-e1", ME.mac, (PEER.address,))
        assert fresh != GUARD and converge(port.kernel, plan | {fresh.key: fresh}) == 1
        assert port.kernel.owned()[fresh.key] == fresh
        assert not port.hears(HONEST["IPv4"], QUIET_S)
        sh("ip link set dev pl-e1 xdpgeneric off")
        assert fresh.key not in port.kernel.owned() and converge(port.kernel, plan | {fresh.key: fresh}) == 1
        assert converge(port.kernel, {LINK.key: LINK}) == 1

    at_port(body)


def test_a_guard_of_another_release_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(port: Port) -> None:
        monkeypatch.setattr("plait.kernel.linux.portguard._RELEASE", "0000")
        assert port.kernel.owned()[GUARD.key] == replace(GUARD, digest="")
        assert converge(port.kernel, {obj.key: obj for obj in (LINK, GUARD)}) == 1

    at_port(body)
