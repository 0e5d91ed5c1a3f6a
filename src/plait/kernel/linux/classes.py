# SPDX-License-Identifier: Apache-2.0
"""The queueing discipline `htb` with one class for each priority <-> rtnetlink messages.

Data in: `Classes` of the link that carries this host's address, which is not plait's. Data out: RTM_*QDISC and RTM_*TCLASS messages. Ours
is known by its handle, 7070: (hex). A root that somebody else made is never touched: the kernel refuses to make another (EEXIST), and a
removal names ours. What the kernel itself put at the root (handle 0) goes while ours is there, and comes back.

Sources: rtnetlink(7), tc-htb(8), include/uapi/linux/pkt_sched.h, net/sched/sch_htb.c.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping

from plait.kernel.linux import netlink as nl
from plait.model.tc import BURST_STEP, CLASS_MINORS, CLASSES_MAJOR, Classes

_RTM_NEWQDISC, _RTM_DELQDISC, _RTM_GETQDISC = 36, 37, 38
_RTM_NEWTCLASS, _RTM_GETTCLASS = 40, 42
_TCMSG = struct.Struct("=BxxxiIII")
_KIND, _OPTIONS, _ROOT = 1, 2, 0xFFFFFFFF
_HTB_PARMS, _HTB_INIT, _HTB_RATE64, _HTB_CEIL64 = 1, 2, 6, 7
_GLOB = struct.Struct("=IIIII")
_RATE = struct.Struct("=BBHhHI")
_OPT = struct.Struct("=12s12sIIIII")
_VERSION, _RATE_TO_QUANTUM, _ETHERNET = 3, 10, 1
_NS, _TICK_NS = 10**9, 64
_HANDLE = CLASSES_MAJOR << 16
_WHOLE = 1
"""The minor number of the class that all others borrow from."""
_BURST_S, _LEAST_BURST = 0.002, 16 << 10
_QUANTUM = 1514
"""Bytes that a class may send in its turn when several borrow, for each hundredth of the rate that is its own."""


class ClassControl:
    """That of the namespace in which `sock` was made. Not for several threads at once."""

    def __init__(self, sock: nl.NetlinkSocket) -> None:
        self._sock = sock

    def read(self, names: Mapping[int, str]) -> list[Classes]:
        """What links (index -> name) have of ours; of one whose classes are not what ours are the rate is 0. OSError."""
        return [
            self._classes(index, names[index]) for index, (what, handle) in self.roots().items() if index in names and _ours(what, handle)
        ]

    def roots(self) -> dict[int, tuple[str, int]]:
        """The queueing discipline at the root of each link, by index: its kind and handle, 0 for one that the kernel chose."""
        try:
            found = self._sock.dump(_RTM_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0))
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return {}
        roots: dict[int, tuple[str, int]] = {}
        for kind, body in found:
            _, index, handle, parent, _ = _TCMSG.unpack_from(body)
            if kind == _RTM_NEWQDISC and parent == _ROOT:
                roots[index] = nl.text_of(nl.parse_attrs(body[_TCMSG.size :]).get(_KIND, b"")), handle
        return roots

    def _classes(self, index: int, dev: str) -> Classes:
        rates: dict[int, tuple[int, int]] = {}
        for kind, body in self._sock.dump(_RTM_GETTCLASS, _TCMSG.pack(0, index, 0, 0, 0)):
            _, _, handle, _, _ = _TCMSG.unpack_from(body)
            if kind == _RTM_NEWTCLASS and handle >> 16 == CLASSES_MAJOR:
                rates[handle & 0xFFFF] = class_rates(nl.parse_attrs(nl.parse_attrs(body[_TCMSG.size :]).get(_OPTIONS, b"")))
        whole = rates.pop(_WHOLE, (0, 0))[1]
        if rates.keys() != set(CLASS_MINORS) or any(ceil != whole for _, ceil in rates.values()):
            return Classes(dev, 0, (0, 0, 0))
        first, second, third = (rates[minor][0] for minor in CLASS_MINORS)
        return Classes(dev, whole, (first, second, third))

    def put(self, wanted: Classes, index: int) -> None:
        """Create, or change in place: what waits there is kept. OSError, EEXIST where somebody else's is."""
        what, handle = self.roots().get(index, ("", 0))
        if not _ours(what, handle):
            init = nl.nested(_OPTIONS, nl.attr(_HTB_INIT, _GLOB.pack(_VERSION, _RATE_TO_QUANTUM, CLASS_MINORS[1], 0, 0)))
            body = _TCMSG.pack(0, index, _HANDLE, _ROOT, 0) + nl.attr_text(_KIND, "htb") + init
            self._must(nl.Message(_RTM_NEWQDISC, nl.NLM_F_CREATE | nl.NLM_F_EXCL, body))
        self._must(_class(index, _HANDLE, _WHOLE, (wanted.rate, wanted.rate), 0, 100 * _QUANTUM))
        for order, (minor, share) in enumerate(zip(CLASS_MINORS, wanted.shares, strict=True)):
            quantum = max(_QUANTUM * 100 * share // wanted.rate, _QUANTUM)
            self._must(_class(index, _HANDLE | _WHOLE, minor, (share, wanted.rate), order, quantum))

    def remove(self, index: int) -> None:
        """Ours; an absent one is fine, and somebody else's stays. OSError."""
        if _ours(*self.roots().get(index, ("", 0))):
            self._must(nl.Message(_RTM_DELQDISC, 0, _TCMSG.pack(0, index, _HANDLE, _ROOT, 0)))

    def _must(self, message: nl.Message) -> None:
        (reply,) = self._sock.transact([message])
        if reply.errno:
            raise OSError(reply.errno, reply.text or os.strerror(reply.errno))


def foreign_root(sock: nl.NetlinkSocket, index: int) -> str:
    """What somebody else has put at the root of a link, as tc(8) prints it; "" where there is what the kernel chose, or ours. OSError."""
    what, handle = ClassControl(sock).roots().get(index, ("", 0))
    return "" if not handle or _ours(what, handle) else f"{what} {handle >> 16:x}:"


def _ours(what: str, handle: int) -> bool:
    return (what, handle) == ("htb", _HANDLE)


def _class(index: int, parent: int, minor: int, rates: tuple[int, int], order: int, quantum: int) -> nl.Message:
    """What makes or changes a class of ours. Of those that borrow, lower `order` comes first."""
    bursts = tuple(int(max(value * _BURST_S, _LEAST_BURST)) for value in rates)
    return class_message(index, parent, _HANDLE | minor, rates, (bursts[0], bursts[1]), order, quantum)


def class_message(
    index: int, parent: int, handle: int, rates: tuple[int, int], bursts: tuple[int, int], order: int, quantum: int
) -> nl.Message:
    """What makes or changes a class of htb: `rates` are its own and what it may have when others leave it, bytes a second, `bursts` what
    may pass at once at each."""
    specs = (_RATE.pack(0, _ETHERNET, 0, -1, 0, min(rate, 0xFFFFFFFF)) for rate in rates)
    ticks = (min(round(burst / rate * _NS / _TICK_NS), 0xFFFFFFFF) for rate, burst in zip(rates, bursts, strict=True))
    parms = nl.attr(_HTB_PARMS, _OPT.pack(*specs, *ticks, quantum, 0, order))
    whole = (nl.attr(kind, struct.pack("=Q", rate)) for kind, rate in zip((_HTB_RATE64, _HTB_CEIL64), rates, strict=True))
    options = nl.nested(_OPTIONS, parms, *whole)
    body = _TCMSG.pack(0, index, handle, parent, 0) + nl.attr_text(_KIND, "htb") + options
    return nl.Message(_RTM_NEWTCLASS, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, body)


def burst_at_ceil(attrs: Mapping[int, bytes]) -> int:
    """Of a class whose options `class_rates` could read: bytes."""
    ticks = int(_OPT.unpack_from(attrs[_HTB_PARMS])[3])
    return round(ticks * _TICK_NS * class_rates(attrs)[1] / _NS / BURST_STEP) * BURST_STEP


def class_rates(attrs: Mapping[int, bytes]) -> tuple[int, int]:
    """A class's own rate and ceiling. Those that fit 32 bits are told in the parameters alone."""
    parms = attrs.get(_HTB_PARMS, b"")
    if len(parms) < _OPT.size:
        raise nl.NetlinkParseError(f"htb class: parameters of {len(parms)} bytes are too short")
    specs = _OPT.unpack_from(parms)[:2]
    told = zip(specs, (attrs.get(_HTB_RATE64), attrs.get(_HTB_CEIL64)), strict=True)
    rate, ceil = (int.from_bytes(whole, "little") if whole else _RATE.unpack(spec)[5] for spec, whole in told)
    return rate, ceil
