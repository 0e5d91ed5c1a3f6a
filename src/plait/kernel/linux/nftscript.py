# SPDX-License-Identifier: Apache-2.0
"""The nft tables `inet plait` and `netdev plait` as text: operations -> a script, a listing -> objects. Pure.

A set whose declaration changes (type, flags, or set becomes map) cannot be altered in place and cannot go while a rule names it. So the
chains that use it are emptied first and written again in the same transaction: no packet meets a half-written table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from plait.model.hostlinks import Key
from plait.model.nfttext import difference, element_key, sets_in
from plait.model.objects import NFT_FAMILY, NFT_FAST_FAMILY, NFT_TABLE, KernelObject, NftChain, NftSet, Op

FAMILIES = (NFT_FAMILY, NFT_FAST_FAMILY)
"""Families in which there is a table of ours, in the order in which they are written."""


def table_of(family: str) -> str:
    """The name by which nft knows our table of that family."""
    return f"{family} {NFT_TABLE}"


def family_of(subject: KernelObject) -> str:
    """The family of the table that `subject` lies in."""
    assert isinstance(subject, NftChain | NftSet)
    return subject.family


def script_of(ops: Sequence[Op]) -> str:
    """The nft script that performs `ops` in their order (sets before the chains that use them), as one transaction."""
    anew = redeclared(ops)
    lines = [f"add table {table_of(f)}" for f in FAMILIES if any(op.verb == "put" and family_of(op.subject) == f for op in ops)]
    lines += [f"flush chain {_where(op.old)}" for op in ops if isinstance(op.old, NftChain) and _uses(op.old, anew.values())]
    lines += [f"delete {old.kind} {_where(old)}" for old in anew.values()]
    for op in ops:
        match op.subject, op.old:
            case NftSet() as subject, old:
                replaced = (subject.family, subject.name) in anew
                if op.verb == "put" or not replaced:
                    lines += _set_lines(op.verb, subject, old if isinstance(old, NftSet) and not replaced else None)
            case NftChain() as subject, old:
                lines += _chain_lines(op.verb, subject, old if isinstance(old, NftChain) else None)
    return "\n".join(lines) + "\n"


def redeclared(ops: Iterable[Op]) -> dict[tuple[str, str], NftSet]:
    """By family and name, the sets and maps as they are now that `ops` want declared in another way."""
    put = {(op.new.family, op.new.name): op.new for op in ops if isinstance(op.new, NftSet)}
    held = {(op.old.family, op.old.name): op.old for op in ops if isinstance(op.old, NftSet)}
    return {name: old for name, old in held.items() if name in put and _declaration(old) != _declaration(put[name])}


def with_dependents(ops: Sequence[Op], held: Mapping[Key, KernelObject]) -> list[Op]:
    """`ops`, and a rewrite of each chain of `held` that they leave alone but that names a set which is declared anew."""
    anew, touched = redeclared(ops).values(), {op.key for op in ops}
    users = [obj for key, obj in held.items() if isinstance(obj, NftChain) and key not in touched and _uses(obj, anew)]
    return [*ops, *(Op("put", chain, chain) for chain in users)]


def _where(subject: NftChain | NftSet) -> str:
    return f"{table_of(subject.family)} {subject.name}"


def _declaration(subject: NftSet) -> tuple[str, str, tuple[str, ...], tuple[str, ...]]:
    return subject.kind, subject.type, subject.flags, subject.bounds


def _uses(chain: NftChain, sets: Iterable[NftSet]) -> bool:
    wanted = {found.name for found in sets if found.family == chain.family}
    return any(wanted.intersection(sets_in(rule)) for rule in chain.rules)


def _set_lines(verb: str, subject: NftSet, old: NftSet | None) -> list[str]:
    """Only the elements that differ; the declaration too if nothing is there yet."""
    where = _where(subject)
    if verb == "del":
        return [f"delete {subject.kind} {where}"]
    lines: list[str] = []
    if old is None:
        flags = f" flags {','.join(subject.flags)};" if subject.flags else ""
        bounds = "".join(f" {bound};" for bound in subject.bounds)
        lines.append(f"add {subject.kind} {where} {{ type {subject.type};{flags}{bounds} }}")
    before = old.elements if old is not None else frozenset()
    gone, fresh = difference(before, subject.elements)
    if gone:
        lines.append(f"delete element {where} {{ {', '.join(map(element_key, sorted(gone)))} }}")
    if fresh:
        lines.append(f"add element {where} {{ {', '.join(sorted(fresh))} }}")
    return lines


def _chain_lines(verb: str, subject: NftChain, old: NftChain | None) -> list[str]:
    where = _where(subject)
    if verb == "del":
        return [f"flush chain {where}", f"delete chain {where}"]
    lines: list[str] = []
    if old is not None and old.hook != subject.hook:
        lines += [f"flush chain {where}", f"delete chain {where}"]
    lines.append(f"add chain {where} {{ {subject.hook} }}" if subject.hook else f"add chain {where}")
    lines.append(f"flush chain {where}")
    return lines + [f"add rule {where} {rule}" for rule in subject.rules]


def parse_table(text: str, family: str = NFT_FAMILY) -> list[KernelObject]:
    """What `nft -s list table` prints of our table of `family` -> its chains, sets and maps. Anything else in the text is passed over."""
    found: list[KernelObject] = []
    for kind, name, body in re.findall(r"^\t(chain|set|map) (\S+) \{\n(.*?)^\t\}$", text, re.MULTILINE | re.DOTALL):
        lines = [line.strip() for line in body.splitlines() if line.strip()]
        found.append(_parse_chain(name, lines, family) if kind == "chain" else _parse_set(kind, name, lines, family))
    return found


def _parse_chain(name: str, lines: Sequence[str], family: str) -> NftChain:
    hook = next((line for line in lines if line.startswith("type ") and " hook " in line), "")
    return NftChain(name, tuple(line for line in lines if line != hook), hook, family)


def _parse_set(kind: str, name: str, lines: Sequence[str], family: str) -> NftSet:
    joined = " ".join(lines)
    kind_type = next((line[5:] for line in lines if line.startswith("type ")), "")
    flags = next((tuple(line[6:].split(",")) for line in lines if line.startswith("flags ")), ())
    bounds = tuple(line for line in lines if line.startswith(("size ", "timeout ", "limit ")))
    match = re.search(r"elements = \{(.*)\}", joined) if "dynamic" not in flags else None
    elements = frozenset(" ".join(part.split()) for part in match.group(1).split(",") if part.strip()) if match else frozenset()
    return NftSet(name, kind_type, elements, flags, kind, family, bounds)
