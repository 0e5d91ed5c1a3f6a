# SPDX-License-Identifier: Apache-2.0
"""The bodies of Docker's plug-in protocol (network and IPAM remote drivers), as far as plait reads them.

Data in: the bytes that dockerd posted. Data out: frozen records; unknown fields are ignored, null is the default (Go writes nil maps
and slices as null), and anything else that does not fit is a ConfigError. Source: libnetwork's documentation of remote drivers, its
source of 20.10, 28 and 29, and recorded traffic of Docker 20.10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, TypeVar

import msgspec

from plait.model.cluster import PortMapping, Protocol
from plait.model.errors import ConfigError

T = TypeVar("T", bound="Body")
R = TypeVar("R")

GENERIC = "com.docker.network.generic"
INTERNAL = "com.docker.network.internal"
PORTMAP = "com.docker.network.portmap"
MAC = "com.docker.network.endpoint.macaddress"
NAME = "com.docker.network.endpoint.name"
"""Of the container, told to IPAM by 29 on; 20.10 to 28 do not say who asks."""
IFNAME = "com.docker.network.endpoint.ifname"
ENABLE_IPV4 = "com.docker.network.enable_ipv4"
"""Told by 28 on, false only with --ipv4=false."""
ADDRESS_TYPE, GATEWAY_TYPE = "RequestAddressType", "com.docker.network.gateway"

BY_HOP, CONNECTED = 0, 1
"""RouteType of a static route in the answer to Join."""
_PROTOCOLS: Mapping[int, Protocol] = {6: "tcp", 17: "udp", 132: "sctp"}


class Body(msgspec.Struct, frozen=True, rename="pascal"):
    """Base of all bodies. Field names are Go's."""


class Nothing(Body, frozen=True):
    """A call whose body does not matter."""


class RequestPool(Body, frozen=True):
    address_space: str | None = None
    pool: str | None = None
    sub_pool: str | None = None
    options: dict[str, str] | None = None
    v6: bool | None = msgspec.field(name="V6", default=None)


class ReleasePool(Body, frozen=True):
    pool_id: str = msgspec.field(name="PoolID")


class RequestAddress(Body, frozen=True):
    pool_id: str = msgspec.field(name="PoolID")
    address: str | None = None
    options: dict[str, str] | None = None


class ReleaseAddress(Body, frozen=True):
    pool_id: str = msgspec.field(name="PoolID")
    address: str


class IpamData(Body, frozen=True):
    address_space: str | None = None
    pool: str | None = None
    gateway: str | None = None
    aux_addresses: dict[str, str] | None = None


class CreateNetwork(Body, frozen=True):
    network_id: str = msgspec.field(name="NetworkID")
    options: dict[str, Any] | None = None
    ipv4: list[IpamData] | None = msgspec.field(name="IPv4Data", default=None)
    ipv6: list[IpamData] | None = msgspec.field(name="IPv6Data", default=None)


class GwAllocCheck(Body, frozen=True):
    """Asked by 28 on before the pools of a network are; the options are CreateNetwork's."""

    options: dict[str, Any] | None = None


class NetworkOnly(Body, frozen=True):
    network_id: str = msgspec.field(name="NetworkID")


class EndpointInterface(Body, frozen=True):
    address: str | None = None
    address6: str | None = msgspec.field(name="AddressIPv6", default=None)
    mac_address: str | None = None


class CreateEndpoint(Body, frozen=True):
    network_id: str = msgspec.field(name="NetworkID")
    endpoint_id: str = msgspec.field(name="EndpointID")
    interface: EndpointInterface | None = None
    options: dict[str, Any] | None = None


class EndpointOnly(Body, frozen=True):
    """Join, Leave, DeleteEndpoint, EndpointOperInfo and the two about ports."""

    network_id: str = msgspec.field(name="NetworkID")
    endpoint_id: str = msgspec.field(name="EndpointID")
    sandbox_key: str | None = None
    options: dict[str, Any] | None = None


class _Port(Body, frozen=True):
    proto: int
    port: int
    host_ip: str | None = msgspec.field(name="HostIP", default=None)
    host_port: int | None = None
    host_port_end: int | None = None


def parse(wanted: type[T], body: bytes, call: str) -> T:
    """The body of `call`; an empty one is that without fields. Raises ConfigError."""
    try:
        return msgspec.json.decode(body or b"{}", type=wanted)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(call, body[:80].decode("utf-8", "replace"), f"is no request of this call: {error}") from error


def parse_address(text: str, where: str) -> IPv4Address:
    """An address, with or without a prefix length behind it. Raises ConfigError."""
    return _read(IPv4Address, text.partition("/")[0], where, "IPv4 address")


def parse_subnet(text: str, where: str) -> IPv4Network:
    """Raises ConfigError, also where host bits are set."""
    return _read(IPv4Network, text, where, "IPv4 network")


def parse_address6(text: str, where: str) -> IPv6Address:
    """As `parse_address`."""
    return _read(IPv6Address, text.partition("/")[0], where, "IPv6 address")


def parse_subnet6(text: str, where: str) -> IPv6Network:
    """As `parse_subnet`."""
    return _read(IPv6Network, text, where, "IPv6 network")


def _read(kind: Callable[[str], R], text: str, where: str, what: str) -> R:
    try:
        return kind(text)
    except ValueError as error:
        raise ConfigError(where, text, f"is no {what}: {error}") from error


def port_requests(options: Mapping[str, Any] | None) -> list[tuple[PortMapping, int]]:
    """The published ports of ProgramExternalConnectivity: each with the last host port that will do too (0: only its own).

    Raises ConfigError for what is no port map.
    """
    try:
        ports = msgspec.convert((options or {}).get(PORTMAP) or [], list[_Port])
    except msgspec.ValidationError as error:
        raise ConfigError(PORTMAP, (options or {}).get(PORTMAP), f"is no port map: {error}") from error
    return [_port_request(port) for port in ports]


def _port_request(port: _Port) -> tuple[PortMapping, int]:
    proto = _PROTOCOLS.get(port.proto)
    first, last = port.host_port or 0, port.host_port_end or 0
    if proto is None or not 0 < port.port < 65536 or not 0 <= first < 65536 or not 0 <= last < 65536:
        raise ConfigError(PORTMAP, f"{first}-{last}:{port.port}/{port.proto}", "is no port of TCP, UDP or SCTP")
    host = _read(ip_address, port.host_ip or "0.0.0.0", "-p", "IP address")
    return PortMapping(proto, first, port.port, host), last if last > first else 0


def text_option(options: Mapping[str, Any] | None, key: str) -> str:
    """The text below `key`, "" if there is none."""
    value = (options or {}).get(key)
    return value if isinstance(value, str) else ""


def text_options(options: Mapping[str, Any] | None, key: str) -> dict[str, str]:
    """The mapping of texts below `key` ({} if there is none). Raises ConfigError."""
    try:
        return msgspec.convert((options or {}).get(key) or {}, dict[str, str])
    except msgspec.ValidationError as error:
        raise ConfigError(key, (options or {}).get(key), f"is no mapping of texts: {error}") from error
