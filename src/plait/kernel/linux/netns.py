# SPDX-License-Identifier: Apache-2.0
"""Network namespaces by path: made persistent by a bind mount, entered only by the calling thread and only for a moment."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
_MS_BIND, _MNT_DETACH = 0x1000, 2
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str, path: str) -> None:
    if result:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{what}: {os.strerror(errno)}", path)


def in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread of its own and return its result: what it does to its namespaces ends with the thread."""
    result: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            result.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, name="netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return result[0]


def unshare_net() -> None:
    """The calling thread gets a network namespace of its own; use it in a thread made by `in_thread` only."""
    _check(_libc.unshare(_CLONE_NEWNET), "unshare", "a new network namespace")


def netns_exists(path: Path) -> bool:
    """Whether a namespace is mounted at `path` (a file on another device than its folder)."""
    try:
        return path.stat().st_dev != path.parent.stat().st_dev
    except FileNotFoundError:
        return False


def create_netns(path: Path) -> None:
    """Make a network namespace that lives at `path` until `delete_netns`. An existing one is kept."""
    if netns_exists(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o444)

    def body() -> None:
        unshare_net()
        source = f"/proc/self/task/{threading.get_native_id()}/ns/net".encode()
        _check(_libc.mount(source, str(path).encode(), None, _MS_BIND, None), "bind mount of the namespace", str(path))

    try:
        in_thread(body)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def running_netns() -> list[str]:
    """Paths below /proc of the namespaces in which processes of this host run, each once, but for the one that asks."""
    own = Path("/proc/thread-self/ns/net").stat().st_ino
    found: dict[int, str] = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            path = process / "ns/net"
            with contextlib.suppress(OSError):  # it has ended
                found.setdefault(path.stat().st_ino, str(path))
    found.pop(own, None)
    return sorted(found.values())


def delete_netns(path: Path) -> None:
    """Unmount and remove; processes inside keep the namespace alive until they end. Absent: nothing to do."""
    if path.exists():
        with contextlib.suppress(OSError):
            _check(_libc.umount2(str(path).encode(), _MNT_DETACH), "umount", str(path))
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def inside(fd: int) -> Iterator[None]:
    """The calling thread is in the namespace of `fd` while the block runs. If it cannot come back the process ends: a thread in a
    strange namespace would write a container's objects into the host's tables."""
    with open(f"/proc/self/task/{threading.get_native_id()}/ns/net") as home:
        _check(_libc.setns(fd, _CLONE_NEWNET), "setns", f"fd {fd}")
        try:
            yield
        finally:
            if _libc.setns(home.fileno(), _CLONE_NEWNET):
                os._exit(70)
