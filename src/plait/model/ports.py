# SPDX-License-Identifier: Apache-2.0
"""How people write what is published, and what is to be published no longer. Pure.

`[ADDRESS:][HOST:]CONTAINER[/PROTO]` as Docker spells it, an IPv6 address in brackets; HOST and CONTAINER may be ranges of equal length.
What is given up is named by its host side, `[ADDRESS:]HOST[/PROTO]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_address, ip_network

from plait.model.addr import EitherNetwork, IPAddress, Protocol, at_port
from plait.model.cluster import PortMapping
from plait.model.errors import ConfigError

FROM_LABEL, NAT_LABEL = "plait.ports.from", "plait.ports.nat"
"""Labels of a container that hold of all ports that it publishes when it starts."""
MOST = 1024
"""Ports that one range may have."""
LAST = 65535
_PROTOCOLS: Mapping[str, Protocol] = {"": "tcp", "tcp": "tcp", "udp": "udp", "sctp": "sctp"}
_INSIDE_FORM = "a port of the container, CONTAINER[/tcp|udp|sctp]"
_FORM, _HELD_FORM = "[ADDRESS:][HOST:]CONTAINER[/tcp|udp|sctp]", "[ADDRESS:]HOST[/tcp|udp|sctp]"


@dataclass(frozen=True, slots=True)
class HostPorts:
    """Host sides of publications: `first` to `last` of `proto`, on `address` or (None) whatever address."""

    proto: Protocol
    first: int
    last: int
    address: IPAddress | None = None

    def __contains__(self, port: PortMapping) -> bool:
        return port.proto == self.proto and self.first <= port.host_port <= self.last and self.address in (None, port.host_ip)

    def __str__(self) -> str:
        first = str(self.first) if self.address is None else at_port(self.address, self.first)
        return f"{first}{'' if self.first == self.last else f'-{self.last}'}/{self.proto}"


def parse_ports(texts: Iterable[str]) -> tuple[PortMapping, ...]:
    """Each as Docker spells it -> mappings, one for each port of a range; host port 0 or absent: any free one. ConfigError."""
    return tuple(port for text in texts for port in _parse(text))


def parse_held(text: str) -> HostPorts:
    """`8080`, `8080/udp`, `127.0.0.1:8080`, `8000-8009`. ConfigError."""
    parts, proto = _split(text, _HELD_FORM)
    if not 1 <= len(parts) <= 2:
        raise ConfigError("port", text, f"is not {_HELD_FORM}")
    first, last = _range(parts[-1], text, _HELD_FORM)
    return HostPorts(proto, first, last, _address(parts[0], text, _HELD_FORM) if len(parts) == 2 else None)


def parse_inside(text: str) -> str:
    """`80`, `53/udp` -> a container's port with its protocol, as `80/tcp`; "" stays "". ConfigError."""
    if not text:
        return ""
    parts, proto = _split(text, _INSIDE_FORM)
    first, last = _range(parts[-1], text, _INSIDE_FORM)
    if len(parts) != 1 or first != last:
        raise ConfigError("port", text, f"is not {_INSIDE_FORM}")
    return f"{first}/{proto}"


def parse_sources(texts: Iterable[str]) -> tuple[EitherNetwork, ...]:
    """Networks and single addresses from which a port may be reached. ConfigError."""
    return tuple(_source(text) for text in texts)


def labelled(ports: Sequence[PortMapping], labels: Mapping[str, str]) -> tuple[PortMapping, ...]:
    """What an engine asks for, with what the container's labels say of it. ConfigError for labels that cannot be meant."""
    nat = labels.get(NAT_LABEL, "false")
    if nat not in ("true", "false"):
        raise ConfigError(f"label {NAT_LABEL}", nat, "must be true or false")
    sources = tuple(_source(text.strip(), f"label {FROM_LABEL}") for text in labels[FROM_LABEL].split(",")) if FROM_LABEL in labels else ()
    return tuple(port if port.told else replace(port, sources=sources, hidden=nat == "true") for port in ports)


def same_place(one: PortMapping, other: PortMapping) -> bool:
    """Whether two publications are of one host port for one port of a container. A host port that is not chosen yet is nobody else's."""
    places = [(port.proto, port.host_ip, port.host_port, port.container_port) for port in (one, other)]
    return places[0] == places[1] and one.host_port != 0


def _parse(text: str) -> list[PortMapping]:
    parts, proto = _split(text, _FORM)
    if not 1 <= len(parts) <= 3:
        raise ConfigError("port", text, f"is not {_FORM}")
    inside = _range(parts[-1], text, _FORM)
    numbers = range(inside[0], inside[1] + 1)
    address = _address(parts[0], text, _FORM) if len(parts) == 3 else IPv4Address(0)
    if len(parts) == 1 or parts[-2] in ("", "0"):
        return [PortMapping(proto, 0, number, address) for number in numbers]
    outside = _range(parts[-2], text, _FORM)
    if outside[1] - outside[0] != inside[1] - inside[0]:
        raise ConfigError("port", text, "has ranges of different length", "give the host as many ports as the container, or none")
    return [PortMapping(proto, outside[0] + number - inside[0], number, address) for number in numbers]


def _split(text: str, form: str) -> tuple[list[str], Protocol]:
    """What colons separate (an IPv6 address has colons of its own), and the protocol."""
    spec, _, word = text.partition("/")
    inside, bracket, rest = spec.removeprefix("[").partition("]")
    proto = _PROTOCOLS.get(word)
    if proto is None:
        raise ConfigError("port", text, f"is not {form}")
    return ([inside, *rest.split(":")[1:]] if spec.startswith("[") and bracket else spec.split(":")), proto


def _range(part: str, text: str, form: str) -> tuple[int, int]:
    low, dash, high = part.partition("-")
    if not all(number.isascii() and number.isdigit() for number in (low, *([high] if dash else []))):
        raise ConfigError("port", text, f"is not {form}: {part!r} is neither a port nor a range of ports")
    first, last = int(low), int(high if dash else low)
    if not 0 < first <= LAST or not 0 < last <= LAST:
        raise ConfigError("port", text, f"names a port outside 1 to {LAST}")
    if not 0 <= last - first < MOST:
        raise ConfigError("port", text, f"has a range that is empty or longer than {MOST} ports")
    return first, last


def _address(part: str, text: str, form: str) -> IPAddress:
    try:
        return ip_address(part)
    except ValueError as error:
        raise ConfigError("port", text, f"is not {form}: {error}") from error


def _source(text: str, what: str = "source") -> EitherNetwork:
    try:
        return ip_network(text)
    except ValueError as error:
        raise ConfigError(what, text, f"is no network or address: {error}", "write 10.0.0.0/8, 192.0.2.7 or fd00::/8") from error
