# SPDX-License-Identifier: Apache-2.0
"""A kernel in memory with the errors and dependencies of the real one; the contract suite runs the same text over both.

What operations do to each other is `kernel.image`'s matter; here are foreign hooks that may be absent, failures on demand, and events.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Iterable, Sequence

from plait.kernel.image import KernelImage
from plait.model.flows import PortRule
from plait.model.hostlinks import Key
from plait.model.objects import HookRule, KernelObject, Op

CAPABILITIES = frozenset(
    {
        "vxlan",
        "bridge",
        "veth",
        "nft",
        "fwd",
        "ingress",
        "draw",
        "guard",
        "metered",
        "egress",
        "ipv6",
        "wireguard",
        "macvlan",
        "ipvlan",
        "vlan",
        "shortcut",
        "xdp",
        "tbf",
        "ifb",
        "redirect",
        "htb",
    }
)


class FakeKernel(KernelImage):
    """See `kernel.api.Kernel`. `writes` counts the operations that were applied; `dropped` is what rules have, by set and element."""

    def __init__(self, hooks: Iterable[tuple[str, str, str]] = ()) -> None:
        super().__init__()
        self.hooks = set(hooks)
        self.writes = 0
        self.trampled = False
        self.flow_rules: list[PortRule] = []
        self.dropped: dict[str, dict[str, int]] = {}
        self._failures: dict[Key, list[int]] = {}
        self._events: asyncio.Queue[str] = asyncio.Queue()

    # --- what tests do to it

    def fail_next(self, key: Key, number: int = errno.EINVAL, times: int = 1) -> None:
        """The next operations on `key` are refused with this errno."""
        self._failures[key] = [number] * times

    def trample(self, key: Key, obj: KernelObject | None) -> None:
        """Somebody else replaces or removes an object behind our back; what depends on a removed link goes too."""
        if obj is None:
            self.remove(key)
        else:
            self.objects[key] = obj
        self.trampled = self.trampled or key[0] in ("nft", "hook")
        self._events.put_nowait(key[0])

    # --- the seam; `apply` is the image's

    def owned(self, probe: Iterable[Key] = ()) -> dict[Key, KernelObject]:
        probe = set(probe)
        held, self.trampled = self.held(probe), False
        for key in probe:
            if key[0] == "hook" and (key[1], key[2], key[3]) not in self.hooks:
                held[key] = HookRule(key[1], key[2], key[3], key[4])
        return held

    def rules_known(self) -> bool:
        return not self.trampled

    def forget_flows(self, rules: Sequence[PortRule]) -> int:
        """Nothing is ever tracked here; the rules are noted."""
        self.flow_rules += rules
        return 0

    async def watch(self) -> AsyncIterator[str]:
        while True:
            yield await self._events.get()

    def capabilities(self) -> frozenset[str]:
        return CAPABILITIES

    def close(self) -> None:
        pass

    # --- semantics

    def refusal(self, op: Op) -> int:
        failures = self._failures.get(op.key)
        return failures.pop() if failures else super().refusal(op)

    def perform(self, op: Op) -> None:
        self.writes += 1
        if op.verb == "del" or not isinstance(op.subject, HookRule) or op.key[1:4] in self.hooks:
            super().perform(op)

    def counted_links(self, name: str) -> dict[str, int]:
        return self.dropped.get(name, {})

    def counted_elements(self, name: str) -> dict[str, int]:
        return self.dropped.get(name, {})
