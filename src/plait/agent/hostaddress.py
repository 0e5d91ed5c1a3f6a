# SPDX-License-Identifier: Apache-2.0
"""This host's address on the underlay: which one it is at first, and which one it is when that has gone.

Data in: the address of `init` or `join`, what the configuration pins, what the host has. Data out: the address that holds now.
A host that got another one (DHCP, a move) goes on with that; when its own comes back, with its own again. A pinned one is never left.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Protocol

from plait.agent.config import Config
from plait.agent.health import Health
from plait.agent.identity import Identity
from plait.model.addr import IPAddress
from plait.model.objects import Addr

log = logging.getLogger("plait.node")
LOST = "address-lost"
ELSEWHERE_S = 5.0
"""An address of another link is taken only after this: the link that had it may be about to get its own."""
_ANYWHERE = {4: (socket.AF_INET, "192.0.2.1"), 6: (socket.AF_INET6, "2001:db8::1")}
"""By IP version, an address that only the default route leads to (RFC 5737, RFC 3849)."""


_IF_INET6 = Path("/proc/self/net/if_inet6")
"""A row an address: 32 hexadecimal digits, interface index, prefix length, scope (20: link), flags, name (net/ipv6/addrconf.c)."""
_UNUSABLE = 0x48
"""IFA_F_TENTATIVE, IFA_F_DADFAILED (linux/if_addr.h)."""


def default_source(*versions: int) -> IPAddress | None:
    """The address that this host would send from by its default route, of the first of these IP versions that it has one for."""
    for version in versions:
        family, anywhere = _ANYWHERE[version]
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((anywhere, 9))  # UDP: chooses a route and a source address, sends nothing
            return ip_address(probe.getsockname()[0])
    return None


def is_here(address: IPAddress) -> bool:
    """Whether this host has the address."""
    with contextlib.suppress(OSError), socket.socket(_ANYWHERE[address.version][0], socket.SOCK_DGRAM) as probe:
        probe.bind((str(address), 0))
        return True
    return False


def link_local_of(dev: str, table: Path = _IF_INET6) -> IPv6Address | None:
    """The address of link scope that the link `dev` has and may use, None if it has none (yet)."""
    try:
        rows = [line.split() for line in table.read_text().splitlines()]
    except OSError:  # a kernel without IPv6
        return None
    usable = (IPv6Address(bytes.fromhex(row[0])) for row in rows if row[5] == dev and row[3] == "20" and not int(row[4], 16) & _UNUSABLE)
    return min(usable, default=None)


class AddressKernel(Protocol):
    """What is asked of the kernel here."""

    def underlay(self, address: IPAddress) -> tuple[str, int]: ...

    def addresses(self) -> Sequence[Addr]: ...


class HostAddress:
    """`now` holds; `own` is that of `init` or `join` or, `pinned`, of the configuration; a `translated` one no link ever had, and it is
    never left either. Not thread-safe."""

    def __init__(
        self,
        own: IPAddress,
        pinned: bool,
        kernel: AddressKernel,
        health: Health,
        translated: bool = False,
        source: Callable[[int], IPAddress | None] = default_source,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.own = self.now = own
        self._translated, pinned = translated, pinned or translated
        self._pinned, self._kernel, self._health, self._source, self._clock = pinned, kernel, health, source, clock
        self._link = ""
        self._lost_at: float | None = None

    @classmethod
    def of(cls, config: Config, identity: Identity, kernel: AddressKernel, health: Health) -> HostAddress:
        """That of the configuration if it says one, else the identity's."""
        pinned = config.address is not None
        return cls(config.address or identity.address, pinned, kernel, health, not pinned and identity.translated)

    @property
    def lost(self) -> bool:
        """Whether the host had no address to go on with when it was last looked at: look again."""
        return self._lost_at is not None

    def look(self, last: IPAddress | None = None) -> tuple[str, int]:
        """Settle which address holds; name and MTU of its link. `last`: the one that held before the agent was started. OSError while the
        host has none."""
        known = (self.own,) if self._pinned else (self.own, self.now, last or self.now)
        try:
            return self._first(dict.fromkeys(known))
        except OSError as error:
            self._lost_at = self._lost_at if self._lost_at is not None else self._clock()
            other = None if self._pinned else self._other()
            if other is not None:
                return self._first([other])
            why = "which is pinned by node.address" if self._pinned else "nor another one that others could send to"
            if not self._translated:
                self._health.set(LOST, str(self.now), f"no link of this host has {self.now}, {why}")
            raise error

    def further(self) -> tuple[IPAddress, ...]:
        """Its other addresses that mean this host for all nodes: those of the same link, and on other links those that are one host's in
        the whole world; private ones there may be somebody else's where another node is."""
        found = {addr.address.ip for addr in self._kernel.addresses() if addr.dev == self._link or addr.address.ip.is_global}
        others = (ip for ip in found - {self.now} if not ip.is_loopback)
        return tuple(sorted(others, key=lambda ip: (ip.version, int(ip))))

    def _first(self, addresses: Sequence[IPAddress] | dict[IPAddress, None]) -> tuple[str, int]:
        """Go on with the first of these that the host has. OSError if it has none of them."""
        missing: OSError | None = None
        for address in addresses:
            try:
                self._link, mtu = self._kernel.underlay(address)
            except OSError as error:
                missing = missing or error
                continue
            if address != self.now:
                log.warning("address_changed", extra={"address": str(address), "before": str(self.now), "dev": self._link})
                self._health.clear(LOST, str(self.now))
            self.now, self._lost_at = address, None
            self._health.clear(LOST, str(address))
            return self._link, mtu
        assert missing is not None, "there is always one to look for"
        raise missing

    def _other(self) -> IPAddress | None:
        """Another address of the same family: on the same link at once; else, after a while, that of the default route, or the only one."""
        held = [(addr.dev, addr.address.ip) for addr in self._kernel.addresses()]
        here = [(dev, ip) for dev, ip in held if ip.version == self.own.version and not ip.is_loopback]
        near = [ip for dev, ip in here if dev == self._link]
        if near:
            return near[0]
        if self._lost_at is None or self._clock() - self._lost_at < ELSEWHERE_S:
            return None
        source = self._source(self.own.version)
        if source in [ip for _, ip in here]:
            return source
        return here[0][1] if len(here) == 1 else None


def loopbacks() -> list[str]:
    """Loopback addresses that this host has: clients that are told `localhost` try ::1 first where there is one."""
    return ["127.0.0.1", "::1"] if "00000000000000000000000000000001" in _if_inet6() else ["127.0.0.1"]


def _if_inet6() -> str:
    try:
        return Path("/proc/self/net/if_inet6").read_text()
    except FileNotFoundError:
        return ""
