# SPDX-License-Identifier: Apache-2.0
"""py-consul's own tests, run unmodified but for the fixture that gives them a server: ours gives each an agent of its own in a lab host.

The sdist and what it needs are downloaded once, with pinned hashes, into a cache that a change of the lock file makes anew.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from plait.lab.lab import Lab

HERE = Path(__file__).resolve().parents[1] / "system" / "pyconsul"
LOCK = HERE / "requirements.lock"
_OUTCOME = re.compile(r"^(PASSED|FAILED|ERROR|SKIPPED)\s+(\S+)", re.MULTILINE)


def fetched() -> Path:
    """A directory with py-consul's `consul` and `tests`, and what they import beside them. Downloads it the first time."""
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]
    ready = Path(__file__).resolve().parents[2] / "build" / f"pyconsul-{digest}"
    if ready.is_dir():
        return ready
    ready.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ready.parent) as folder:
        made = Path(folder)
        rows = [line for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
        own, others = made / "own.lock", made / "others.lock"
        own.write_text(rows[0] + "\n")
        others.write_text("\n".join(rows[1:]) + "\n")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
        flags = ["--require-hashes", "--no-deps"]
        subprocess.run([*pip, "download", *flags, "--no-binary", "py-consul", "-d", folder, "-r", str(own)], check=True)
        subprocess.run([*pip, "install", *flags, "--target", str(made / "site"), "-r", str(others)], check=True)
        (made / "out").mkdir()
        subprocess.run(["tar", "-xzf", str(next(made.glob("py_consul-*.tar.gz"))), "-C", str(made / "out")], check=True)
        source = next((made / "out").iterdir())
        for name in ("consul", "tests"):
            shutil.copytree(source / name, made / "site" / name)
        shutil.copy(HERE / "fixture.py", made / "site" / "conftest.py")
        os.replace(made / "site", ready)
    return ready


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
