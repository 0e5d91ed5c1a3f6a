# SPDX-License-Identifier: Apache-2.0
"""The set of addresses the DNS child listens on: wanted pairs -> sockets opened and closed, all others left as they are."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from plait.serve.dns_core import Core
from plait.serve.dns_link import Address
from plait.serve.dns_tcp import TcpListener, TcpServer
from plait.serve.dns_udp import Batch, UdpListener

Failure = tuple[str, str, int, int]
"""Protocol, address, port, errno."""


class Listeners:
    """Opens a UDP and a TCP socket for each wanted (address, port)."""

    def __init__(self, core: Core, tcp: TcpServer) -> None:
        self._core, self._tcp = core, tcp
        self._open: dict[tuple[str, str, int], UdpListener | TcpListener] = {}
        self._batches: dict[int, Batch] = {}

    def set(self, wanted: Iterable[Address]) -> list[Failure]:
        """Listen on exactly `wanted`. Returns what could not be opened; the next call tries that again."""
        keys = [(protocol, address, port) for address, port in sorted(wanted) for protocol in ("udp", "tcp")]
        for gone in self._open.keys() - set(keys):
            self._open.pop(gone).close()
        failures: list[Failure] = []
        for key in keys:
            if key not in self._open:
                try:
                    self._open[key] = self._make(*key)
                except OSError as error:
                    failures.append((*key, error.errno or 0))
        return failures

    def _make(self, protocol: str, address: str, port: int) -> UdpListener | TcpListener:
        if protocol == "tcp":
            return TcpListener((address, port), self._tcp)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        if family not in self._batches:
            self._batches[family] = Batch()
        return UdpListener((address, port), self._batches[family], self._core)
