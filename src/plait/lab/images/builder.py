# SPDX-License-Identifier: Apache-2.0
"""Builds the lab's images once and gives every engine a cheap copy.

Data in: the recipes beside this file (`<image>.packages`, `<image>.Dockerfile`). Data out: a Docker data directory below
/var/cache/plait-lab/<key>/, which holds the images and nothing else; the key is a hash of the recipes, so a changed recipe is
built anew. An engine's copy shares the layers' files with it by hard links: layers are only ever read (the union file system copies
a file up before it is written), the small databases are real copies.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from plait.lab import build, engines, inside
from plait.lab import state as states
from plait.lab.images import rootfs
from plait.lab.spec import simple
from plait.lab.state import State
from plait.model.errors import PlaitError

IMAGES = ("nginx", "mysql")
CACHE = Path("/var/cache/plait-lab")
RECIPES = Path(__file__).parent
BUILD_TIMEOUT_S = 300.0
# What of a data directory makes the images; everything else is made by the engine that starts on it.
_KEPT = ("image", "overlay2")
_HOST = "A"


def key() -> str:
    """Hash of everything that decides what the images contain, apart from the packages' versions."""
    digest = hashlib.sha256(platform.machine().encode())
    for path in sorted(RECIPES.iterdir()):
        if path.is_file():
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def template(progress: Callable[[str], None], *, fresh: bool = False) -> Path:
    """The data directory with the images, built if it is not there (or `fresh`). Earlier keys' are removed then. Two callers at a time:
    one builds, the other waits."""
    target = CACHE / key()
    CACHE.mkdir(parents=True, exist_ok=True)
    with _locked():
        if target.is_dir() and not fresh:
            return target
        began = time.monotonic()
        for old in CACHE.iterdir():
            if old.is_dir() and old.name != "packages":
                shutil.rmtree(old)
        _build(target, progress)
        progress(f"images {' '.join(IMAGES)} are ready ({time.monotonic() - began:.0f} s)")
    return target


def seed(source: Path, target: Path) -> None:
    """Fill `target`, an engine's empty data directory, from the template `source`."""
    target.mkdir(parents=True, exist_ok=True)
    for name in _KEPT:
        same_disk = source.stat().st_dev == target.stat().st_dev
        link = ["--link"] if name == "overlay2" and same_disk else []
        subprocess.run(["cp", "--archive", *link, str(source / name), str(target / name)], check=True, timeout=120)


def _build(target: Path, progress: Callable[[str], None]) -> None:
    """Build all images in the engine of a lab made for it, and keep its data directory as `target`."""
    state = states.new_state(f"images-{os.getpid()}", simple(1, agents=False, engines=True), owned=True)
    states.create(state)
    try:
        context = state.disks / _HOST / "own/var/lib/plait/context"
        context.mkdir(parents=True)
        for path in RECIPES.iterdir():
            if path.is_file():
                shutil.copy(path, context)
        for image in IMAGES:
            progress(f"image {image}: fetching and unpacking Debian packages")
            rootfs.make_tar(rootfs.package_list((RECIPES / f"{image}.packages").read_text()), CACHE / "packages", context / f"{image}.tar")
        state = build.make(state)
        engines.start(state, _HOST)
        for image in IMAGES:
            progress(f"image {image}: building")
            _docker_build(state, image)
        engines.stop(state, _HOST)
        part = target.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for name in _KEPT:
            shutil.move(state.disks / _HOST / "own/var/lib/docker" / name, part / name)
        part.rename(target)
    finally:
        build.remove(states.load(state.name))


def _docker_build(state: State, image: str) -> None:
    context = "/var/lib/plait/context"
    command = ["env", "DOCKER_BUILDKIT=0", "docker", "build", "--network=none", "--force-rm", "--tag", f"{image}:latest"]
    command += ["--file", f"{context}/{image}.Dockerfile", context]
    try:
        inside.run(_HOST, state.holder(_HOST), command, timeout_s=BUILD_TIMEOUT_S)
    except inside.CommandFailed as error:
        raise PlaitError(f"build image {image}: {error}\n{inside.tail(engines.log_of(state, _HOST))}") from error


@contextmanager
def _locked() -> Iterator[None]:
    fd = os.open(CACHE, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        with suppress(OSError):
            os.close(fd)
