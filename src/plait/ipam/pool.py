# SPDX-License-Identifier: Apache-2.0
"""Pools and blocks: which blocks a network's pool has, which are free, which of their addresses may be handed out.

A block is the unit that is leased to a node and routed between nodes. An endpoint's address is routed as a /32, so inside a
block there is no network or broadcast address of its own; only the subnet's first and last address and its gateway are kept back. The pool
is the network's range, if it has one: only blocks that touch it are leased ahead, and only what lies in it is handed out unasked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network

from plait.ipam.dual import check_network6
from plait.model.addr import AddressRange
from plait.model.cluster import Network, Node
from plait.model.errors import ConfigError, PoolExhausted

LARGE = 64
"""A pool of at least this many blocks is leased ahead of need; a smaller one block by block when an address is asked for,
so that one host can use all of it."""

_CLUSTER_RANGE = IPv4Network("10.0.0.0/8")


def default_block_prefix(subnet: IPv4Network) -> int:
    """The prefix length of a pool's blocks: four bits longer than the pool's, at least 24 and at most 30."""
    return max(subnet.prefixlen, min(30, max(24, subnet.prefixlen + 4)))


def blocks_of(network: Network) -> Iterator[IPv4Network]:
    """All blocks of the pool, ascending; one that is wider than the pool if it must be."""
    if network.pool.prefixlen > network.block_prefix:
        return iter([block_of(network, network.pool[0])])
    return network.pool.subnets(new_prefix=network.block_prefix)


def block_of(network: Network, address: IPv4Address) -> IPv4Network:
    """The block in which `address` lies."""
    return IPv4Network((address, network.block_prefix), strict=False)


def is_block_of(network: Network, cidr: IPv4Network) -> bool:
    """Whether `cidr` is one of the blocks that the network's subnet is cut into, not a remnant of an earlier one of that name."""
    return cidr.prefixlen == network.block_prefix and cidr.subnet_of(network.subnet)


def block_count(network: Network) -> int:
    return 1 << max(0, network.block_prefix - network.pool.prefixlen)


def is_large(network: Network) -> bool:
    """Whether nodes lease blocks of this pool ahead of need."""
    return block_count(network) >= LARGE


def free_blocks(network: Network, taken: Collection[IPv4Network]) -> Iterator[IPv4Network]:
    """Blocks that no node holds and that have an address to give, ascending. `taken` may hold blocks of other pools; they do not matter."""
    held = set(taken)
    return (block for block in blocks_of(network) if block not in held and not _is_useless(network, block))


def block_to_lease(
    network: Network, taken: Collection[IPv4Network], avoid: Collection[IPv4Address], turn: tuple[int, int] = (0, 1)
) -> IPv4Network | None:
    """The lowest free block with an address that is not to be avoided, None if there is none. `turn` (n, of): the first such from the n-th
    of so many equal parts of what is free on, and so round, for nodes that would all meet at the lowest one."""
    free = list(free_blocks(network, taken))
    start = turn[0] * len(free) // turn[1]
    return next((b for b in (*free[start:], *free[:start]) if any(a not in avoid for a in usable(network, b))), None)


def _is_useless(network: Network, block: IPv4Network) -> bool:
    """Whether exclusions leave nothing of the block."""
    whole = AddressRange(block.network_address, block.broadcast_address)
    touching = [part for part in network.excluded if part.overlaps(whole)]
    covered = any(part.first <= whole.first and whole.last <= part.last for part in touching)
    return covered or (bool(touching) and next(usable(network, block), None) is None)


def usable(network: Network, block: IPv4Network, tunnel: IPv4Address | None = None) -> Iterator[IPv4Address]:
    """Addresses of `block` to hand out, ascending: not what the network itself has, nor the node's tunnel address, nor what is excluded,
    nor in a pool larger than a /24 those that end in 0 or 255, which people and old programs take for network and broadcast addresses."""
    kept = {*_kept(network), tunnel} | ({block.network_address} if network.encrypted else set())
    wide = network.pool.prefixlen < 24
    pool = network.pool
    found = (a for a in block if a in pool and a not in kept and not (wide and a.packed[3] in (0, 255)))
    return (a for a in found if not is_excluded(network, a)) if network.excluded else found


def usable_count(network: Network) -> int:
    """How many addresses the network's pool has for containers, whoever holds its blocks."""
    kept = sum(1 for a in _kept(network) if a in network.pool and not is_excluded(network, a))
    low, high = int(network.pool.network_address), int(network.pool.broadcast_address)
    out, end = 0, low - 1
    for part in sorted(network.excluded, key=lambda p: p.first):
        first, last = max(int(part.first), end + 1), min(int(part.last), high)
        out, end = out + max(0, last - first + 1), max(end, last)
    return network.pool.num_addresses - kept - out


def is_excluded(network: Network, address: IPv4Address) -> bool:
    return any(address in part for part in network.excluded)


def is_kept(network: Network, address: IPv4Address) -> bool:
    """Whether the network itself has `address`: its first, its last, its gateway; where it is encrypted, the first of each block too, which
    is the host's own."""
    return address in _kept(network) or (network.encrypted and address == block_of(network, address).network_address)


def _kept(network: Network) -> set[IPv4Address]:
    return {network.subnet.network_address, network.subnet.broadcast_address, network.gateway}


def next_subnet(taken: Collection[IPv4Network], prefix: int = 16, first: str = "10.29.0.0") -> IPv4Network:
    """The lowest subnet of `prefix` from `first` up to the end of 10/8 that overlaps nothing in `taken`."""
    start = int(IPv4Address(first))
    end = int(_CLUSTER_RANGE.broadcast_address)
    step = 1 << (32 - prefix)
    for base in range(start, end, step):
        candidate = IPv4Network((base, prefix))
        if not any(candidate.overlaps(other) for other in taken):
            return candidate
    raise PoolExhausted(f"no free /{prefix} is left between {first} and {IPv4Address(end)}: name a subnet yourself with --subnet")


def check_network(network: Network, others: Collection[Network], nodes: Iterable[Node] = ()) -> None:
    """Raise ConfigError unless `network` is sound, overlaps none of `others` and holds no node's underlay address: every node would
    take that address for its own (the gateway) or for a container's, and lose the node."""
    subnet = network.subnet
    if subnet.prefixlen > 30:
        raise ConfigError("subnet", str(subnet), "is too small for a network", "use a prefix length of 30 or less")
    if not subnet.is_private or subnet.is_multicast or subnet.is_loopback or subnet.is_link_local:
        raise ConfigError("subnet", str(subnet), "is not a private unicast range", "use a part of 10/8, 172.16/12 or 192.168/16")
    if network.gateway not in subnet or network.gateway in (subnet.network_address, subnet.broadcast_address):
        raise ConfigError("gateway", str(network.gateway), f"is not a host address of {subnet}")
    if not subnet.prefixlen <= network.block_prefix <= 30:
        raise ConfigError("block", network.block_prefix, f"must lie between {subnet.prefixlen} and 30")
    if network.ip_range is not None and not network.ip_range.subnet_of(subnet):
        raise ConfigError("IP range", str(network.ip_range), f"is no part of the subnet {subnet}")
    for part in network.excluded:
        if not part.lies_in(subnet):
            raise ConfigError("exclusion", str(part), f"is no part of the subnet {subnet}")
    if not usable_count(network):
        left = ", ".join(map(str, network.excluded)) or "nothing"
        raise ConfigError("IP range", str(network.pool), "leaves no address for containers", f"{left} is excluded")
    for other in others:
        if other.name != network.name and other.subnet.overlaps(subnet):
            raise ConfigError("subnet", str(subnet), f"overlaps {other.subnet} of network {other.name!r}", "choose another range")
    check_network6(network, others)
    for node in nodes:
        held = next((whole for whole in (subnet, network.subnet6) if whole is not None and node.address in whole), None)
        if held is not None:
            raise ConfigError("subnet", str(held), f"holds {node.address}, the address of node {node.name}", "choose another range")
