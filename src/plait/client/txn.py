# SPDX-License-Identifier: Apache-2.0
"""Transactions: operations on keys, nodes, services and checks, all or none.

Data in: operations (128 at most). Data out: the records of those that have one, or every reason why nothing was done.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from plait.client import types
from plait.client.errors import ClientError
from plait.client.steps import Steps, call, decoded, put
from plait.client.types import CatalogService, CheckState, Entry, Node

Verb = Literal[
    "set", "cas", "lock", "unlock", "get", "get-or-empty", "get-tree", "check-index", "check-session", "check-not-exists",
    "delete", "delete-cas", "delete-tree",
]  # fmt: skip
CatalogVerb = Literal["set", "cas", "get", "delete", "delete-cas"]
_INDEXED = ("cas", "check-index", "delete-cas")
_SESSION = ("lock", "unlock", "check-session")


@dataclass(frozen=True, slots=True)
class Op:
    """One operation on keys. `index`: of cas, check-index and delete-cas; `session`: of lock, unlock and check-session."""

    verb: Verb
    key: str
    value: bytes = b""
    flags: int = 0
    index: int = 0
    session: str = ""

    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = {"Verb": self.verb, "Key": self.key}
        if self.verb in ("set", "cas", "lock", "unlock"):
            found |= {"Value": b64encode(self.value).decode(), "Flags": self.flags}
        if self.verb in _INDEXED:
            found["Index"] = self.index
        if self.verb in _SESSION:
            found["Session"] = self.session
        return {"KV": found}


@dataclass(frozen=True, slots=True)
class NodeOp:
    """One operation on a node of the catalogue. Get and delete need its name alone; `index`: of cas and delete-cas."""

    verb: CatalogVerb
    node: Node
    index: int = 0

    def body(self) -> dict[str, Any]:
        node = self.node
        found = {"Node": node.name, "Address": node.address, "Meta": dict(node.meta), "ModifyIndex": self.index}
        return {"Node": {"Verb": self.verb, "Node": found | ({"ID": node.id} if node.id else {})}}


@dataclass(frozen=True, slots=True)
class ServiceOp:
    """One operation on a service of a node. Get and delete need node and id (else name) alone; `index`: of cas and delete-cas."""

    verb: CatalogVerb
    service: CatalogService
    index: int = 0

    def body(self) -> dict[str, Any]:
        one = self.service
        found = {
            "ID": one.id or one.name,
            "Service": one.name,
            "Tags": list(one.tags),
            "Address": one.address,
            "Port": one.port,
            "Meta": dict(one.meta),
            "Weights": {"Passing": one.weight, "Warning": one.weight_warning},
            "ModifyIndex": self.index,
        }
        return {"Service": {"Verb": self.verb, "Node": one.node, "Service": found}}


@dataclass(frozen=True, slots=True)
class CheckOp:
    """One operation on a check of a node or service. Get and delete need node and id alone; `index`: of cas and delete-cas."""

    verb: CatalogVerb
    check: CheckState
    index: int = 0

    def body(self) -> dict[str, Any]:
        one = self.check
        found = {
            "Node": one.node,
            "CheckID": one.id,
            "Name": one.name,
            "Status": one.status,
            "Notes": one.notes,
            "Output": one.output,
            "ServiceID": one.service_id,
            "ServiceName": one.service_name,
            "ModifyIndex": self.index,
        }
        return {"Check": {"Verb": self.verb, "Check": found}}


AnyOp = Op | NodeOp | ServiceOp | CheckOp
Done = Entry | Node | CatalogService | CheckState


_PARSERS: Mapping[str, Callable[[Any], Done]] = {"KV": types.entry, "Node": types.node, "Check": types.check}


class TxnFailed(ClientError):
    """A transaction was rolled back. `errors`: (place of the operation, what was wrong with it), every failing one."""

    def __init__(self, errors: tuple[tuple[int, str], ...]) -> None:
        super().__init__("the transaction was rolled back: " + "; ".join(f"operation {place}: {what}" for place, what in errors))
        self.errors = errors


def transact(*ops: AnyOp) -> Steps[tuple[Done, ...]]:
    """Do all operations on keys, nodes, services and checks or none, at one index. Returns the records of those that have one (set, cas
    and get), in order; TxnFailed if it was rolled back. What the agent of a node says of itself stays as it is."""
    request = put("txn", body=[op.body() for op in ops])
    answer = yield from call(request, 409)
    raw = decoded(request, answer)
    if answer.status == 409:
        raise TxnFailed(types.records(raw.get("Errors"), lambda item: (int(item["OpIndex"]), str(item["What"])), request.what))
    hosts = _hosts(ops)
    return types.records(raw.get("Results"), lambda item: _done(item, hosts), request.what)


def _hosts(ops: Sequence[AnyOp]) -> Iterator[str]:
    """The nodes of the services that have a result, which does not name them."""
    return (op.service.node for op in ops if isinstance(op, ServiceOp) and not op.verb.startswith("delete"))


def _done(item: Any, hosts: Iterator[str]) -> Done:
    ((kind, raw),) = ((kind, raw) for kind, raw in item.items() if raw is not None)
    if kind == "Service":
        return types.catalog_service(raw, next(hosts, ""))
    return _PARSERS[kind](raw)
