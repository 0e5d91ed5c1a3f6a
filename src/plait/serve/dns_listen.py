# SPDX-License-Identifier: Apache-2.0
"""What the DNS child listens on: the sockets that its agent gave it, each with what answers there."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from plait.serve.dns_core import Core
from plait.serve.dns_link import SocketName
from plait.serve.dns_tcp import TcpListener, TcpServer
from plait.serve.dns_udp import Batch, UdpListener


class Listeners:
    """Answers on the sockets that are open here; who else has them makes no difference."""

    def __init__(self, core: Core, tcp: TcpServer) -> None:
        self._core, self._tcp = core, tcp
        self._open: dict[SocketName, UdpListener | TcpListener] = {}
        self._batches: dict[int, Batch] = {}

    def open(self, name: SocketName, sock: socket.socket) -> None:
        """Answer what comes to `sock`."""
        self._open[name] = TcpListener(sock, self._tcp) if name[0] == "tcp" else UdpListener(sock, self._batch(sock.family), self._core)

    def close(self, names: Iterable[SocketName]) -> None:
        """Answer no more there, once what has arrived is answered."""
        for name in names:
            self._open.pop(name).close()

    def sockets(self) -> dict[SocketName, socket.socket]:
        """What is open, by name."""
        return {name: listener.sock for name, listener in self._open.items()}

    def _batch(self, family: int) -> Batch:
        if family not in self._batches:
            self._batches[family] = Batch()
        return self._batches[family]
