# SPDX-License-Identifier: Apache-2.0
"""Operations on what limits links and gives priorities, as the `tc` and `ip` lines that one would type. Pure."""

from __future__ import annotations

from plait.model.objects import Op
from plait.model.tc import CLASS_MINORS, CLASSES_MAJOR, OTHERS_MINOR, WHOLE_MINOR, Classes, IfbLink, PortQueues, Redirect, Tbf


def tc_lines(op: Op) -> list[str]:
    """Of an operation on one of these objects."""
    subject = op.subject
    if isinstance(subject, Classes):
        return _classes(subject, op)
    if isinstance(subject, PortQueues):
        return _port_queues(subject, op)
    assert isinstance(subject, IfbLink | Tbf | Redirect)
    return _limit(subject, op)


def _limit(limit: IfbLink | Tbf | Redirect, op: Op) -> list[str]:
    """The first two filters spare what asks for neighbours. Filters of an ingress need `clsact` there, which may be there already, and goes
    with the last one."""
    wanted = op.verb == "put"
    if isinstance(limit, IfbLink):
        made = [] if op.old is not None else [f"ip link add {limit.name} type ifb"]
        return [*made, f"ip link set {limit.name} up alias {limit.name}"] if wanted else [f"ip link del {limit.name}"]
    if isinstance(limit, Tbf):
        words = f"handle 70: tbf rate {limit.rate * 8}bit burst {limit.burst} limit {limit.limit}"
        return [f"tc qdisc replace dev {limit.dev} root {words}" if wanted else f"tc qdisc del dev {limit.dev} root"]
    filters = (
        ("protocol arp pref 110", "u32 match u32 0 0 flowid 1:1"),
        ("protocol ipv6 pref 111", "u32 match u8 58 0xff at 6 match u8 135 0xff at 40 flowid 1:1"),
        ("protocol all pref 112", f"u32 match u32 0 0 action mirred egress redirect dev {limit.to}"),
    )
    if not wanted:
        gone = [f"tc filter del dev {limit.dev} ingress {which}" for which, _ in reversed(filters)]
        return [*gone, f"tc qdisc del dev {limit.dev} clsact"]
    return [f"tc qdisc add dev {limit.dev} clsact", *(f"tc filter add dev {limit.dev} ingress {which} {what}" for which, what in filters)]


def _classes(classes: Classes, op: Op) -> list[str]:
    if op.verb == "del":
        return [f"tc qdisc del dev {classes.dev} root"]
    major, dev = f"{CLASSES_MAJOR:x}", classes.dev
    made = [] if op.old is not None else [f"tc qdisc add dev {dev} root handle {major}: htb default {CLASS_MINORS[1]:x}"]
    ceil = f"ceil {classes.rate * 8}bit"
    lines = [f"tc class replace dev {dev} parent {major}: classid {major}:1 htb rate {classes.rate * 8}bit {ceil}"]
    for order, (minor, share) in enumerate(zip(CLASS_MINORS, classes.shares, strict=True)):
        lines.append(f"tc class replace dev {dev} parent {major}:1 classid {major}:{minor:x} htb rate {share * 8}bit {ceil} prio {order}")
    return [*made, *lines]


def _port_queues(queues: PortQueues, op: Op) -> list[str]:
    dev, major = queues.dev, f"{queues.major:x}:"
    if op.verb == "del":
        return [f"tc qdisc del dev {dev} root"]
    held = {one.minor for one in op.old.classes} if isinstance(op.old, PortQueues) else set[int]()
    minors = {one.minor for one in queues.classes}
    remade = not held or (WHOLE_MINOR in held) != (WHOLE_MINOR in minors)
    lines = [f"tc qdisc replace dev {dev} root handle {major} htb default {OTHERS_MINOR:x}"] if remade else []
    lines += [f"tc class del dev {dev} classid {major}{minor:x}" for minor in sorted(held - minors) if not remade]
    for one in queues.classes:
        parent = f"{major}{WHOLE_MINOR:x}" if WHOLE_MINOR in minors and one.minor != WHOLE_MINOR else major
        words = f"rate {one.rate * 8}bit ceil {one.ceil * 8}bit burst {one.burst} cburst {one.burst}"
        lines.append(f"tc class replace dev {dev} parent {parent} classid {major}{one.minor:x} htb {words}")
        if one.limit:
            lines.append(f"tc qdisc replace dev {dev} parent {major}{one.minor:x} bfifo limit {one.limit}")
    return lines
