# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI 3.1 description of the HTTP API, made of its routes, `openapi_table` and `openapi_shapes`.

Data in: routes. Data out: the description as JSON-able values, in the order of the routes. It is imported when somebody asks for it, so
that an agent that nobody asks carries none of it. Source: the OpenAPI Specification 3.1.0; the schemas are JSON Schema 2020-12.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from plait.serve.consul_http import Route
from plait.serve.openapi_shapes import SHAPES, WORDS, Shape
from plait.serve.openapi_table import (
    ARCHIVE,
    BYTES,
    EVENTS,
    EVERYWHERE,
    OPERATIONS,
    PARAMETERS,
    STATUSES,
    TEXT,
    Json,
    Operation,
)

_CONTENT_TYPES = (TEXT, BYTES, EVENTS, ARCHIVE)
_INDEX: Json = {"type": "integer", "minimum": 1, "maximum": (1 << 64) - 1}
_READ_HEADERS: Mapping[str, tuple[Json, str]] = {
    "X-Consul-Index": (_INDEX, "what `index` is compared with"),
    "X-Consul-KnownLeader": ({"type": "string", "enum": ["true", "false"]}, "whether the store is in reach"),
    "X-Consul-LastContact": ({"type": "integer", "minimum": 0}, "milliseconds since it was last heard of"),
    "X-Consul-Effective-Consistency": ({"type": "string", "enum": ["leader", "stale", "consistent"]}, "what the answer was asked to be"),
}
_VARIABLE = re.compile(r"<([^>]+)>")


def description(routes: Iterable[Route], version: str) -> Json:
    """All operations of the routes. KeyError names one that `OPERATIONS` does not have."""
    paths: dict[str, Json] = {}
    for method, route, operation in described(routes):
        paths.setdefault("/v1/" + _VARIABLE.sub(r"{\1}", route.path), {})[method.lower()] = _operation(method, route, operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "plait", "version": version, "description": "The HTTP API of a plait agent, compatible with Consul's."},
        "paths": paths,
        "components": {
            "parameters": {name: _parameter(name) for name in PARAMETERS},
            "headers": {
                name: {"required": True, "schema": schema, "description": about} for name, (schema, about) in _READ_HEADERS.items()
            },
            "schemas": {name: schema_of(shape) for name, shape in SHAPES.items()},
        },
    }


def described(routes: Iterable[Route]) -> Iterator[tuple[str, Route, Operation]]:
    """(method, route, operation) in the order of the routes."""
    for route in routes:
        for method in route.methods:
            yield method, route, OPERATIONS[f"{method} {route.path}"]


def schema_of(shape: Shape) -> Json:
    """The shape as JSON Schema."""
    if isinstance(shape, str):
        return _plain(shape)
    if isinstance(shape, list):
        return {"type": "array", "items": schema_of(shape[0])}
    if set(shape) == {"*"}:
        return {"type": "object", "additionalProperties": schema_of(shape["*"])}
    required = [key for key in shape if not key.endswith("?")]
    properties = {key.removesuffix("?"): schema_of(inner) for key, inner in shape.items()}
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def _plain(shape: str) -> Json:
    name = shape.removesuffix(" or null")
    made: Json = {"$ref": f"#/components/schemas/{name[1:]}"} if name.startswith("@") else dict(WORDS[name][0])
    return made if name == shape else {"anyOf": [made, {"type": "null"}]}


def spelled(shape: Shape) -> str:
    """The shape in one line, as the reference shows it."""
    if isinstance(shape, str):
        return shape.removeprefix("@")
    if isinstance(shape, list):
        return f"[{spelled(shape[0])}]"
    return "{" + ", ".join(f"{key}: {spelled(inner)}" for key, inner in shape.items()) + "}"


def _parameter(name: str) -> Json:
    schema, about = PARAMETERS[name]
    more: Json = {"allowEmptyValue": True} if schema.get("type") == "boolean" else {}
    return {"name": name, "in": "query", "required": False, "description": about, "schema": schema, **more}


def _operation(method: str, route: Route, operation: Operation) -> Json:
    names = [*operation.takes.split(), *EVERYWHERE.split()]
    variable: list[Json] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in _VARIABLE.findall(route.path)
    ]
    made: Json = {
        "operationId": f"{method.lower()} {route.path}",
        "summary": route.about,
        "parameters": [*variable, *({"$ref": f"#/components/parameters/{name}"} for name in names)],
        "responses": dict(_responses(operation)),
    }
    if operation.body is not None:
        made["requestBody"] = {"required": False, "content": _content(operation.body)}
    return made


def _responses(operation: Operation) -> Iterator[tuple[str, Json]]:
    for status, about in sorted({**STATUSES, **operation.more}.items()):
        if status == 200 and operation.answer is None:
            continue
        response: Json = {"description": about}
        if status not in operation.carried:
            response["content"] = _content(TEXT)
        elif operation.answer:
            response["content"] = _content(operation.answer) | (_content(TEXT) if operation.or_text else {})
        if status == 200 and operation.consistent:
            response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in _READ_HEADERS}
        yield str(status), response


def _content(shape: Shape) -> Json:
    if isinstance(shape, str) and shape in _CONTENT_TYPES:
        return {shape: {"schema": {"type": "string"}}}
    return {"application/json": {"schema": schema_of(shape)}}
