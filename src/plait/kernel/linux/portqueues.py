# SPDX-License-Identifier: Apache-2.0
"""The queueing discipline `htb` with one class for each published port that has a queue <-> rtnetlink messages.

Data in: `PortQueues` of a link of ours. Data out: RTM_*QDISC and RTM_*TCLASS messages. Ours is known by its handle, 71: or, for what a
container sends, 72: (hex); what waits in a class waits in a `bfifo` of its own. What the kernel cannot change about it in place is whether
there is a class of all: then it is made anew, and what waits there is lost.

Sources: rtnetlink(7), tc-htb(8), tc-bfifo(8), include/uapi/linux/pkt_sched.h, net/sched/{sch_htb,sch_fifo}.c.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping

from plait.kernel.linux import netlink as nl
from plait.kernel.linux.classes import burst_at_ceil, class_message, class_rates
from plait.model.tc import OTHERS_MINOR, PORTS_MAJORS, WHOLE_MINOR, PortClass, PortQueues

_RTM_NEWQDISC, _RTM_DELQDISC, _RTM_GETQDISC = 36, 37, 38
_RTM_NEWTCLASS, _RTM_DELTCLASS, _RTM_GETTCLASS = 40, 41, 42
_TCMSG = struct.Struct("=BxxxiIII")
_KIND, _OPTIONS, _ROOT, _HTB_INIT = 1, 2, 0xFFFFFFFF, 2
_GLOB = struct.Struct("=IIIII")
_VERSION, _RATE_TO_QUANTUM = 3, 10
_MAJORS = frozenset(PORTS_MAJORS.values())
_QUANTUM = 16 << 10
"""Bytes that each class may send in its turn when several borrow."""


class PortQueueControl:
    """That of the namespace in which `sock` was made. Not for several threads at once."""

    def __init__(self, sock: nl.NetlinkSocket) -> None:
        self._sock = sock

    def read(self, names: Mapping[int, str]) -> list[PortQueues]:
        """What links (index -> name) have of ours. OSError."""
        roots, waiting = self._qdiscs()
        found = sorted((index, major) for index, major in roots.items() if index in names)
        return [PortQueues(names[index], self._classes(index, major, waiting), major) for index, major in found]

    def _qdiscs(self) -> tuple[dict[int, int], dict[tuple[int, int], int]]:
        """Links that have ours at their roots, with its major number, and how much may wait in each class, by link and handle."""
        try:
            found = self._sock.dump(_RTM_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0))
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return {}, {}
        roots, waiting = dict[int, int](), dict[tuple[int, int], int]()
        for kind, body in found:
            _, index, handle, parent, _ = _TCMSG.unpack_from(body)
            attrs = nl.parse_attrs(body[_TCMSG.size :])
            what = nl.text_of(attrs.get(_KIND, b""))
            if kind == _RTM_NEWQDISC and (what, handle & 0xFFFF, parent) == ("htb", 0, _ROOT) and handle >> 16 in _MAJORS:
                roots[index] = handle >> 16
            elif kind == _RTM_NEWQDISC and what == "bfifo" and parent >> 16 in _MAJORS:
                waiting[index, parent] = nl.number_of(attrs.get(_OPTIONS)) or 0
        return roots, waiting

    def _classes(self, index: int, major: int, waiting: Mapping[tuple[int, int], int]) -> tuple[PortClass, ...]:
        found: list[PortClass] = []
        for kind, body in self._sock.dump(_RTM_GETTCLASS, _TCMSG.pack(0, index, 0, 0, 0)):
            _, _, handle, _, _ = _TCMSG.unpack_from(body)
            if kind == _RTM_NEWTCLASS and handle >> 16 == major:
                attrs = nl.parse_attrs(nl.parse_attrs(body[_TCMSG.size :]).get(_OPTIONS, b""))
                rate, ceil = class_rates(attrs)
                found.append(PortClass(handle & 0xFFFF, rate, ceil, burst_at_ceil(attrs), waiting.get((index, handle), 0)))
        return tuple(sorted(found, key=lambda one: one.minor))

    def put(self, wanted: PortQueues, index: int) -> None:
        """Create, or change in place: what waits in classes that stay is kept. OSError."""
        minors, whole = {one.minor for one in wanted.classes}, wanted.major << 16
        ours = self._qdiscs()[0].get(index) == wanted.major
        held = {one.minor for one in self._classes(index, wanted.major, {})} if ours else set[int]()
        if not ours or (WHOLE_MINOR in held) != (WHOLE_MINOR in minors):
            self.remove(index, wanted.major)
            init = nl.nested(_OPTIONS, nl.attr(_HTB_INIT, _GLOB.pack(_VERSION, _RATE_TO_QUANTUM, OTHERS_MINOR, 0, 0)))
            body = _TCMSG.pack(0, index, whole, _ROOT, 0) + nl.attr_text(_KIND, "htb") + init
            self._must(nl.Message(_RTM_NEWQDISC, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, body))
            held = set()
        for minor in sorted(held - minors):
            self._must(nl.Message(_RTM_DELTCLASS, 0, _TCMSG.pack(0, index, whole | minor, 0, 0)))
        above = whole | WHOLE_MINOR if WHOLE_MINOR in minors else whole
        for one in wanted.classes:
            parent = whole if one.minor == WHOLE_MINOR else above
            rates, bursts = (one.rate, one.ceil), (one.burst, one.burst)
            self._must(class_message(index, parent, whole | one.minor, rates, bursts, 0, _QUANTUM))
            if one.limit:
                body = _TCMSG.pack(0, index, 0, whole | one.minor, 0) + nl.attr_text(_KIND, "bfifo") + nl.attr_u32(_OPTIONS, one.limit)
                self._must(nl.Message(_RTM_NEWQDISC, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, body))

    def remove(self, index: int, major: int) -> None:
        """An absent one is fine; the kernel calls it invalid (EINVAL) where somebody put another at its place. OSError."""
        gone = nl.Message(_RTM_DELQDISC, 0, _TCMSG.pack(0, index, major << 16, _ROOT, 0))
        self._must(gone, but={errno.ENOENT, errno.EINVAL})

    def _must(self, message: nl.Message, but: set[int] | frozenset[int] = frozenset()) -> None:
        (reply,) = self._sock.transact([message])
        if reply.errno and reply.errno not in but:
            raise OSError(reply.errno, reply.text or os.strerror(reply.errno))
