# SPDX-License-Identifier: Apache-2.0
"""Every event and every field of the log is in docs/logging.md, with the level and the fields it has, and nothing else is."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error", "critical": "critical"}
RESERVED = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "level", "logger", "event", "time", "traceback"}
SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


@dataclass(frozen=True)
class Line:
    """One call that writes a log line."""

    where: str
    logger: str
    level: str
    event: str
    fields: frozenset[str]


def fields_of(extra: ast.expr | None, functions: dict[str, ast.FunctionDef]) -> frozenset[str]:
    """The keys of `extra`: of a dict, or of the dict that a function of the same module returns. ValueError for anything else."""
    if extra is None:
        return frozenset()
    if isinstance(extra, ast.Call) and isinstance(extra.func, ast.Name) and extra.func.id in functions:
        last = functions[extra.func.id].body[-1]
        extra = last.value if isinstance(last, ast.Return) else None
    if isinstance(extra, ast.Dict) and all(isinstance(key, ast.Constant) and isinstance(key.value, str) for key in extra.keys):
        return frozenset(key.value for key in extra.keys if isinstance(key, ast.Constant) and isinstance(key.value, str))
    raise ValueError("extra is not a dict with the fields' names in it")


def lines_of(tree: ast.Module, where: str) -> Iterator[Line]:
    """Every call of `log.<level>` where `log` is the module's logger; ValueError with the place if one is not an event with fields."""
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    found = re.search(r"^log = logging\.getLogger\('([a-z.]+)'\)$", ast.unparse(tree), re.MULTILINE)
    for node in ast.walk(tree) if found else ():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "log":
            place = f"{where}:{node.lineno}"
            if node.func.attr not in LEVELS:
                raise ValueError(f"{place}: log.{node.func.attr} is no level")
            if len(node.args) != 1 or not isinstance(node.args[0], ast.Constant):
                raise ValueError(f"{place}: the event must be one constant word")
            extras = {word.arg: word.value for word in node.keywords}
            try:
                fields = fields_of(extras.get("extra"), functions)
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from error
            yield Line(place, found[1] if found else "", LEVELS[node.func.attr], str(node.args[0].value), fields)


@cache
def lines() -> list[Line]:
    folder = ROOT / "src"
    paths = sorted(folder.rglob("*.py"))
    return [line for path in paths for line in lines_of(ast.parse(path.read_text()), str(path.relative_to(folder)))]


def table(heading: str) -> list[list[str]]:
    """The rows of the table below `## heading` in docs/logging.md, cells without backquotes."""
    section = (ROOT / "docs" / "logging.md").read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")]
    return rows[2:]


def test_every_logger_is_the_modules_log() -> None:
    """Otherwise the search would miss its lines. `agent/logs.py` sets up the root of all of them."""
    users = [path for path in (ROOT / "src").rglob("*.py") if "logging.getLogger(" in path.read_text() and path.name != "logs.py"]
    assert users and [str(path) for path in users if not re.search(r'^log = logging\.getLogger\("', path.read_text(), re.MULTILINE)] == []


def test_events_are_words_and_fields_hide_nothing_of_the_record() -> None:
    assert len(lines()) > 30, "the search found hardly any log line"
    assert [line for line in lines() if not SNAKE.fullmatch(line.event) or not line.logger.startswith("plait.")] == []
    assert [line for line in lines() if line.fields & RESERVED or not all(SNAKE.fullmatch(name) for name in line.fields)] == []


def test_the_events_are_the_documented_ones() -> None:
    written: dict[str, tuple[set[str], set[str], set[str]]] = {}
    for line in lines():
        loggers, levels, fields = written.setdefault(line.event, (set(), set(), set()))
        loggers.add(line.logger)
        levels.add(line.level)
        fields.update(line.fields)
    documented = {row[0]: tuple(set(cell.replace(",", " ").split()) for cell in row[1:4]) for row in table("Events")}
    assert documented == written
    assert [row for row in table("Events") if len(row) != 5 or not row[4]] == [], "each event has a meaning"
    assert [row[0] for row in table("Events")] == sorted(documented), "in alphabetical order, each once"


def test_the_fields_are_the_documented_ones() -> None:
    rows = table("Fields")
    assert [row[0] for row in rows] == sorted({name for line in lines() for name in line.fields})
    assert [row for row in rows if len(row) != 3 or not row[1] or not row[2]] == [], "each field has a unit or form, and a meaning"


@pytest.mark.parametrize(
    "text",
    ["log.info('a', 'b')", "log.info(f'a{b}')", "log.info('a', extra=b)", "log.info('a', extra={b: 1})", "log.warn('a')"],
)
def test_a_line_that_cannot_be_documented_is_found(text: str) -> None:
    with pytest.raises(ValueError, match=r"^x\.py:2: "):
        list(lines_of(ast.parse(f"log = logging.getLogger('plait.x')\n{text}"), "x.py"))


def test_fields_behind_a_function_are_found() -> None:
    text = "log = logging.getLogger('plait.x')\nlog.exception('a_b', extra=_f(1))\ndef _f(x):\n    return {'id': x}\n"
    assert list(lines_of(ast.parse(text), "x.py")) == [Line("x.py:2", "plait.x", "error", "a_b", frozenset({"id"}))]
