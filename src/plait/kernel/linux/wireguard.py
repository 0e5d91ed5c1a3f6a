# SPDX-License-Identifier: Apache-2.0
"""WireGuard devices as kernel objects: the kernel's own where there are any, else one process of `wireguard-go` for each.

The process is a daemon: it outlives the agent, and the next one takes it over by asking its socket. It ends with its TUN device and the
device with it, so the pass that repairs a missing link also repairs a process that crashed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from plait.kernel.linux import wguapi
from plait.kernel.linux.wgdevice import Change, Device, PeerChange, key_bytes, key_text
from plait.kernel.linux.wgnetlink import WgNetlink
from plait.model.objects import KernelObject, Op
from plait.model.wireguard import AllowedIp, WireguardLink, WireguardPeer

PROGRAM = "wireguard-go"
MISSING = f"the kernel has no WireGuard and {PROGRAM} is not installed: load the module `wireguard` or `apt install {PROGRAM}`"
_START_TIMEOUT_S = 10.0
_END_TIMEOUT_S = 2.0


def in_user_space() -> bool:
    """Whether `wireguard-go` can be run here."""
    return shutil.which(PROGRAM) is not None and Path("/dev/net/tun").exists()


class Wireguard:
    """The devices of the namespace in which it was made. `keys` is the directory with their private keys. `repairs` counts processes that
    ended by themselves and were started again."""

    def __init__(self, keys: Path) -> None:
        self._keys = keys
        self._netlink: WgNetlink | None = None
        self._live: set[str] = set()
        self._peers: dict[str, set[str]] = {}
        self.repairs = 0

    # --- reading

    def read(self, name: str, index: int) -> Device:
        """OSError if nobody answers for it."""
        if wguapi.socket_of(name).exists():
            return wguapi.read(name)
        return self._kernel().read(index)

    def held(self, link: WireguardLink, index: int) -> list[KernelObject]:
        """The device, its peers and their rows; the device alone, without a key, if nobody answers for it."""
        try:
            device = self.read(link.name, index)
        except OSError:
            return [link]
        self._live.add(link.name)
        objects: list[KernelObject] = [WireguardLink(link.name, device.public, device.port, link.mtu, link.up)]
        for peer in device.peers:
            objects.append(WireguardPeer(link.name, peer.public, peer.endpoint, peer.keepalive))
            objects += [AllowedIp(link.name, cidr, peer.public) for cidr in peer.allowed]
        return objects

    # --- writing

    def forget(self) -> None:
        """A new batch of operations begins: others may have changed the devices since the last."""
        self._peers.clear()

    def set_up(self, link: WireguardLink, index: int) -> None:
        """Key and port as wanted; what is so already is not touched, for that would cost the sessions."""
        device = self.read(link.name, index)
        self._live.add(link.name)
        private = self._private(link) if device.public != link.public else None
        change = Change(private, link.port if device.port != link.port else None)
        if change != Change():
            self._write(link.name, index, change)

    def _private(self, link: WireguardLink) -> bytes:
        path = self._keys / link.key_file
        try:
            return key_bytes(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def start(self, name: str) -> None:
        """A device in user space. OSError with what to install, or what the program said."""
        if not in_user_space():
            raise OSError(errno.EOPNOTSUPP, MISSING)
        self.repairs += name in self._live
        _end_processes(name)
        try:
            done = subprocess.run(
                [PROGRAM, name], capture_output=True, text=True, timeout=_START_TIMEOUT_S, check=False, start_new_session=True
            )
        except subprocess.TimeoutExpired as error:
            raise OSError(errno.ETIMEDOUT, f"{PROGRAM} {name} did not start within {_START_TIMEOUT_S:.0f} s") from error
        if done.returncode:
            raise OSError(errno.EIO, f"{PROGRAM} {name}: {done.stderr.strip() or f'exit status {done.returncode}'}")

    def ended(self, name: str) -> None:
        """The device was deleted, and its process ends with it: wait for that, and remove what it or a crash left behind."""
        self._live.discard(name)
        end = time.monotonic() + _END_TIMEOUT_S
        while _processes(name) and time.monotonic() < end:
            time.sleep(0.01)
        _end_processes(name)
        with contextlib.suppress(OSError):  # others' devices may be there too
            wguapi.SOCKETS.rmdir()

    def apply(self, op: Op, index: int) -> None:
        """One peer or one row of a device that is there. Idempotent."""
        match op.subject:
            case WireguardPeer() as peer if op.verb == "put":
                self._write(peer.dev, index, Change(peers=(PeerChange(peer.public, endpoint=peer.endpoint, keepalive=peer.keepalive),)))
                self._known(peer.dev, index).add(peer.public)
            case WireguardPeer() as peer:
                self._write(peer.dev, index, Change(peers=(PeerChange(peer.public, remove=True),)))
                self._known(peer.dev, index).discard(peer.public)
            case AllowedIp() as row if op.verb == "put":
                if row.public not in self._known(row.dev, index):
                    raise OSError(errno.ENOENT, f"{row.dev} has no peer {row.public}")
                self._write(row.dev, index, Change(peers=(PeerChange(row.public, allowed=(row.cidr,)),)))
            case AllowedIp() as row:
                if any(row.cidr in peer.allowed and peer.public == row.public for peer in self.read(row.dev, index).peers):
                    self._write(row.dev, index, Change(peers=tuple(_taken_away(row))))

    def _known(self, name: str, index: int) -> set[str]:
        """Keys of its peers, asked once in a batch."""
        if name not in self._peers:
            self._peers[name] = {peer.public for peer in self.read(name, index).peers}
        return self._peers[name]

    def _write(self, name: str, index: int, change: Change) -> None:
        if wguapi.socket_of(name).exists():
            wguapi.write(name, change)
        else:
            self._kernel().write(index, change)

    def _kernel(self) -> WgNetlink:
        if self._netlink is None:
            self._netlink = WgNetlink()
        return self._netlink

    def close(self) -> None:
        if self._netlink is not None:
            self._netlink.close()


def _processes(name: str) -> list[int]:
    """Pids of those that carry a device of that name in this network namespace, whether they answer or hang."""
    here, found = Path("/proc/thread-self/ns/net").stat().st_ino, []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile
            words = (folder / "cmdline").read_bytes().split(b"\0")[:2]
            if words == [PROGRAM.encode(), name.encode()] and (folder / "ns/net").stat().st_ino == here:
                found.append(int(folder.name))
    return found


def _end_processes(name: str) -> None:
    """A hanging one would keep the UDP port, and its socket be taken for alive."""
    for pid in _processes(name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wguapi.socket_of(name).unlink(missing_ok=True)


def _taken_away(row: AllowedIp) -> Iterable[PeerChange]:
    """No version of the interface but the newest takes one row from a peer; to set the others anew would open a moment without any. So it
    is given to a peer that nobody is, and which goes with it."""
    nobody = key_text(os.urandom(32))
    return PeerChange(nobody, allowed=(row.cidr,)), PeerChange(nobody, remove=True)
