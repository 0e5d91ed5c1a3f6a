# SPDX-License-Identifier: Apache-2.0
"""The import contracts of pyproject.toml hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_import_contracts_hold() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_agent_without_an_engine_loads_no_library_that_it_does_not_need() -> None:
    """A third of a small agent's memory, and a quarter of its start."""
    program = "import sys, plait.agent.wiring; print(*{m.split('.')[0] for m in sys.modules} & {'aiohttp', 'cryptography', 're2', 'click'})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []
