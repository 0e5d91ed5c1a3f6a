# SPDX-License-Identifier: Apache-2.0
"""Documents that are made from the code agree with it, and the front page stays short."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import click
import pytest

from plait.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
README_LINES = 150


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plait_docs", ROOT / "scripts" / "docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["cli.md", "config.md", "health-codes.md", "client-api.md", "http-api.md"])
def test_generated_references_are_fresh(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == generator().references()[name], "run `make docs`"


def leaves(command: click.Command, path: str) -> list[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        return [(path, command)]
    context = click.Context(command)
    below = []
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None
        below += leaves(inner, f"{path} {name}")
    return below


def test_every_command_and_option_is_documented() -> None:
    """Reads the document, not its generator, so that a generator that forgets something is found out too."""
    sections = {part.partition("\n")[0].lstrip("# "): part for part in (ROOT / "docs" / "cli.md").read_text().split("\n#")}
    for path, command in leaves(cli, "plait"):
        assert path in sections, f"{path} is not in docs/cli.md"
        assert command.help, f"{path} has no help text"
        for option in command.params:
            names = option.opts if isinstance(option, click.Option) else [option.make_metavar(click.Context(command))]
            for name in names:
                assert name in sections[path], f"{path}: {name} is not in docs/cli.md"
            if isinstance(option, click.Option):
                assert option.help, f"{path} {name} has no help text"


def test_the_front_page_is_short() -> None:
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("no README.md yet")
    assert len(readme.read_text().splitlines()) <= README_LINES
