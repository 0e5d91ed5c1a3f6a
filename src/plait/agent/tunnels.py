# SPDX-License-Identifier: Apache-2.0
"""Whether the encrypted tunnels carry: an echo through each of them, and what the device says of its handshakes.

Data in: the nodes that can encrypt, the WireGuard device's own words, echoes. Data out: per node when its latest handshake was and when an
echo last came back through the tunnel (only that proves encryption: it left by the device that does nothing else, and was answered), and
the conditions `tunnel-silent` and `clear-traffic`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Protocol

from plait.agent.echo import Probe
from plait.agent.health import Health
from plait.backends.wireguard import DEVICE
from plait.kernel.linux.wgdevice import Device, Peer
from plait.model.addr import at_port
from plait.model.cluster import Snapshot
from plait.plan.firewall import CLEAR_OUT, RAW
from plait.plan.rotation import reached
from plait.services.figures import Reading, readings

EVERY_S, APART_S = 2.0, 0.05
"""Between two echoes to one node while there are few; with many, `APART_S` between any two."""
SILENT_ROUNDS = 5
"""So many rounds without an answer are silence: WireGuard itself begins a new handshake after 15 s at the latest."""
FRESH_S = 180.0
"""A session is used no longer than this after its handshake (REJECT_AFTER_TIME of the whitepaper, section 6.1)."""
CLEAR_SHOWN_S = 60.0
"""How long packets that came in clear are a condition after the last of them."""


@dataclass(frozen=True, slots=True)
class Tunnel:
    """To one node. Moments in seconds since the epoch, 0 for never: `handshake` by the device, `answered` of the last echo, `watched` since
    when it is asked. `proved` while echoes come back."""

    handshake: float = 0.0
    answered: float = 0.0
    watched: float = 0.0
    proved: bool = False


def far_ends(snapshot: Snapshot) -> dict[str, IPv4Address]:
    """The other living nodes' own addresses in encrypted networks, by name; empty while this node has none."""
    return {name: key.address for name, key in reached(snapshot).items() if key.address is not None}


async def _ask(probe: Probe, name: str, address: IPv4Address, answered: set[str]) -> None:
    """One echo through one tunnel; the name joins those that answered."""
    if (await probe.ask(address)).rtt_s is not None:
        answered.add(name)


class Devices(Protocol):
    """What is asked of the kernel (`kernel.linux.LinuxKernel`), in a thread where it may block."""

    def wireguard(self, name: str) -> Device | None: ...

    def counted(self, chains: Sequence[str]) -> int: ...

    @property
    def wireguard_repairs(self) -> int: ...


class Tunnels:
    """`changed` is called when the device is not as it was made, of which no kernel tells, or hears nodes from elsewhere than before."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        devices: Devices,
        health: Health,
        changed: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._snapshot, self._devices, self._health, self._changed, self._clock = snapshot, devices, health, changed, clock
        self._known: dict[str, Tunnel] = {}
        self._device: Device | None = None
        self._counter = self.clear_drops = 0
        self._clear_at = 0.0
        self._was_behind_nat = False
        self.elsewhere: tuple[str, ...] = ()
        """Nodes that are heard from another address than they say, ascending."""

    @property
    def known(self) -> Mapping[str, Tunnel]:
        """By node, of those that are asked."""
        return self._known

    def behind_nat(self) -> bool:
        """Whether somebody hears this node from another address than it says."""
        snapshot = self._snapshot()
        return any(snapshot.me in key.elsewhere for key in reached(snapshot).values())

    async def run(self, probe: Probe) -> None:
        """Round after round. Never returns."""
        while True:
            ends = far_ends(self._snapshot())
            pause_s = max(APART_S, EVERY_S / max(1, len(ends)))
            answered: set[str] = set()
            async with asyncio.TaskGroup() as group:
                for name, address in sorted(ends.items()):
                    group.create_task(_ask(probe, name, address, answered))
                    await asyncio.sleep(pause_s)
            await self.conclude(ends.keys(), answered, max(EVERY_S, pause_s * len(ends)))
            if not ends:
                await asyncio.sleep(EVERY_S)

    async def conclude(self, asked: Set[str], answered: Set[str], round_s: float) -> None:
        """What a round of so many seconds has shown."""
        if any(network.encrypted for network in self._snapshot().networks.values()):
            await self._look()
        now = self._clock()
        self._known = {name: self._after(self._known.get(name), name, name in answered, now, round_s) for name in asked}
        self._judge(now, round_s)
        elsewhere = tuple(sorted(name for name in asked if self._is_elsewhere(name, now)))
        if (elsewhere, self.behind_nat()) != (self.elsewhere, self._was_behind_nat):
            self.elsewhere, self._was_behind_nat = elsewhere, self.behind_nat()
            self._changed()

    def _is_elsewhere(self, name: str, now: float) -> bool:
        """Whether the device hears the node from another address than its record says."""
        peer, node = self._peer(name), self._snapshot().nodes.get(name)
        fresh = peer is not None and now - peer.handshake < FRESH_S
        return peer is not None and node is not None and fresh and peer.endpoint is not None and peer.endpoint[0] != node.address

    def _after(self, known: Tunnel | None, name: str, answered: bool, now: float, round_s: float) -> Tunnel:
        known = known or Tunnel(watched=now)
        peer = self._peer(name)
        last = now if answered else known.answered
        return Tunnel(peer.handshake if peer is not None else 0.0, last, known.watched, bool(last) and now - last < SILENT_ROUNDS * round_s)

    async def _look(self) -> None:
        self._device = await asyncio.to_thread(self._devices.wireguard, DEVICE)
        me = self._snapshot().nodes.get(self._snapshot().me)
        if me is not None and me.wireguard is not None and (self._device is None or self._device.public != me.wireguard.public):
            self._changed()
        count = await asyncio.to_thread(self._devices.counted, (RAW, CLEAR_OUT))
        fresh = count - self._counter if count >= self._counter else count  # a rewritten chain counts from 0
        self._counter = count
        self.clear_drops += fresh
        if fresh:
            self._clear_at = self._clock()

    def _peer(self, name: str) -> Peer | None:
        node = self._snapshot().nodes.get(name)
        if node is None or node.wireguard is None or self._device is None:
            return None
        public = node.wireguard.public
        return next((peer for peer in self._device.peers if peer.public == public), None)

    def _judge(self, now: float, round_s: float) -> None:
        """What is wrong becomes conditions."""
        silent = {n: t for n, t in self._known.items() if now - max(t.answered, t.watched) > SILENT_ROUNDS * round_s}
        self._health.replace("tunnel-silent", {name: self._silence(name, tunnel) for name, tunnel in silent.items()})
        if self._clear_at and now - self._clear_at < CLEAR_SHOWN_S:
            text = f"{self.clear_drops} packets since the agent started, the last at {_utc(self._clear_at)}; none of them got through"
            self._health.set("clear-traffic", "", text)
        else:
            self._health.clear("clear-traffic", "")

    def _silence(self, name: str, tunnel: Tunnel) -> str:
        """Peer, since when, and as much of the cause as can be seen from here."""
        peer = self._peer(name)
        since = f"nothing comes back from {name} since {_utc(tunnel.answered or tunnel.watched)}"
        if self._device is None:
            return f"{since}: this host's device {DEVICE} does not answer"
        if peer is None:
            return f"{since}: this host's device {DEVICE} does not have the key that {name} published yet"
        shaken = f"the latest handshake was at {_utc(peer.handshake)}" if peer.handshake else "there was no handshake yet"
        where = at_port(*peer.endpoint) if peer.endpoint else "an address that is not known yet"
        return f"{since}: {shaken}; either UDP to {where} is blocked, or {name} uses another key than it published"

    def readings(self) -> list[Reading]:
        """For `agent/metrics`."""
        proved = sum(tunnel.proved for tunnel in self._known.values())
        counts = {"clear_drops": self.clear_drops, "repairs": self._devices.wireguard_repairs, "tunnels_proved": proved}
        return readings({f"plait.encrypted.{name}": float(count) for name, count in counts.items()})


def _utc(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))
