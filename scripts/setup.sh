#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prepare a bare Debian 12 machine: system packages, virtual environment, locked Python packages.
# Idempotent: a second run only compares stamps and takes well under a second.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || die "must run as root: namespaces, nftables and the lab's Docker Engines need it. Try: sudo make test"
[ -r /etc/debian_version ] || [ -n "${PLAIT_SKIP_APT:-}" ] || die "this script knows Debian 12 only; elsewhere install the packages named in it by hand and set PLAIT_SKIP_APT=1"

PACKAGES=(
  iproute2 nftables libnftables1 conntrack util-linux procps   # the kernel's tools
  docker.io containerd runc iptables docker-compose             # the engine of the lab's hosts, and who drives it
  podman containernetworking-plugins gcc libc6-dev              # others that use CNI, and a compiler for the plug-in in C
  debootstrap                                                   # images are made here
  nginx-light mariadb-client-core                               # real parts of the four-host case, on host D
  curl bind9-dnsutils iputils-ping tcpdump iperf3               # real clients
  libfaketime                                                   # clocks that jump
  prometheus                                                    # discovers and scrapes services over http_sd
  haproxy dnsmasq-base unbound dnsperf                          # ask the DNS server in earnest
  wireguard-go wireguard-tools                                  # encrypted networks where the kernel has no WireGuard, and who checks them
  openvswitch-switch                                            # tagged links where the kernel has no 802.1Q
  bird2                                                         # speaks BGP and OSPF, for hosts and as their routers
  patroni python3-consul postgresql-15                          # keeps databases by sessions, locks and services
  python3 python3-venv git
)

missing=()
for p in "${PACKAGES[@]}"; do
  dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || missing+=("$p")
done
if [ ${#missing[@]} -gt 0 ] && [ -z "${PLAIT_SKIP_APT:-}" ]; then
  say "installing Debian packages: ${missing[*]}"
  # No service may start on the machine itself, now or at the next boot: dockerd would write its rules into the machine's own namespace.
  guard=/usr/sbin/policy-rc.d
  log=$(mktemp)
  if [ ! -e "$guard" ]; then
    trap 'rm -f "$guard" "$log"' EXIT
    printf '#!/bin/sh\nexit 101\n' > "$guard"; chmod 755 "$guard"
  else
    trap 'rm -f "$log"' EXIT
  fi
  # Of those that come with the packages; what the machine had before stays as it was.
  fresh=()
  for service in docker.socket docker.service containerd.service nginx.service prometheus.service haproxy.service unbound.service \
    openvswitch-switch.service ovs-vswitchd.service ovsdb-server.service ovs-record-hostname.service \
    patroni.service postgresql.service bird.service podman.service podman.socket podman-auto-update.timer podman-restart.service; do
    [ -n "$(systemctl is-enabled "$service" 2>/dev/null)" ] || fresh+=("$service")
  done
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update || die "apt-get update failed; is a Debian mirror reachable?"
  apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends "${missing[@]}" >"$log" 2>&1 \
    || { tail -20 "$log" >&2; die "apt-get install failed; its last lines are above"; }
  for service in "${fresh[@]}"; do systemctl disable -q "$service" 2>/dev/null || true; done
fi

PY=${PYTHON:-python3}
"$PY" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || PY=/usr/bin/python3
"$PY" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "Python 3.11 or newer is needed, found: $("$PY" --version)"

# The place is part of the stamp, because the programs of a virtual environment name it; a Python that was removed is noticed too.
want=$({ cat requirements.lock pyproject.toml; pwd; } | sha256sum | cut -c1-32)
if [ "$(cat .venv/.stamp 2>/dev/null)" != "$want" ] || ! .venv/bin/python -c '' 2>/dev/null; then
  say "building the virtual environment .venv ($("$PY" --version))"
  "$PY" -m venv --clear .venv || die "python3 -m venv failed; is python3-venv installed?"
  .venv/bin/python -m pip install -q --require-hashes -r requirements.lock \
    || die "pip could not install the locked packages; is a Python package index reachable?"
  .venv/bin/python -m pip install -q --no-deps --no-build-isolation -e . || die "pip could not install plait itself"
  printf '%s' "$want" > .venv/.stamp
fi
