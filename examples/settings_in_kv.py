# SPDX-License-Identifier: Apache-2.0
"""Settings in the key-value store: written atomically, changed only by who has seen the present value, followed as they change."""

from __future__ import annotations

from plait.client import Client, Op, TxnFailed

with Client() as client:
    client.kv.delete_tree("example/settings/")
    client.kv.txn(Op("set", "example/settings/level", b"info"), Op("set", "example/settings/limit", b"10"))
    with client.kv.watch_prefix("example/settings/") as changes:
        print({entry.key.rpartition("/")[2]: entry.value.decode() for entry in next(changes)})
        entry = client.kv.get("example/settings/limit")
        assert entry is not None
        print("changed:", client.kv.put(entry.key, b"20", cas=entry.modify_index))
        print("changed by somebody who saw the old value:", client.kv.put(entry.key, b"30", cas=entry.modify_index))
        print({entry.key.rpartition("/")[2]: entry.value.decode() for entry in next(changes)})
    try:
        client.kv.txn(Op("set", "example/settings/level", b"debug"), Op("check-not-exists", "example/settings/limit"))
    except TxnFailed as error:
        print("rolled back:", [place for place, _ in error.errors])
    client.kv.delete_tree("example/settings/")
