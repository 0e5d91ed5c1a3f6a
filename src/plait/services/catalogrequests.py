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
from plait.services.checkrequests import check_status, of_service, parse_definition
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
    name = node_name(raw)
    skip = flag_of(raw, "skipnodeupdate")
    if not address_of(raw) and not skip:
        raise BadRequest("Must provide address if SkipNodeUpdate is not set")
    node = parse_node(raw, "nodemeta")
    instance = parse_instance(raw["service"], name) if raw.get("service") is not None else None
    return Registration(name, None if skip else node, instance, tuple(_checks(raw, name, instance)))


def parse_removal(body: object) -> Removal:
    """What is to be removed from the catalogue."""
    raw = fold(body)
    return Removal(node_name(raw), name_of(raw, "serviceid"), name_of(raw, "checkid"))


def node_name(raw: Mapping[str, object]) -> str:
    """The name of a node under the folded key `node`, which must be there."""
    name = name_of(raw, "node")
    if not name:
        raise BadRequest("Must provide node")
    if not _NODE_NAME.fullmatch(name):
        raise BadRequest(f"Invalid node name {name!r}: it must have neither blanks nor slashes and at most 255 characters")
    return name


def parse_node(raw: Mapping[str, object], meta_key: str) -> CatalogNode:
    """A node of folded keys; its address may be missing. `meta_key`: the folded key of its metadata."""
    node_id = text_of(raw, "id")
    if node_id and not _UUID.fullmatch(node_id):
        raise BadRequest(f"Bad node ID: {node_id!r} is no UUID")
    tagged = {kind: where for kind, (where, _) in tagged_of(raw.get("taggedaddresses")).items()}
    return CatalogNode(node_name(raw), address_of(raw), node_id, tagged, meta_of(raw.get(meta_key)))


def parse_instance(body: object, node: str) -> Instance:
    """A service on `node` that no agent owns."""
    raw = fold(body)
    if not name_of(raw, "service"):
        raise BadRequest("Must provide service name with ID" if name_of(raw, "id") else "Must provide service name")
    made = parse_service({**raw, "name": raw["service"]}, node)
    if made.id == "consul":
        raise BadRequest("Invalid service ID: consul is the registry itself; choose another")
    return replace(made, origin="catalog")


def check_id(raw: Mapping[str, object]) -> str:
    """The id of a check of folded keys, which is its name if it has no other; one of both must be there."""
    found = name_of(raw, "checkid") or name_of(raw, "id") or name_of(raw, "name")
    if not found:
        raise BadRequest("Invalid check: it has neither CheckID nor Name")
    return found


def parse_catalog_check(body: object, node: str) -> Check:
    """A check on `node` that nobody runs. Of its service it has what the body says."""
    raw = fold(body)
    return Check(
        id=check_id(raw),
        node=node,
        name=name_of(raw, "name"),
        status=check_status(raw, "Bad check status"),
        output=clipped_note(text_of(raw, "output"), OUTPUT_MAX),
        notes=text_of(raw, "notes"),
        service_id=name_of(raw, "serviceid"),
        service_name=name_of(raw, "servicename"),
        definition=parse_definition(fold(raw.get("definition") or {}), runs=False),
        origin="catalog",
    )


def _checks(raw: Mapping[str, object], name: str, instance: Instance | None) -> Iterator[Check]:
    several = raw.get("checks") or []
    if not isinstance(several, list):
        raise BadRequest("Request decode failed: checks must be a list")
    for body in ([raw["check"]] if raw.get("check") else []) + several:
        check = parse_catalog_check(body, name)
        yield of_service(check, instance) if instance is not None and check.service_id == instance.id else check
