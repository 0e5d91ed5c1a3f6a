# SPDX-License-Identifier: Apache-2.0
"""Desired and owned objects -> operations, by key and by value. Pure; the order is `order`'s matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from plait.model.hostlinks import ChildLink, Key
from plait.model.objects import KernelObject, Op, Sysctl
from plait.model.wireguard import WireguardPeer


def diff(desired: Mapping[Key, KernelObject], owned: Mapping[Key, KernelObject], may_delete: bool) -> list[Op]:
    """Puts for what is missing or differs in value, deletions for what is owned and not desired (none unless `may_delete`).

    Equal input gives no operation at all. A sysctl is never deleted: it has no absence. Where a peer is heard from is the device's to know
    if no endpoint is wanted. A link that a container engine was given, and that is here no longer, is in the container that nobody has
    told of yet.
    """
    missing = {key: new for key, new in desired.items() if (held := owned.get(key)) is not new and _as_asked(held, new) != new}
    ops = [Op("put", new, owned.get(key)) for key, new in missing.items() if key in owned or not _taken_away(new)]
    if may_delete:
        ops += [Op("del", None, old) for key, old in owned.items() if key not in desired and not isinstance(old, Sysctl)]
    return ops


def _as_asked(held: KernelObject | None, wanted: KernelObject) -> KernelObject | None:
    """`held` less what `wanted` leaves to the kernel."""
    if isinstance(held, WireguardPeer) and isinstance(wanted, WireguardPeer) and wanted.endpoint is None:
        return replace(held, endpoint=None)
    return held


def _taken_away(wanted: KernelObject) -> bool:
    return isinstance(wanted, ChildLink) and not wanted.netns
