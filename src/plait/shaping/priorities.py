# SPDX-License-Identifier: Apache-2.0
"""Priorities of endpoints -> marks in what they send, and the queues that go by the marks.

The mark is the DSCP of the IP header, which tunnels copy to the outer one: EF (RFC 3246) for `guaranteed`, CS1 (RFC 3662) for `bulk`, what
the program says for `normal`, but for EF where marks are honoured. What leaves by the host's link waits in the class that its mark says.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from plait.model.limits import BULK, GUARANTEED, PRIORITIES
from plait.model.objects import NFT_FAST_FAMILY, KernelObject, NftChain
from plait.model.tc import CLASS_MINORS, CLASSES_MAJOR, Classes
from plait.shaping.counts import EGRESS

QUEUES = "htb"
"""What the kernel must be able to do (`kernel.api.Kernel.capabilities`), besides `EGRESS`."""
MARKS = {GUARANTEED: "ef", BULK: "cs1"}
WEIGHTS = (60, 30, 10)


@dataclass(frozen=True, slots=True)
class Uplink:
    """The link that carries this host's address, and how fast it is: bit/s, 0: nobody has said. `weights` of the classes, in the order of
    `PRIORITIES`. `foreign`: what somebody else has at its root, which then stays; "" for nothing."""

    link: str = ""
    rate: int = 0
    weights: tuple[int, int, int] = WEIGHTS
    foreign: str = ""


def mark_rules(priority: str, honoured: bool, ips: Collection[str]) -> tuple[str, ...]:
    """Of the chain of a link at its ingress. `honoured`: whether queues of this host go by marks; `ips`: "ip", "ip6"."""
    if priority in MARKS:
        return tuple(f"{ip} dscp set {MARKS[priority]}" for ip in ips)
    return tuple(f"{ip} dscp {MARKS[GUARANTEED]} {ip} dscp set cs0" for ip in ips) if honoured else ()


def uplink_objects(uplink: Uplink, able: Collection[str]) -> list[KernelObject]:
    """The queues of the host's link and what leads there; none where they cannot be, or somebody else's are."""
    if not uplink.link or not uplink.rate or uplink.foreign or not {QUEUES, EGRESS} <= set(able):
        return []
    rate, total = uplink.rate // 8, sum(uplink.weights)
    first, second, third = (rate * weight // total for weight in uplink.weights)
    minors = {MARKS[name]: minor for name, minor in zip(PRIORITIES, CLASS_MINORS, strict=True) if name in MARKS}
    classes = ", ".join(f"{mark} : {CLASSES_MAJOR:x}:{minor:x}" for mark, minor in sorted(minors.items()))
    rules = tuple(f"meta priority set {ip} dscp map {{ {classes} }}" for ip in ("ip", "ip6"))
    hook = f'type filter hook egress device "{uplink.link}" priority filter; policy accept;'
    return [Classes(uplink.link, rate, (first, second, third)), NftChain(f"to_{uplink.link}", rules, hook, NFT_FAST_FAMILY)]
