# SPDX-License-Identifier: Apache-2.0
"""Queueing disciplines and redirections as `tc` knows them <-> rtnetlink messages.

Data in: `Tbf` and `Redirect` objects on links of ours. Data out: RTM_*QDISC and RTM_*TFILTER messages, and what the kernel holds of ours:
a `tbf` at the root with the handle 70: (hex; as routes have protocol 112), and filters `u32` of the preferences 110 to 112 at a link's
ingress, the last of which has one action, `mirred`. Other qdiscs and filters of these links are somebody else's.

What was redirected comes back behind the ingress hooks of tc and nft (kernel: tc_skip_classify). ARP, and what IPv6 asks of its neighbours,
must meet the chain that a network of layer 2 has there (`plan/switching.py`): the first two filters match these and do nothing, so the
third never sees them.

Sources: rtnetlink(7), tc-tbf(8), tc-u32(8), tc-mirred(8), include/uapi/linux/{pkt_sched,pkt_cls,tc_act/tc_mirred}.h. `u32` is the one
classifier that every kernel with any has; a match of no bits is true of every packet.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Mapping, Sequence

from plait.kernel.linux import link as links
from plait.kernel.linux import netlink as nl
from plait.model.objects import PREFIX
from plait.model.tc import BURST_STEP, IfbLink, Redirect, Tbf

_RTM_NEWQDISC, _RTM_DELQDISC, _RTM_GETQDISC = 36, 37, 38
_RTM_NEWTFILTER, _RTM_DELTFILTER, _RTM_GETTFILTER = 44, 45, 46
_TCMSG = struct.Struct("=BxxxiIII")
_KIND, _OPTIONS = 1, 2
_ROOT, _HANDLE = 0xFFFFFFFF, 0x00700000
_CLSACT, _CLSACT_HANDLE, _INGRESS, _EGRESS = 0xFFFFFFF1, 0xFFFF0000, 0xFFFFFFF2, 0xFFFFFFF3
_ARP_PREFERENCE, _ND_PREFERENCE, _PREFERENCE = 110, 111, 112
_ARP, _IPV6, _EVERY_PROTOCOL = (socket.htons(ethertype) for ethertype in (0x0806, 0x86DD, 0x0003))
_TBF_PARMS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
_RATE = struct.Struct("=BBHhHI")
_TBF = struct.Struct("=12s12sIII")
_ETHERNET = 1
"""TC_LINKLAYER_ETHERNET: the kernel computes itself, and asks for no table of times."""
_NS, _TICK_NS = 10**9, 64
"""A burst is told as the time that it takes, in ticks (PSCHED_SHIFT 6)."""
_U32_SEL, _U32_ACT, _TERMINAL = 5, 7, 1
_SEL, _KEY = struct.Struct("=BBBxHHhhI"), struct.Struct("!II")
_EVERYTHING = ((0, 0, 0),)
_ICMPV6, _SOLICITATION = 58, 135
_ASKS_NEIGHBOURS = ((4, 0xFF << 8, _ICMPV6 << 8), (40, 0xFF << 24, _SOLICITATION << 24))
"""Keys, each (offset in the packet, bits that count, what they must be): next header and type of a neighbour solicitation (RFC 4861)."""
_ACT_KIND, _ACT_OPTIONS, _MIRRED_PARMS = 1, 2, 2
_MIRRED = struct.Struct("=IIiiiiI")
_STOLEN, _EGRESS_REDIRECT = 4, 1


class TrafficControl:
    """That of the namespace in which `sock` was made. Not for several threads at once."""

    def __init__(self, sock: nl.NetlinkSocket) -> None:
        self._sock = sock

    # --- reading

    def read(self, names: Mapping[int, str]) -> list[Tbf | Redirect]:
        """What the links (index -> name) have of ours. A redirection to a device that has gone names none. OSError."""
        found: list[Tbf | Redirect] = []
        for kind, body in self._qdiscs():
            if kind != _RTM_NEWQDISC:
                continue
            index, handle, parent, _, attrs = _decoded(body)
            name, what = names.get(index, ""), nl.text_of(attrs.get(_KIND, b""))
            if not name.startswith(PREFIX):
                continue
            if (what, handle, parent) == ("tbf", _HANDLE, _ROOT):
                found.append(decode_tbf(name, attrs.get(_OPTIONS, b"")))
            elif what in ("clsact", "ingress") and (to := self._redirection(index)) is not None:
                found.append(Redirect(name, names.get(to, "")))
        return found

    def _qdiscs(self) -> list[tuple[int, bytes]]:
        """None in a kernel without traffic control (CONFIG_NET_SCHED)."""
        try:
            return self._sock.dump(_RTM_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0))
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return []

    def _redirection(self, index: int) -> int | None:
        """The index of where what the link receives is redirected to, None if nowhere; 0 (no link) where some of the filters are gone."""
        held = dict(found for body in self._filters(index, _INGRESS) if (found := decode_filter(body)) is not None)
        if not held:
            return None
        return held[_PREFERENCE] if held.keys() == {_ARP_PREFERENCE, _ND_PREFERENCE, _PREFERENCE} else 0

    def _filters(self, index: int, where: int) -> list[bytes]:
        found = self._sock.dump(_RTM_GETTFILTER, _TCMSG.pack(0, index, 0, where, 0))
        return [body for kind, body in found if kind == _RTM_NEWTFILTER]

    # --- writing

    def put_tbf(self, wanted: Tbf, index: int) -> None:
        """Create, or change in place: what waits there is kept. OSError."""
        seconds = wanted.burst / wanted.rate
        rate = _RATE.pack(0, _ETHERNET, 0, -1, 0, min(wanted.rate, 0xFFFFFFFF))
        parms = _TBF.pack(rate, bytes(12), wanted.limit, round(seconds * _NS / _TICK_NS), 0)
        whole, burst = nl.attr(_TBF_RATE64, struct.pack("=Q", wanted.rate)), nl.attr_u32(_TBF_BURST, wanted.burst)
        options = nl.nested(_OPTIONS, nl.attr(_TBF_PARMS, parms), whole, burst)
        body = _TCMSG.pack(0, index, _HANDLE, _ROOT, 0) + nl.attr_text(_KIND, "tbf") + options
        self._must(nl.Message(_RTM_NEWQDISC, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, body))

    def remove_tbf(self, index: int) -> None:
        """An absent one is fine; the kernel calls it invalid (EINVAL) where somebody put another at its place. OSError."""
        self._must(nl.Message(_RTM_DELQDISC, 0, _TCMSG.pack(0, index, _HANDLE, _ROOT, 0)), but={errno.ENOENT, errno.EINVAL})

    def redirect(self, index: int, to: int) -> None:
        """Idempotent. Nothing is received unredirected but for the moment in which another device takes the place of one. OSError."""
        if self._redirection(index) == to:
            return
        clsact = _TCMSG.pack(0, index, _CLSACT_HANDLE, _CLSACT, 0) + nl.attr_text(_KIND, "clsact")
        self._must(nl.Message(_RTM_NEWQDISC, nl.NLM_F_CREATE | nl.NLM_F_EXCL, clsact), but={errno.EEXIST})
        self._clear(index)
        parms = _MIRRED.pack(0, 0, _STOLEN, 0, 0, _EGRESS_REDIRECT, to)
        mirred = nl.attr_text(_ACT_KIND, "mirred") + nl.nested(_ACT_OPTIONS, nl.attr(_MIRRED_PARMS, parms))
        for message in (
            _creation(index, _ARP_PREFERENCE, _ARP, _EVERYTHING),
            _creation(index, _ND_PREFERENCE, _IPV6, _ASKS_NEIGHBOURS),
            _creation(index, _PREFERENCE, _EVERY_PROTOCOL, _EVERYTHING, nl.nested(_U32_ACT, nl.nested(1, mirred))),
        ):
            self._must(message)

    def restore(self, index: int) -> None:
        """End the redirection, and what carried it unless somebody else uses that too. An absent one is fine. OSError."""
        self._clear(index)
        if not (self._filters(index, _INGRESS) or self._filters(index, _EGRESS)):
            clsact = _TCMSG.pack(0, index, _CLSACT_HANDLE, _CLSACT, 0)
            self._must(nl.Message(_RTM_DELQDISC, 0, clsact), but={errno.ENOENT, errno.EINVAL})

    def _clear(self, index: int) -> None:
        """Remove our filters, the redirecting one first."""
        for preference, protocol in ((_PREFERENCE, _EVERY_PROTOCOL), (_ND_PREFERENCE, _IPV6), (_ARP_PREFERENCE, _ARP)):
            self._must(_filter(_RTM_DELTFILTER, 0, index, preference, protocol), but={errno.ENOENT, errno.EINVAL})

    def _must(self, message: nl.Message, but: set[int] | frozenset[int] = frozenset()) -> None:
        (reply,) = self._sock.transact([message])
        if reply.errno and reply.errno not in but:
            raise OSError(reply.errno, reply.text or os.strerror(reply.errno))


def create_ifb(link: IfbLink) -> nl.Message:
    return links.creation_of(link.name, "", 0, "ifb", b"")


def link_index(body: bytes) -> int | None:
    """The link that a message about a qdisc or filter is about, None if it is too short."""
    return _TCMSG.unpack_from(body)[1] if len(body) >= _TCMSG.size else None


def _filter(kind: int, flags: int, index: int, preference: int, protocol: int, rest: bytes = b"") -> nl.Message:
    """About one of our filters at a link's ingress."""
    return nl.Message(kind, flags, _TCMSG.pack(0, index, 0, _INGRESS, preference << 16 | protocol) + rest)


def _creation(index: int, preference: int, protocol: int, keys: Sequence[tuple[int, int, int]], action: bytes = b"") -> nl.Message:
    """What makes the filter: it matches what all keys do, and without an action ends the search."""
    packed = b"".join(_KEY.pack(mask, value) + struct.pack("=ii", offset, 0) for offset, mask, value in keys)
    sel = nl.attr(_U32_SEL, _SEL.pack(_TERMINAL, 0, len(keys), 0, 0, 0, 0, 0) + packed)
    rest = nl.attr_text(_KIND, "u32") + nl.nested(_OPTIONS, sel, action)
    return _filter(_RTM_NEWTFILTER, nl.NLM_F_CREATE | nl.NLM_F_EXCL, index, preference, protocol, rest)


def _decoded(body: bytes) -> tuple[int, int, int, int, dict[int, bytes]]:
    """Index, handle, parent, info and attributes. NetlinkParseError."""
    if len(body) < _TCMSG.size:
        raise nl.NetlinkParseError(f"tc message of {len(body)} bytes is too short")
    _, index, handle, parent, info = _TCMSG.unpack_from(body)
    return index, handle, parent, info, nl.parse_attrs(body[_TCMSG.size :])


def decode_tbf(dev: str, options: bytes) -> Tbf:
    """From the options of its message. NetlinkParseError."""
    attrs = nl.parse_attrs(options)
    parms = attrs.get(_TBF_PARMS, b"")
    if len(parms) < _TBF.size:
        raise nl.NetlinkParseError(f"tbf of {dev}: parameters of {len(parms)} bytes are too short")
    spec, _, limit, ticks, _ = _TBF.unpack_from(parms)
    rate = nl.number_of(attrs.get(_TBF_RATE64)) or _RATE.unpack(spec)[5]
    return Tbf(dev, rate, round(ticks * _TICK_NS * rate / _NS / BURST_STEP) * BURST_STEP, limit)


def decode_filter(body: bytes) -> tuple[int, int] | None:
    """Preference of one of our filters and where it leads to (0: nowhere); None if it is none of ours, or only the table that it lies in.
    NetlinkParseError."""
    _, _, _, info, attrs = _decoded(body)
    options = nl.parse_attrs(attrs.get(_OPTIONS, b""))
    preference = info >> 16
    if not _ARP_PREFERENCE <= preference <= _PREFERENCE or nl.text_of(attrs.get(_KIND, b"")) != "u32" or _U32_SEL not in options:
        return None
    for action in map(nl.parse_attrs, nl.parse_attrs(options.get(_U32_ACT, b"")).values()):
        parms = nl.parse_attrs(action.get(_ACT_OPTIONS, b"")).get(_MIRRED_PARMS, b"")
        if len(parms) >= _MIRRED.size:
            return preference, int(_MIRRED.unpack_from(parms)[6])
    return preference, 0
