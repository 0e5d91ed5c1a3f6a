# SPDX-License-Identifier: Apache-2.0
"""Addresses, purely: a pool is cut into blocks, a block leased to a node, an address of a block given to an owner."""

from plait.ipam.access import NOBODY, Asker, NamedRange, assigned_of, range_addresses, range_exhausted, ranges_for, refusal, reserved_for
from plait.ipam.allocate import Reservation, choose_address, exhausted, exhausted_in, expire, nothing_refused
from plait.ipam.dual import default_subnet6, held_by, image, image_block, origin, origin_in, origin_of
from plait.ipam.overlap import FORCED, check_overlaps, clashes, own_ranges, taken
from plait.ipam.pool import (
    block_of,
    blocks_of,
    check_network,
    default_block_prefix,
    free_blocks,
    is_block_of,
    is_excluded,
    is_kept,
    is_large,
    next_subnet,
    usable,
    usable_count,
)
from plait.ipam.strays import ghosts_of, in_use_elsewhere, stray_endpoints

__all__ = [
    "FORCED",
    "NOBODY",
    "Asker",
    "NamedRange",
    "Reservation",
    "assigned_of",
    "block_of",
    "blocks_of",
    "check_network",
    "check_overlaps",
    "choose_address",
    "clashes",
    "default_block_prefix",
    "default_subnet6",
    "exhausted",
    "exhausted_in",
    "expire",
    "free_blocks",
    "ghosts_of",
    "held_by",
    "image",
    "image_block",
    "in_use_elsewhere",
    "is_block_of",
    "is_excluded",
    "is_kept",
    "is_large",
    "next_subnet",
    "nothing_refused",
    "origin",
    "origin_in",
    "origin_of",
    "own_ranges",
    "range_addresses",
    "range_exhausted",
    "ranges_for",
    "refusal",
    "reserved_for",
    "stray_endpoints",
    "taken",
    "usable",
    "usable_count",
]
