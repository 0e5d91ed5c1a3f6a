# SPDX-License-Identifier: Apache-2.0
"""The kernel's tables of neighbours, which all namespaces share: read in one of them and filled from another one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.kernel import own_namespace, sh

from plait.kernel.linux import create_netns, delete_netns, neigh_tables
from plait.kernel.linux.netns import in_thread
from plait.lab.process import until

pytestmark = pytest.mark.root
MANY = 1000
SUBNETS = {"IPv4": "10.9.{}.{}", "IPv6": "fd09::{}:{}"}


def fill(namespace: Path | None, rows: Path) -> None:
    """A link with many neighbours of both families. The kernel keeps permanent ones beside its limit: nobody on this machine lacks room."""
    found = [text.format(n // 250, n % 250 + 1) for text in SUBNETS.values() for n in range(MANY)]
    rows.write_text("".join(f"neigh replace {address} lladdr 02:00:00:00:00:01 nud permanent dev v0\n" for address in found))
    enter = f"nsenter --net={namespace} " if namespace is not None else ""
    for command in ("ip link add v0 type veth peer name v1", "ip link set v0 up", "ip link set v1 up", f"ip -batch {rows}"):
        sh(enter + command)


def read() -> dict[str, int]:
    return {table.family: table.entries for table in neigh_tables()}


def test_entries_of_other_namespaces_count_and_own_permanent_ones_do_not(tmp_path: Path) -> None:
    def own() -> None:
        own_namespace()
        create_netns(tmp_path / "other")
        try:
            before = read()
            fill(tmp_path / "other", tmp_path / "rows")
            after = read()
        finally:
            delete_netns(tmp_path / "other")
        assert before.keys() == SUBNETS.keys() and all(table.limit > 0 for table in neigh_tables())
        assert all(after[family] - before[family] > MANY / 2 for family in SUBNETS), (before, after)
        until("they go with the namespace", lambda: all(read()[family] - before[family] < MANY / 2 for family in SUBNETS), 10)
        fill(None, tmp_path / "rows")
        assert all(read()[family] - before[family] < MANY / 2 for family in SUBNETS)

    in_thread(own)
