# SPDX-License-Identifier: Apache-2.0
"""The description of the HTTP API says what is served: each route, each parameter that a handler reads, and nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.house.test_documents import generator

from plait.serve.consul_http import Route
from plait.serve.consul_reads import FILTERED
from plait.serve.openapi import described, description
from plait.serve.openapi_table import EVERYWHERE, OPERATIONS, PARAMETERS

SERVE = Path(__file__).resolve().parents[2] / "src" / "plait" / "serve"
READERS = {f"call.{name}" for name in ("one", "flag", "every", "number", "switch")}
"""Methods of `Call` that read a parameter."""
MISSPELLED = {"seperator"}
"""Read because clients send it."""


def routes() -> tuple[Route, ...]:
    return generator().api_routes()


def references(value: Any) -> Iterator[str]:
    """All that `$ref` names in a description."""
    if isinstance(value, dict):
        yield from ([value["$ref"]] if "$ref" in value else [])
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_what_is_served_is_described_and_nothing_else() -> None:
    assert sorted(f"{method} {route.path}" for method, route, _ in described(routes())) == sorted(OPERATIONS)


def test_a_route_without_a_description_is_found_out() -> None:
    with pytest.raises(KeyError, match="GET new/path"):
        description([Route("new/path", "new", {"GET": lambda _: None})], "1")  # type: ignore[arg-type,return-value]


def test_parameters_that_handlers_read_are_described() -> None:
    read = {
        node.args[0].value
        for path in SERVE.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func) in READERS
        if node.args and isinstance(node.args[0], ast.Constant)
    }
    assert len(read) > 25
    assert read - MISSPELLED <= PARAMETERS.keys()
    taken = {name for operation in OPERATIONS.values() for name in operation.takes.split()} | set(EVERYWHERE.split())
    assert taken == PARAMETERS.keys(), "each parameter belongs to an operation"


def test_filter_is_described_where_it_is_taken() -> None:
    for key, operation in OPERATIONS.items():
        method, path = key.split()
        assert ("filter" in operation.takes.split()) == (method == "GET" and path.startswith(FILTERED)), key


def test_references_lead_somewhere() -> None:
    made = description(routes(), "1")
    parts: Any = made["components"]
    found = set(references(made))
    assert len(found) > 50
    for place in found:
        _, _, kind, name = place.split("/")
        assert name in parts[kind], place
    assert {f"#/components/schemas/{name}" for name in parts["schemas"]} <= found, "each shape is used"


def test_an_agent_carries_the_description_only_when_it_is_asked() -> None:
    program = "import sys, plait.agent.discovery; print([m for m in sys.modules if m.startswith('plait.serve.openapi')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"
