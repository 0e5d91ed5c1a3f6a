# SPDX-License-Identifier: Apache-2.0
"""A server that tells its own name and by which address it sees who asks, and who asks it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from plait.lab.lab import Lab

_ANSWER = """
import socket, sys
server = socket.create_server(("", 80), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
while True:
    peer, where = server.accept()
    peer.sendall(f"{sys.argv[1]} {where[0].removeprefix('::ffff:')}".encode())
    peer.close()
"""
_ASK = "import socket,sys;s=socket.create_connection((sys.argv[1],int(sys.argv[2])),1);print(s.makefile().read())"


@contextmanager
def answering(lab: Lab, host: str, name: str, *within: str) -> Iterator[None]:
    """The server, called `name`, at port 80 of the host, or of what the command `within` leads into."""
    with lab.popen(host, *within, "python3", "-c", _ANSWER, name, stdout=-1, text=True) as server:
        try:
            assert server.stdout is not None and server.stdout.readline() == "ready\n"
            yield
        finally:
            server.kill()


def asked(lab: Lab, host: str, to: str, *within: str, port: int = 80) -> str:
    """What it answers the host, or what `within` leads into: "NAME ADDRESS"; "" if it is not reached."""
    return lab.run(host, *within, "python3", "-c", _ASK, to, str(port), check=False).stdout.strip()
