# SPDX-License-Identifier: Apache-2.0
"""What other programs' chains do to traffic that passes through the host, or comes in: read to be named and obeyed, never touched.

An accept in our own table does not help: a packet must be accepted by every base chain of the hook (nft(8)).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from plait.kernel.linux.nft import Nft, NftError
from plait.model.objects import NFT_TABLE, PREFIX

_CHAIN = re.compile(r"chain (\S+) \{\s*type filter hook forward [^;]*; policy drop;")
_CLOSED = re.compile(r"type filter hook input [^;]*; policy drop;")
_TABLE = re.compile(r"^table (ip|inet|netdev) (\S+) \{\n(.*?)^\}$", re.MULTILINE | re.DOTALL)
_CHAINS = re.compile(r"^\tchain (\S+) (\{.*?^\t\})", re.MULTILINE | re.DOTALL)
_PASSED_BY = re.compile(r"type filter hook (?:prerouting|forward|postrouting) ")
_RECEIVED_BY = re.compile(r"type filter hook (?:ingress|prerouting|input) ")
_SENT_BY = re.compile(r"type filter hook output ")
_SEALED = re.compile(r"type filter hook output [^;]*; policy drop;")
_INPUT = re.compile(r"type filter hook input ")
_JUMPS = re.compile(r"\b(?:jump|goto) (\S+)")
_DROPS = re.compile(r"\b(?:drop|reject|queue|DROP|REJECT|NFQUEUE)\b")
_DOCKERS = re.compile(r"DOCKER(?:-ISOLATION-STAGE-\d|-INGRESS|-FORWARD|-CT|-BRIDGE|-INTERNAL)?")
_LEGACY = Path("/proc/thread-self/net/ip_tables_names")
"""Tables of the older iptables that are in use in this namespace."""
_HOOK = "jump DOCKER-USER"
"""Docker's documented hook, in which our rules stand."""


def dropping_chains(listing: str) -> list[str]:
    """ "family table chain" of every foreign base chain in the forward hook with policy drop, from what `nft list chains` prints."""
    found: list[str] = []
    for family, table, body in _TABLE.findall(listing):
        if table != NFT_TABLE:
            found += [f"{family} {table} {chain}" for chain in _CHAIN.findall(body)]
    return found


@dataclass(frozen=True, slots=True)
class Guards:
    """Tables of others ("family table") whose rules may drop something: what passes through the host, what the host receives, of the
    latter what is for itself alone (hook input), what the host sends."""

    passing: frozenset[str] = frozenset()
    received: frozenset[str] = frozenset()
    own: frozenset[str] = frozenset()
    sent: frozenset[str] = frozenset()


def guards(listing: str) -> Guards:
    """From what nft prints of tables. Docker's own rules are none: they drop nothing of ours (its FORWARD policy is drop, and ours stand in
    its hook)."""
    passing, received, own, sent = set(), set(), set(), set()
    for table, chains in _foreign_tables(listing):
        rules = any(_DROPS.search(_rules(text)) for name, text in chains.items() if not _DOCKERS.fullmatch(name))
        policies = any(_CHAIN.search(f"chain {name} {text}") and _HOOK not in text for name, text in chains.items())
        if any(_PASSED_BY.search(text) for text in chains.values()) and (rules or policies):
            passing.add(table)
        closed = any(map(_CLOSED.search, chains.values()))
        if any(_RECEIVED_BY.search(text) for text in chains.values()) and (rules or closed):
            received.add(table)
        if any(_CLOSED.search(text) or _DROPS.search(_rules(text)) for text in _from_input(chains)):
            own.add(table)
        if any(_SEALED.search(text) or (_SENT_BY.search(text) and rules) for text in chains.values()):
            sent.add(table)
    return Guards(frozenset(passing), frozenset(received), frozenset(own), frozenset(sent))


def _from_input(chains: dict[str, str]) -> list[str]:
    """Texts of the chains of a table that a packet for the host itself may meet, by jumps too."""
    todo = [name for name, text in chains.items() if _INPUT.search(text)]
    seen: dict[str, str] = {}
    while todo:
        name = todo.pop()
        if name in chains and name not in seen:
            seen[name] = chains[name]
            todo += _JUMPS.findall(chains[name])
    return list(seen.values())


def _foreign_tables(listing: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Name and chains of each."""
    for family, table, body in _TABLE.findall(listing):
        if table != NFT_TABLE:
            yield f"{family} {table}", dict(_CHAINS.findall(body))


def _rules(chain: str) -> str:
    """A chain's text less its declaration."""
    return "\n".join(line for line in chain.splitlines() if " hook " not in line)


def foreign_guards(nft: Nft) -> Guards:
    """Tables of others whose rules traffic must meet: with any of them there is no short way round what they hook. Rules of the older
    iptables cannot be read here, so that they are in use counts. Empty if nft cannot be asked."""
    try:
        tables = re.findall(r"^table ((?:ip|inet|netdev) (?!plait$)\S+)$", nft.run("list tables\n"), re.MULTILINE)
        found = guards("".join(nft.run(f"list table {table}\n") for table in tables))
    except NftError:
        found = Guards()
    try:
        legacy = {f"iptables-legacy {name}" for name in _LEGACY.read_text().split() if name != "nat"}
    except OSError:
        legacy = set()
    return Guards(found.passing | legacy, found.received | legacy, found.own, found.sent | legacy)


def foreign_drops(nft: Nft) -> dict[str, str]:
    """What to say of each such chain that has no rule for our links, by chain. Empty if nft cannot be asked."""
    try:
        chains = dropping_chains(nft.run("list chains\n"))
        texts = {chain: nft.run(f"list chain {chain}\n") for chain in chains}
    except NftError:
        return {}
    return {
        chain: f'chain {chain} drops what is forwarded; let plait\'s links pass with: nft insert rule {chain} iifname "{PREFIX}*" accept;'
        f' nft insert rule {chain} oifname "{PREFIX}*" accept'
        for chain, text in texts.items()
        if f'"{PREFIX}' not in text and _HOOK not in text
    }
