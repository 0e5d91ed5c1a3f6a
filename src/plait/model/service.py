# SPDX-License-Identifier: Apache-2.0
"""Services with a virtual address, as the store holds them (`services/<namespace>/<name>`): one address and name for what many containers
do, wherever these run. Who they are is no part of the record: its selector says it, of whatever containers there are (`plan/backing.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING

from plait.model.addr import Protocol
from plait.model.errors import ConfigError
from plait.model.policy import DEFAULT_NAMESPACE, LAST_PORT, PROTOCOLS

if TYPE_CHECKING:
    from plait.model.cluster import Network

VIP_POOL = IPv4Network("10.27.0.0/16")
"""Virtual addresses come from here. No link carries one: on every host they are translated before a packet is routed."""
VIP_POOL6 = IPv6Network("fd55:aa3d:5f3e::/112")
"""Of IPv6: a unique local range (RFC 4193) that was drawn once, the image of `VIP_POOL` address by address."""
SERVICE_LABEL, SERVICE_PORTS_LABEL = "plait.vip", "plait.vip.ports"
"""Labels of a container that make the service it belongs to, and say which ports that has (`80:8080,53/udp`). (`plait.service` is what
registers a container in the catalogue, and `plait.service.NAME` what it is registered as.)"""
WEIGHT_LABEL = "plait.vip.weight"
"""Label of a container: how many times the share of one of weight 1 it is given, 1 unless said; 0 drains it."""
MOST_WEIGHT = 100
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_FORM = "[NAME=]PORT[:TARGET][/tcp|udp|sctp]"


@dataclass(frozen=True, slots=True)
class ServicePort:
    """`port` of the virtual address leads to `target` of a container. `published`: the same at this port of hosts, 0 for none. `name`: by
    which SRV records tell it, "" for none."""

    proto: Protocol
    port: int
    target: int
    published: int = 0
    name: str = ""

    def __str__(self) -> str:
        return f"{self.name}{'=' if self.name else ''}{self.port}{'' if self.target == self.port else f':{self.target}'}/{self.proto}"


@dataclass(frozen=True, slots=True)
class Service:
    """`selector`: labels that a container of `namespace` on `network` must have, all of them. `address` None (headless): its name leads to
    its containers themselves. `affinity`: one client, told by its address,
    keeps to one container as long as that is there. `local_first`: hosts that have containers of it send to these alone. `drained`:
    containers, NODE/NAME, that get no new connections. `hosts`: nodes that publish its ports, () for all."""

    name: str
    namespace: str
    address: IPv4Address | None
    ports: tuple[ServicePort, ...]
    selector: Mapping[str, str]
    network: str = "default"
    affinity: bool = False
    local_first: bool = False
    drained: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()

    @property
    def ident(self) -> tuple[str, str]:
        """What it is known by: namespace and name."""
        return self.namespace, self.name

    def address6(self, network: Network | None) -> IPv6Address | None:
        """The image of its address, so that nobody else has it; None unless `network`, the one that it is on, has IPv6."""
        if self.address is None or network is None or network.subnet6 is None:
            return None
        return VIP_POOL6[int(self.address) - int(VIP_POOL.network_address)]


@dataclass(frozen=True, slots=True)
class ServiceRequest:
    """What is asked of a service that is to be made; without `address`, one is chosen, unless it is `headless`."""

    name: str
    ports: tuple[ServicePort, ...]
    selector: Mapping[str, str]
    namespace: str = DEFAULT_NAMESPACE
    network: str = "default"
    address: IPv4Address | None = None
    affinity: bool = False
    local_first: bool = False
    hosts: tuple[str, ...] = ()
    headless: bool = False


@dataclass(frozen=True, slots=True)
class ServiceChange:
    """What is asked of one that is there; None leaves it as it is. `drain` and `undrain` name containers, NAME or NODE/NAME."""

    ports: tuple[ServicePort, ...] | None = None
    selector: Mapping[str, str] | None = None
    affinity: bool | None = None
    local_first: bool | None = None
    drain: tuple[str, ...] = ()
    undrain: tuple[str, ...] = ()


def parse_service_name(text: str, what: str = "service") -> str:
    """A label of DNS, in lower case (RFC 1035). ConfigError."""
    if not _NAME.fullmatch(text):
        raise ConfigError(what, text, "is no name", "write a letter, then letters, digits and hyphens in lower case, 63 at most")
    return text


def parse_service_ports(texts: Iterable[str], published: Iterable[str] = ()) -> tuple[ServicePort, ...]:
    """`80`, `80:8080`, `53/udp`, `http=80`; and of those some at ports of hosts, `HOSTPORT:PORT[/PROTO]`. ConfigError."""
    found: dict[tuple[Protocol, int], ServicePort] = {}
    for text in texts:
        name, equals, numbers = text.rpartition("=")
        proto, port, target = _port(numbers, text)
        if equals:
            parse_service_name(name, "name of a port")
        if (proto, port) in found:
            raise ConfigError("port", text, "is given twice")
        found[proto, port] = ServicePort(proto, port, target or port, name=name)
    if not found:
        raise ConfigError("ports", "", "is missing", "name at least one")
    for text in published:
        proto, outside, port = _port(text, text)
        known = found.get((proto, port or outside))
        if known is None:
            raise ConfigError("published port", text, "leads to no port of the service", f"it has {', '.join(map(str, found.values()))}")
        found[proto, known.port] = replace(known, published=outside)
    return tuple(found.values())


def _port(spec: str, text: str) -> tuple[Protocol, int, int]:
    numbers, _, word = spec.partition("/")
    proto = next((one for one in PROTOCOLS if one == (word or "tcp")), None)
    parts = numbers.split(":")
    if proto is None or len(parts) > 2 or not all(one.isascii() and one.isdigit() and 0 < int(one[:6]) <= LAST_PORT for one in parts):
        raise ConfigError("port", text, f"is not {_FORM}")
    return proto, int(parts[0]), int(parts[1]) if len(parts) == 2 else 0
