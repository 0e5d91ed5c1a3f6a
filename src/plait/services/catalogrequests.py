# SPDX-License-Identifier: Apache-2.0
"""Bodies of `PUT /v1/catalog/register` and `/v1/catalog/deregister` -> records. What is wrong raises BadRequest in Consul's words.

Data in: decoded JSON. Data out: nodes, instances and checks that no agent owns. Keys are compared in lower case without underscores.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from plait.model.cluster import Instance
from plait.model.discovery import OUTPUT_MAX, CatalogNode, Check
from plait.services.checkrequests import check_status, parse_definition
from plait.services.health import clipped_note
from plait.services.requests import BadRequest, address_of, flag_of, fold, meta_of, name_of, parse_service, tagged_of, text_of

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NODE_NAME = re.compile(r"[^/\s]{1,255}")


@dataclass(frozen=True, slots=True)
class Registration:
    """What one request puts into the catalogue. `node` None: it stays as it is (SkipNodeUpdate)."""

    name: str
    node: CatalogNode | None
    instance: Instance | None
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class Removal:
    """One service with its checks, one check, or (both "") the whole node."""

    node: str
    service_id: str = ""
    check_id: str = ""


def parse_registration(body: object) -> Registration:
    """What is to be put into the catalogue."""
    raw = fold(body)
    name = _node_name(raw)
    skip = flag_of(raw, "skipnodeupdate")
    address = address_of(raw)
    if not address and not skip:
        raise BadRequest("Must provide address if SkipNodeUpdate is not set")
    node_id = text_of(raw, "id")
    if node_id and not _UUID.fullmatch(node_id):
        raise BadRequest(f"Bad node ID: {node_id!r} is no UUID")
    tagged = {kind: where for kind, (where, _) in tagged_of(raw.get("taggedaddresses")).items()}
    node = None if skip else CatalogNode(name, address, node_id, tagged, meta_of(raw.get("nodemeta")))
    instance = _instance(raw.get("service"), name)
    return Registration(name, node, instance, tuple(_checks(raw, name, instance)))


def parse_removal(body: object) -> Removal:
    """What is to be removed from the catalogue."""
    raw = fold(body)
    return Removal(_node_name(raw), name_of(raw, "serviceid"), name_of(raw, "checkid"))


def _node_name(raw: Mapping[str, object]) -> str:
    name = name_of(raw, "node")
    if not name:
        raise BadRequest("Must provide node")
    if not _NODE_NAME.fullmatch(name):
        raise BadRequest(f"Invalid node name {name!r}: it must have neither blanks nor slashes and at most 255 characters")
    return name


def _instance(body: object, node: str) -> Instance | None:
    if body is None:
        return None
    raw = fold(body)
    if not name_of(raw, "service"):
        raise BadRequest("Must provide service name with ID" if name_of(raw, "id") else "Must provide service name")
    made = parse_service({**raw, "name": raw["service"]}, node)
    if made.id == "consul":
        raise BadRequest("Invalid service ID: consul is the registry itself; choose another")
    return replace(made, origin="catalog")


def _checks(raw: Mapping[str, object], node: str, instance: Instance | None) -> Iterator[Check]:
    several = raw.get("checks") or []
    if not isinstance(several, list):
        raise BadRequest("Request decode failed: checks must be a list")
    for body in ([raw["check"]] if raw.get("check") else []) + several:
        check = fold(body)
        name = name_of(check, "name")
        check_id = name_of(check, "checkid") or name_of(check, "id") or name
        if not check_id:
            raise BadRequest("Invalid check: it has neither CheckID nor Name")
        service_id = name_of(check, "serviceid")
        own = instance if instance is not None and service_id == instance.id else None
        yield Check(
            id=check_id,
            node=node,
            name=name,
            status=check_status(check, "Bad check status"),
            output=clipped_note(text_of(check, "output"), OUTPUT_MAX),
            notes=text_of(check, "notes"),
            service_id=service_id,
            service_name=own.name if own else name_of(check, "servicename"),
            service_tags=own.tags if own else (),
            definition=parse_definition(fold(check.get("definition") or {}), runs=False),
            origin="catalog",
        )
