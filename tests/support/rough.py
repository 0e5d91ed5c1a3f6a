# SPDX-License-Identifier: Apache-2.0
"""A rough wire: the link of a lab's host to its switch delays each packet by another time, and loses some. What netem does where a kernel
has it: a program takes the frames from the switch's end of the link and gives them to the switch by a tap, and back."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from plait.lab.build import net_argv
from plait.lab.lab import Lab
from plait.lab.wires import BRIDGE, port

_CARRY = r"""
import fcntl, heapq, os, random, select, socket, struct, subprocess, sys, time
end, bridge, least_ms, most_ms, lost = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5])
chance = random.Random(1)
tap = os.open('/dev/net/tun', os.O_RDWR)
name = 't-' + end[2:]
fcntl.ioctl(tap, 0x400454CA, struct.pack('16sH22x', name.encode(), 0x0002 | 0x1000))  # TUNSETIFF: IFF_TAP, IFF_NO_PI
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
for words in (f'link set {end} nomaster', f'link set {name} mtu 1500 master {bridge} up'):
    subprocess.run(['ip', *words.split()], check=True)
wire.bind((end, 3))
print('ready', flush=True)
due, number = [], 0
while True:
    wait = max(0, due[0][0] - time.monotonic()) if due else 1
    for source in select.select([tap, wire, 0], [], [], wait)[0]:
        if source == 0: sys.exit()
        if source is wire:
            frame, where = wire.recvfrom(65536)
            if where[2] == socket.PACKET_OUTGOING: continue
        else: frame = os.read(tap, 65536)
        if chance.random() >= lost:
            number += 1
            heapq.heappush(due, (time.monotonic() + chance.uniform(least_ms, most_ms) / 1000, number, source is wire, frame))
    while due and due[0][0] <= time.monotonic():
        _, _, up, frame = heapq.heappop(due)
        try: os.write(tap, frame) if up else wire.send(frame)
        except OSError: pass
"""


@contextlib.contextmanager
def rough(lab: Lab, host: str, ms: tuple[float, float], lost: float) -> Iterator[None]:
    """Each packet of `host`, either way, is late by a random time between the two in milliseconds, so that they overtake each other, and
    `lost` of them (0 to 1) do not arrive."""
    state = lab.state
    switch = state.spec.host(host).switch
    # A frame with a checksum that the card is to fill in, or one that it is to cut for that, would not survive the copy.
    lab.run(host, sys.executable, "-c", "from plait.kernel.linux.ethtool import set_tx_checksum as put; put('eth0', False)")
    command = net_argv(state.holders[switch], [sys.executable, "-c", _CARRY, port(host), BRIDGE, str(ms[0]), str(ms[1]), str(lost)])
    carrier = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert carrier.stdin is not None and carrier.stdout is not None
    try:
        if carrier.stdout.readline() != "ready\n":
            raise RuntimeError(f"the wire of {host} is not there: its carrier ended with {carrier.wait(5)}")
        yield
    finally:
        carrier.stdin.close()
        carrier.wait(5)
        carrier.stdout.close()
        back = net_argv(state.holders[switch], ["ip", "link", "set", port(host), "master", BRIDGE])
        subprocess.run(back, check=True)
