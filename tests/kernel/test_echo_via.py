# SPDX-License-Identifier: Apache-2.0
"""An echo request leaves by the device that was named, whatever the routes say: in a namespace whose address is on one of two devices."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address

import pytest
from tests.support.kernel import own_namespace, sh

from plait.agent.echo import LOST, Echo, Echoed
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
