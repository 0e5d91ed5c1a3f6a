# SPDX-License-Identifier: Apache-2.0
"""Desired and owned objects -> operations, by key and by value. Pure; the order is `order`'s matter."""

from __future__ import annotations

from collections.abc import Mapping

from plait.model.objects import KernelObject, Key, Op, Sysctl


def diff(desired: Mapping[Key, KernelObject], owned: Mapping[Key, KernelObject], may_delete: bool) -> list[Op]:
    """Puts for what is missing or differs in value, deletions for what is owned and not desired (none unless `may_delete`).

    Equal input gives no operation at all. A sysctl is never deleted: it has no absence.
    """
    ops = [Op("put", new, owned.get(key)) for key, new in desired.items() if owned.get(key) != new]
    if may_delete:
        ops += [Op("del", None, old) for key, old in owned.items() if key not in desired and not isinstance(old, Sysctl)]
    return ops
