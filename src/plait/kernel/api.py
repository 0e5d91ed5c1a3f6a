# SPDX-License-Identifier: Apache-2.0
"""The kernel seam: what the agent needs of a kernel. Implementations: `linux`, `fake`, `dryrun`.

`owned` returns every object that carries plait's mark, `apply` performs ordered operations. Both are synchronous
and quick (one netlink batch, one nft transaction); the agent calls them in its one kernel thread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from plait.model.errors import KernelError
from plait.model.flows import PortRule
from plait.model.hostlinks import ChildLink, Key, VlanLink
from plait.model.objects import KernelObject, Op, VxlanLink

__all__ = ["UNMARKED", "Kernel", "Op", "Result", "changeable"]

UNMARKED = ("sysctl", "hook", "child", "child-guard")
"""Kinds that a kernel shows only to those who ask for them by key: they carry no mark of plait's, or may lie in other namespaces."""


@dataclass(frozen=True, slots=True)
class Result:
    """Of `ops`, those in `failed`, keyed by object key, were refused. A failed key does not stop the others."""

    ops: Sequence[Op] = ()
    failed: dict[Key, KernelError] = field(default_factory=dict)

    @property
    def done(self) -> tuple[Key, ...]:
        """The keys of the others, in the order applied. Spelt when asked for: most who apply never do."""
        return tuple(key for op in self.ops if (key := op.key) not in self.failed)


class Kernel(Protocol):
    def owned(self, probe: Iterable[Key] = ()) -> dict[Key, KernelObject]:
        """Everything that carries plait's mark now. `probe` lists keys without a mark of their own (sysctls, hook
        rules' chains), or in other namespaces (children of links), whose present value is wanted too: an absent one is left out.
        KernelError if the kernel cannot be read."""
        ...

    def rules_known(self) -> bool:
        """Whether nobody has changed a rule since `owned` or `apply` saw them last, at the cost of one question. KernelError."""
        ...

    def apply(self, ops: Sequence[Op]) -> Result:
        """Perform `ops` in the given order; operations on the nft table form one transaction, after the others. Idempotent. Whatever
        goes wrong is in the result, nothing is raised."""
        ...

    def forget_flows(self, rules: Sequence[PortRule]) -> int:
        """Have the kernel forget tracked connections that are stale by any of `rules`; returns how many. KernelError."""
        ...

    def watch(self) -> AsyncIterator[str]:
        """Yield a word for every foreign or own change worth a pass ("link", "addr", "route", "neigh", "nft"). Never returns."""
        ...

    def capabilities(self) -> frozenset[str]:
        """Probed once: "vxlan", "veth", "bridge", "nft", "macvlan", … What is missing is named in a health condition."""
        ...

    def close(self) -> None: ...


def changeable(now: KernelObject | None, wanted: KernelObject) -> bool:
    """Whether a living link can be brought in line. VNI, port, source address, VLAN, parent and kind cannot be changed: such a link is
    replaced, and what lay on it comes back with the pass after."""
    if isinstance(now, ChildLink):
        return False
    if isinstance(now, VlanLink) and isinstance(wanted, VlanLink):
        return (now.parent, now.vlan) == (wanted.parent, wanted.vlan)
    if isinstance(now, VxlanLink) and isinstance(wanted, VxlanLink):
        return (now.vni, now.port, now.local) == (wanted.vni, wanted.port, wanted.local)
    return type(now) is type(wanted)
