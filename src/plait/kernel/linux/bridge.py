# SPDX-License-Identifier: Apache-2.0
"""What a bridge and its ports have set <-> the attributes of RTM_NEWLINK messages. Sources: bridge(8), include/uapi/linux/if_link.h."""

from __future__ import annotations

import struct

from plait.kernel.linux import netlink as nl
from plait.model.objects import PORT_FLAGS, EndpointLink, VxlanLink

QUERY_RESPONSE = 100
"""Hundredths of a second within which members answer a query; after as long a bridge that became a querier trusts what it knows (kernel:
net/bridge/br_multicast.c), and until then it passes multicast to all. The default is ten seconds."""
_BR_FORWARD_DELAY, _BR_STP_STATE, _BR_QUERIER, _BR_QUERY_RESPONSE = 1, 5, 25, 34
_BRPORT_MODE, _BRPORT_ISOLATED, _BRPORT_ROUTER = 4, 33, 25
_BRPORT = dict(zip(PORT_FLAGS, (8, 9, 27, 30, 32, _BRPORT_ROUTER), strict=True))
_ROUTER, _NO_ROUTER = 2, 1


def bridge_data() -> tuple[bytes, ...]:
    """Of a new bridge: it forwards at once, for there can be no loop."""
    return nl.attr_u32(_BR_FORWARD_DELAY, 0), nl.attr_u32(_BR_STP_STATE, 0)


def querier_data(querier: bool) -> list[bytes]:
    """One after the other: the time that a new querier waits is the response time that it has by then."""
    response = nl.attr(_BR_QUERY_RESPONSE, struct.pack("=Q", QUERY_RESPONSE))
    return [*([response] if querier else []), nl.attr_u8(_BR_QUERIER, querier)]


def is_querier(data: bytes) -> bool:
    return nl.number_of(nl.parse_attrs(data).get(_BR_QUERIER)) == 1


def port_data(link: VxlanLink | EndpointLink) -> tuple[bytes, ...]:
    if isinstance(link, EndpointLink):
        return nl.attr_u8(_BRPORT_ISOLATED, link.isolated), nl.attr_u8(_BRPORT_MODE, link.hairpin)
    values = {flag: int(flag in link.switching) for flag in PORT_FLAGS}
    values["mcast_router"] = _ROUTER if values["mcast_router"] else _NO_ROUTER
    return tuple(nl.attr_u8(_BRPORT[flag], value) for flag, value in values.items())


def endpoint_port(data: bytes) -> tuple[bool, bool]:
    """Whether it is isolated, and in hairpin mode."""
    port = nl.parse_attrs(data)
    return nl.number_of(port.get(_BRPORT_ISOLATED)) == 1, nl.number_of(port.get(_BRPORT_MODE)) == 1


def switching(data: bytes) -> frozenset[str]:
    """Which of `PORT_FLAGS` a port has on; none if it is none."""
    port = nl.parse_attrs(data)
    on = {flag: _ROUTER if flag == "mcast_router" else 1 for flag in PORT_FLAGS}
    return frozenset(flag for flag, value in on.items() if nl.number_of(port.get(_BRPORT[flag])) == value)
