# SPDX-License-Identifier: Apache-2.0
"""A root file system from Debian packages, without running anything of them.

Data in: names of packages. Data out: a tar file of these and all that they depend on, unpacked; documentation and translations are
left out. apt finds and verifies the packages by the machine's own sources and keys, as if for an empty system.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from plait.model.errors import PlaitError

APT_TIMEOUT_S = 600
_LEFT_OUT = ("./usr/share/doc/*", "./usr/share/man/*", "./usr/share/locale/*", "./usr/share/info/*", "./usr/share/lintian/*")
# The merged /usr of Debian 12: these stand for the directory of the same name below /usr.
_MERGED = ("bin", "sbin", "lib", "lib64")


def package_list(text: str) -> list[str]:
    """The words of a `.packages` file without its comments, in order."""
    return [word for line in text.splitlines() for word in line.partition("#")[0].split()]


def make_tar(packages: Sequence[str], archives: Path, target: Path) -> None:
    """Write `target`, a tar file of `packages` and their dependencies. Package files are kept in `archives` for the next time."""
    root = target.with_suffix(".root")
    shutil.rmtree(root, ignore_errors=True)
    for name in _MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in download(packages, archives):
        _unpack(package, root)
    _finish(root)
    _call(["tar", "--create", "--numeric-owner", "--file", str(target), "--directory", str(root), "."])
    shutil.rmtree(root)


def download(packages: Sequence[str], archives: Path) -> list[Path]:
    """Fetch `packages` and all that they depend on into `archives`; returns their files, by name. Nothing is installed."""
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    status = archives / "status"
    status.touch()
    apt = ["apt-get", "--yes", "--no-install-recommends", "--option=Debug::NoLocking=true", f"--option=Dir::State::status={status}"]
    apt += [f"--option=Dir::Cache::archives={archives}", "--option=APT::Sandbox::User=root"]
    found = subprocess.run([*apt, "--print-uris", "install", *packages], capture_output=True, text=True, timeout=APT_TIMEOUT_S)
    if found.returncode:
        _call(["apt-get", "update"])
    _call([*apt, "--download-only", "install", *packages])
    simulated = _call([*apt, "--simulate", "install", *packages])
    wanted = {tuple(line.split()[1:3]) for line in simulated.splitlines() if line.startswith("Inst ")}
    files = []
    for name, version in sorted((name, version.strip("([")) for name, version in wanted):
        stem = f"{name}_{version.replace(':', '%3a')}_"
        files += sorted(archives.glob(f"{stem}*.deb"))[:1]
    if len(files) != len(wanted):
        raise PlaitError(f"fetch packages {' '.join(packages)}: {len(wanted) - len(files)} are missing in {archives} after the download")
    return files


def _unpack(package: Path, root: Path) -> None:
    exclude = [f"--exclude={pattern}" for pattern in _LEFT_OUT]
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as unpacked:
        _call(["tar", "--extract", "--keep-directory-symlink", *exclude, "--directory", str(root)], stdin=unpacked.stdout)
    if unpacked.returncode:
        raise PlaitError(f"unpack {package}: not a package file; remove it and try again")


def _finish(root: Path) -> None:
    """What the packages' own scripts would have done, as far as containers need it."""
    for name in ("passwd", "group"):
        shutil.copy(root / f"usr/share/base-passwd/{name}.master", root / f"etc/{name}")
    for link, aim in (("usr/bin/sh", "dash"), ("usr/bin/awk", "mawk"), ("usr/bin/nc", "nc.openbsd")):
        if (root / "usr/bin" / aim).exists() and not (root / link).is_symlink():
            (root / link).symlink_to(aim)
    for name in ("proc", "sys", "dev", "run", "tmp", "root", "var/tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)


def _call(command: Sequence[str], stdin: IO[bytes] | int | None = subprocess.DEVNULL) -> str:
    done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, timeout=APT_TIMEOUT_S)
    if done.returncode:
        raise PlaitError(f"{' '.join(command[:12])}: exit status {done.returncode}\n{done.stderr.strip()[-2000:]}")
    return done.stdout
