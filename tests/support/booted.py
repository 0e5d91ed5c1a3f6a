# SPDX-License-Identifier: Apache-2.0
"""Debian's own systemd and docker.service in the hosts of a lab, for what must be shown with the real init system.

Data in: a lab whose hosts run neither agent nor engine. Data out: in each booted host systemd as the first process of a Debian 12 tree
that has nothing of this machine but the kernel, in the network namespace of the lab's host. Everything of it lives in the host's PID
namespace and on its disk, and so ends and goes with it. The tree (`debian`) is made once and only ever read: each host's changes lie
over it.

/proc/sys apart from net, and /sys, are read-only in there: an init system that thinks the machine its own sets limits of the whole kernel.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from plait.lab import images, inside
from plait.lab.lab import Lab
from plait.lab.process import until

CACHE = Path("/var/cache/plait-lab-systemd")
ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements.lock"
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "docker.io", "iptables", "python3-venv", "libnftables1"),
    *("iproute2", "nftables", "curl", "bind9-dnsutils", "iputils-ping", "procps"),
)
SOURCE, WHEELS = "/usr/src/plait", "/usr/src/wheels"
_COPIED = ("src", "packaging", "pyproject.toml", "README.md", "LICENSE")
_BOOT_S = 60.0

_BOOT = """
set -eu
tree=$1 wheels=$2 cgroup=$3 disk=/var/lib/plait-lab root=/run/lab/root
mkdir -p $disk/upper $disk/work $root
if [ -z "${inside:-}" ]; then
  hierarchy=$(findmnt -rn -t cgroup2 -o TARGET | head -1)
  mkdir -p "$hierarchy/$cgroup"
  echo $$ >"$hierarchy/$cgroup/cgroup.procs"
  inside=yes exec unshare --mount --pid --fork --kill-child=KILL --uts --ipc --cgroup --propagation private bash -c "$0" "$0" "$@"
fi
mount -t overlay -o "lowerdir=$tree,upperdir=$disk/upper,workdir=$disk/work" booted $root
mkdir -p $root/var/lib/docker $root/usr/src/wheels
mount --bind -o ro "$wheels" $root/usr/src/wheels
mount --bind /var/lib/docker $root/var/lib/docker
mount -t proc proc $root/proc
mount -t proc proc $root/mnt
mount --bind $root/proc/sys $root/proc/sys
mount -o remount,bind,ro $root/proc/sys
mount --bind $root/mnt/sys/net $root/proc/sys/net
umount $root/mnt
mount -t sysfs -o ro sysfs $root/sys
mount -t cgroup2 cgroup2 $root/sys/fs/cgroup
mount -t tmpfs -o mode=755 run $root/run
mount -t tmpfs tmp $root/tmp
mount -t tmpfs -o mode=755 dev $root/dev
for name in null zero full random urandom tty; do cp -a /dev/$name $root/dev/$name; done
mkdir $root/dev/pts $root/dev/shm
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts $root/dev/pts
ln -s pts/ptmx $root/dev/ptmx
for file in hostname hosts resolv.conf; do cat /etc/$file >$root/etc/$file; done
cd $root
mkdir -p .old
pivot_root . .old
exec env -i container=plait-lab PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . sh -c 'umount -l /.old; exec /sbin/init --show-status=false'
"""
"""Arguments: the tree, the wheels, and the cgroup's path below the version 2 hierarchy. Runs in the lab's host, first outside and then
inside of the new namespaces."""


def debian() -> Path:
    """The tree. Made once (two minutes); another list of packages is another tree."""
    return _cached(f"tree-{_hash(repr(PACKAGES).encode())}", _bootstrap)


def wheels() -> Path:
    """The wheels of this project's lock file, for a host that reaches no package index."""
    return _cached(f"wheels-{_hash(LOCK.read_bytes())}", _download)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _cached(name: str, make: Callable[[Path], None]) -> Path:
    """The directory of that name in the cache, made if it is not there; earlier ones of its kind are removed then. Of two callers at a
    time one makes it, the other waits."""
    target = CACHE / name
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        if not target.is_dir():
            for old in CACHE.glob(f"{name.partition('-')[0]}-*"):
                subprocess.run(["rm", "-rf", "--one-file-system", "--", str(old)], check=True)
            part = target.with_suffix(".part")
            make(part)
            part.rename(target)
    return target


def _bootstrap(tree: Path) -> None:
    print(f"bootstrapping a Debian 12 with systemd and docker.io in {tree} (once)", flush=True)
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Codename: bookworm"]
    mirrors = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", "bookworm", str(tree), *mirrors[:1]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    subprocess.run(["rm", "-rf", "--", str(tree / "var/cache/apt/archives")], check=True)


def _download(place: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "--no-deps", "--require-hashes"]
    subprocess.run([*command, "--dest", str(place), "-r", str(LOCK)], check=True, timeout=300)


class Booted:
    """Hosts of `lab` in which `boot` has started systemd."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._tree, self._wheels = debian(), wheels()

    def boot(self, host: str) -> None:
        """Start systemd in `host`, which must not have one, over its own disk; returns when it says that the system is up."""
        state = self.lab.state
        data = state.disks / host / "own/var/lib/docker"
        if not any(data.iterdir()):
            images.seed(images.template(print), data)
            source = state.disks / host / f"own/var/lib/plait-lab/upper{SOURCE}"
            source.mkdir(parents=True)
            subprocess.run(["cp", "-a", *(str(ROOT / name) for name in _COPIED), str(source)], check=True)
        command = ["bash", "-c", _BOOT, _BOOT, str(self._tree), str(self._wheels), f"{state.cgroup}/{host}"]
        inside.start_daemon(host, state.holder(host), "systemd", command, state.disks / host / "systemd.log")
        until(f"systemd of {host}", lambda: self._system_state(host) in ("running", "degraded"), _BOOT_S)

    def _system_state(self, host: str) -> str:
        if not self._first_process(host):
            return ""
        return self.run(host, "systemctl", "is-system-running", check=False).stdout.strip()

    def run(self, host: str, *command: str, timeout_s: float = 30.0, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`command` in the booted host, as root's shell would run it; see `Lab.run`."""
        enter = ["nsenter", "-t", self._first_process(host), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w"]
        offline = ["PIP_NO_INDEX=1", f"PIP_FIND_LINKS={WHEELS}", "PIP_DISABLE_PIP_VERSION_CHECK=1"]
        clean = ["env", "-i", "HOME=/root", "LANG=C.UTF-8", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", *offline]
        return self.lab.run(host, *enter, *clean, *command, timeout_s=timeout_s, check=check)

    def path(self, host: str, path: str) -> Path:
        """Where the booted host's absolute `path` is found from outside."""
        return self.lab.path(host, f"/proc/{self._first_process(host)}/root{path}")

    def power_cycle(self, host: str) -> None:
        """Everything of the host but its disk is gone at once; then it boots."""
        self.lab.reboot(host, start=False)
        self.boot(host)

    def _first_process(self, host: str) -> str:
        """systemd's pid in the lab's host, "" before it is there."""
        holder = self.lab.state.holder(host)
        parent = inside.daemon_pid(holder, "systemd")
        if parent is None:
            return ""
        return self.lab.run(host, "pgrep", "--parent", str(parent), check=False).stdout.strip()
