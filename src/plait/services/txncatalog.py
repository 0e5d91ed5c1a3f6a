# SPDX-License-Identifier: Apache-2.0
"""Operations of a transaction on nodes, services and checks, as pure rules: those of `catalog/register` and `catalog/deregister`.

Data in: operations, the catalogue. Data out: what they add to a `Draft`. What the agent of a node says of itself stays as it is: a record
of the same name is kept beside it, which readers do not see, and results show what readers see. `cas` and `delete-cas` compare the
ModifyIndex that readers see.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from plait.model.cluster import Instance, Snapshot
from plait.model.discovery import SERF_CHECK, CatalogNode, Check
from plait.services.catalogrequests import check_id, node_name, parse_catalog_check, parse_instance, parse_node
from plait.services.catalogrules import as_tags, ignored_fields, says_itself
from plait.services.checkrequests import of_service
from plait.services.directory import SERVER_META, agent_node, server_instance
from plait.services.kv import MAX_FLAGS
from plait.services.requests import BadRequest, fold, name_of, text_of
from plait.services.status import RUNNING_CHECK, container_check, serf_check
from plait.services.txndraft import Draft, Ref, Shown, pending

_VERBS = ("set", "cas", "get", "delete", "delete-cas")
Record = CatalogNode | Instance | Check


@dataclass(frozen=True, slots=True)
class CatalogOp:
    """`record`: what set and cas put there, None for the others. `index`: of cas and delete-cas."""

    verb: str
    ref: Ref
    record: Record | None = None
    index: int = 0
    datacenter: str = ""

    @property
    def reads(self) -> bool:
        """Whether it leaves everything as it is."""
        return self.verb == "get"


class Catalogue(Protocol):
    """The catalogue at one moment."""

    def snapshot(self) -> Snapshot:
        """What readers see."""
        ...

    def registered(self, node: str, service_id: str) -> Instance | None:
        """What the node's own agent registered, without tags that others gave it."""
        ...

    def kept(self, ref: Ref) -> Record | None:
        """What somebody else put there, whether readers see it or not."""
        ...

    def kept_checks(self, node: str, service_id: str) -> Iterable[str]:
        """Ids of the checks that somebody else put there for a service."""
        ...


def parse_catalog_op(kind: str, label: str, raw: Mapping[str, object]) -> CatalogOp:
    """What stands under `label` (Node, Service, Check), with folded keys. BadRequest."""
    verb = raw.get("verb")
    if verb not in _VERBS:
        raise BadRequest(f"unknown {label} verb {verb!r}; known are {', '.join(_VERBS)}")
    inner = fold(raw.get(kind) or {})
    index = inner.get("modifyindex") or 0
    if type(index) is not int or not 0 <= index <= MAX_FLAGS:
        raise BadRequest("ModifyIndex must be a number of 64 bits without sign")
    writes = verb in ("set", "cas")
    if kind == "node":
        return CatalogOp(verb, ("node", node_name(inner)), _node(inner) if writes else None, index, text_of(inner, "datacenter"))
    node = node_name(raw if kind == "service" else inner)
    if kind == "check":
        return CatalogOp(verb, ("check", node, check_id(inner)), parse_catalog_check(inner, node) if writes else None, index)
    service_id = name_of(inner, "id") or name_of(inner, "service")
    if not service_id:
        raise BadRequest("Must provide service name or ID")
    return CatalogOp(verb, ("service", node, service_id), parse_instance(inner, node) if writes else None, index)


def _node(raw: Mapping[str, object]) -> CatalogNode:
    found = parse_node(raw, "meta")
    if not found.address:
        raise BadRequest("Must provide address")
    return found


class CatalogRules:
    """`do` one operation after another; each sees what those before it did."""

    def __init__(self, catalogue: Catalogue, draft: Draft) -> None:
        self._catalogue, self._draft = catalogue, draft
        self._kept: dict[Ref, Record | None] = {}
        """What others will have put there after it."""
        self._cleared: set[str] = set()
        """Nodes of which all that others put there is removed."""
        self._tagged: dict[Ref, Instance] = {}
        """Services of agents that have other tags after it."""

    def do(self, op: CatalogOp) -> str:
        """Why the operation fails, "" if it does not."""
        known = self._look(op.ref)
        if op.verb == "get":
            if known is None:
                return f"{_name(op.ref)} doesn't exist"
            self._draft.results.append(Shown(known))
            return ""
        if op.verb == "cas" and op.index != (known.modify_index if known is not None else 0):
            return f"failed to set {_name(op.ref)}, index is stale"
        if op.verb == "delete-cas" and known is not None and op.index != known.modify_index:
            return f"failed to delete {_name(op.ref)}, index is stale"
        if op.record is not None:
            return self._set(op.ref, op.record)
        self._delete(op.ref)
        return ""

    # --- looking

    def _look(self, ref: Ref) -> Record | None:
        """What readers see, as far as the transaction has come."""
        self._draft.reads.add(ref)
        if ref[0] != "node" and self._look(("node", ref[1])) is None:
            return None
        return self._own(ref) or self._stored(ref)

    def _own(self, ref: Ref) -> Record | None:
        """What the node's own agent says, which nobody else changes but for tags."""
        snapshot = self._catalogue.snapshot()
        agent = snapshot.nodes.get(ref[1])
        if agent is None:
            return None
        if ref[0] == "node":
            return agent_node(agent)
        if ref[0] == "check":
            return _agents_check(snapshot, ref[1], ref[2])
        if ref[2] == "consul" and SERVER_META in agent.meta:
            return server_instance(agent)
        found = snapshot.instances.get((ref[1], ref[2]))
        if found is None or found.origin == "catalog":
            return None
        return self._tagged.get(ref) or (self._catalogue.registered(ref[1], ref[2]) if ref[1] in self._cleared else found)

    def _stored(self, ref: Ref) -> Record | None:
        """What others put there, as far as the transaction has come."""
        if ref in self._kept:
            return self._kept[ref]
        return None if ref[1] in self._cleared else self._catalogue.kept(ref)

    # --- changing

    def _set(self, ref: Ref, record: Record) -> str:
        if not isinstance(record, CatalogNode) and self._look(("node", record.node)) is None:
            return "Missing node registration"
        if isinstance(record, Check) and record.service_id:
            service = self._look(("service", record.node, record.service_id))
            if not isinstance(service, Instance):
                return "Missing service registration"
            record = of_service(record, service)
        own = self._own(ref)
        if own is None:
            shown = self._keep(ref, record)
        elif isinstance(record, CatalogNode):
            shown = own
        elif isinstance(record, Check) and says_itself(record, self._catalogue.snapshot()):
            self._draft.ignored.append((ref, ("status",)))
            shown = own
        else:
            shown = self._beside(ref, record, own)
        self._draft.results.append(Shown(shown))
        return ""

    def _beside(self, ref: Ref, record: Instance | Check, own: Record) -> Record:
        """Put the record beside the agent's, or take its tags; what readers see then."""
        if isinstance(record, Instance) and isinstance(own, Instance):
            registered = self._catalogue.registered(record.node, record.id)
            tags = as_tags(record, registered, own.create_index)
            if registered is not None and tags is not None:
                if fields := ignored_fields(record, registered):
                    self._draft.ignored.append((ref, fields))
                if own.tags == record.tags:
                    return own
                self._draft.changes.append((ref, tags))
                self._tagged[ref] = pending(replace(own, tags=record.tags), own)
                return self._tagged[ref]
        self._keep(ref, record)
        return own

    def _keep(self, ref: Ref, record: Record) -> Record:
        """Put the record there; the same again is no change."""
        before = self._stored(ref)
        if before is not None and replace(before, create_index=0, modify_index=0) == record:
            return before
        self._draft.changes.append((ref, record))
        self._kept[ref] = shown = pending(record, before)
        return shown

    def _delete(self, ref: Ref) -> None:
        """What others put there goes; what an agent registered is its own."""
        self._draft.changes.append((ref, None))
        self._kept[ref] = None
        if ref[0] == "service":
            self._delete_checks(ref[1], ref[2])
            if (registered := self._catalogue.registered(ref[1], ref[2])) is not None:
                self._tagged[ref] = registered
        elif ref[0] == "node":
            self._cleared.add(ref[1])
            self._kept = {known: kept for known, kept in self._kept.items() if known == ref or known[1] != ref[1]}
            self._tagged = {known: own for known, own in self._tagged.items() if known[1] != ref[1]}

    def _delete_checks(self, node: str, service_id: str) -> None:
        """Those that others put there for that service."""
        here = {("check", node, name) for name in self._catalogue.kept_checks(node, service_id)}
        for ref in sorted(here | {known for known in self._kept if known[:2] == ("check", node)}):
            check = self._stored(ref)
            if isinstance(check, Check) and check.service_id == service_id:
                self._delete(ref)


def _agents_check(snapshot: Snapshot, node: str, wanted: str) -> Check | None:
    """The check that the node's agent runs, or that there is without anybody running it."""
    if wanted == SERF_CHECK:
        return serf_check(node, node in snapshot.alive)
    if wanted.startswith(RUNNING_CHECK):
        instance = snapshot.instances.get((node, wanted.removeprefix(RUNNING_CHECK)))
        if instance is not None and instance.container:
            return container_check(instance)
    found = snapshot.checks.get((node, wanted))
    return found if found is not None and found.origin == "agent" else None


def _name(ref: Ref) -> str:
    """As errors name it."""
    kind, node, *rest = ref
    return f'node "{node}"' if kind == "node" else f'{kind} "{rest[0]}" on node "{node}"'
