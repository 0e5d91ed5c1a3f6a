# SPDX-License-Identifier: Apache-2.0
"""What may be done beside the end of a link, and how."""

from __future__ import annotations

import os
from ipaddress import IPv4Network
from threading import current_thread

import pytest

from plait.kernel.api import Op
from plait.kernel.linux.beside import Beside, ends_apart, parted
from plait.model.objects import NFT_FAST_FAMILY, EndpointLink, HookRule, NftChain, NftElement, NftSet, Route

LINK = EndpointLink(name="pl-e1", mtu=1450, peer="pl-p1", mac="02:00:00:00:00:01")
END = [Op("del", None, Route(IPv4Network("10.28.0.2/32"), "pl-e1", scope="link")), Op("del", None, LINK)]
PORTS = NftSet("ports_any", "inet_proto . inet_service : ipv4_addr . inet_service", frozenset(), kind="map")
FAST = NftSet("here", "ipv4_addr : ifname", frozenset(), kind="map", family=NFT_FAST_FAMILY)
RULES = [Op("put", PORTS, None), Op("put", NftChain("raw", (), "type filter hook prerouting priority raw; policy accept;"), None)]


@pytest.mark.parametrize(
    ("ops", "apart"),
    [
        ([*END, *RULES], True),
        ([*END, *RULES, Op("put", HookRule("ip", "filter", "DOCKER-USER", "accept"), None)], True),
        (END, False),
        (RULES, False),
        ([*END, Op("put", LINK, None), *RULES], False),
        ([END[0], *RULES], False),
        ([*END, *RULES, Op("put", FAST, None)], False),
        ([*END, *RULES, Op("del", None, NftElement(FAST, "10.28.0.2"))], False),
    ],
)
def test_only_the_end_of_links_goes_beside_rules_and_none_that_stand_on_devices(ops: list[Op], apart: bool) -> None:
    assert ends_apart(*parted(ops)) == apart


def test_it_begins_in_the_namespaces_of_its_maker_and_tells_what_it_found() -> None:
    here = os.readlink("/proc/thread-self/ns/net")
    assert Beside(lambda: (os.readlink("/proc/thread-self/ns/net"), current_thread().name)).result() == (here, "kernel-beside")


def test_what_it_raised_is_raised() -> None:
    def fail() -> None:
        raise OSError(5, "no")

    with pytest.raises(OSError, match="no"):
        Beside(fail).result()
