# SPDX-License-Identifier: Apache-2.0
"""The house rules that a reader relies on: small functions and modules, licence lines, owned tasks, nothing of one machine."""

from __future__ import annotations

import ast
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPDX = "SPDX-License-Identifier: Apache-2.0"

FUNCTION_LINES, FUNCTION_STOP = 40, 60
MODULE_LINES, MODULE_STOP = 400, 500
LONG_FUNCTIONS: frozenset[str] = frozenset()
"""Functions ("plait/x.py:name") that may have more than FUNCTION_LINES lines for now. This list only shrinks."""
LONG_MODULES: frozenset[str] = frozenset()
"""Modules ("plait/x.py") that may have more than MODULE_LINES lines for now. This list only shrinks."""
TASK_MAKERS = {
    "plait/client/aio_parts.py": "a Worker ends with the block of what made it; a group would wrap the user's own exceptions",
    "plait/agent/main.py": "the root of the agent, which turns signals into cancellation",
    "plait/serve/dns_parent.py": "the child's supervisor has start and close; waiters end with the call that made them",
    "plait/serve/dns_process.py": "what listens to a child ends with it: who spawned it calls end or leave",
    "plait/serve/event_hub.py": "one follower for all that watch: the last watcher that leaves ends it",
    "plait/http/connection.py": "a request's task ends with its connection; a stop cancels and awaits what is left",
    "plait/serve/http_answers.py": "one follower for all that wait: the last waiter that leaves ends it",
}
"""Modules that may make a task outside of a TaskGroup, and who ends it. Everywhere else a task belongs to a group."""


@cache
def files() -> list[Path]:
    """Every file of the repository that is not ignored; in an unpacked archive, every file outside of dot folders."""
    listed = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, timeout=30)
    if listed.returncode == 0:
        found = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        found = [path for path in ROOT.rglob("*") if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)]
    return sorted(path for path in found if path.is_file())


@cache
def sources() -> dict[str, ast.Module]:
    """The package's modules, parsed, by their path below src."""
    folder = ROOT / "src"
    return {str(path.relative_to(folder)): ast.parse(path.read_text()) for path in sorted(folder.rglob("*.py"))}


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without decorators, signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return function.end_lineno - body[0].lineno + 1 if body and function.end_lineno else 0


def functions() -> Iterator[tuple[str, int]]:
    for name, tree in sources().items():
        for found in ast.walk(tree):
            if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name}:{found.name}", body_lines(found)


def modules() -> Iterator[tuple[str, int]]:
    for name in sources():
        yield name, len((ROOT / "src" / name).read_text().splitlines())


@pytest.mark.parametrize(
    ("sizes", "budget", "stop", "excused"),
    [(functions, FUNCTION_LINES, FUNCTION_STOP, LONG_FUNCTIONS), (modules, MODULE_LINES, MODULE_STOP, LONG_MODULES)],
    ids=["functions", "modules"],
)
def test_size_budgets(sizes: object, budget: int, stop: int, excused: frozenset[str]) -> None:
    assert callable(sizes)
    measured: dict[str, int] = {}
    for name, lines in sizes():  # a module may have several functions of one name
        measured[name] = max(lines, measured.get(name, 0))
    over = {name: lines for name, lines in measured.items() if lines > budget}
    assert {name: lines for name, lines in over.items() if name not in excused} == {}, f"split these: over {budget} lines"
    assert {name: lines for name, lines in over.items() if lines > stop} == {}, f"nothing may have more than {stop} lines"
    assert sorted(excused - set(over)) == [], "these keep to the budget now: take them off the list"


def test_budgets_count_the_body_only() -> None:
    text = 'def f(\n    a,\n):\n    """One.\n\n    Two."""\n    b = a\n\n    return b\n'
    function = ast.parse(text).body[0]
    assert isinstance(function, ast.FunctionDef)
    assert body_lines(function) == 3


def test_every_source_names_its_licence() -> None:
    kinds = (".py", ".sh", ".toml")
    wanted = [p for p in files() if (p.suffix in kinds and p.name != "pyproject.toml") or p.parent.name == ".ci"]
    missing = [str(p.relative_to(ROOT)) for p in wanted if not any(SPDX in line for line in p.read_text().splitlines()[:2])]
    assert missing == []


def unowned_tasks(tree: ast.Module) -> list[int]:
    """Lines that make a task which no TaskGroup of the same module owns."""
    groups = {
        item.optional_vars.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncWith)
        for item in node.items
        if isinstance(item.optional_vars, ast.Name) and "TaskGroup" in ast.unparse(item.context_expr)
    }
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            owner, _, method = called.rpartition(".")
            if method in ("create_task", "ensure_future") and owner not in groups:
                lines.append(node.lineno)
    return lines


def test_every_task_has_an_owner() -> None:
    found = {name: lines for name, tree in sources().items() if (lines := unowned_tasks(tree))}
    assert {name: lines for name, lines in found.items() if name not in TASK_MAKERS} == {}
    assert sorted(set(TASK_MAKERS) - set(found)) == [], "these make no task any more: take them off the list"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("async def f():\n    asyncio.create_task(g())", [2]),
        ("async def f():\n    asyncio.ensure_future(g())", [2]),
        ("async def f():\n    async with asyncio.TaskGroup() as group:\n        group.create_task(g())", []),
        ("async def f():\n    async with asyncio.timeout(1) as group:\n        group.create_task(g())", [3]),
        ("async def f(loop):\n    loop.create_task(g())", [2]),
    ],
)
def test_the_search_for_tasks_finds_them(text: str, lines: list[int]) -> None:
    assert unowned_tasks(ast.parse(text)) == lines


def test_no_command_leaves_its_namespace() -> None:
    """A line for a shell that begins with `nsenter` runs what comes after `&&` in the namespace of this machine. Whoever has a namespace of
    its own already may give a line to a shell (`sh` there)."""
    word = "shell" + "=True"
    assert [str(path.relative_to(ROOT)) for path in files() if path.suffix == ".py" and word in path.read_text()] == [
        "tests/support/kernel.py"
    ]


def machine_words() -> list[str]:
    """What would give away the machine that this runs on: places, its name, where it fetches packages."""
    words = [f"{ROOT}/", f"{Path.home()}/"] + ([f"{sys.base_prefix}/"] if sys.base_prefix not in ("/usr", "/usr/local") else [])
    words += [host for name in ("PIP_INDEX_URL", "UV_INDEX_URL", "GOPROXY") if (host := urlsplit(os.environ.get(name, "")).hostname)]
    host = socket.gethostname()
    return words + ([host] if len(host) >= 8 else [])


def test_no_file_names_this_machine() -> None:
    pattern = re.compile("|".join(rf"(?<![\w}}]){re.escape(word)}" for word in machine_words()))
    public = {"localhost", "pypi.org", "proxy.golang.org"}
    found = []
    for path in files():
        text = path.read_text(errors="replace")
        found += [f"{path.relative_to(ROOT)}: {hit}" for hit in set(pattern.findall(text)) - public]
    assert found == []
