# SPDX-License-Identifier: Apache-2.0
"""What of nft's leads to what: rules name sets and chains, elements of verdict maps name chains.

What is led to has to be there before, and to go after.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from plait.model.nfttext import sets_in
from plait.model.objects import KernelObject, NftChain, NftSet

Name = tuple[str, str, str]
"""Family, "chain" or "set" (maps too), name."""
_CHAINS = re.compile(r"(?:jump|goto) ([\w-]+)")


def depths(objects: Iterable[KernelObject]) -> dict[Name, int]:
    """How many of the objects lie below each chain, set and map, the longest way down; a chain lies above every set that leads
    nowhere."""
    held = {name: obj for obj in objects if (name := name_of(obj)) is not None}
    found: dict[Name, int] = {}

    def depth(name: Name) -> int:
        if name not in found:
            found[name] = 0  # what led back to itself would be refused by the kernel
            below = [depth(other) + 1 for other in leads_to(held[name]) if other in held]
            found[name] = max([int(name[1] == "chain"), *below])
        return found[name]

    for name in held:
        depth(name)
    return found


def name_of(obj: KernelObject) -> Name | None:
    """None for what is no chain, set or map."""
    match obj:
        case NftChain(name=name, family=family):
            return family, "chain", name
        case NftSet(name=name, family=family):
            return family, "set", name
    return None


def leads_to(obj: KernelObject) -> set[Name]:
    """What `obj` names, whether or not it is there."""
    match obj:
        case NftChain(rules=rules, family=family):
            chains = {(family, "chain", name) for rule in rules for name in _CHAINS.findall(rule)}
            return chains | {(family, "set", name) for rule in rules for name in sets_in(rule)}
        case NftSet(elements=elements, family=family, type=kind) if kind.endswith(": verdict"):
            verdicts = {element.rpartition(" : ")[2] for element in elements}  # few, of however many elements
            return {(family, "chain", name) for verdict in verdicts for name in _CHAINS.findall(verdict)}
    return set()
