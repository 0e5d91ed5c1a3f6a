# SPDX-License-Identifier: Apache-2.0
"""netavark's JSON -> typed values, or errors that name the field. Source: its plugin-API.md and network/types.rs (API version 1.0.0)."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, TypeVar

import msgspec

from plait.backends import PER_ENDPOINT
from plait.ipam import FORCED
from plait.model.cluster import PortMapping
from plait.model.errors import ConfigError, NotSupported
from plait.model.requests import NetworkRequest
from plait.runtimes.cni.wire import Port, one_of_each, wanted_ports

T = TypeVar("T")
N = TypeVar("N", IPv4Network, IPv6Network)
A = TypeVar("A", IPv4Address, IPv6Address)
NET_OPTION, BACKEND_OPTION = "plait.net", "plait.backend"


class Subnet(msgspec.Struct):
    subnet: str
    gateway: str | None = None
    lease_range: dict[str, Any] | None = None


class Network(msgspec.Struct):
    """A network of Podman's. Fields that plait makes nothing of are not listed; `create` answers with them as they came."""

    name: str
    id: str = ""
    internal: bool = False
    ipv6_enabled: bool = False
    options: dict[str, str] | None = None
    subnets: list[Subnet] | None = None
    routes: list[Any] | None = None

    @property
    def cluster_name(self) -> str:
        """The cluster's network that it is."""
        return (self.options or {}).get(NET_OPTION) or self.name


class PublishedPort(msgspec.Struct):
    """`count` ports from `host_port` and `container_port` on; `protocol` may be several, joined by commas."""

    container_port: int
    host_port: int
    host_ip: str = ""
    protocol: str = "tcp"
    count: int = msgspec.field(default=1, name="range")


class NetworkOptions(msgspec.Struct):
    interface_name: str
    aliases: list[str] | None = None
    static_ips: list[str] | None = None
    static_mac: str | None = None


class Exec(msgspec.Struct):
    """The input of setup and teardown."""

    container_id: str
    container_name: str
    network: Network
    network_options: NetworkOptions
    port_mappings: list[PublishedPort] | None = None

    @property
    def key(self) -> str:
        """What an attachment is known by."""
        return f"netavark.{self.network.name}.{self.container_id}.{self.network_options.interface_name}"


def ports_of(given: Exec) -> tuple[PortMapping, ...]:
    """Every single port; as CNI's they are checked."""
    return wanted_ports(
        [
            Port(port.host_port + number, port.container_port + number, proto.strip(), port.host_ip or None)
            for port in given.port_mappings or ()
            for proto in (port.protocol or "tcp").split(",")
            for number in range(max(port.count, 1))
        ]
    )


def addresses_of(given: Exec) -> tuple[IPv4Address | None, IPv6Address | None]:
    """Those that are asked for, at most one of each family."""
    try:
        return one_of_each(given.network_options.static_ips or [])
    except ValueError as error:
        raise ConfigError("--ip", ", ".join(given.network_options.static_ips or []), f"is no address: {error}") from error


def request_of(given: Network) -> NetworkRequest:
    """The network of the cluster that `podman network create -d plait` asks for."""
    options = dict(given.options or {})
    known = (*PER_ENDPOINT, BACKEND_OPTION, FORCED, NET_OPTION)
    unknown = sorted(options.keys() - set(known))
    if unknown:
        raise ConfigError("-o", unknown[0], "is no option of the driver plait", f"it knows {', '.join(known)}")
    if given.routes:
        raise NotSupported("plait makes the routes of its networks itself: create the network without --route")
    if any(subnet.lease_range for subnet in given.subnets or ()):
        raise NotSupported(
            "--ip-range is given when the network is made: plait network create --ip-range, then podman network create with its name"
        )
    four, gateway = _subnet(given, IPv4Network, IPv4Address)
    six, gateway6 = _subnet(given, IPv6Network, IPv6Address)
    return NetworkRequest(
        name=given.cluster_name,
        subnet=four,
        gateway=gateway,
        internal=given.internal,
        options={"backend" if key == BACKEND_OPTION else key: options[key] for key in (BACKEND_OPTION, *PER_ENDPOINT) if key in options},
        force=options.get(FORCED) == "true",
        ipv6=given.ipv6_enabled,
        subnet6=six,
        gateway6=gateway6,
    )


def _subnet(given: Network, network: Callable[[str], N], address: Callable[[str], A]) -> tuple[N | None, A | None]:
    """The subnet of one family and its gateway. NotSupported for a second one."""
    found = [subnet for subnet in given.subnets or () if (":" in subnet.subnet) == (network is IPv6Network)]
    if len(found) > 1:
        raise NotSupported("a plait network has one --subnet of each family; create a second network for the second one")
    if not found:
        return None, None
    subnet, gateway = found[0].subnet, found[0].gateway
    return _parsed(network, subnet, "--subnet"), _parsed(address, gateway, "--gateway") if gateway else None


def _parsed(wanted: Callable[[str], T], text: str, where: str) -> T:
    try:
        return wanted(text)
    except ValueError as error:
        raise ConfigError(where, text, f"is not possible: {error}") from error
