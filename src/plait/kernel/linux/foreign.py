# SPDX-License-Identifier: Apache-2.0
"""Other programs' chains that drop what is forwarded and have no rule for plait's links: read to be named, never touched.

An accept in our own table does not help: a packet must be accepted by every base chain of the hook (nft(8)).
"""

from __future__ import annotations

import re

from plait.kernel.linux.nft import Nft, NftError
from plait.model.objects import NFT_TABLE, PREFIX

_CHAIN = re.compile(r"chain (\S+) \{\s*type filter hook forward [^;]*; policy drop;")
_TABLE = re.compile(r"^table (ip|inet) (\S+) \{\n(.*?)^\}$", re.MULTILINE | re.DOTALL)
_HOOK = "jump DOCKER-USER"
"""Docker's documented hook, in which our rules stand."""


def dropping_chains(listing: str) -> list[str]:
    """ "family table chain" of every foreign base chain in the forward hook with policy drop, from what `nft list chains` prints."""
    found: list[str] = []
    for family, table, body in _TABLE.findall(listing):
        if table != NFT_TABLE:
            found += [f"{family} {table} {chain}" for chain in _CHAIN.findall(body)]
    return found


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
