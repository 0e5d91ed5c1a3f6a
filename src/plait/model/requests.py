# SPDX-License-Identifier: Apache-2.0
"""What people and programs ask of an agent, in the shape that every door (admin socket, runtimes) hands on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network


@dataclass(frozen=True, slots=True)
class NetworkRequest:
    """A network to be made. `subnet` None: the next free one of the cluster's range; `gateway` None: its first address;
    `ip_range` None: addresses are handed out from all of the subnet; `block_prefix` 0: by the size of what they are handed out from."""

    name: str
    subnet: IPv4Network | None = None
    gateway: IPv4Address | None = None
    block_prefix: int = 0
    internal: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    ip_range: IPv4Network | None = None
