#!/usr/bin/python3 -IS
# SPDX-License-Identifier: Apache-2.0
"""plait's plug-in for CNI and netavark: hands each call to the agent of this host and prints what that says.

A program of its own (`python3 -IS`), which imports nothing of plait and, because engines run it for every container, nothing that takes
time to load. Data in: CNI_* variables and the configuration on standard input (CNI), or a command, a namespace and JSON on standard input
(netavark: `plait setup PATH`). To the agent, over a Unix socket, as the body of an HTTP request: the variables, each ended by a NUL, a NUL,
the input. Data out: the body of the answer on standard output; exit status 0 if its HTTP status is 200, else 1.

What must not depend on the agent is answered here: VERSION and info (Podman asks on every command, and forgets a network whose plug-in does
not answer), and removals, which are left in a directory for the agent to carry out when it is back. `plait.c` is the same in C.
"""

from __future__ import annotations

import posix
import sys
import time

SOCKET = b"/run/plait/cni.sock"
SPOOL = b"/var/lib/plait/cni-pending"
VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
TIMEOUT_S = 60
CNI_VERBS, NETAVARK_VERBS = ("ADD", "DEL", "CHECK", "GC", "STATUS"), ("create", "setup", "teardown")
REMOVALS = ("DEL", "teardown")
NETAVARK_INFO = '{"version": "0.1.0", "api_version": "1.0.0"}'
BAD_ENVIRONMENT, NO_IO, TRY_AGAIN, UNAVAILABLE = 4, 5, 11, 50


class Away(Exception):
    """Nobody answers, or not to the end; says why."""


def main(arguments: list[str]) -> int:
    netavark = len(arguments) > 1
    verb = arguments[1] if netavark else posix.environ.get(b"CNI_COMMAND", b"").decode(errors="replace")
    if verb == "info" and netavark:
        return say(NETAVARK_INFO, 0)
    given = read_all(0)
    if verb == "VERSION" and not netavark:
        versions = ", ".join(f'"{version}"' for version in VERSIONS)
        return say(f'{{"cniVersion": "{version_in(given)}", "supportedVersions": [{versions}]}}', 0)
    if verb not in (NETAVARK_VERBS if netavark else CNI_VERBS):
        known = "create, setup PATH, teardown PATH, info" if netavark else f"CNI_COMMAND of {', '.join(CNI_VERBS)}, VERSION"
        return refuse(netavark, given, BAD_ENVIRONMENT, f"this is a plug-in for container engines: it takes {known}")
    body = request_body(arguments if netavark else [], given)
    try:
        status, answer = ask(body)
    except Away as why:
        return do_without(netavark, verb, given, body, str(why))
    return say(answer, 0 if status == 200 else 1)


def request_body(arguments: list[str], given: bytes) -> bytes:
    """What the agent is sent: the variables that count, and the input."""
    fields = [name + b"=" + value for name, value in posix.environ.items() if name.startswith(b"CNI_")]
    names = ("NETAVARK_COMMAND", "NETAVARK_NETNS")
    if arguments:
        fields = [f"{name}={value}".encode(errors="surrogateescape") for name, value in zip(names, arguments[1:], strict=False)]
    return b"".join(field + b"\0" for field in fields) + b"\0" + given


def ask(body: bytes) -> tuple[int, bytes]:
    """HTTP status and body of the agent's answer. Away if there is none."""
    import _socket

    path = posix.environ.get(b"PLAIT_CNI_SOCKET", SOCKET)
    link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        link.settimeout(TIMEOUT_S)
        link.connect(path)
        link.sendall(b"POST /cni HTTP/1.1\r\nHost: plait\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        answer = b""
        while part := link.recv(65536):
            answer += part
    except OSError as error:
        raise Away(f"{path.decode(errors='replace')}: {error.strerror or 'no answer in time'}") from error
    finally:
        link.close()
    head, _, content = answer.partition(b"\r\n\r\n")
    _, _, length = head.lower().partition(b"content-length:")
    if length.split()[:1] != [b"%d" % len(content)]:
        raise Away(f"{path.decode(errors='replace')}: it ended while it answered")
    return int(head.split(b" ", 2)[1]), content


def do_without(netavark: bool, verb: str, given: bytes, body: bytes, why: str) -> int:
    """The agent is away: removals are kept for it, everything else is to be tried again."""
    if verb in REMOVALS:
        try:
            keep(body)
        except OSError as error:
            return refuse(netavark, given, NO_IO, f"the agent is away ({why}), and the removal cannot be kept for it: {error.strerror}")
        return 0
    hint = "start it (systemctl start plait) and try again"
    return refuse(
        netavark, given, UNAVAILABLE if verb == "STATUS" else TRY_AGAIN, f"the plait agent of this host does not answer ({why}): {hint}"
    )


def keep(body: bytes) -> None:
    """Write one request for later, on disk before this returns. The agent takes files in the order of their names."""
    folder = posix.environ.get(b"PLAIT_CNI_SPOOL", SPOOL)
    name = b"%020d-%d" % (time.time_ns(), posix.getpid())
    fresh = folder + b"/." + name
    try:
        posix.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    file = posix.open(fresh, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL, 0o600)
    try:
        write_all(file, body)
        posix.fsync(file)
    finally:
        posix.close(file)
    posix.rename(fresh, folder + b"/" + name)


def refuse(netavark: bool, given: bytes, code: int, text: str) -> int:
    """An error as the protocol says it."""
    text = text.replace("\\", "/").replace('"', "'")
    if netavark:
        return say(f'{{"error": "plait: {text}"}}', 1)
    return say(f'{{"cniVersion": "{version_in(given)}", "code": {code}, "msg": "plait: {text}"}}', 1)


def version_in(given: bytes) -> str:
    """The first cniVersion of the input if plait has it, else the newest."""
    words = given.partition(b'"cniVersion"')[2].split(b'"', 2)
    version = words[1].decode(errors="replace") if len(words) == 3 and words[0].strip() == b":" else ""
    return version if version in VERSIONS else VERSIONS[-1]


def say(text: str | bytes, status: int) -> int:
    write_all(1, text if isinstance(text, bytes) else text.encode() + b"\n")
    return status


def read_all(file: int) -> bytes:
    found = b""
    while part := posix.read(file, 1 << 20):
        found += part
    return found


def write_all(file: int, data: bytes) -> None:
    while data:
        data = data[posix.write(file, data) :]


if __name__ == "__main__":
    posix._exit(main(sys.argv))
