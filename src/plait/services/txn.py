# SPDX-License-Identifier: Apache-2.0
"""Consul's transactions as pure rules: reading the request, what it reads, writes and answers.

Data in: the JSON list of operations, the keys, the catalogue. Data out: an `Outcome`. Operations on keys and on the catalogue mix freely
and see what those before them did; all that fail are told, and one is enough that nothing is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from plait.model.cluster import Instance
from plait.model.discovery import CatalogNode, Check
from plait.services.checkviews import Json, health_check
from plait.services.kv import MAX_VALUE, entry_json
from plait.services.requests import BadRequest, Refusal, TooLarge, fold
from plait.services.txncatalog import CatalogOp, CatalogRules, Catalogue, parse_catalog_op
from plait.services.txndraft import Draft, Ref, Shown, Written, dated
from plait.services.txnkeys import KeyOp, KeyRules, Keys, parse_key_op
from plait.services.views import node_json, service_json

MAX_OPS = 128
_KINDS = {"kv": "KV", "node": "Node", "service": "Service", "check": "Check"}
TxnOp = KeyOp | CatalogOp


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a transaction comes to: results, or `errors` as (number of the operation, why) and no changes. The rest is as in `Draft`."""

    results: tuple[Shown, ...]
    errors: tuple[tuple[int, str], ...]
    reads: frozenset[Ref]
    changes: tuple[tuple[Ref, Written | None], ...]
    ignored: tuple[tuple[Ref, tuple[str, ...]], ...]

    def at(self, revision: int) -> Outcome:
        """The same after it was written with that revision."""
        return replace(self, results=tuple(dated(shown, revision) for shown in self.results))

    def answer(self, datacenter: str) -> Json:
        """What the API answers."""
        errors = [{"OpIndex": number, "What": why} for number, why in self.errors]
        return {"Results": None if errors else [_shown(shown, datacenter) for shown in self.results], "Errors": errors or None}


def _shown(shown: Shown, datacenter: str) -> Json:
    match shown.what:
        case CatalogNode() as node:
            return {"Node": node_json(node, datacenter)}
        case Instance() as instance:
            return {"Service": service_json(instance)}
        case Check() as check:
            return {"Check": health_check(check)}
        case entry:
            return {"KV": entry_json(entry, shown.whole)}


def parse_ops(body: object, datacenter: str) -> list[TxnOp]:
    """The operations in their order. BadRequest, TooLarge, Refusal for a node of another datacentre."""
    if not isinstance(body, list):
        raise BadRequest("Failed to parse body: expected a list of operations")
    if len(body) > MAX_OPS:
        raise TooLarge(f"Transaction contains too many operations ({len(body)} > {MAX_OPS})")
    ops: list[TxnOp] = []
    for number, item in enumerate(body):
        try:
            ops.append(_parse_op(item))
        except Refusal:
            raise
        except BadRequest as error:
            raise BadRequest(f"Failed to parse body: operation {number}: {error}") from error
    size = sum(len(op.value) for op in ops if isinstance(op, KeyOp))
    if size > MAX_VALUE:
        raise TooLarge(f"Values of the transaction are too large ({size} > {MAX_VALUE})")
    if any(isinstance(op, CatalogOp) and op.datacenter.lower() not in ("", datacenter.lower()) for op in ops):
        raise Refusal("No path to datacenter")
    return ops


def _parse_op(item: object) -> TxnOp:
    kinds = {kind: inner for kind, inner in fold(item).items() if inner is not None}
    if len(kinds) != 1 or not kinds.keys() <= _KINDS.keys():
        raise BadRequest(f"it holds one of {', '.join(_KINDS.values())}, got {', '.join(sorted(kinds)) or 'nothing'}")
    ((kind, inner),) = kinds.items()
    raw = fold(inner)
    return parse_key_op(raw) if kind == "kv" else parse_catalog_op(kind, _KINDS[kind], raw)


def evaluate(ops: Sequence[TxnOp], keys: Keys, catalogue: Catalogue) -> Outcome:
    """What `ops` come to now."""
    draft = Draft()
    on_keys, on_catalogue = KeyRules(keys, draft), CatalogRules(catalogue, draft)
    whys = [on_keys.do(op) if isinstance(op, KeyOp) else on_catalogue.do(op) for op in ops]
    errors = tuple((number, why) for number, why in enumerate(whys) if why)
    if errors:
        return Outcome((), errors, frozenset(draft.reads), (), ())
    return Outcome(tuple(draft.results), (), frozenset(draft.reads), tuple(draft.changes), tuple(draft.ignored))
