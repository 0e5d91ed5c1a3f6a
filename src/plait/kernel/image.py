# SPDX-License-Identifier: Apache-2.0
"""What a kernel holds, in memory, and what each operation does to it. The fake kernel is one; the dry run lays its record over one.

It models: parents (an address on one of plait's links that is missing is ENODEV, as is a port of such a bridge, a sysctl of one ENOENT,
everything on a link goes with it, also when a device must be replaced; its neighbours when its MAC changes; its ports stay, as ports of
none, and a bridge's rows for a port go when it is one no more), idempotent puts and deletions, each nft table written as one
transaction, nft's memory of a device by its index (what names a link that has gone names nothing that is there). An ingress chain waits
for the next link of its name, as since Linux 6.16; before, it went with its link, and a pass makes it anew. Links without plait's prefix
are taken to be there.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from plait.kernel.api import Result, changeable
from plait.model.errors import KernelError
from plait.model.hostlinks import ChildGuard, ChildLink, Key, PortGuard, SwitchPort, VlanLink
from plait.model.nfttext import hooked_device
from plait.model.objects import (
    NFT_FAMILY,
    NFT_FAST_FAMILY,
    PREFIX,
    Addr,
    BridgeFdb,
    BridgeLink,
    EndpointLink,
    Fdb,
    Flood,
    InsideRoutes,
    KernelObject,
    Neigh,
    NftChain,
    NftElement,
    NftSet,
    Op,
    Route,
    Sysctl,
    VxlanLink,
)
from plait.model.shortcut import Delivery, Shortcut
from plait.model.tc import PortQueues, Redirect, Tbf
from plait.model.wireguard import AllowedIp, WireguardPeer

_GONE = "gone"
"""Where the real kernel shows the index that the device had."""


class KernelImage:
    """Mutable. `objects` is what is held, by key."""

    def __init__(self, objects: Mapping[Key, KernelObject] | None = None) -> None:
        self.objects: dict[Key, KernelObject] = dict(objects or {})

    def apply(self, ops: Sequence[Op]) -> Result:
        """As `kernel.api.Kernel.apply`: in the given order, those on each nft table last and as one."""
        failed: dict[Key, KernelError] = {}
        for op in (op for op in ops if op.key[0] != "nft"):
            self._transact([op], failed)
        for family in (NFT_FAMILY, NFT_FAST_FAMILY):
            self._transact([op for op in ops if _family(op.subject) == family], failed)
        return Result(ops, failed)

    def held(self, probe: Iterable[Key]) -> dict[Key, KernelObject]:
        """What carries plait's mark, and what else `probe` names: sysctls, links in other namespaces."""
        named = set(probe)
        return {key: obj for key, obj in self.objects.items() if key in named or not _unseen(obj)}

    def refusal(self, op: Op) -> int:
        """The errno with which the kernel would refuse `op`, 0 if it would not."""
        if isinstance(op.subject, NftElement) and op.subject.of.key not in self.objects:
            return errno.EINVAL
        bridge = master_of(op.subject)
        if op.verb == "put" and bridge and ("link", bridge) not in self.objects:
            return errno.ENODEV
        parent = parent_of(op.subject)
        if op.verb == "put" and parent is not None and parent not in self.objects:
            return errno.ENOENT if isinstance(op.subject, Sysctl | Delivery) else errno.ENODEV
        if op.verb == "put" and isinstance(op.subject, Delivery) and ("link", op.subject.link) not in self.objects:
            return errno.ENODEV
        if op.verb == "put" and isinstance(op.subject, Redirect) and ("link", op.subject.to) not in self.objects:
            return errno.ENODEV
        if op.verb == "put" and isinstance(op.subject, AllowedIp) and _peer_of(op.subject) not in self.objects:
            return errno.ENOENT
        if op.verb == "put" and isinstance(op.subject, BridgeFdb) and not self._leads(op.subject):
            return errno.EOPNOTSUPP
        return 0

    def _leads(self, row: BridgeFdb) -> bool:
        """Whether the row's port is one of its bridge."""
        port = self.objects.get(("link", row.port))
        return port is not None and master_of(port) == row.bridge

    def perform(self, op: Op) -> None:
        """Do an `op` that is not refused."""
        if op.verb == "del":
            self.remove(op.key)
            return
        if isinstance(op.subject, NftElement):
            whole = self.objects[op.subject.of.key]
            assert isinstance(whole, NftSet)
            self.objects[whole.key] = whole.with_element(op.subject.element)
            return
        old = self.objects.get(op.key)
        if old is not None and op.key[0] == "link":
            self._change_link(old, op.subject)
        self.objects[op.key] = _heard_from(old, op.subject)
        if op.key[0] == "link":
            self._forget_ports()

    def remove(self, key: Key) -> None:
        """Take an object away, a link with all that lies on it. An absent one is fine."""
        obj = self.objects.pop(key, None)
        if isinstance(obj, WireguardPeer):
            for row in [k for k, o in self.objects.items() if isinstance(o, AllowedIp) and _peer_of(o) == key]:
                del self.objects[row]
        if obj is not None and key[0] in ("link", "shortcut"):
            for other in [k for k, o in self.objects.items() if parent_of(o) == key]:
                self.remove(other)
            self.objects |= {k: _orphan(o) for k, o in self.objects.items() if master_of(o) == key[1]}
            self._forget_ports()
            self.objects |= {k: stale for k, o in self.objects.items() if (stale := _without_device(o, key[1])) is not None}

    def _forget_ports(self) -> None:
        """Rows of bridges end with what they lead to."""
        for key in [k for k, o in self.objects.items() if isinstance(o, BridgeFdb) and not self._leads(o)]:
            del self.objects[key]

    def _transact(self, ops: Sequence[Op], failed: dict[Key, KernelError]) -> None:
        """All of `ops` or none of them."""
        refusals = [number for op in ops if (number := self.refusal(op))]
        if refusals:
            failed |= {op.key: KernelError(op.verb, " ".join(op.key), refusals[0]) for op in ops}
            return
        for op in ops:
            self.perform(op)

    def _change_link(self, old: KernelObject, new: KernelObject) -> None:
        """What a change of a link costs: a replaced one everything that lies on it, one with another MAC its neighbours."""
        if not changeable(old, new):
            self.remove(old.key)
        elif isinstance(new, VxlanLink | BridgeLink) and isinstance(old, VxlanLink | BridgeLink) and old.mac != new.mac:
            for key in [k for k, o in self.objects.items() if isinstance(o, Neigh) and parent_of(o) == old.key]:
                del self.objects[key]


def _family(obj: KernelObject) -> str:
    """The family of the nft table that `obj` lies in, "" for everything else."""
    match obj:
        case NftChain(family=family) | NftSet(family=family) | NftElement(of=NftSet(family=family)):
            return family
    return ""


def parent_of(obj: KernelObject) -> Key | None:
    """The link of plait without which `obj` cannot be."""
    match obj:
        case BridgeFdb(port=dev):
            return ("link", dev)
        case Addr(dev=dev) | Neigh(dev=dev) | Fdb(dev=dev) | Flood(dev=dev) | Route(dev=dev) if dev.startswith(PREFIX):
            return ("link", dev)
        case WireguardPeer(dev=dev) | AllowedIp(dev=dev) | InsideRoutes(dev=dev) | SwitchPort(dev=dev) | PortGuard(dev=dev):
            return ("link", dev)
        case Tbf(dev=dev) | PortQueues(dev=dev) | Redirect(dev=dev):
            return ("link", dev)
        case VlanLink(parent=parent) | ChildLink(parent=parent) if parent.startswith(PREFIX):
            return ("link", parent)
        case ChildGuard(dev=dev, netns=netns):
            return ("child", dev, netns)
        case Shortcut(dev=dev) if dev.startswith(PREFIX):
            return ("link", dev)
        case Delivery(dev=dev):
            return ("shortcut", dev)
        case NftChain(hook=hook) if hooked_device(hook).startswith(PREFIX):
            return ("link", hooked_device(hook))  # before Linux 6.16; after it the next pass takes it away
        case Sysctl(path=path) if f"/{PREFIX}" in path:
            return ("link", path.split("/")[2])
    return None


def _unseen(obj: KernelObject) -> bool:
    """Whether only who names it is told of it."""
    return isinstance(obj, Sysctl | ChildGuard) or (isinstance(obj, ChildLink) and bool(obj.netns))


def master_of(obj: KernelObject) -> str:
    """The bridge whose port `obj` is, "" of none."""
    return obj.master if isinstance(obj, VxlanLink | EndpointLink) else ""


def _orphan(port: KernelObject) -> KernelObject:
    """A port whose bridge has gone."""
    if isinstance(port, VxlanLink):
        return replace(port, master="", switching=frozenset())
    return replace(port, master="", isolated=False, hairpin=False) if isinstance(port, EndpointLink) else port


def _peer_of(row: AllowedIp) -> Key:
    return ("peer", row.dev, row.public)


def _heard_from(old: KernelObject | None, new: KernelObject) -> KernelObject:
    """A peer of which no endpoint is wanted keeps the one that it has."""
    if isinstance(old, WireguardPeer) and isinstance(new, WireguardPeer) and new.endpoint is None:
        return replace(new, endpoint=old.endpoint)
    return new


def _without_device(obj: KernelObject, name: str) -> KernelObject | None:
    """How `obj` reads once the device that it names has gone, None if it names another or none."""
    match obj:
        case Delivery(link=link) if link == name:
            return replace(obj, link="")
        case Redirect(to=to) if to == name:
            return replace(obj, to="")
        case NftChain(rules=rules) if any(_pointing(rule, name) != rule for rule in rules):
            return replace(obj, rules=tuple(_pointing(rule, name) for rule in rules))
        case NftSet(elements=elements) if any(element.endswith(f': "{name}"') for element in elements):
            return replace(obj, elements=frozenset(e.replace(f': "{name}"', f": {_GONE}") for e in elements))
    return None


def _pointing(rule: str, name: str) -> str:
    """A rule whose device `name` has gone."""
    return re.sub(rf'(device|fwd to) "{re.escape(name)}"', rf"\1 {_GONE}", rule)
