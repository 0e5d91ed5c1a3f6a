# SPDX-License-Identifier: Apache-2.0
"""Builds the distribution `plait-client` (a wheel and a source archive) into a folder: the client library without the agent.

Usage: python3 scripts/client_dist.py FOLDER. Needs setuptools >= 77. The files are those of src/plait, as far as the
library imports them.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("__init__.py", "py.typed", "model/__init__.py", "model/errors.py")
"""Below src/plait, besides client/."""
LEFT_OUT = ("admin.py",)
"""Of client/: the admin API is of use only where the agent is."""


def stage(folder: Path) -> None:
    """Lay out the project that is built."""
    package = folder / "src" / "plait"
    clients = [f"client/{path.name}" for path in (ROOT / "src/plait/client").glob("*.py") if path.name not in LEFT_OUT]
    for name in (*SOURCES, *clients):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "src" / "plait" / name, package / name)
    shutil.copy(ROOT / "packaging" / "client" / "pyproject.toml", folder)
    shutil.copy(ROOT / "LICENSE", folder)
    shutil.copy(ROOT / "docs" / "client.md", folder / "README.md")


def build(out: Path) -> list[Path]:
    """The archives, in `out`, which is made if need be."""
    from setuptools import build_meta

    out.mkdir(parents=True, exist_ok=True)
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        stage(Path(name))
        os.chdir(name)
        try:
            return [out / build_meta.build_wheel(str(out)), out / build_meta.build_sdist(str(out))]
        finally:
            os.chdir(before)


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    for path in build(Path(sys.argv[1]).resolve()):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
