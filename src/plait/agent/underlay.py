# SPDX-License-Identifier: Apache-2.0
"""What this node knows of the network below: its own link, how large packets may be, who is reached by which path.

It puts together what is measured (`pathmtu`, `lanes`, `checksums`) and what follows of it (`paths`), and runs the measuring.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from ipaddress import IPv6Address
from typing import Protocol

from plait.agent.checksums import Checksums, Udp
from plait.agent.echo import Echo
from plait.agent.hostaddress import AddressKernel, HostAddress, link_local_of
from plait.agent.journal import Journal
from plait.agent.lanes import Lanes
from plait.agent.pathmtu import durable_path_mtus
from plait.agent.paths import Paths
from plait.agent.rotation import Rotation
from plait.agent.roundtrips import RoundTrips
from plait.agent.silence import Silence
from plait.agent.tunnels import Tunnels
from plait.agent.view import View
from plait.model.addr import IPAddress

log = logging.getLogger("plait.node")
VIA6 = "via6"
"""What the kernel must be able to do for plain IPv4 over an underlay of IPv6 (`kernel.api.Kernel.capabilities`)."""
_OF_PATHS = frozenset({"reach", "nodes", "alive", "networks"})
"""Kinds of records that paths are chosen by."""


class LinkKernel(AddressKernel, Protocol):
    """What is asked of the kernel here."""

    def strict_sources(self, dev: str) -> bool: ...

    def forget_paths(self) -> None: ...

    def capabilities(self) -> frozenset[str]: ...


class Underlay:
    """`home` knows this host's address; `changed` is called when the plan may be another. `link` is the name of the link that carries
    that address, "" while none does; `strict`: see `plan.Local`."""

    def __init__(self, journal: Journal, view: View, kernel: LinkKernel, home: HostAddress, changed: Callable[[], None]) -> None:
        self._view, self._kernel, self.home, self._changed = view, kernel, home, changed
        self.link = ""
        self.strict = False
        self.path_mtus = durable_path_mtus(journal, lambda: view.snapshot, self._on_path_mtu)
        self.lanes = Lanes(lambda: view.snapshot, view.put, lambda: self.link if VIA6 in kernel.capabilities() else "")
        self.paths = Paths(self.lanes, lambda: self.path_mtus.known, time.time)
        self.checksums = Checksums(journal, lambda: view.snapshot, self.lanes, changed, os.uname().release)
        self.silence = Silence(lambda: view.snapshot, changed)
        view.subscribe(self._on_view)

    def look(self, last: IPAddress | None) -> int:
        """Find this host's address (`last`: that of before) and the link that carries it; returns the MTU. OSError if there is none."""
        self.link, mtu = self.home.look(last)
        return mtu

    def link6(self) -> IPv6Address | None:
        """By which others on that link send this host plain packets of IPv6."""
        return link_local_of(self.link)

    def look_at_sources(self) -> bool:
        """Learn whether the host is strict about where packets come from; True if that has changed."""
        before, self.strict = self.strict, self._kernel.strict_sources(self.link)
        return before != self.strict

    def measuring(
        self, tunnels: Tunnels, rotation: Rotation, roundtrips: RoundTrips | None, path_mtu: bool
    ) -> Iterator[Coroutine[None, None, None]]:
        """What asks the other nodes for echoes, as far as is wanted and allowed; none of it ever returns."""
        try:
            echo = Echo()
        except OSError as error:
            log.warning("echo_off", extra={"error": str(error)})
            return
        yield self.lanes.run(echo)
        yield tunnels.run(echo)
        yield rotation.run(echo.ask_via)
        yield self.checksums.run(Udp())
        yield self.silence.run(echo)
        if roundtrips is not None:
            yield roundtrips.run(echo)
        if path_mtu:
            yield self.path_mtus.run(echo)

    def _on_path_mtu(self, wider: bool) -> None:
        if wider:
            self._kernel.forget_paths()
        self._changed()

    def _on_view(self, kinds: frozenset[str]) -> None:
        if kinds & _OF_PATHS:
            self.paths.observe(self._view.snapshot)
