# SPDX-License-Identifier: Apache-2.0
"""Facts of the host that are no objects of plait's, asked for at any moment and from any thread: each question opens its own socket."""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Collection, Sequence
from ipaddress import IPv4Interface
from pathlib import Path

from plait.kernel.linux import childguard, portguard
from plait.kernel.linux import link as links
from plait.kernel.linux import netlink as nl
from plait.kernel.linux import route as routes
from plait.kernel.linux.classes import foreign_root
from plait.kernel.linux.conntrack import forget_flows
from plait.kernel.linux.devices import index_of
from plait.kernel.linux.foreign import Guards, foreign_drops, foreign_guards
from plait.kernel.linux.judged import read_judged
from plait.kernel.linux.nft import counted, counted_elements, counted_links, open_nft
from plait.kernel.linux.sysctl import rp_filter, write_sysctl
from plait.kernel.linux.wgdevice import Device
from plait.kernel.linux.wireguard import Wireguard
from plait.model.addr import IPAddress
from plait.model.cluster import HostRange
from plait.model.errors import KernelError
from plait.model.flows import PortRule
from plait.model.objects import PREFIX, Addr
from plait.policy.evaluate import Packet

STATE_DIR = Path("/var/lib/plait")
BROKEN = (OSError, ValueError, struct.error, nl.NetlinkParseError)
"""Everything that the kernel's answer or an object's values can make go wrong below the seam."""


class HostFacts:
    def foreign_drops(self) -> dict[str, str]:
        """What stops our traffic though it is not ours, by chain (see `foreign`)."""
        return foreign_drops(open_nft())

    def foreign_guards(self) -> Guards:
        """Tables of others whose rules traffic must meet (see `foreign`)."""
        return foreign_guards(open_nft())

    def underlay(self, address: IPAddress) -> tuple[str, int]:
        """Name and MTU of the link that carries `address`. OSError if no link does."""
        for addr in self.addresses():
            if addr.address.ip == address:
                return addr.dev, int(Path(f"/sys/class/net/{addr.dev}/mtu").read_text())
        raise OSError(errno.EADDRNOTAVAIL, f"no link of this host has the address {address}")

    def addresses(self) -> list[Addr]:
        """Those of the host's links that are not plait's."""
        with contextlib.closing(nl.NetlinkSocket()) as sock:
            return routes.dump_addrs(sock, {f.index: f.name for f in links.dump_links(sock) if not f.name.startswith(PREFIX)})

    def forget_flows(self, rules: Sequence[PortRule]) -> int:
        """See `kernel.api.Kernel`."""
        try:
            return forget_flows(rules, _every_address)
        except BROKEN as error:
            number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
            raise KernelError("forget", "tracked connections", number, str(error)) from error

    def strict_sources(self, dev: str) -> bool:
        """Whether new links, or `dev`, drop what comes from where they would not send to (ip-sysctl: rp_filter 1, where the greater of
        the link's and that of `all` counts)."""
        every, fresh, own = (rp_filter(name) for name in ("all", "default", dev))
        return 1 in (max(every, fresh), max(every, own))

    def host_ranges(self) -> list[HostRange]:
        """Routes and addresses of this host that are not plait's."""
        with contextlib.closing(nl.NetlinkSocket()) as sock:
            names = {f.index: f.name for f in links.dump_links(sock)}
            found = [HostRange(cidr, what) for cidr, what in routes.dump_foreign(sock, names)]
        here = ((addr.address, addr.dev) for addr in self.addresses())
        return found + [HostRange(a.network, f"address {a.ip} of {dev}") for a, dev in here if isinstance(a, IPv4Interface)]

    def table_sizes(self) -> dict[int, int]:
        """Number of a table of routes that routers announce -> how many it holds; empty ones are left out."""
        with contextlib.closing(nl.NetlinkSocket()) as sock:
            return routes.table_sizes(sock)

    def flush_tables(self, kept: Collection[int] = ()) -> None:
        """Empty those that are not `kept`."""
        with contextlib.closing(nl.NetlinkSocket()) as sock:
            routes.flush_tables(sock, kept)

    def forget_paths(self) -> None:
        """Drop what the kernel learnt of path MTUs (ten minutes old at most, sysctl mtu_expires): a way that has become wider is used at
        once. What is still narrow it learns again from the next packet."""
        write_sysctl("ipv4/route/flush", "1")
        with contextlib.closing(nl.NetlinkSocket()) as sock, contextlib.suppress(*BROKEN):  # a kernel without IPv6 has no such list
            routes.forget_learnt(sock)

    def wireguard(self, name: str) -> Device | None:
        """What a WireGuard device says of itself and its peers now, None if there is none that answers."""
        with contextlib.closing(Wireguard(STATE_DIR)) as reader, contextlib.suppress(OSError, ValueError):
            return reader.read(name, index_of(name))
        return None

    def counted(self, chains: Sequence[str]) -> int:
        """Packets that the counters in these chains of our table have counted."""
        return counted(open_nft(), chains)

    def counted_links(self, name: str) -> dict[str, int]:
        """Packets by link that rules of ours have counted in the set `name`."""
        return counted_links(open_nft(), name)

    def counted_ports(self, devs: Collection[str]) -> dict[str, int]:
        """Packets that were dropped at ports of switches by link."""
        with contextlib.closing(nl.NetlinkSocket()) as sock:
            return portguard.counted(sock, devs)

    def counted_children(self, guards: Collection[tuple[str, str]]) -> dict[str, int]:
        """Packets that were dropped in containers on links of the host, (link, namespace) each, by link."""
        return childguard.counted(guards)

    def counted_elements(self, name: str) -> dict[str, int]:
        """Packets by element of the set `name` that were too many for its limit."""
        return counted_elements(open_nft(), name)

    def foreign_root(self, dev: str) -> str:
        """The queueing discipline that somebody else has put at the root of a link ("fq 8001:"), "" where there is none."""
        with contextlib.closing(nl.NetlinkSocket()) as sock, contextlib.suppress(*BROKEN):
            return foreign_root(sock, index_of(dev))
        return ""

    def judged(self) -> dict[Packet, int]:
        """See `read_judged`."""
        return read_judged(open_nft())


def _every_address() -> frozenset[IPAddress]:
    """Of this host, those on links of plait's included."""
    with contextlib.closing(nl.NetlinkSocket()) as sock:
        found = routes.dump_addrs(sock, {f.index: f.name for f in links.dump_links(sock)})
    return frozenset(addr.address.ip for addr in found)
