# SPDX-License-Identifier: Apache-2.0
"""Policies from the files that Kubernetes takes: NetworkPolicy (networking.k8s.io/v1), Namespace (v1) for its labels, lists of these, and
ClusterNetworkPolicy (`tiers.py`).

Read strictly: a field that nobody knows, or that does not mean what it seems to, refuses the whole file. What the API server fills in by
itself (`status`, most of `metadata`) is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from plait.model.cluster import Protocol
from plait.model.errors import ConfigError
from plait.model.policy import (
    AUDIT_ANNOTATION,
    DEFAULT_NAMESPACE,
    LAST_PORT,
    Direction,
    Group,
    Namespace,
    Policy,
    PolicyRule,
    Ports,
    Range,
    Selector,
)
from plait.policy.document import documents, written
from plait.policy.fields import Field
from plait.policy.selectors import read_selector
from plait.policy.texts import cidr, port_name
from plait.policy.tiers import TIERS_VERSION, read_tiered

_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)
_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_TOP = ("apiVersion", "kind", "metadata", "spec", "status")
_WORDS: tuple[str, ...] = ("TCP", "UDP", "SCTP")


@dataclass(frozen=True, slots=True)
class Applied:
    """What a file holds, in its order."""

    policies: tuple[Policy, ...] = ()
    namespaces: tuple[Namespace, ...] = ()


def read_policies(text: str) -> Applied:
    """Everything in a file, or ConfigError that names line, field and reason of the first thing that is wrong."""
    fields = [Field(value) for value in documents(text)]
    found = [one for field in fields for one in _read(field)]
    if not found:
        raise ConfigError("the file", "", "has no policy in it", "give it documents of kind NetworkPolicy or ClusterNetworkPolicy")
    seen: set[object] = set()
    for one, at in found:
        ident = one.ident if isinstance(one, Policy) else one.name
        if ident in seen:
            raise at.refused(f"is the second of the name {one.name!r} in this file")
        seen.add(ident)
    return Applied(tuple(one for one, _ in found if isinstance(one, Policy)), tuple(one for one, _ in found if isinstance(one, Namespace)))


def _read(at: Field) -> list[tuple[Policy | Namespace, Field]]:
    known = at.fields(*_TOP, "items", others=True)
    version, kind = at.need("apiVersion", known).text(), at.need("kind", known).text()
    if kind in ("List", "NetworkPolicyList", "ClusterNetworkPolicyList", "NamespaceList"):
        at.fields("apiVersion", "kind", "metadata", "items")
        return [one for item in at.need("items", known).each() for one in _read(item)]
    readers: dict[tuple[str, str], Callable[[Field], Policy | Namespace]] = {
        ("networking.k8s.io/v1", "NetworkPolicy"): _network_policy,
        (TIERS_VERSION, "ClusterNetworkPolicy"): _cluster_policy,
        ("v1", "Namespace"): _namespace,
    }
    read = readers.get((version, kind))
    if read is None:
        known_pairs = ", ".join(f"{kind} of {version}" for version, kind in readers)
        raise known["kind"].refused(f"of {version} is nothing that plait knows", f"it knows {known_pairs}")
    at.fields(*_TOP)
    return [(read(at), at)]


def _named(at: Field, pattern: re.Pattern[str]) -> tuple[str, dict[str, Field]]:
    """The name in the metadata, and the rest of these."""
    metadata = at.need("metadata", at.fields(*_TOP))
    known = metadata.fields(others=True)
    name = metadata.need("name", known)
    if not pattern.fullmatch(name.text()):
        raise name.refused("is no name", "it may have lower-case letters, digits and - inside")
    return name.text(), known


def _namespace(at: Field) -> Namespace:
    name, metadata = _named(at, _LABEL)
    labels = metadata["labels"].fields(others=True) if "labels" in metadata else {}
    return Namespace(name, {key: one.text() for key, one in labels.items()})


def _cluster_policy(at: Field) -> Policy:
    name, metadata = _named(at, _NAME)
    if "namespace" in metadata:
        raise metadata["namespace"].refused("cannot be there: a ClusterNetworkPolicy is in no namespace")
    spec = at.need("spec", at.fields(*_TOP))
    audit = _audit(metadata)
    return replace(read_tiered(spec, name, _written(at, {"name": name}, audit)), audit=audit)


def _network_policy(at: Field) -> Policy:
    name, metadata = _named(at, _NAME)
    namespace = metadata["namespace"].text() if "namespace" in metadata else DEFAULT_NAMESPACE
    if not _LABEL.fullmatch(namespace):
        raise metadata["namespace"].refused("is no name of a namespace")
    spec = at.need("spec", at.fields(*_TOP))
    known = spec.fields("podSelector", "policyTypes", "ingress", "egress")
    pods = read_selector(known["podSelector"]) if "podSelector" in known else Selector()
    rules = {way: _rules(known[way], way, namespace) if way in known else () for way in ("ingress", "egress")}
    if "policyTypes" in known:
        types = {one.one_of(("Ingress", "Egress")) for one in known["policyTypes"].some()}
    else:
        types = {"Ingress", "Egress"} if rules["egress"] else {"Ingress"}
    audit = _audit(metadata)
    return Policy(
        name,
        namespace,
        "NetworkPolicy",
        Group(pods, namespace=namespace),
        ingress=rules["ingress"] if "Ingress" in types else None,
        egress=rules["egress"] if "Egress" in types else None,
        document=_written(at, {"name": name, "namespace": namespace}, audit),
        audit=audit,
    )


def _audit(metadata: dict[str, Field]) -> bool:
    """Whether an annotation says that it is only to tell what it would drop."""
    annotations = metadata["annotations"].fields(others=True) if "annotations" in metadata else {}
    return AUDIT_ANNOTATION in annotations and annotations[AUDIT_ANNOTATION].one_of(("true", "false")) == "true"


def _rules(at: Field, direction: Direction, namespace: str) -> tuple[PolicyRule, ...]:
    return tuple(_rule(one, direction, namespace) for one in at.each())


def _rule(at: Field, direction: Direction, namespace: str) -> PolicyRule:
    side = "from" if direction == "ingress" else "to"
    known = at.fields(side, "ports")
    peers = known[side].each() if side in known else []
    read = [_peer(one, namespace) for one in peers]
    ports = tuple(_port(one) for one in known["ports"].each()) if "ports" in known else ()
    groups = tuple(one for one in read if isinstance(one, Group))
    ranges = tuple(one for one in read if isinstance(one, Range))
    return PolicyRule("Accept", at.path.removeprefix("spec."), groups, ranges, anybody=not peers, ports=ports)


def _peer(at: Field, namespace: str) -> Group | Range:
    known = at.fields("podSelector", "namespaceSelector", "ipBlock")
    if "ipBlock" in known:
        if len(known) > 1:
            raise at.refused("has an ipBlock and a selector", "make two of it")
        return _range(known["ipBlock"])
    if not known:
        raise at.refused("names nobody", "give it a podSelector, a namespaceSelector or an ipBlock")
    pods = read_selector(known["podSelector"]) if "podSelector" in known else Selector()
    if "namespaceSelector" not in known:
        return Group(pods, namespace=namespace)
    return Group(pods, read_selector(known["namespaceSelector"]))


def _range(at: Field) -> Range:
    known = at.fields("cidr", "except")
    whole = at.need("cidr", known).parsed(cidr, "a network")
    excluded = []
    for one in known["except"].each() if "except" in known else []:
        part = one.parsed(cidr, "a network")
        if part.version != whole.version or not part.subnet_of(whole):  # type: ignore[arg-type]
            raise one.refused(f"does not lie in {whole}")
        excluded.append(part)
    return Range(whole, tuple(excluded))


def _port(at: Field) -> Ports:
    known = at.fields("protocol", "port", "endPort")
    words: dict[str, Protocol] = {"TCP": "tcp", "UDP": "udp", "SCTP": "sctp"}
    protocol = words[known["protocol"].one_of(_WORDS)] if "protocol" in known else "tcp"
    port = known.get("port")
    if port is None or isinstance(port.value.content, str):
        if "endPort" in known:
            raise known["endPort"].refused("needs a port that is a number")
        return Ports(protocol) if port is None else Ports(protocol, name=port_name(port))
    first = port.whole(1, LAST_PORT)
    return Ports(protocol, first, known["endPort"].whole(first, LAST_PORT) if "endPort" in known else first)


def _written(at: Field, metadata: dict[str, Any], audit: bool) -> str:
    plain: dict[str, Any] = at.value.plain()
    metadata |= {"annotations": {AUDIT_ANNOTATION: "true"}} if audit else {}
    kept = {"apiVersion": plain["apiVersion"], "kind": plain["kind"], "metadata": metadata, "spec": plain["spec"]}
    return written(kept)
