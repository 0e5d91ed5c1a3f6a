# SPDX-License-Identifier: Apache-2.0
"""Egress rules, as the store holds them (`egress/<name>`): by which hosts containers leave for the outside, and under which address."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from zlib import crc32

from plait.model.errors import ConfigError

EGRESS_TABLES = range(1_130_000, 1_140_000)
"""Numbers of kernel tables that lead to gateways, and of the marks that lead to these tables."""
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class EgressGateway:
    """A node, and the address of its that the outside sees; None: the node's own."""

    node: str
    address: IPv4Address | None = None

    def __str__(self) -> str:
        return self.node if self.address is None else f"{self.node}={self.address}"


@dataclass(frozen=True, slots=True)
class Egress:
    """Containers on `network` that have all labels of `selector` (none: all of them) leave by the first of `gateways` that can be reached,
    and by nothing else."""

    name: str
    network: str
    gateways: tuple[EgressGateway, ...]
    selector: Mapping[str, str] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """Of its table and mark, on every host."""
        return EGRESS_TABLES[crc32(self.name.encode()) % len(EGRESS_TABLES)]


def check_egress_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError("name", name, "is no name", "use lower-case letters, digits and dashes, at most 63, beginning with a letter")
    return name


def parse_gateways(texts: tuple[str, ...]) -> tuple[EgressGateway, ...]:
    """Each NODE or NODE=ADDRESS, in the order in which they are wanted. ConfigError."""
    if not texts:
        raise ConfigError("via", "", "names no gateway", "write one like --via gw1, or --via gw1=192.0.2.7")
    found = tuple(_gateway(text) for text in texts)
    nodes = [one.node for one in found]
    twice = next((node for node in nodes if nodes.count(node) > 1), None)
    if twice is not None:
        raise ConfigError("via", twice, "is named twice")
    return found


def _gateway(text: str) -> EgressGateway:
    node, named, address = text.partition("=")
    try:
        return EgressGateway(node, IPv4Address(address) if named else None)
    except ValueError as error:
        raise ConfigError("via", text, f"names what is no IPv4 address: {error}", "write NODE or NODE=ADDRESS") from error
