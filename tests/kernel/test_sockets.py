# SPDX-License-Identifier: Apache-2.0
"""Sockets that wait, as the kernel tells them, beside what /proc/net shows; on loopback, in a namespace made for it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from plait.agent import ports
from plait.kernel.linux import sockets
from plait.kernel.linux.netns import in_thread, unshare_net
from plait.kernel.linux.sockets import waiting_sockets

pytestmark = pytest.mark.root
PROTOCOLS = {"tcp": (socket.IPPROTO_TCP, socket.SOCK_STREAM), "udp": (socket.IPPROTO_UDP, socket.SOCK_DGRAM)}


def opened(stack: contextlib.ExitStack, family: int, kind: int, address: str) -> tuple[int, int]:
    """Port and inode of a new socket that waits."""
    sock = stack.enter_context(socket.socket(family, kind))
    sock.bind((address, 0))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock.getsockname()[1], os.fstat(sock.fileno()).st_ino


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_the_kernel_and_proc_tell_the_same(proto: str) -> None:
    def work() -> None:
        unshare_net()
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        number, kind = PROTOCOLS[proto]
        with contextlib.ExitStack() as stack:
            every = opened(stack, socket.AF_INET, kind, "0.0.0.0")
            one = opened(stack, socket.AF_INET, kind, "127.0.0.1")
            six = opened(stack, socket.AF_INET6, kind, "::")
            client = stack.enter_context(socket.socket(socket.AF_INET, kind))
            client.connect(("127.0.0.1", one[0]))
            found = waiting_sockets(number)
            assert {(w.port, w.address, w.inode) for w in found} == {
                (every[0], IPv4Address("0.0.0.0"), every[1]),
                (one[0], IPv4Address("127.0.0.1"), one[1]),
                (six[0], None, six[1]),
            }
            tables = [Path(f"/proc/thread-self/net/{name}").read_text() for name in (proto, f"{proto}6")]
            assert {w for text in tables for w in ports.parse_table(text, proto)} == set(found)
            me = f"(pid {os.getpid()})"
            assert me in str(ports.listener(proto, one[0], IPv4Address("127.0.0.1"))) and me in str(ports.listener(proto, one[0]))
            assert ports.listener(proto, one[0], IPv4Address("192.0.2.1")) is None
            assert ports.listener(proto, client.getsockname()[1]) is None
            assert me in str(ports.listener(proto, six[0], IPv4Address("192.0.2.1")))

    in_thread(work)


def test_without_sock_diag_proc_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(protocol: int) -> list[sockets.Waiting]:
        raise OSError(2, "no such module")

    monkeypatch.setattr(ports, "waiting_sockets", refuse)
    with contextlib.ExitStack() as stack:
        port, _ = opened(stack, socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1")
        assert f"(pid {os.getpid()})" in str(ports.listener("tcp", port))
    assert ports.listener("sctp", port) is None
