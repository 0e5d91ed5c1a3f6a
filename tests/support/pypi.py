# SPDX-License-Identifier: Apache-2.0
"""Programs of others from PyPI, apart from plait's environment: downloaded once with pinned hashes, anew when the lock file changes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_BUILD = Path(__file__).resolve().parents[2] / "build"


def installed(lock: Path) -> Path:
    """A directory for PYTHONPATH with what `lock` names; of two who install it at once one wins."""
    ready = _BUILD / f"{lock.parent.name}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}"
    if ready.is_dir():
        return ready
    _BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_BUILD) as folder:
        made = Path(folder) / "site"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--require-hashes", "--no-deps"]
        subprocess.run([*pip, "--target", str(made), "-r", str(lock)], check=True)
        os.replace(made, ready)
    return ready
