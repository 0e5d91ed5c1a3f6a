# SPDX-License-Identifier: Apache-2.0
"""Whatever bytes come from a netlink socket: a value, or NetlinkParseError, nothing else."""

from __future__ import annotations

import contextlib
import struct
from ipaddress import IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from plait.kernel.linux import conntrack, fdb, link, netlink, route, tc
from plait.kernel.linux.nftscript import parse_table
from plait.model.addr import IPAddress
from plait.model.objects import ROUTE_PROTOCOL, Route

NAMES = {1: "pl-x1", 2: "pl-gw"}
attributes = st.lists(st.tuples(st.integers(0, 70), st.binary(max_size=24)), max_size=8).map(
    lambda pairs: b"".join(netlink.attr(kind, data) for kind, data in pairs)
)
body = st.one_of(st.binary(max_size=200), st.tuples(st.binary(min_size=8, max_size=16), attributes).map(b"".join))


@given(st.binary(max_size=300))
def test_any_datagram(data: bytes) -> None:
    with contextlib.suppress(netlink.NetlinkParseError):
        for _, flags, _, content in netlink.parse_messages(data):
            netlink.parse_error(flags, content)


@given(body)
def test_any_body(data: bytes) -> None:
    for decode in (
        link.decode_link,
        conntrack.decode_flow,
        lambda d: route.decode_addr(d, NAMES),
        lambda d: route.decode_route(d, NAMES),
        lambda d: route.decode_neigh(d, NAMES),
        lambda d: fdb.decode_fdb(d, 1, "pl-x1"),
        lambda d: fdb.decode_bridge_fdb(d, 1, NAMES),
        lambda d: tc.decode_tbf("pl-e1", d),
        tc.decode_filter,
        tc.link_index,
        netlink.parse_attrs,
    ):
        with contextlib.suppress(netlink.NetlinkParseError):
            decode(data)


@given(st.integers(0, 65535), attributes)
def test_a_link_of_ours_with_any_attributes(mtu: int, rest: bytes) -> None:
    head = struct.pack("=BxHiII", 0, 0, 7, 1, 0) + netlink.attr_text(3, "pl-x9") + netlink.attr_u32(4, mtu)
    with contextlib.suppress(netlink.NetlinkParseError):
        assert link.decode_link(head + rest).index == 7


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 32),
    st.sampled_from((1, 2)),
    st.one_of(st.none(), st.ip_addresses()),
    st.booleans(),
    st.sampled_from((0, 1400)),
    st.integers(0, 2**32 - 1),
)
def test_a_route_survives_the_wire(base: int, prefix: int, index: int, via: IPAddress | None, onlink: bool, mtu: int, metric: int) -> None:
    wanted = Route(
        IPv4Network((base, prefix), strict=False),
        NAMES[index],
        via=via,
        onlink=onlink,
        mtu=mtu,
        metric=metric,
    )
    message = route.put_route(wanted, index)
    assert message.body[5] == ROUTE_PROTOCOL
    assert route.decode_route(message.body, NAMES) == wanted


@given(st.binary(max_size=24))
def test_any_next_hop_of_another_family_gives_a_route_or_an_error_of_its_own(via: bytes) -> None:
    body = route.put_route(Route(IPv4Network("10.1.0.0/16"), NAMES[1]), 1).body + netlink.attr(18, via)
    with contextlib.suppress(netlink.NetlinkParseError):
        assert route.decode_route(body, NAMES) is not None


@given(st.text(alphabet='\t\n{}=,. :;abcpltsimn"#0123456789', max_size=300))
def test_any_listing_of_nft_gives_objects_or_nothing(text: str) -> None:
    for obj in parse_table(f"table inet plait {{\n{text}\n}}\n"):
        assert obj.key[0] == "nft"
