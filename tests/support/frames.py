# SPDX-License-Identifier: Apache-2.0
"""Ethernet frames: sent by programs inside containers, and seen on a lab's wire with what is in their tunnels."""

from __future__ import annotations

import contextlib
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from plait.lab.lab import Lab
from plait.lab.process import until

ARP, IP4, IP6, ODD = 0x0806, 0x0800, 0x86DD, 0x88B5
"""EtherTypes; the last is for local experiments (IEEE 802)."""
SEND = """
import socket, struct, sys
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sock.bind(("eth0", 0))
dst, kind, body = bytes.fromhex(sys.argv[1].replace(":", "")), int(sys.argv[2]), bytes.fromhex(sys.argv[3])
own = sock.getsockname()[4]
sock.send(dst + own + struct.pack("!H", kind) + body.replace(b"OWNMAC", own))
"""
SEE = """
import socket, sys, time
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(int(sys.argv[1])))
sock.bind(("eth0", int(sys.argv[1])))
print("ready", flush=True)
end = time.monotonic() + float(sys.argv[2])
while (left := end - time.monotonic()) > 0:
    sock.settimeout(left)
    try:
        frame, (_, _, kind, _, _) = sock.recvfrom(2000)
    except TimeoutError:
        break
    if kind != socket.PACKET_OUTGOING:
        print(frame.hex(), flush=True)
        if len(sys.argv) > 3 and bytes.fromhex(sys.argv[3]) in frame:
            break
"""


class Frame(NamedTuple):
    """What was inside a VXLAN packet."""

    vni: int
    dst: str
    kind: int
    body: bytes

    @property
    def to_many(self) -> bool:
        return bool(int(self.dst[:2], 16) & 1)

    @property
    def discovers(self) -> bool:
        """Whether it is ARP, or a neighbour solicitation or advertisement."""
        return self.kind == ARP or (self.kind == IP6 and self.body[6] == 58 and self.body[40] in (135, 136))


def send(lab: Lab, host: str, name: str, dst: str, kind: int, body: bytes) -> None:
    """One frame from a sandbox. OWNMAC in `body` becomes its own MAC."""
    lab.run(host, "plait", "exec", name, "--", "python3", "-c", SEND, dst, str(kind), body.hex())


@contextlib.contextmanager
def seen(lab: Lab, host: str, name: str, kind: int, wait_s: float, mark: bytes = b"") -> Iterator[list[bytes]]:
    """Frames of a kind that come to a sandbox until one has `mark` in it, at most `wait_s` long; complete when the block is left."""
    command = ("plait", "exec", name, "--", "python3", "-c", SEE, str(kind), str(wait_s), *([mark.hex()] if mark else []))
    found: list[bytes] = []
    with lab.popen(host, *command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield found
        found += [bytes.fromhex(line) for line in process.communicate(timeout=wait_s + 10)[0].split()]


def ask_arp(own: str, whom: str) -> bytes:
    """An ARP request (RFC 826)."""
    addresses = (bytes(map(int, address.split("."))) for address in (own, whom))
    return struct.pack("!HHBBH", 1, IP4, 6, 4, 1) + b"OWNMAC" + next(addresses) + bytes(6) + next(addresses)


@contextlib.contextmanager
def wire(lab: Lab, host: str, folder: Path, way: str = "inout") -> Iterator[list[Frame]]:
    """What passes the underlay link of `host` inside VXLAN, `in`, `out` or both; complete when the block is left."""
    file = folder / f"{host}-{way}.pcap"
    command = ("tcpdump", "-i", "eth0", "-Q", way, "-U", "--immediate-mode", "-Z", "root", "-w", str(file), "udp", "port", "4789")
    found: list[Frame] = []
    with lab.popen(host, *command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            while "listening on" not in process.stderr.readline():
                assert process.poll() is None
            yield found
            lab.run(host, "sleep", "0.2")  # what was sent has passed by then
            until("it is written", lambda: file.exists() and file.stat().st_size >= 24, 5)
        finally:
            process.kill()
    found += frames(file.read_bytes())


def frames(pcap: bytes) -> list[Frame]:
    """The frames inside the VXLAN packets of a capture file (pcap-savefile(5), RFC 7348)."""
    found, at = [], 24
    while at + 16 <= len(pcap):
        (size,) = struct.unpack_from("=I", pcap, at + 8)
        packet = pcap[at + 16 : at + 16 + size]
        vxlan = packet[14 + (packet[14] & 15) * 4 + 8 :]
        inner = vxlan[8:]
        found.append(Frame(int.from_bytes(vxlan[4:7]), inner[:6].hex(":"), int.from_bytes(inner[12:14]), inner[14:]))
        at += 16 + size
    return found
