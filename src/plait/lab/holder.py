# SPDX-License-Identifier: Apache-2.0
"""Makes the namespaces of a lab. Run as a program of its own (`python -I -S holder.py`), standard library only.

Data in: one line of JSON on standard input, `[{"name", "kind": "host"|"switch"|"router", "disk", "bin", "hosts"}, …]`. Data out:
one line of JSON, `{name: pid}` or `{"": error}`; then it waits for a second line. Only when that comes do the holders let go
of this program and become `sleep infinity`, one per member. If whoever started this program dies before, its standard
input ends, and so do all holders: nothing can be left behind that is not written down.

A host gets network, mount, UTS, IPC and PID namespaces: the holder is the PID namespace's first process, so its death ends
everything in the host, and children that nobody waits for are reaped by the kernel because SIGCHLD is ignored.
A switch or a router gets a network namespace.
"""

# No pathlib here: it would double the time this program takes to start.
# ruff: noqa: PTH102, PTH103, PTH106, PTH108, PTH110, PTH114, PTH116, PTH211

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import Any, NoReturn

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x4000000, 0x8000000, 0x20000000, 0x40000000
KINDS = {
    "host": CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET,
    "switch": CLONE_NEWNET,
    "router": CLONE_NEWNET,
}
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = 2, 4, 8, 0x1000, 0x2000, 0x4000, 0x40000

# Directories a host has for itself; below its disk they are `own/<path>`. The rest of /etc, /opt and /var is the machine's, with
# the host's changes laid over it.
OWN = (
    "/etc/cni",
    "/etc/docker",
    "/etc/plait",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/docker",
    "/var/lib/plait",
    "/var/lib/plait-lab",
)
LAYERED = ("/etc", "/opt", "/var")

_libc = ctypes.CDLL(None, use_errno=True)


def _check(what: str, status: int) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Put this process into new namespaces of the kinds in `flags`."""
    _check("unshare", _libc.unshare(flags))


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    status = _libc.mount(source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None)
    _check(f"mount {kind or source} on {target}", status)


def build_disk(disk: str) -> None:
    """Make the directories that `mount_host` needs below `disk`. What is there stays."""
    for path in LAYERED:
        os.makedirs(f"{disk}/layer{path}", exist_ok=True)
        os.makedirs(f"{disk}/work{path}", exist_ok=True)
    for path in OWN:
        os.makedirs(f"{disk}/own{path}", exist_ok=True)


def mount_host(disk: str) -> None:
    """Give the calling process's (new) mount namespace the view of a host whose disk is `disk`."""
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    own = [(path, os.open(f"{disk}/own{path}", os.O_PATH)) for path in OWN]
    for path in LAYERED:
        options = f"lowerdir={path},upperdir={disk}/layer{path},workdir={disk}/work{path}"
        mount("lab", path, "overlay", data=options)
    for path, fd in own:
        os.makedirs(path, exist_ok=True)
        mount(f"/proc/self/fd/{fd}", path, flags=MS_BIND)
        os.close(fd)
    mount("lab", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755")
    os.mkdir("/run/lock", 0o1777)
    _mount_sys()
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)


def _mount_sys() -> None:
    """A fresh /sys, which shows the links of this network namespace; the cgroup file systems stay where they are."""
    os.mkdir("/run/cgroup")
    mount("/sys/fs/cgroup", "/run/cgroup", flags=MS_BIND | MS_REC)
    mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("/run/cgroup", "/sys/fs/cgroup", flags=MS_MOVE)
    os.rmdir("/run/cgroup")


def name_host(name: str, hosts: str, bin_dir: str) -> None:
    """Hostname, /etc/hosts (`hosts` is its text), /etc/resolv.conf, and `plait` on the path (/run/lab/bin)."""
    status = _libc.sethostname(name.encode(), len(name))
    _check("sethostname", status)
    _write("/etc/hostname", f"{name}\n")
    _write("/etc/hosts", hosts)
    _write("/etc/resolv.conf", "nameserver 127.0.0.1\n")
    os.makedirs("/run/lab/bin")
    os.symlink(f"{bin_dir}/plait", "/run/lab/bin/plait")


def _write(path: str, text: str) -> None:
    if os.path.islink(path):
        os.unlink(path)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def set_sysctl(name: str, value: str) -> None:
    """Set a network sysctl of this process's namespace; one that the kernel lacks is left alone."""
    path = f"/proc/sys/net/{name}"
    if os.path.exists(path):
        with open(path, "w", encoding="ascii") as file:
            file.write(value)


def build_member(member: dict[str, Any]) -> None:
    """Turn the calling process, already in its namespaces, into `member`."""
    if os.stat("/proc/self/ns/net").st_ino == member["outside"]:
        raise OSError(0, "still in the machine's own network namespace: refusing to touch it")
    for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        set_sysctl(path, "1" if member["kind"] == "router" else "0")
    for path in ("ipv6/conf/all/accept_dad", "ipv6/conf/default/accept_dad"):
        set_sysctl(path, "0")  # a router asks nobody for a neighbour until its own link-local address is known to be the only one: 1-4 s
    if member["kind"] == "host":
        mount_host(member["disk"])
        name_host(member["name"], member["hosts"], member["bin"])
    elif member["kind"] == "switch":
        set_sysctl("ipv6/conf/all/disable_ipv6", "1")
        set_sysctl("ipv6/conf/default/disable_ipv6", "1")
        for family in ("iptables", "ip6tables", "arptables"):
            set_sysctl(f"bridge/bridge-nf-call-{family}", "0")


def hold(gate: int, ready: int, member: dict[str, Any]) -> NoReturn:
    """Build the member, say so on `ready`, wait for a byte on `gate`, then be `sleep infinity`. Never returns."""
    try:
        os.setsid()
        build_member(member)
        os.write(ready, b"+")
    except OSError as error:
        os.write(ready, str(error).encode())
        os._exit(1)
    os.close(ready)
    if os.read(gate, 1) != b"+":
        os._exit(1)
    os.chdir("/")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.closerange(3, 256)
    os.execv("/bin/sleep", ["sleep", "infinity"])


def start(member: dict[str, Any], gate: int, opener: int) -> tuple[int, int]:
    """Fork the holder of `member`. Returns its pid and the descriptor that says when it is built.

    The holder gives up its copy of `opener`, the gate's other end, so that this program's death opens the gate with nothing.
    """
    listen, ready = os.pipe()
    if member["kind"] == "host":
        build_disk(member["disk"])
    number_out, number_in = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(opener)
        try:
            unshare(KINDS[member["kind"]])
            pid = os.fork()
        except OSError as error:
            os.write(ready, str(error).encode())
            os._exit(1)
        if pid == 0:
            hold(gate, ready, member)
        os.write(number_in, str(pid).encode())
        os._exit(0)
    os.close(number_in)
    os.close(ready)
    pid = int(os.read(number_out, 32) or b"0")
    os.close(number_out)
    os.waitpid(child, 0)
    return pid, listen


def main() -> None:
    members = json.loads(sys.stdin.buffer.readline())
    outside = os.stat("/proc/self/ns/net").st_ino
    gate, opener = os.pipe()
    pids, listeners, errors = {}, {}, []
    for member in members:
        member["outside"] = outside
        pids[member["name"]], listeners[member["name"]] = start(member, gate, opener)
    for name, listen in listeners.items():
        said = os.read(listen, 4096)
        if said != b"+":
            errors.append(f"{name}: {said.decode() or 'its holder died'}")
    print(json.dumps({"": "; ".join(errors)} if errors else pids), flush=True)
    if not errors and sys.stdin.buffer.readline() == b"go\n":
        os.write(opener, b"+" * len(members))


if __name__ == "__main__":
    main()
