# SPDX-License-Identifier: Apache-2.0
"""Whether checksums come through the tunnels whole, and what is done where they do not.

Some hardware and drivers fill in the checksum of a packet inside a tunnel wrongly, and the far end drops what carries one without a word:
pings work, TCP and UDP do not. So two datagrams go to each other node through each tunnel device, one with a checksum (which the kernel
leaves to the device, like those of containers) and one without (UDP's checksum is optional, RFC 768). If only the second is answered,
several times, the device computes checksums in software from then on. The answers carry none, so that each direction is judged by itself.

Kept in the journal for as long as the kernel is the same: another one may do better.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Protocol

from plait.agent.echo import Lane
from plait.agent.journal import Journal, Write
from plait.agent.lanes import LINK, LINK6, LaneKey, Lanes, lanes
from plait.model.cluster import Snapshot

log = logging.getLogger("plait.checksums")
PORT = 7474
"""UDP port of the nodes' tunnel addresses on which datagrams are answered."""
EVERY_S, FIRST_EVERY_S = 30.0, 1.0
"""Between two rounds; the second, of those lanes of which nothing could be told yet."""
PATIENCE_S, TRIES, APART_S = 1.0, 3, 0.1
SIZE = 32
_SO_NO_CHECK, _IP_UNICAST_IF, _IP_FREEBIND = 11, 50, 15
_KIND = "checksums"


class Datagrams(Protocol):
    async def answered(self, lane: Lane, address: IPv4Address, checksum: bool) -> bool:
        """Whether a datagram through `lane` to the responder at `address` was answered. Nothing is raised."""
        ...


class Udp:
    """Datagrams in earnest."""

    async def answered(self, lane: Lane, address: IPv4Address, checksum: bool) -> bool:
        loop, nonce = asyncio.get_running_loop(), os.urandom(SIZE)
        try:
            with _socket(str(lane.source), 0, checksum) as sock:
                index = struct.pack("!I", socket.if_nametoindex(lane.device))
                sock.setsockopt(socket.IPPROTO_IP, _IP_UNICAST_IF, index)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_DONTROUTE, 1)
                await loop.sock_sendto(sock, nonce, (str(address), PORT))
                async with asyncio.timeout(PATIENCE_S):
                    while await loop.sock_recv(sock, SIZE + 1) != nonce:
                        pass
        except (OSError, TimeoutError):
            return False
        return True


class Checksums:
    """`changed` is called when another device must do without its offload. `software` are those devices, `texts` what to say of them, by
    device."""

    def __init__(self, journal: Journal, snapshot: Callable[[], Snapshot], known: Lanes, changed: Callable[[], None], kernel: str) -> None:
        self._journal, self._snapshot, self._known, self._changed, self._kernel = journal, snapshot, known, changed, kernel.encode()
        self.software = frozenset(dev for dev, body in journal.load(_KIND).items() if body == self._kernel)
        self.texts = {dev: f"found earlier; {dev} computes checksums in software" for dev in self.software}
        self._rounds: Counter[LaneKey] = Counter()

    async def run(self, datagrams: Datagrams) -> None:
        """Answer and ask. Never returns."""
        clock, due = asyncio.get_running_loop().time, 0.0
        async with asyncio.TaskGroup() as group:
            group.create_task(self._respond())
            while True:
                if everyone := clock() >= due:
                    due = clock() + EVERY_S
                await self.look(datagrams, everyone)
                settled = _tunnels(self._snapshot()) and not self._open()
                await asyncio.sleep(max(0.0, due - clock()) if settled else FIRST_EVERY_S)

    async def look(self, datagrams: Datagrams, everyone: bool = True) -> None:
        """One round: each tunnel to each node that answers echoes through it; without `everyone` only those of which nothing is known."""
        tunnels = _tunnels(self._snapshot())
        for node, device in sorted(tunnels if everyone else self._open()):
            known = self._known.of(node, device)
            if known is not None and known.up:
                told = await self._judge(datagrams, node, *tunnels[node, device])
                self._rounds[node, device] += TRIES if told else 1

    def _open(self) -> set[LaneKey]:
        """The tunnels of which nothing could be told yet, and that were not asked in vain too often: some never answer."""
        return {key for key in _tunnels(self._snapshot()) if self._rounds[key] < TRIES}

    async def _judge(self, datagrams: Datagrams, node: str, lane: Lane, address: IPv4Address) -> bool:
        """Whether it could be told, which it cannot when nothing at all is answered."""
        for _ in range(TRIES):
            if await datagrams.answered(lane, address, checksum=True):
                return True
            if not await datagrams.answered(lane, address, checksum=False):
                return False
        await self._broken(node, lane.device)
        return True

    async def _broken(self, node: str, device: str) -> None:
        fact = f"what has a checksum does not come through {device} to {node}, what has none does"
        if device in self.software:
            self.texts[device] = f"{fact}, although {device} computes it in software: something between the hosts changes packets"
            return
        log.warning("checksums_broken", extra={"node": node, "dev": device})
        await self._journal.write([Write(_KIND, device, self._kernel)])
        self.software |= {device}
        self.texts[device] = f"{fact}: {device} computes checksums in software from now on"
        self._changed()

    async def _respond(self) -> None:
        """Answer the other nodes, on this node's tunnel address, whichever it is: on one socket for as long as the address is the same."""
        while True:
            if (address := self._address()) is not None:
                with contextlib.suppress(OSError), _socket(str(address), PORT, checksum=False) as sock:
                    await self._answer(sock, address)
            await asyncio.sleep(APART_S)

    def _address(self) -> IPv4Address | None:
        snapshot = self._snapshot()
        me = snapshot.nodes.get(snapshot.me)
        return None if me is None else me.tunnel

    async def _answer(self, sock: socket.socket, address: IPv4Address) -> None:
        """Until this node's tunnel address is another one."""
        loop = asyncio.get_running_loop()
        while self._address() == address:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    body, source = await loop.sock_recvfrom(sock, SIZE + 1)
                if len(body) == SIZE and any(str(node.tunnel) == source[0] for node in self._snapshot().nodes.values()):
                    await loop.sock_sendto(sock, body, source)


def _tunnels(snapshot: Snapshot) -> dict[LaneKey, tuple[Lane, IPv4Address]]:
    """The lanes through tunnels."""
    found = {key: lane for key, lane in lanes(snapshot).items() if key[1] not in (LINK, LINK6)}
    return {key: (lane, address) for key, (lane, address) in found.items() if isinstance(address, IPv4Address)}


def _socket(address: str, port: int, checksum: bool) -> socket.socket:
    """A bound UDP socket whose datagrams have a checksum or none."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, int(not checksum))
        sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        sock.bind((address, port))
    except OSError:
        sock.close()
        raise
    return sock
