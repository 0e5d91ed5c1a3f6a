# SPDX-License-Identifier: Apache-2.0
"""An earlier version of plait on hosts of a lab, beside the present one: its code from the history, on the same virtual environment."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from plait.lab import agents
from plait.lab.lab import Lab

PREVIOUS = "1c7a51581f36"
"""The newest commit that is taken for the version before. To be moved to each release's once it is out."""
_ROOT = Path(__file__).resolve().parents[2]


def previous_code() -> Path:
    """The folder with `bin/plait` of that version. Skips the test where there is no history (a source archive, a shallow clone)."""
    folder = _ROOT / "build" / f"previous-{PREVIOUS}"
    if not (folder / "bin/plait").exists():
        archive = subprocess.run(["git", "-C", str(_ROOT), "archive", PREVIOUS, "src"], capture_output=True, check=False)
        if archive.returncode:
            pytest.skip(f"no commit {PREVIOUS} here: {archive.stderr.decode().strip()}; clone with the whole history")
        (folder / "bin").mkdir(parents=True, exist_ok=True)
        subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
        program = "import sys; from plait.cli.main import main; sys.exit(main())"
        words = ["env", f"PYTHONPATH={folder / 'src'}", sys.executable, "-c", program]
        script = folder / "bin/plait.new"
        script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        script.chmod(0o755)
        script.rename(folder / "bin/plait")
    return folder


def use(lab: Lab, host: str, bin_folder: Path) -> None:
    """From now on `plait` on this host is that of `bin_folder`."""
    lab.run(host, "ln", "-sfn", f"{bin_folder}/plait", "/run/lab/bin/plait")


def present() -> Path:
    """Where the programs of the present version are."""
    return Path(sys.executable).parent


def form(lab: Lab, hosts: Iterable[str]) -> None:
    """Make the cluster of `hosts`, which have no agent yet, the first of them with the store."""
    state = lab.state
    spec = replace(state.spec, hosts=tuple(replace(host, agent=host.name in set(hosts)) for host in state.spec.hosts))
    agents.form_cluster(replace(state, spec=spec), lambda host: None)
