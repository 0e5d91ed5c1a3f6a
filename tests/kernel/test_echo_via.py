# SPDX-License-Identifier: Apache-2.0
"""An echo request leaves by the device that was named, whatever the routes say: in a namespace whose address is on one of two devices; one
of IPv6 goes no further than the link."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, IPv6Address

import pytest
from tests.support.kernel import own_namespace, sh

from plait.agent.echo import LOST, Echo, Echoed, Lane, LaneAbsent
from plait.kernel.linux.netns import in_thread

pytestmark = pytest.mark.root
HERE, ELSEWHERE = IPv4Address("198.18.9.1"), IPv4Address("198.18.9.9")


def test_the_device_and_the_source_are_those_that_were_named() -> None:
    def ask() -> list[Echoed]:
        own_namespace()
        sh(f"ip link add v0 type veth peer v1; ip addr add {HERE}/32 dev v0; for dev in lo v0 v1; do ip link set $dev up; done")
        echo = Echo()

        async def each() -> list[Echoed]:
            ways = (("v0", HERE), ("v1", HERE), ("absent", HERE), ("v0", ELSEWHERE))
            return [await echo.ask_via(HERE, device, source) for device, source in ways]

        return asyncio.run(each())

    answered, *lost = in_thread(ask)
    assert answered.rtt_s is not None, "by the device that has the address"
    assert lost == [LOST] * 3, "by another one, by one that is not there, from an address that is not there"


NEAR, FAR, BEYOND = (IPv6Address(f"fd98::{number}") for number in (1, 2, 3))
TWO_HOPS = f"""
ip netns add six-1
ip netns add six-2
ip link set lo up
ip link add v0 type veth peer name v1 netns six-1
ip -n six-1 link add w0 type veth peer name w1 netns six-2
ip netns exec six-1 sysctl -qw net.ipv6.conf.all.forwarding=1
ip link set v0 up
ip -n six-1 link set v1 up
ip -n six-1 link set w0 up
ip -n six-2 link set w1 up
ip addr add {NEAR}/128 dev v0 nodad
ip -n six-1 addr add {FAR}/128 dev v1 nodad
ip -n six-2 addr add {BEYOND}/128 dev w1 nodad
ip addr add fe80::1/64 dev v0 nodad
ip -n six-1 addr add fe80::2/64 dev v1 nodad
ip -n six-1 addr add fe80::3/64 dev w0 nodad
ip -n six-2 addr add fe80::4/64 dev w1 nodad
ip -6 route add {FAR} via fe80::2 dev v0 src {NEAR}
ip -6 route add {BEYOND} via fe80::2 dev v0 src {NEAR}
ip -n six-1 -6 route add {NEAR} via fe80::1 dev v1
ip -n six-1 -6 route add {BEYOND} via fe80::4 dev w0
ip -n six-2 -6 route add {NEAR} via fe80::3 dev w1
"""


def test_a_lane_of_ipv6_ends_at_the_first_host() -> None:
    """FAR is one hop away, BEYOND two: that one is reached by an ordinary request alone."""

    async def each(echo: Echo) -> tuple[float | None, float | None, Echoed]:
        with pytest.raises(LaneAbsent):
            await echo.ask_by(Lane(IPv6Address("fd98::9")), FAR)
        return await echo.ask_by(Lane(NEAR), FAR), await echo.ask_by(Lane(NEAR), BEYOND, 0.3), await echo.ask(BEYOND)

    def ask() -> tuple[float | None, float | None, Echoed]:
        own_namespace()
        try:
            sh(f"set -e{TWO_HOPS}")
            return asyncio.run(each(Echo()))
        finally:
            sh("ip netns del six-1; ip netns del six-2")

    near, beyond, plain = in_thread(ask)
    assert near is not None and beyond is None and plain.rtt_s is not None
