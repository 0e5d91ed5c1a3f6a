# SPDX-License-Identifier: Apache-2.0
"""IPv6 as the image of IPv4: one to one, block by block, and nothing that IPv4 keeps back is given out."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from plait.ipam import block_of, check_network, default_subnet6, image, image_block, origin, stray_endpoints, usable, without_router
from plait.model.addr import link_local, unique_local
from plait.model.cluster import Block, Endpoint, Network, Node, Snapshot
from plait.model.errors import ConfigError
from plait.model.service import VIP_POOL6
from plait.store.codec import decode, encode

A, N, A6, N6 = IPv4Address, IPv4Network, IPv6Address, IPv6Network


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Any sound network with IPv6; its gateways are the first addresses."""
    prefix, offset = draw(st.integers(10, 29)), draw(st.integers(0, 2**20))
    subnet = N(((10 << 24) | (offset << (32 - prefix)) % 2**24, prefix), strict=False)
    prefix6 = draw(st.integers(8, 64))
    subnet6 = N6((0xFD << 120 | draw(st.integers(0, 2**120 - 1)), prefix6), strict=False)
    assume(not subnet6.overlaps(VIP_POOL6))
    block = draw(st.integers(prefix, 30))
    return Network("n", subnet, subnet[1], block, subnet6=subnet6, gateway6=subnet6[1])


def _some(network: Network, number: int) -> IPv4Address:
    return network.subnet[number % network.subnet.num_addresses]


@given(networks(), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_it_is_one_to_one_and_keeps_the_order(network: Network, one: int, other: int) -> None:
    first, second = _some(network, one), _some(network, other)
    images = image(network, first), image(network, second)
    assert images[0] is not None and images[1] is not None and network.subnet6 is not None
    assert images[0] in network.subnet6
    assert origin(network, images[0]) == first
    assert (first < second) == (images[0] < images[1])


@given(networks(), st.integers(0, 2**128 - 1))
def test_what_is_nobodys_image_has_no_origin(network: Network, number: int) -> None:
    assert network.subnet6 is not None
    address = network.subnet6[number % network.subnet6.num_addresses]
    found = origin(network, address)
    assert (found is None) == (int(address) - int(network.subnet6.network_address) >= network.subnet.num_addresses)
    assert found is None or image(network, found) == address


@given(networks(), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_blocks_nest_as_their_addresses_do(network: Network, one: int, other: int) -> None:
    block, address = block_of(network, _some(network, one)), _some(network, other)
    images, image6 = image_block(network, block), image(network, address)
    assert images is not None and image6 is not None and network.subnet6 is not None
    assert images.num_addresses == block.num_addresses and images.subnet_of(network.subnet6)
    assert (address in block) == (image6 in images)


@given(networks())
def test_what_is_handed_out_is_neither_the_gateway_nor_the_anycast_address_of_routers(network: Network) -> None:
    check_network(network, [])
    assume(network.block_prefix >= 24)
    first = block_of(network, network.subnet.network_address)
    given_out = {image(network, address) for address in usable(network, first)}
    assert network.gateway6 not in given_out and network.subnet6 is not None
    assert network.subnet6.network_address not in given_out, "RFC 4291 section 2.6.1"


PLAIN = Network("n", N("10.29.0.0/16"), A("10.29.0.1"), 24)
DUAL = replace(PLAIN, subnet6=N6("fd00:29::/64"), gateway6=A6("fd00:29::1"))


def test_without_ipv6_there_is_no_image() -> None:
    assert image(PLAIN, A("10.29.0.5")) is None and image_block(PLAIN, N("10.29.1.0/24")) is None and origin(PLAIN, A6("fd00::5")) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"subnet6": N6("fd00:29::/65"), "gateway6": A6("fd00:29::1")}, "use a prefix length of 64 or less"),
        ({"subnet6": N6("fe80::/64"), "gateway6": A6("fe80::1")}, "is no unicast range"),
        ({"subnet6": N6("ff02::/64"), "gateway6": A6("ff02::1")}, "is no unicast range"),
        ({"gateway6": A6("fd00:30::1")}, "is not a host address of fd00:29::/64"),
        ({"gateway6": A6("fd00:29::")}, "is not a host address of fd00:29::/64"),
        ({"gateway6": A6("fd00:29::5")}, "goes with 10.29.0.5, which a container may get; use fd00:29::1, or one beyond fd00:29::ffff"),
    ],
)
def test_an_ipv6_that_cannot_be_is_refused_with_words(change: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_network(replace(DUAL, **change), [])  # type: ignore[arg-type]


def test_a_gateway_beyond_all_images_is_possible() -> None:
    check_network(replace(DUAL, gateway6=A6("fd00:29::1:0")), [])


LAN = replace(DUAL, gateway=A("10.29.0.254"), backend="macvlan", options={"parent": "eth1"})


def test_a_router_on_the_link_may_have_any_address_of_it_which_no_container_gets() -> None:
    for router, kept in (("fd00:29::5", ["10.29.0.5"]), ("fd00:29::fe", []), ("fd00:29::1:0", []), ("fe80::1", [])):
        network = without_router(replace(LAN, gateway6=A6(router)))
        assert [str(part) for part in network.excluded] == kept and without_router(network) == network
        check_network(network, [])
    assert without_router(replace(DUAL, gateway6=A6("fd00:29::5"))).excluded == (), "every host holds that one"


@pytest.mark.parametrize("network", [DUAL, LAN])
def test_a_link_local_gateway_is_a_router_of_a_link_and_says_not_of_which(network: Network) -> None:
    with pytest.raises(ConfigError, match="is not a host address of fd00:29::/64"):
        check_network(replace(network, gateway6=A6("fe80::1" if network is DUAL else "fe80::1%eth1")), [])


def test_two_networks_never_share_a_part_of_ipv6() -> None:
    other = Network("m", N("10.30.0.0/16"), A("10.30.0.1"), 24, subnet6=N6("fd00::/16"), gateway6=A6("fd00::1"))
    with pytest.raises(ConfigError, match="overlaps fd00::/16 of network 'm'"):
        check_network(DUAL, [other])


@given(st.integers(0, 2**64))
def test_a_subnet_that_nobody_named_is_unique_local(bits: int) -> None:
    subnet = default_subnet6(bits)
    assert subnet.prefixlen == 64 and subnet.subnet_of(N6("fd00::/8")) and int(subnet.network_address) & (0xFFFF << 64) == 0


def test_an_older_record_has_no_ipv6_and_a_newer_one_survives_the_store() -> None:
    old = b'{"name":"n","subnet":"10.29.0.0/16","gateway":"10.29.0.1","block_prefix":24,"backend":"vxlan","vni":1}'
    assert decode(Network, old, "networks/n") == PLAIN
    assert decode(Network, encode(DUAL), "networks/n") == DUAL
    endpoint = Endpoint("e", "n", "A", A("10.29.1.2"), "02:00:00:00:00:01", "pl-e1", "sandbox", address6=A6("fd00:29::102"))
    assert decode(Endpoint, encode(endpoint), "endpoints/A/e") == endpoint


def test_who_has_the_image_of_a_block_that_is_not_its_nodes_is_a_stray() -> None:
    at_home = Endpoint("e", "n", "A", A("10.29.1.2"), "02:00:00:00:00:01", "pl-e1", "sandbox", address6=A6("fd00:29::102"))
    astray = replace(at_home, id="f", address6=A6("fd00:29::205"))
    blocks = {("n", N(f"10.29.{i}.0/24")): Block("n", N(f"10.29.{i}.0/24"), node) for i, node in ((1, "A"), (2, "B"))}
    snapshot = Snapshot("A", networks={"n": DUAL}, blocks=blocks, endpoints={e.id: e for e in (at_home, astray)})
    assert stray_endpoints(snapshot) == [astray]


def test_addresses_of_links_and_hosts() -> None:
    assert link_local("02:00:00:00:00:01") == A6("fe80::ff:fe00:1")
    nodes = [Node(name, name, A("198.18.0.1")) for name in ("one", "two")]
    assert nodes[0].tunnel6 != nodes[1].tunnel6 and nodes[0].tunnel6 in N6("fd00::/8")
    assert unique_local(b"one") == nodes[0].tunnel6
