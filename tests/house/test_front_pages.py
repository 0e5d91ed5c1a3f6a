# SPDX-License-Identifier: Apache-2.0
"""What README.md and the written pages point to exists: files, `make` targets, commands and their options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from plait.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def commands_of(text: str) -> list[list[str]]:
    """Words of each plait command in code of the page, without the program and what the shell makes of the rest."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`((?:\.venv/bin/)?plait [^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    lines = [line for block in blocks for line in block.splitlines()] + spans
    return [shlex.split(line, comments=True)[1:] for line in lines if re.match(r"(\.venv/bin/)?plait ", line)]


def fault(words: list[str]) -> str:
    """What the program would say against the command, "" if it would take it. A word in capitals or with "…" stands for the reader's."""
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        inner = command.get_command(context, words[0])
        if inner is None:
            return f"{words[0]!r} is no command"
        command, words = inner, words[1:]
    known = {name for option in command.params for name in [*option.opts, *option.secondary_opts]} | {"--help", "-h"}
    own = words[: words.index("--")] if "--" in words else words
    unknown = [word for word in own if re.fullmatch(r"--?[a-z][a-z-]*", word) and word not in known]
    return f"{unknown} are no options of {command.name}" if unknown else ""


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/cli.md"])
def test_commands_exist(page: str) -> None:
    assert {shlex.join(words): found for words in commands_of((ROOT / page).read_text()) if (found := fault(words))} == {}


@pytest.mark.parametrize("words", ["lab upp", "status --jsn", "node remove B", "run --nam x -- ls --all"])
def test_a_command_that_does_not_exist_is_found(words: str) -> None:
    assert fault(words.split())


def test_commands_are_found_on_the_pages() -> None:
    found = [words[0] for page in ("README.md", "docs/guide.md", "docs/lab.md") for words in commands_of((ROOT / page).read_text())]
    assert {"init", "token", "join", "status", "down", "lab", "run"} <= set(found)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", (ROOT / page).read_text())
    files = [target for target in targets if "://" not in target]
    assert [target for target in files if not ((ROOT / page).parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", (ROOT / page).read_text(), re.MULTILINE)) <= targets
