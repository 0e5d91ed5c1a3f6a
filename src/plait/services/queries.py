# SPDX-License-Identifier: Apache-2.0
"""Consul's prepared queries as pure rules: reading one, finding the one that a name means, filling in a template, choosing instances.

Data in: decoded JSON, names, entries as `/v1/health/service` shows them. Data out: queries, entries in their order, JSON-able values.
Source: the public HTTP API documentation of Consul.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import cast

from plait.model.query import PreparedQuery, Selection
from plait.services.patterns import BadPattern, compile_pattern
from plait.services.requests import BadRequest, duration_s, fold

Json = dict[str, object]
TEMPLATE = "name_prefix_match"
_TARGET_KEYS = ("Service", "Datacenter", "Peer", "Partition", "Namespace")
_VARIABLE = re.compile(r"\$\{\s*(?:name\.(full|prefix|suffix)|match\((\d{1,2})\)|(agent\.segment))\s*\}")


def parse_query(body: object, query_id: str) -> PreparedQuery:
    """A body of `POST /v1/query`. BadRequest says which field is wrong."""
    raw = fold(body)
    template = _object(raw, "template")
    query = PreparedQuery(
        id=query_id,
        selection=_selection(_object(raw, "service")),
        name=_text(raw, "name"),
        token=_text(raw, "token"),
        session=_text(raw, "session"),
        ttl=_text(_object(raw, "dns"), "ttl"),
        template=_text(template, "type"),
        regexp=_text(template, "regexp"),
        remove_empty_tags=_flag(template, "removeemptytags"),
    )
    _check(query)
    return query


def _check(query: PreparedQuery) -> None:
    if not query.selection.service:
        raise BadRequest("Must provide a Service name to query")
    if query.template not in ("", TEMPLATE):
        raise BadRequest(f"Bad Template.Type {query.template!r}: only {TEMPLATE!r} is supported")
    if query.regexp and not query.template:
        raise BadRequest("Template.Regexp needs Template.Type")
    try:
        if query.regexp:
            compile_pattern(query.regexp)
    except BadPattern as error:
        raise BadRequest(f"Bad Template.Regexp {query.regexp!r}: {error}") from error
    try:
        if query.ttl:
            duration_s(query.ttl)
    except ValueError as error:
        raise BadRequest(f"Bad DNS TTL {query.ttl!r}: {error}") from error


def _selection(raw: Mapping[str, object]) -> Selection:
    failover = _object(raw, "failover")
    nearest = failover.get("nearestn") or 0
    if type(nearest) is not int or nearest < 0:
        raise BadRequest(f"Bad NearestN {nearest!r}: it must be a number, 0 or more")
    targets = [] if failover.get("targets") is None else failover["targets"]
    if not isinstance(targets, list):
        raise BadRequest("Request decode failed: Failover.Targets must be a list")
    datacenters = _texts(failover, "datacenters")
    if targets and (nearest or datacenters):
        raise BadRequest("Failover.Targets cannot be used with Failover.NearestN or Failover.Datacenters: give one or the other")
    return Selection(
        service=_text(raw, "service"),
        tags=_texts(raw, "tags"),
        node_meta=_pairs(raw.get("nodemeta"), "NodeMeta"),
        service_meta=_pairs(raw.get("servicemeta"), "ServiceMeta"),
        ignored_checks=_texts(raw, "ignorecheckids"),
        only_passing=_flag(raw, "onlypassing"),
        connect=_flag(raw, "connect"),
        near=_text(raw, "near"),
        nearest=nearest,
        datacenters=datacenters,
        targets=tuple(_target(target) for target in targets),
    )


def _target(raw: object) -> dict[str, str]:
    """What a target names, in Consul's spelling of the keys; other keys are ignored."""
    target = fold(raw)
    return {key: text for key in _TARGET_KEYS if (text := _text(target, key.lower()))}


def _object(raw: Mapping[str, object], key: str) -> dict[str, object]:
    return fold(raw[key]) if raw.get(key) is not None else {}


def _text(raw: Mapping[str, object], key: str) -> str:
    value = "" if raw.get(key) is None else raw[key]
    if not isinstance(value, str):
        raise BadRequest(f"Request decode failed: {key} must be a text, got {type(value).__name__}")
    return value


def _flag(raw: Mapping[str, object], key: str) -> bool:
    value = False if raw.get(key) is None else raw[key]
    if not isinstance(value, bool):
        raise BadRequest(f"Request decode failed: {key} must be true or false, got {value!r}")
    return value


def _texts(raw: Mapping[str, object], key: str) -> tuple[str, ...]:
    value = [] if raw.get(key) is None else raw[key]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadRequest(f"Request decode failed: {key} must be a list of texts")
    return tuple(value)


def _pairs(value: object, key: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(item, str) for item in value.values()):
        raise BadRequest(f"Request decode failed: {key} must be an object of texts")
    return dict(value)


def query_json(query: PreparedQuery) -> Json:
    """The query as Consul's API shows it; a token is not shown."""
    chosen = query.selection
    targets = [dict(target) for target in chosen.targets]
    return {
        "ID": query.id,
        "Name": query.name,
        "Session": query.session,
        "Token": "<hidden>" if query.token else "",
        "Template": {"Type": query.template, "Regexp": query.regexp, "RemoveEmptyTags": query.remove_empty_tags},
        "Service": {
            "Service": chosen.service,
            "Failover": {"NearestN": chosen.nearest, "Datacenters": list(chosen.datacenters), "Targets": targets},
            "OnlyPassing": chosen.only_passing,
            "IgnoreCheckIDs": list(chosen.ignored_checks),
            "Near": chosen.near,
            "Tags": list(chosen.tags),
            "NodeMeta": dict(chosen.node_meta),
            "ServiceMeta": dict(chosen.service_meta),
            "Connect": chosen.connect,
        },
        "DNS": {"TTL": query.ttl},
        "CreateIndex": query.create_index,
        "ModifyIndex": query.modify_index,
    }


# --- from a name to a query


def find_query(queries: Iterable[PreparedQuery], wanted: str) -> PreparedQuery | None:
    """The query with that id, else with that name in any case, else the template whose name is the longest beginning of it, filled in."""
    known, lowered = list(queries), wanted.lower()
    exact = next((query for query in known if query.id == wanted), None)
    exact = exact or next((query for query in known if query.name and not query.template and query.name.lower() == lowered), None)
    if exact is not None:
        return exact
    templates = [query for query in known if query.template and lowered.startswith(query.name.lower())]
    return filled(max(templates, key=lambda query: len(query.name)), wanted) if templates else None


def filled(query: PreparedQuery, name: str) -> PreparedQuery:
    """The query that the template stands for under `name`: `${name.full|prefix|suffix}` and `${match(n)}` replaced everywhere.
    A group that does not exist, or all of them if the expression does not match, is empty."""
    groups = (compile_pattern(query.regexp).groups(name) or ()) if query.regexp else ()
    parts = {"full": name, "prefix": name[: len(query.name)], "suffix": name[len(query.name) :]}

    def text(template: str) -> str:
        return _VARIABLE.sub(lambda found: _value(found, parts, groups), template)

    def pairs(template: Mapping[str, str]) -> dict[str, str]:
        return {key: text(value) for key, value in template.items()}

    chosen = query.selection
    tags = tuple(text(tag) for tag in chosen.tags)
    selection = replace(
        chosen,
        service=text(chosen.service),
        tags=tuple(tag for tag in tags if tag.strip("!")) if query.remove_empty_tags else tags,
        node_meta=pairs(chosen.node_meta),
        service_meta=pairs(chosen.service_meta),
        ignored_checks=tuple(text(check) for check in chosen.ignored_checks),
        near=text(chosen.near),
        datacenters=tuple(text(datacenter) for datacenter in chosen.datacenters),
        targets=tuple(pairs(target) for target in chosen.targets),
    )
    return replace(query, selection=selection)


def _value(found: re.Match[str], parts: Mapping[str, str], groups: Sequence[str]) -> str:
    if found[1]:
        return parts[found[1]]
    if found[2]:
        return groups[int(found[2])] if int(found[2]) < len(groups) else ""
    return ""


# --- from a query to instances


Far = Callable[[str], float]
"""How far the node of that name is, in whatever unit."""
Entries = Callable[[str], Iterable[Json]]
"""Those of the service of that name, as `/v1/health/service` shows them."""
Shuffle = Callable[[list[Json]], None]


def carried_out(selection: Selection, datacenter: str, entries: Entries, far: Far | None, shuffle: Shuffle) -> tuple[list[Json], int]:
    """(instances, failovers). If the service has none, those of the first target in order that has some, and how many targets were tried.
    `datacenter` is the only one there is: whatever is elsewhere (another datacentre, a peer) counts as tried and has none."""
    found, failovers = choose(selection, entries(selection.service), far, shuffle), 0
    for target in selection.targets or [{"Datacenter": name} for name in selection.datacenters]:
        if found:
            break
        here, service = _is_here(target, datacenter), target.get("Service") or selection.service
        if here and service == selection.service:
            continue
        failovers += 1
        found = choose(selection, entries(service), far, shuffle) if here else []
    return found, failovers


def _is_here(target: Mapping[str, str], datacenter: str) -> bool:
    inside = all(target.get(key, "") in ("", "default") for key in ("Partition", "Namespace"))
    return inside and not target.get("Peer") and target.get("Datacenter", "").lower() in ("", datacenter.lower())


def choose(selection: Selection, entries: Iterable[Json], far: Far | None, shuffle: Shuffle) -> list[Json]:
    """Those of the service's entries (as `/v1/health/service` shows them) that the query gives: in random order, or the nearest first."""
    if selection.connect:
        return []
    chosen = [entry for entry in entries if _fits(selection, entry)]
    shuffle(chosen)
    return sorted(chosen, key=lambda entry: far(cast(str, cast(Json, entry["Node"])["Node"]))) if far is not None else chosen


def _fits(selection: Selection, entry: Json) -> bool:
    node, service = cast(Json, entry["Node"]), cast(Json, entry["Service"])
    bad = {"critical", "warning"} if selection.only_passing else {"critical"}
    for check in cast(list[Json], entry["Checks"]):
        if check["Status"] in bad and check["CheckID"] not in selection.ignored_checks:
            return False
    tags = {tag.lower() for tag in cast(list[str], service["Tags"])}
    if any((tag.removeprefix("!").lower() in tags) == tag.startswith("!") for tag in selection.tags):
        return False
    node_meta, service_meta = cast(Json, node["Meta"]), cast(Json, service["Meta"])
    return selection.node_meta.items() <= node_meta.items() and selection.service_meta.items() <= service_meta.items()
