# SPDX-License-Identifier: Apache-2.0
"""What other programs' chains do to forwarded traffic: read to be named and obeyed, never touched.

An accept in our own table does not help: a packet must be accepted by every base chain of the hook (nft(8)).
"""

from __future__ import annotations

import re
from pathlib import Path

from plait.kernel.linux.nft import Nft, NftError
from plait.model.objects import NFT_TABLE, PREFIX

_CHAIN = re.compile(r"chain (\S+) \{\s*type filter hook forward [^;]*; policy drop;")
_TABLE = re.compile(r"^table (ip|inet) (\S+) \{\n(.*?)^\}$", re.MULTILINE | re.DOTALL)
_CHAINS = re.compile(r"^\tchain (\S+) (\{.*?^\t\})", re.MULTILINE | re.DOTALL)
_PASSED_BY = re.compile(r"type filter hook (?:prerouting|forward|postrouting) ")
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


def guards(listing: str) -> list[str]:
    """ "family table" of every foreign table that may drop something on its way through the host, from what nft prints of it.

    Docker's own rules are none: they drop nothing of ours (its FORWARD policy is drop, and ours stand in its hook)."""
    found: list[str] = []
    for family, table, body in _TABLE.findall(listing):
        chains = dict(_CHAINS.findall(body))
        if table != NFT_TABLE and any(_PASSED_BY.search(text) for text in chains.values()):
            policies = any(_CHAIN.search(f"chain {name} {text}") and _HOOK not in text for name, text in chains.items())
            rules = any(_DROPS.search(_rules(text)) for name, text in chains.items() if not _DOCKERS.fullmatch(name))
            if policies or rules:
                found.append(f"{family} {table}")
    return found


def _rules(chain: str) -> str:
    """A chain's text less its declaration."""
    return "\n".join(line for line in chain.splitlines() if " hook " not in line)


def foreign_guards(nft: Nft) -> frozenset[str]:
    """Tables of others whose rules what we forward must meet: with any of them there is no short way round the IP stack. Rules of the older
    iptables cannot be read here, so that they are in use counts. Empty if nft cannot be asked."""
    try:
        tables = re.findall(r"^table ((?:ip|inet) (?!plait$)\S+)$", nft.run("list tables\n"), re.MULTILINE)
        found = guards("".join(nft.run(f"list table {table}\n") for table in tables))
    except NftError:
        found = []
    try:
        legacy = {name for name in _LEGACY.read_text().split() if name != "nat"}
    except OSError:
        legacy = set()
    return frozenset({*found, *(f"iptables-legacy {name}" for name in legacy)})


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
