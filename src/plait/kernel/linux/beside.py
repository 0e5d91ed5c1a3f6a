# SPDX-License-Identifier: Apache-2.0
"""Work beside that of the kernel thread: a link that ends and the rules that it leaves behind need not wait for each other.

Measured: the kernel takes 20 to 30 ms to let a veth pair go, most of it waiting for other CPUs, and 14 ms for the transaction that ends
its published port.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from threading import Thread
from typing import Generic, TypeVar

from plait.kernel.api import Op
from plait.kernel.linux.nftscript import family_of
from plait.model.objects import NFT_FAST_FAMILY, EndpointLink, HookRule, NftChain, NftElement, NftSet

T = TypeVar("T")
_RULES = (NftChain, NftSet, NftElement, HookRule)
"""A tuple: an isinstance against a union takes several times as long, which ten thousand routes feel."""


class Beside(Generic[T]):
    """Runs `work` in a thread of its own, which begins in the namespaces of the one that makes it; `result` waits for it, and raises what
    it raised."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="kernel-beside", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found = self._work()
        except BaseException as error:
            self._error = error

    def result(self) -> T:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found


def parted(ops: Iterable[Op]) -> tuple[list[Op], list[Op]]:
    """Operations on rules of nft, and the rest, each in their order."""
    rules: list[Op] = []
    rest: list[Op] = []
    for op in ops:
        (rules if isinstance(op.subject, _RULES) else rest).append(op)
    return rules, rest


def ends_apart(rules: Sequence[Op], rest: Sequence[Op]) -> bool:
    """Whether links of endpoints end and nothing else changes outside nft, and in it nothing that stands on a device: a chain may go with
    its device, and a transaction that names it then is refused."""
    if not rules or not all(op.verb == "del" for op in rest):
        return False
    tables = [op.subject.of if isinstance(op.subject, NftElement) else op.subject for op in rules if not isinstance(op.subject, HookRule)]
    fast = any(family_of(one) == NFT_FAST_FAMILY for one in tables)
    return not fast and any(isinstance(op.subject, EndpointLink) for op in rest)
