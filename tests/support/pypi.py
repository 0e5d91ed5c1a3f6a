# SPDX-License-Identifier: Apache-2.0
"""Programs of others from PyPI, apart from plait's environment: downloaded once with pinned hashes, anew when the lock file changes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

_BUILD = Path(__file__).resolve().parents[2] / "build"


def made_once(lock: Path, make: Callable[[Path], Path]) -> Path:
    """What `make(an empty folder)` made there, kept for as long as `lock` stays the same; of two who make it at once one wins."""
    ready = _BUILD / f"{lock.parent.name}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}"
    if ready.is_dir():
        return ready
    _BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_BUILD) as folder:
        os.replace(make(Path(folder)), ready)
    return ready


def pip(what: str, *words: str) -> None:
    """`pip install` or `pip download` of what is named with hashes, and of nothing else."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", what, "--require-hashes", "--no-deps"]
    subprocess.run([*command, *words], check=True)


def installed(lock: Path) -> Path:
    """A directory for PYTHONPATH with what `lock` names."""

    def make(folder: Path) -> Path:
        pip("install", "--target", str(folder / "site"), "-r", str(lock))
        return folder / "site"

    return made_once(lock, make)
