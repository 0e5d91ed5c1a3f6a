# SPDX-License-Identifier: Apache-2.0
"""A kernel in memory with the errors and dependencies of the real one; the contract suite runs the same text over both.

It models: parents (an address on a missing link is ENODEV, a sysctl of one ENOENT, everything on a link goes with it, also when a device
must be replaced; its neighbours when its MAC changes), idempotent puts and deletions, the nft table written as one transaction, foreign
hooks that may be absent.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Iterable, Sequence

from plait.kernel.api import Result, changeable
from plait.model.errors import KernelError
from plait.model.objects import (
    NFT_FAMILY,
    NFT_FAST_FAMILY,
    PREFIX,
    Addr,
    BridgeLink,
    Fdb,
    HookRule,
    KernelObject,
    Key,
    Neigh,
    NftChain,
    NftElement,
    NftSet,
    Op,
    Route,
    Sysctl,
    VxlanLink,
)

CAPABILITIES = frozenset({"vxlan", "bridge", "veth", "nft", "fwd"})


class FakeKernel:
    """See `kernel.api.Kernel`. `writes` counts the operations that were applied."""

    def __init__(self, hooks: Iterable[tuple[str, str, str]] = ()) -> None:
        self.objects: dict[Key, KernelObject] = {}
        self.hooks = set(hooks)
        self.writes = 0
        self._failures: dict[Key, int] = {}
        self._events: asyncio.Queue[str] = asyncio.Queue()

    # --- what tests do to it

    def fail_next(self, key: Key, number: int = errno.EINVAL) -> None:
        """The next operation on `key` is refused with this errno."""
        self._failures[key] = number

    def trample(self, key: Key, obj: KernelObject | None) -> None:
        """Somebody else replaces or removes an object behind our back; what depends on a removed link goes too."""
        if obj is None:
            self._remove(key)
        else:
            self.objects[key] = obj
        self._events.put_nowait(key[0])

    # --- the seam

    def owned(self, probe: Iterable[Key] = ()) -> dict[Key, KernelObject]:
        probe = set(probe)
        held = {key: obj for key, obj in self.objects.items() if not isinstance(obj, Sysctl) or key in probe}
        for key in probe:
            if key[0] == "hook" and (key[1], key[2], key[3]) not in self.hooks:
                held[key] = HookRule(key[1], key[2], key[3], key[4])
        return held

    def apply(self, ops: Sequence[Op]) -> Result:
        failed: dict[Key, KernelError] = {}
        for op in (op for op in ops if op.key[0] != "nft"):
            self._do([op], failed)
        for family in (NFT_FAMILY, NFT_FAST_FAMILY):
            self._do([op for op in ops if _family(op.subject) == family], failed)
        return Result(tuple(op.key for op in ops if op.key not in failed), failed)

    async def watch(self) -> AsyncIterator[str]:
        while True:
            yield await self._events.get()

    def capabilities(self) -> frozenset[str]:
        return CAPABILITIES

    def close(self) -> None:
        pass

    # --- semantics

    def _do(self, ops: Sequence[Op], failed: dict[Key, KernelError]) -> None:
        """All of `ops` or none of them."""
        refusals = [number for op in ops if (number := self._failures.pop(op.key, 0) or self._refusal(op))]
        if refusals:
            failed |= {op.key: KernelError(op.verb, " ".join(op.key), refusals[0]) for op in ops}
            return
        for op in ops:
            self.writes += 1
            self._perform(op)

    def _refusal(self, op: Op) -> int:
        if isinstance(op.subject, NftElement) and op.subject.of.key not in self.objects:
            return errno.EINVAL
        parent = _parent(op.subject)
        if op.verb == "put" and parent is not None and parent not in self.objects:
            return errno.ENOENT if isinstance(op.subject, Sysctl) else errno.ENODEV
        return 0

    def _perform(self, op: Op) -> None:
        if op.verb == "del":
            self._remove(op.key)
        elif isinstance(op.subject, NftElement):
            whole = self.objects[op.subject.of.key]
            assert isinstance(whole, NftSet)
            self.objects[whole.key] = whole.with_element(op.subject.element)
        elif not isinstance(op.subject, HookRule) or op.key[1:4] in self.hooks:
            old = self.objects.get(op.key)
            if old is not None and op.key[0] == "link":
                self._change_link(old, op.subject)
            self.objects[op.key] = op.subject

    def _change_link(self, old: KernelObject, new: KernelObject) -> None:
        """What a change of a link costs: a replaced one everything that lies on it, one with another MAC its neighbours."""
        if not changeable(old, new):
            self._remove(old.key)
        elif isinstance(new, VxlanLink | BridgeLink) and isinstance(old, VxlanLink | BridgeLink) and old.mac != new.mac:
            for key in [k for k, o in self.objects.items() if isinstance(o, Neigh) and _parent(o) == old.key]:
                del self.objects[key]

    def _remove(self, key: Key) -> None:
        obj = self.objects.pop(key, None)
        if obj is not None and key[0] == "link":
            for other in [k for k, o in self.objects.items() if _parent(o) == key]:
                del self.objects[other]


def _family(obj: KernelObject) -> str:
    """The family of the nft table that `obj` lies in, "" for everything else."""
    match obj:
        case NftChain(family=family) | NftSet(family=family) | NftElement(of=NftSet(family=family)):
            return family
    return ""


def _parent(obj: KernelObject) -> Key | None:
    """The link without which `obj` cannot be."""
    match obj:
        case Addr(dev=dev) | Neigh(dev=dev) | Fdb(dev=dev):
            return ("link", dev)
        case Route(dev=dev) if dev:
            return ("link", dev)
        case Sysctl(path=path) if f"/{PREFIX}" in path:
            return ("link", path.split("/")[2])
    return None
