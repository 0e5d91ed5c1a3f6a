# SPDX-License-Identifier: Apache-2.0
"""What a host that is strict about sources (rp_filter 1) must have set, so that packets may come another way than their answers go."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Interface

from plait.model.cluster import Network, Node
from plait.model.objects import Addr, EndpointLink, KernelObject, Sysctl, VxlanLink


def loosened(me: Node, objects: Iterable[KernelObject], direct: Iterable[Network], underlay: str) -> list[KernelObject]:
    """Where the host is strict about where packets come from, it must not be so on links whose packets may come another way than their
    answers go: two networks in one container, a path that changes at one end first. The greater of this and `all` counts (kernel:
    ip-sysctl, rp_filter), and 2 asks that the source be reachable at all; but of a link without an address the kernel asks as strictly as
    ever (fib_validate_source), so that those of endpoints have the host's own."""
    links = [o for o in objects if isinstance(o, VxlanLink | EndpointLink)]
    devs = [link.name for link in links] + [underlay for _ in list(direct)[:1] if underlay]
    devs += dict.fromkeys(link.master for link in links if link.master)
    alone = [link.name for link in links if isinstance(link, EndpointLink) and not link.master and link.answers]
    own = [IPv4Interface((me.tunnel, 32))] if me.tunnel is not None else []
    return [*(Sysctl(f"ipv4/conf/{dev}/rp_filter", "2") for dev in devs), *(Addr(dev, address) for dev in alone for address in own)]
