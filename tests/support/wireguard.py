# SPDX-License-Identifier: Apache-2.0
"""A thread with WireGuard devices of its own: a network namespace that leads nowhere, and its own place for the sockets of wireguard-go."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from plait.kernel.linux import LinuxKernel
from plait.kernel.linux.netns import in_thread
from plait.kernel.linux.wgdevice import KEY_BYTES, key_text, public_of
from plait.model.wireguard import WireguardLink
from tests.support.kernel import own_namespace, sh

_CLONE_NEWNS = 0x00020000
needs_wireguard_go = pytest.mark.skipif(shutil.which("wireguard-go") is None, reason="wireguard-go is not installed")


def own_sockets() -> None:
    """The calling thread sees an empty directory where wireguard-go makes its sockets. Use it in a thread of its own only."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare of mounts")
    sh("mount --make-rprivate / && mount -t tmpfs -o mode=755 none /run && mkdir /run/wireguard")


def new_link(keys: Path, name: str = "pl-wg", port: int = 7472, mtu: int = 1440) -> WireguardLink:
    """A device with a key made for it in `keys`."""
    private = bytes([8 * len(name)]) * (KEY_BYTES - 1) + bytes([64])  # clamped (RFC 7748, section 5), as the device tells it
    (keys / f"{name}.key").write_text(key_text(private) + "\n")
    return WireguardLink(name, public_of(private), port, mtu)


def with_devices(keys: Path, body: Callable[[LinuxKernel], None]) -> None:
    """Run `body` with a kernel whose devices are all gone when it ends."""

    def work() -> None:
        own_namespace()
        own_sockets()
        kernel = LinuxKernel(keys)
        try:
            body(kernel)
        finally:
            sh("for dev in $(ip -br link | grep -o '^pl-wg[a-z]*'); do ip link del $dev; done")  # /sys shows another namespace
            kernel.close()

    in_thread(work)
