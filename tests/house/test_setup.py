# SPDX-License-Identifier: Apache-2.0
"""scripts/setup.sh in a copy of its own, with a Python that only writes down what it is asked to do, and without apt."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = """#!/bin/sh
[ ! -e "$BROKEN" ] || exit 127
case "$*" in
  --version) echo Python 3.11.0 ;;
  "-m venv --clear .venv") rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python; echo venv >> "$CALLS" ;;
  "-m pip"*) echo pip >> "$CALLS"; [ ! -e "$OFFLINE" ] ;;
esac
"""
BUILT = ["venv", "pip", "pip"]


class Copy:
    """A copy of what the script reads, and the calls that it made."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder / "plait", folder / "calls"
        self.broken, self.offline = folder / "broken", folder / "offline"
        (self.folder / "scripts").mkdir(parents=True)
        shutil.copy(ROOT / "scripts" / "setup.sh", self.folder / "scripts")
        for name in ("requirements.lock", "pyproject.toml"):
            (self.folder / name).write_text("first\n")
        self.python = folder / "python"
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)

    def run(self) -> tuple[int, list[str], str]:
        """Exit status, calls of Python that change something, and what was said."""
        self.calls.write_text("")
        places = {"CALLS": self.calls, "BROKEN": self.broken, "OFFLINE": self.offline, "PYTHON": self.python}
        environ = {**os.environ, "PLAIT_SKIP_APT": "1", "PIP_NO_INDEX": "1", **{name: str(path) for name, path in places.items()}}
        command = [str(self.folder / "scripts" / "setup.sh")]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30)
        return done.returncode, self.calls.read_text().split(), done.stdout + done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    if os.geteuid() != 0:
        pytest.skip("the script wants root")
    return Copy(tmp_path)


def test_a_second_run_does_and_says_nothing(copy: Copy) -> None:
    status, calls, said = copy.run()
    assert (status, calls) == (0, BUILT) and "building the virtual environment" in said
    assert copy.run() == (0, [], "")


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml"])
def test_other_packages_are_another_environment(copy: Copy, name: str) -> None:
    copy.run()
    (copy.folder / name).write_text("second\n")
    assert copy.run()[:2] == (0, BUILT)


def test_a_moved_repository_and_a_lost_python_are_noticed(copy: Copy) -> None:
    copy.run()
    copy.folder = copy.folder.rename(copy.folder.with_name("moved"))
    assert copy.run()[:2] == (0, BUILT)
    (copy.folder / ".venv" / "bin" / "python").unlink()
    assert copy.run()[:2] == (0, BUILT)


def test_a_build_that_failed_is_told_and_begun_anew(copy: Copy) -> None:
    copy.offline.touch()
    status, calls, said = copy.run()
    assert (status, calls) == (1, ["venv", "pip"]) and "is a Python package index reachable?" in said
    copy.offline.unlink()
    assert copy.run()[:2] == (0, BUILT)


def test_a_python_that_cannot_run_is_replaced_by_the_systems(copy: Copy) -> None:
    """As a shim of pyenv whose version is not installed. The system's Python makes a real environment; pip fails on the lock."""
    if not Path("/usr/bin/python3").exists():
        pytest.skip("there is no /usr/bin/python3")
    copy.broken.touch()
    status, calls, said = copy.run()
    assert (status, calls) == (1, []) and "building the virtual environment" in said
    assert "could not install the locked packages" in said or "is python3-venv installed?" in said
