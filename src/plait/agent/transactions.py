# SPDX-License-Identifier: Apache-2.0
"""Transactions over keys and the catalogue. Implements `serve.consul_txn.TxnBackend`.

What the operations come to is found out on the replica by pure rules (`services.txn`), and written under the condition that all they
rest on is still so in the store; else the replica catches up and it is found out anew. So results and reasons hold for the whole cluster.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from plait.agent.keys import record_key, shown_from
from plait.agent.kv import KV, SESSION, TRIES, Contended, Kv, pause, put_entry
from plait.agent.outside import OutsideCatalog, log_ignored, log_removed, removal
from plait.agent.view import View
from plait.model.kv import Entry
from plait.services.txn import Outcome, TxnOp, evaluate
from plait.services.txndraft import Ref, Written
from plait.services.txnkeys import KeyOp
from plait.store.api import Compare, Delete, Put, Store
from plait.store.codec import encode

log = logging.getLogger("plait.catalog")


class Transactions:
    """Straight into the store; answers once this node's own view has it."""

    def __init__(self, view: View, store: Store, kv: Kv, outside: OutsideCatalog) -> None:
        self._view, self._store, self._kv, self._outside = view, store, kv, outside

    def last_contact_ms(self) -> int | None:
        return self._kv.last_contact_ms()

    def seen(self, ops: Sequence[TxnOp]) -> Outcome:
        """What `ops`, which only read, find in the replica, whatever its age."""
        return evaluate(ops, self._kv.keys(), self._outside)

    async def transact(self, ops: Sequence[TxnOp]) -> Outcome:
        """All of `ops` at once, or the reasons why not. Contended, StoreUnavailable."""
        for attempt in range(TRIES):
            if any(isinstance(op, KeyOp) and op.session and op.session not in self._kv.sessions for op in ops):
                await self._kv.current()  # it may have been made on another node a moment ago
            outcome = self.seen(ops)
            result = await self._store.txn(list(self._conditions(outcome)), list(_writes(outcome)))
            await self._view.caught_up(result.revision)
            if result.ok:
                self._tell(outcome)
                return outcome.at(result.revision)
            await pause(attempt)
        raise Contended("cannot carry the transaction out: too many others write the same at once; try again")

    def _conditions(self, outcome: Outcome) -> Iterator[Compare]:
        """That all it rests on is in the store as the replica has it."""
        for ref in outcome.reads:
            if ref[0] == "kv":
                entry = self._kv.table.get(ref[1])
                yield Compare(KV + ref[1], entry.modify_index if entry is not None else 0)
            elif ref[0] == "session":
                yield Compare(SESSION + ref[1], self._kv.sessions[ref[1]].modify_index)
            else:
                for key in shown_from(ref):
                    item = self._view.item(key)
                    yield Compare(key, item.mod_revision if item is not None else 0)

    def _tell(self, outcome: Outcome) -> None:
        for ref, written in outcome.changes:
            if ref[0] == "kv":
                continue
            if written is None:
                log_removed(ref)
            elif not isinstance(written, Entry):
                log.info("catalog_written", extra={"key": record_key(written)})
        for ref, fields in outcome.ignored:
            log_ignored(shown_from(ref)[0], fields)


def _writes(outcome: Outcome) -> Iterator[Put | Delete]:
    for ref, written in outcome.changes:
        yield from _change(ref, written)


def _change(ref: Ref, written: Written | None) -> list[Put | Delete]:
    if ref[0] == "kv":
        assert written is None or isinstance(written, Entry)
        return [put_entry(ref[1], written)]
    if written is None:
        return removal(ref)
    assert not isinstance(written, Entry)
    return [Put(record_key(written), encode(written))]
