# SPDX-License-Identifier: Apache-2.0
"""Commands and daemons inside a host, and small HTTP questions to the sockets that are there.

Data in: the living holder of the host's namespaces and a command. Data out: its result. Commands enter through nsenter(1), so
that the cgroup file systems stay visible (a container engine needs them; `ip netns exec` hides them).
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from plait.lab.process import Process, forbid_machine
from plait.model.errors import PlaitError

PATH = "/run/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Variables that would lead a program inside a host to something outside of it.
_LEAKS = ("DOCKER_", "CONSUL_", "PLAIT_", "PYTEST_", "COV_")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy", "no_proxy")
# The second would have each of the many agents and commands compile plait anew, which an installed one never does.
_UNWANTED = ("VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
HTTP_ANSWER_LIMIT = 1 << 20


class CommandFailed(PlaitError):
    """A command in a host ended with a status other than 0, or not in time."""


def environment() -> dict[str, str]:
    """This process's environment without what points outside the host, and with compiled modules kept as for an installed `plait`; PATH
    finds it and the system's programs."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_LEAKS) and name.lower() not in _PROXIES and name not in _UNWANTED
    }
    return {**kept, "PATH": PATH}


def argv(holder: Process, command: Sequence[str]) -> list[str]:
    """`command` as it must be executed from outside to run in all namespaces of the host that `holder` holds. The process that does
    so waits for the command and ends as it does; if it is killed itself, the command is killed too."""
    forbid_machine(holder.net)
    return ["nsenter", "-t", str(holder.pid), "-m", "-u", "-i", "-n", "-p", "--", "setpriv", "--pdeathsig", "KILL", *command]


def net_argv(holder: Process, command: Sequence[str]) -> list[str]:
    """The same for the network namespace alone: programs and files are the machine's."""
    forbid_machine(holder.net)
    return ["nsenter", "-t", str(holder.pid), "-n", "--", *command]


def run(
    host: str, holder: Process, command: Sequence[str], *, timeout_s: float = 30.0, check: bool = True, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `command` in `host` with `text` as its standard input. CommandFailed if `check` and its status is not 0, or after
    `timeout_s` (it is killed then)."""
    said = " ".join(command)
    try:
        done = subprocess.run(
            argv(holder, command), input=text or "", capture_output=True, text=True, errors="replace", timeout=timeout_s, env=environment()
        )
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"{said} on host {host}: no end within {timeout_s:.0f} s") from error
    if check and done.returncode:
        raise CommandFailed(f"{said} on host {host}: exit status {done.returncode}\n{(done.stderr or done.stdout).rstrip()}")
    return done


def start_daemon(host: str, holder: Process, name: str, command: Sequence[str], log: Path) -> None:
    """Start `command` in `host`, detached, its output added to `log` and its pid in the host's /run/lab/<name>.pid."""
    script = 'echo $$ >"$0.new" && mv "$0.new" "$0" && exec "$@"'
    pid_file = path_of(holder, f"/run/lab/{name}.pid")
    with suppress(FileNotFoundError):
        pid_file.unlink()
    wrapped = ["setsid", "-f", "sh", "-c", script, f"/run/lab/{name}.pid", *command]
    with log.open("ab") as sink:
        subprocess.run(argv(holder, wrapped), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=environment(), check=True, timeout=20)
    end = time.monotonic() + 5
    while not pid_file.exists():
        if time.monotonic() > end:
            raise CommandFailed(f"{' '.join(command)} on host {host}: did not start\n{tail(log)}")
        time.sleep(0.005)


def daemon_pid(holder: Process, name: str) -> int | None:
    """Pid, inside the host, of the daemon that `start_daemon` started as `name`; None if it does not run (any more)."""
    try:
        pid = int(path_of(holder, f"/run/lab/{name}.pid").read_text())
        state = path_of(holder, f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else pid


def path_of(holder: Process, path: str) -> Path:
    """Where the host's absolute `path` is found from outside."""
    return Path(f"/proc/{holder.pid}/root{path}")


def tail(log: Path, lines: int = 20) -> str:
    """The last `lines` lines of `log`, "" if there is none."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def http_status(holder: Process, sock: str, path: str, timeout_s: float = 2.0) -> int:
    """Status of `GET path` on the host's Unix socket `sock`; 0 if nobody answers."""
    with socket.socket(socket.AF_UNIX) as link, suppress(OSError, ValueError, IndexError):
        link.settimeout(timeout_s)
        link.connect(str(path_of(holder, sock)))
        link.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return int(link.recv(HTTP_ANSWER_LIMIT).split(b" ", 2)[1])
    return 0
