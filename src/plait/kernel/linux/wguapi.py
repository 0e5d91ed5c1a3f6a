# SPDX-License-Identifier: Apache-2.0
"""WireGuard devices in user space: the text protocol of their Unix socket, one request a connection.

Source: the cross-platform user space interface (wireguard.com/xplatform): lines `key=value`, keys in hexadecimal, an empty line ends, the
answer's last line is `errno=`. What is malformed raises ValueError, what cannot be reached or is refused OSError.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path

from plait.kernel.linux.wgdevice import Change, Device, Endpoint, Peer, PeerChange, key_bytes, key_text, public_of
from plait.model.addr import at_port

SOCKETS = Path("/var/run/wireguard")
"""Where wireguard-go makes them; compiled into it."""
_TIMEOUT_S = 2.0
_RECV_BYTES = 64 * 1024


def socket_of(name: str) -> Path:
    return SOCKETS / f"{name}.sock"


def read(name: str) -> Device:
    """What the device holds."""
    return decode(_exchange(name, b"get=1\n\n"))


def write(name: str, change: Change) -> None:
    """Change the device. The program takes a change line by line: what stood before a refused line is done."""
    _exchange(name, encode(change))


def _exchange(name: str, request: bytes) -> bytes:
    answer = b""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(_TIMEOUT_S)
        link.connect(str(socket_of(name)))
        link.sendall(request)
        while not answer.endswith(b"\n\n"):
            piece = link.recv(_RECV_BYTES)
            if not piece:
                raise OSError(errno.EPIPE, f"the process of {name} closed its socket in the middle of an answer")
            answer += piece
    return answer


def encode(change: Change) -> bytes:
    """Change -> the request that makes it."""
    lines = ["set=1"]
    if change.private is not None:
        lines.append(f"private_key={change.private.hex()}")
    if change.port is not None:
        lines.append(f"listen_port={change.port}")
    for peer in change.peers:
        lines += _peer_lines(peer)
    return "\n".join([*lines, "", ""]).encode()


def _peer_lines(peer: PeerChange) -> Iterable[str]:
    yield f"public_key={key_bytes(peer.public).hex()}"
    if peer.remove:
        yield "remove=true"
    if peer.endpoint is not None:
        yield f"endpoint={at_port(*peer.endpoint)}"
    if peer.keepalive is not None:
        yield f"persistent_keepalive_interval={peer.keepalive}"
    for cidr in peer.allowed:
        yield f"allowed_ip={cidr}"


def decode(answer: bytes) -> Device:
    """The answer to a `get`. OSError if it says that something went wrong, ValueError if it is none."""
    public, port = "", 0
    peers: list[list[tuple[str, str]]] = []
    failed: int | None = None
    for line in answer.decode("ascii").splitlines():
        key, _, value = line.partition("=")
        if key == "errno":
            failed = int(value)
        elif key == "public_key":
            peers.append([(key, value)])
        elif peers:
            peers[-1].append((key, value))
        elif key == "private_key":
            public = public_of(bytes.fromhex(value)) if int(value, 16) else ""
        elif key == "listen_port":
            port = int(value)
    if failed is None:
        raise ValueError(f"{len(answer)} bytes are no answer of a WireGuard device: no errno")
    if failed:
        raise OSError(abs(failed), f"WireGuard: {errno.errorcode.get(abs(failed), 'unknown error')}")
    return Device(public, port, tuple(_peer(fields) for fields in peers))


def _peer(fields: list[tuple[str, str]]) -> Peer:
    last = dict(fields)
    endpoint = last.get("endpoint")
    seconds, nanoseconds = (int(last.get(f"last_handshake_time_{unit}", "0")) for unit in ("sec", "nsec"))
    return Peer(
        public=key_text(bytes.fromhex(last["public_key"])),
        endpoint=_endpoint(endpoint) if endpoint else None,
        keepalive=int(last.get("persistent_keepalive_interval", "0")),
        handshake=seconds + nanoseconds / 1e9,
        received=int(last.get("rx_bytes", "0")),
        sent=int(last.get("tx_bytes", "0")),
        allowed=tuple(ip_network(value) for key, value in fields if key == "allowed_ip"),
    )


def _endpoint(text: str) -> Endpoint:
    host, _, port = text.rpartition(":")
    return ip_address(host.strip("[]").partition("%")[0]), int(port)
