# SPDX-License-Identifier: Apache-2.0
"""The inside of a sandbox: a netlink socket that lives in its namespace, and what is found there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from plait.kernel.linux import link as links
from plait.kernel.linux import netlink as nl
from plait.kernel.linux import route as routes
from plait.kernel.linux.netns import inside
from plait.model.addr import IPInterface
from plait.model.inside import InsideLink, SandboxState


@contextlib.contextmanager
def opened(path: str) -> Iterator[tuple[int, nl.NetlinkSocket]]:
    """A sandbox's namespace as a descriptor, and a netlink socket that lives in it."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with inside(fd):
            there = nl.NetlinkSocket()
        with contextlib.closing(there):
            yield fd, there
    finally:
        os.close(fd)


def inspect_sandbox(path: str) -> SandboxState:
    """Links, their addresses (not the link-local ones of IPv6) and the default routes of the namespace at `path`. OSError if there is none.
    Any thread may call it."""
    with opened(path) as (_, there):
        named = links.dump_facts(there)
        addresses: dict[str, set[IPInterface]] = {}
        for addr in routes.dump_addrs(there, {index: facts.name for index, facts in named.items()}):
            addresses.setdefault(addr.dev, set()).add(addr.address)
        up = any(facts.up for facts in named.values())
        gateways = routes.dump_default_gateways(there) if up else []  # a route needs a link that is up
    found = {facts.name: InsideLink(facts.mac, facts.up, frozenset(addresses.get(facts.name, ()))) for facts in named.values()}
    four = frozenset(hop for hop in gateways if isinstance(hop, IPv4Address))
    return SandboxState(found, four, frozenset(hop for hop in gateways if isinstance(hop, IPv6Address)))
