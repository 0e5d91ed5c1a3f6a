#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Try the last commit on a bare machine: `make demo`, `make test` or `make quick` in a Debian 12 that has nothing but the packages every
# Debian has, `make` and this clone. It is a tree of its own in mount, PID, UTS, IPC and cgroup namespaces of its own.
#
# The network namespace is the machine's, because apt and pip need it; the lab makes its own ones in there, as everywhere. How the
# machine reaches its Debian mirror and Python index (apt's sources and options, pip's file, proxies, authorities) is passed on.
#
# A guard waits on a pipe for the end of this script, however it comes (also kill -9), ends the tree's processes and removes the rest.
set -euo pipefail
SELF=$(readlink -f "$0")
cd "$(dirname "$SELF")/.."

TARGET=${1:-}
CACHE=/var/cache/plait-bare
CONTROLLERS=/sys/fs/cgroup
KEPT_ENVIRONMENT='^(PIP_(INDEX_URL|EXTRA_INDEX_URL|TRUSTED_HOST|DEFAULT_TIMEOUT|PROXY)|(https?|no)_proxy|(HTTPS?|NO)_PROXY)='
# Not the file of Debian's package ca-certificates, which writes it anew when it is installed.
AUTHORITIES=/etc/machine-authorities.crt

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
die() { printf 'bare: %s\n' "$*" >&2; exit 1; }

# Every cgroup hierarchy of the machine: one directory per version 1 controller, or the one of version 2.
hierarchies() { findmnt -rn -o TARGET,FSTYPE | awk '$2 ~ /^cgroup2?$/ {print $1}'; }

# --- outside

build_base() {
  [ -x "$CACHE/base/usr/bin/apt-get" ] && return
  command -v debootstrap >/dev/null || die "debootstrap is missing; make setup installs it"
  local mirror
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' | head -1)
  say "making a minimal Debian 12 in $CACHE/base (once)"
  mkdir -p "$CACHE"
  rm -rf "$CACHE/base.new"
  debootstrap --variant=minbase bookworm "$CACHE/base.new" ${mirror:+"$mirror"} >"$CACHE/base.log" 2>&1 \
    || { tail -20 "$CACHE/base.log" >&2; die "debootstrap failed; its last lines are above"; }
  mv "$CACHE/base.new" "$CACHE/base"
}

pass_on_the_machines_registries() {
  local tree=$1 file
  for file in /etc/resolv.conf /etc/hosts /etc/pip.conf; do
    [ ! -e "$file" ] || cp -L "$file" "$tree$file"
  done
  cp -L "${PIP_CERT:-${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}}" "$tree$AUTHORITIES" 2>/dev/null || true
  apt-config dump | grep '^Acquire::' >"$tree/etc/apt/apt.conf.d/90machine" || true
  for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
    [ ! -s "$file" ] || { rm -f "$tree/etc/apt/sources.list"; cp "$file" "$tree$file"; return; }
  done
}

# Runs apart from this script. Data in: the pipe on standard input, which ends with the script.
guard() {
  trap '' INT TERM HUP
  cat >/dev/null
  local at pid name
  name=$(basename "$1")
  for at in $(hierarchies); do
    [ -d "$at/$name" ] || continue
    for _ in $(seq 200); do
      for pid in $(find "$at/$name" -name cgroup.procs -exec cat {} + 2>/dev/null); do kill -KILL "$pid" 2>/dev/null || true; done
      find "$at/$name" -depth -type d -exec rmdir {} + 2>/dev/null && break
      sleep 0.05
    done
  done
  rm -rf --one-file-system "$1"
}

outside() {
  [ "$(id -u)" = 0 ] || die "must run as root"
  build_base
  local tree status=0 pipe at guard
  tree=$(mktemp -d "$CACHE/run-XXXXXX")
  pipe=$tree.pipe
  mkfifo "$pipe"
  setsid "$BASH" "$SELF" --guard "$tree" <"$pipe" &
  guard=$!
  exec 9>"$pipe"
  rm "$pipe"
  say "copying the tree and this clone ($(git rev-parse --short HEAD))"
  cp -a "$CACHE/base/." "$tree"
  git clone -q --no-hardlinks . "$tree/usr/src/plait"
  pass_on_the_machines_registries "$tree"
  for at in $(hierarchies); do
    mkdir "$at/$(basename "$tree")"
    [ ! -e "$at/cpuset.mems" ] || for value in cpus mems; do cat "$at/cpuset.$value" >"$at/$(basename "$tree")/cpuset.$value"; done
  done
  (
    exec 9>&-
    for at in $(hierarchies); do echo "$BASHPID" >"$at/$(basename "$tree")/cgroup.procs"; done
    mapfile -t kept < <(env | grep -E "$KEPT_ENVIRONMENT" || true)
    [ ! -e "$tree$AUTHORITIES" ] || kept+=("PIP_CERT=$AUTHORITIES" "SSL_CERT_FILE=$AUTHORITIES")
    exec env -i --default-signal=INT,QUIT HOME=/root LANG=C.UTF-8 TERM="${TERM:-dumb}" PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "${kept[@]}" \
      setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child=KILL --uts --ipc --cgroup --propagation private \
      "$BASH" "$SELF" --inside "$tree" "$TARGET"
  ) || status=$?
  exec 9>&-
  wait "$guard"
  if [ "$status" = 0 ]; then say "make $TARGET works on a bare Debian 12"; else say "make $TARGET FAILED on a bare Debian 12 (exit status $status)"; fi
  exit "$status"
}

# --- inside: the first process of the tree

mount_devices() {
  local dev=$1/dev name
  mount -t tmpfs -o mode=755 bare "$dev"
  for name in null zero full random urandom tty net/tun; do
    [ -c "/dev/$name" ] || continue
    mkdir -p "$dev/$(dirname "$name")"
    cp -a "/dev/$name" "$dev/$name"
  done
  mkdir "$dev/pts" "$dev/shm"
  mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$dev/pts"
  mount -t tmpfs bare "$dev/shm"
  ln -s pts/ptmx "$dev/ptmx"
  for name in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do ln -s "/proc/self/${name#*:}" "$dev/${name%:*}"; done
}

# The hierarchies of the machine in the same places, each from this namespace's root on.
mount_cgroups() {
  local at kind options controller
  findmnt -rn -o TARGET,FSTYPE,FS-OPTIONS | awk '$2 ~ /^cgroup2?$/' >"$1/tmp/cgroups"
  mount -t tmpfs -o mode=755 bare "$1$CONTROLLERS"
  while read -r at kind options; do
    mkdir -p "$1$at"
    controller=${options##*,}
    if [ "$kind" = cgroup2 ]; then mount -t cgroup2 cgroup2 "$1$at"; else
      case $options in *name=*) controller=none,name=${options##*name=} ;; *) controller=$(cgroup_controllers "$options") ;; esac
      mount -t cgroup -o "$controller" cgroup "$1$at"
    fi
  done <"$1/tmp/cgroups"
}

cgroup_controllers() { tr , '\n' <<<"$1" | grep -vxE 'rw|ro|xattr|clone_children|release_agent=.*' | paste -sd,; }

inside() {
  local tree=$1 target=$2
  mount --bind "$tree" "$tree"
  mount -t proc proc "$tree/proc"
  mount -t sysfs sysfs "$tree/sys"
  mount -t tmpfs -o mode=755 bare "$tree/run"
  [ ! -d /lib/modules ] || { mkdir -p "$tree/lib/modules"; mount --bind -o ro /lib/modules "$tree/lib/modules"; }
  mount_devices "$tree"
  mount_cgroups "$tree"
  hostname bare
  cd "$tree"
  mkdir -p .old
  pivot_root . .old
  exec chroot . /bin/bash -euc '
    umount -l /.old
    cd /usr/src/plait
    apt-get -qq update
    apt-get -qq install -y --no-install-recommends make >/dev/null
    make "$0"' "$target"
}

case $TARGET in
  demo | test | quick) outside ;;
  --guard) guard "$2" ;;
  --inside) inside "$2" "$3" ;;
  *) die "say what to try: scripts/bare.sh demo|test|quick" ;;
esac
