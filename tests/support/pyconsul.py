# SPDX-License-Identifier: Apache-2.0
"""py-consul's own tests, run unmodified but for the fixture that gives them a server: ours gives each an agent of its own in a lab host.

The sdist and what it needs are downloaded once, with pinned hashes, into a cache that a change of the lock file makes anew.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from plait.lab.lab import Lab
from tests.support.pypi import made_once, pip

HERE = Path(__file__).resolve().parents[1] / "system" / "pyconsul"
LOCK = HERE / "requirements.lock"
_OUTCOME = re.compile(r"^(PASSED|FAILED|ERROR|SKIPPED)\s+(\S+)", re.MULTILINE)


def fetched() -> Path:
    """A directory with py-consul's `consul` and `tests`, and what they import beside them. Downloads it the first time."""
    return made_once(LOCK, _fetch)


def _fetch(made: Path) -> Path:
    rows = [line for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    own, others = made / "own.lock", made / "others.lock"
    own.write_text(rows[0] + "\n")
    others.write_text("\n".join(rows[1:]) + "\n")
    pip("download", "--no-binary", "py-consul", "-d", str(made), "-r", str(own))
    pip("install", "--target", str(made / "site"), "-r", str(others))
    (made / "out").mkdir()
    subprocess.run(["tar", "-xzf", str(next(made.glob("py_consul-*.tar.gz"))), "-C", str(made / "out")], check=True)
    source = next((made / "out").iterdir())
    for name in ("consul", "tests"):
        shutil.copytree(source / name, made / "site" / name)
    return made / "site"


def files() -> list[str]:
    """Its files of tests, sorted."""
    folder = fetched() / "tests"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("test_*.py"))


def run(lab: Lab, host: str, files: Iterable[str], excluded: Iterable[str] = (), timeout_s: float = 500) -> tuple[dict[str, str], str]:
    """(test -> "PASSED", "FAILED", …, pytest's whole output) of those files of py-consul's tests, in `host`.
    `excluded`: tests ("file.py::class::test") that are not run."""
    folder = fetched()
    shutil.copy(HERE / "fixture.py", folder / "conftest.py")
    options = [
        "-p",
        "no:randomly",
        "-p",
        "no:cacheprovider",
        "-rA",
        "-q",
        "--asyncio-mode=auto",
        "--rootdir",
        str(folder),
        "-c",
        "/dev/null",
    ]
    options += ["-o", "python_classes=Test test"]  # one of its classes has a name that pytest passes over
    skip = [f"--deselect={name}" for name in (f"tests/{name}" for name in excluded)]
    command = ["env", f"--chdir={folder}", f"PYTHONPATH={folder}", "PYTHONDONTWRITEBYTECODE=1", sys.executable, "-m", "pytest"]
    done = lab.run(host, *command, *options, *skip, *(f"tests/{name}" for name in files), timeout_s=timeout_s, check=False)
    text = done.stdout + done.stderr
    return {name.removeprefix("tests/"): outcome for outcome, name in _OUTCOME.findall(text)}, text
