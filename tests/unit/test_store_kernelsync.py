# SPDX-License-Identifier: Apache-2.0
"""A sync by the kernel: it tells when it is done, or at once that it cannot."""

from __future__ import annotations

import asyncio
import errno
import os
import platform
from pathlib import Path

import pytest
from tests.support.files import open_files

from plait.store import kernelsync
from plait.store.kernelsync import KernelSync


def _open(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)


async def _synced(sync: KernelSync) -> OSError | None:
    found: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
    sync.attach(found.set_result)
    sync.start()
    async with asyncio.timeout(10):
        return await found


async def test_each_sync_is_told_once(tmp_path: Path) -> None:
    before, fd = open_files(), _open(tmp_path / "f")
    sync = KernelSync(fd)
    for part in (b"a", b"b", b"c"):
        os.write(fd, part)
        assert await _synced(sync) is None
    told: list[OSError | None] = []
    sync.attach(told.append)
    await asyncio.sleep(0.01)
    assert told == [], "nothing was started"
    sync.detach()
    sync.close()
    os.close(fd)
    assert open_files() <= before


async def test_a_sync_that_fails_says_why(tmp_path: Path) -> None:
    fd = _open(tmp_path / "f")
    sync = KernelSync(fd)
    sync._event.res = -errno.EIO
    assert (error := sync._error()) is not None and error.errno == errno.EIO and "Input/output error" in str(error)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        sync.start()
    sync.close()


def test_what_cannot_be_synced_is_refused_at_once() -> None:
    before = open_files()
    read, write = os.pipe()
    with pytest.raises(OSError, match="Invalid argument"):
        KernelSync(write)
    os.close(read)
    os.close(write)
    with pytest.raises(OSError, match="Bad file descriptor"):
        KernelSync(write)
    assert open_files() <= before


def test_a_machine_of_another_kind_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = _open(tmp_path / "f")
    monkeypatch.setattr(platform, "machine", lambda: "s390x")
    with pytest.raises(OSError, match="no system calls known for s390x"):
        KernelSync(fd)
    os.close(fd)


def test_a_filter_of_system_calls_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a container's runtime may set one: any number that the kernel does not know gives the same error."""
    fd = _open(tmp_path / "f")
    monkeypatch.setitem(kernelsync._NUMBERS, platform.machine(), kernelsync._Numbers(9999, 9999, 9999, 9999))
    with pytest.raises(OSError, match="Function not implemented"):
        KernelSync(fd)
    os.close(fd)
