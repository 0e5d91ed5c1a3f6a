# SPDX-License-Identifier: Apache-2.0
"""Another range for a network that is used: what is handed out from now on. Whoever has an address keeps it, wherever that lies. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Network

from plait.ipam.dual import without_router
from plait.ipam.pool import check_network
from plait.model.addr import AddressRange
from plait.model.cluster import Network
from plait.model.errors import ConfigError

RESIZED = "plait.resized"
"""Option of a network whose range or exclusions were changed: engines go on asking for it with those that they were told."""


@dataclass(frozen=True, slots=True)
class PoolChange:
    """What is to be another; None as it is. `whole`: addresses come from all of the subnet."""

    ip_range: IPv4Network | None = None
    whole: bool = False
    excluded: tuple[AddressRange, ...] | None = None


def resized(network: Network, change: PoolChange) -> Network:
    """The network as it shall be. ConfigError if nobody could have an address of it, or a part lies outside its subnet."""
    if change.whole and change.ip_range is not None:
        raise ConfigError("IP range", str(change.ip_range), "is asked for, and the whole subnet too", "choose one")
    ip_range = None if change.whole or change.ip_range == network.subnet else change.ip_range or network.ip_range
    excluded = network.excluded if change.excluded is None else _once(change.excluded)
    made = without_router(replace(network, ip_range=ip_range, excluded=excluded))
    check_network(made, ())
    return made if made == network else replace(made, options={**made.options, RESIZED: "true"})


def _once(parts: Iterable[AddressRange]) -> tuple[AddressRange, ...]:
    return tuple(dict.fromkeys(parts))
