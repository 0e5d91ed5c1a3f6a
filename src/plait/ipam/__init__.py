# SPDX-License-Identifier: Apache-2.0
"""Addresses, purely: a pool is cut into blocks, a block leased to a node, an address of a block given to an owner."""

from plait.ipam.allocate import Reservation, choose_address, exhausted, expire
from plait.ipam.dual import default_subnet6, image, image_block, origin
from plait.ipam.pool import (
    block_of,
    blocks_of,
    check_network,
    default_block_prefix,
    free_blocks,
    is_block_of,
    is_large,
    next_subnet,
    usable,
)
from plait.ipam.strays import stray_endpoints

__all__ = [
    "Reservation",
    "block_of",
    "blocks_of",
    "check_network",
    "choose_address",
    "default_block_prefix",
    "default_subnet6",
    "exhausted",
    "expire",
    "free_blocks",
    "image",
    "image_block",
    "is_block_of",
    "is_large",
    "next_subnet",
    "origin",
    "stray_endpoints",
    "usable",
]
