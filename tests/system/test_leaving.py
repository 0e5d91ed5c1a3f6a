# SPDX-License-Identifier: Apache-2.0
"""`plait down --purge` leaves the host as it was: links, addresses, routes, rules, nft and iptables, sysctls, files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from plait.client.admin import AdminClient
from plait.lab.agents import SOCKET
from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.timeout(120)]
TOML = '[[host]]\nname = "A"\nagent = false\nengine = true\n[[host]]\nname = "B"\nagent = false\n'
STATE = r"""
ip -o link | sed 's/^[0-9]*: //'; ip -o addr | sed 's/^[0-9]*: //; s/valid_lft.*//'
for family in -4 -6; do ip $family rule; ip $family route show table all; done; ip neigh show nud permanent; bridge fdb | grep -v docker0
nft -s list ruleset; iptables-save | sed '/^#/d; s/\[.*\]//'; ip6tables-save | sed '/^#/d; s/\[.*\]//'
sysctl -a | grep '^net\.' | grep -v 'nf_conntrack_count\|flush'
pruned="-path /var/lib/docker -o -path /run/docker -o -path /run/containerd -o -path /run/lab -o -path /var/cache"
find /etc /var /run /opt -xdev \( $pruned \) -prune -o -type f -printf '%p %m %U %s %T@\n' -o -printf '%p %y %m %U %l\n' | sort
ls -A /run/docker/plugins || true
"""
"""All of a host that plait could leave something in. What Docker keeps for itself is not looked into, but its plug-ins are."""
PROGRAMS = """
import socket
from plait.kernel.linux import bpf
for index, name in socket.if_nameindex():
    print("program", name, len(bpf.attached(index)))
"""
"""How many eBPF programs hang at each link: no command of Debian 12 tells."""
NETWORKS = {
    "wrapped": ("--backend", "vxlan"),
    "bridged": ("--model", "sandbox"),
    "sealed": ("--backend", "wireguard"),
    "mixed": ("--backend", "hybrid"),
    "six": ("--ipv6",),
}


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """A runs Docker; B is strict about sources, which plait has to loosen. Both were used before, as far as that leaves traces."""
    lab = make_lab(toml=TOML)
    for host in "AB":
        lab.path(host, "/etc/plait/plait.toml").write_text(f'[node]\naddress = "{lab.address(host)}"\n')
    lab.run("B", "sh", "-c", "for conf in all default eth0; do echo 1 >/proc/sys/net/ipv4/conf/$conf/rp_filter; done")
    lab.run("B", "sh", "-c", "echo 0 >/proc/sys/net/ipv4/conf/all/accept_redirects")
    lab.run("A", "docker", "run", "--rm", "nginx", "true")
    until("the empty bridge is seen to be down", lambda: " DOWN " in lab.run("A", "ip", "-br", "link", "show", "docker0").stdout, 10)
    return lab


def state(lab: Lab, host: str) -> list[str]:
    said = lab.run(host, "sh", "-c", STATE, timeout_s=60).stdout + lab.run(host, sys.executable, "-c", PROGRAMS).stdout
    return [line for line in said.splitlines() if "/plait.toml" not in line]


def use(lab: Lab) -> None:
    """Networks of every kind, with a sandbox of each on both hosts; ports; a container; and all of it taken away again."""
    for name, how in NETWORKS.items():
        lab.run("A", "plait", "network", "create", name, *how)
    for host in "AB":
        client = AdminClient(lab.path(host, SOCKET))
        until(f"{host} knows the networks", lambda client=client: {row["name"] for row in client.networks()} > NETWORKS.keys(), 10)
        for name in NETWORKS:
            lab.run(host, "plait", "run", "--name", f"{name}-{host}", "--network", name, "-p", "80")
    lab.run("A", "docker", "network", "create", "-d", "plait", "--ipam-driver", "plait", "boxes")
    lab.run("A", "docker", "run", "-d", "--name", "web", "--network", "boxes", "-p", "8080:80", "nginx")
    lab.run("A", "docker", "rm", "-f", "web")
    lab.run("A", "docker", "network", "rm", "boxes")
    for host in "BA":
        until(f"{host} rests", lambda host=host: AdminClient(lab.path(host, SOCKET)).plan(diff=True) == [], 10)
        held = lab.run(host, "sysctl", "-n", "net.ipv6.conf.all.forwarding").stdout.strip()
        assert held == "1" and "pl-" in lab.run(host, "ip", "-br", "link").stdout, "there is something to take away"
        assert "program eth0 1" in state(lab, host)


def test_a_host_that_leaves_is_as_it_was_before(lab: Lab) -> None:
    before = {host: state(lab, host) for host in "AB"}
    lab.run("A", "plait", "init", "--name", "A")
    lab.start_agent("A")
    token = AdminClient(lab.path("A", SOCKET)).create_token(60)["token"]
    lab.run("B", "plait", "join", lab.address("A"), "--token", token, "--name", "B")
    lab.start_agent("B")
    use(lab)
    assert lab.run("B", "sysctl", "-n", "net.ipv4.conf.eth0.rp_filter").stdout.strip() == "2"
    for host in "BA":
        said = lab.run(host, "plait", "down", "--purge").stdout
        assert host == "A" or "set net.ipv4.ip_forward back to 0" in said, said
        after = state(lab, host)
        assert [f"- {line}" for line in before[host] if line not in after] + [
            f"+ {line}" for line in after if line not in before[host]
        ] == []
        assert not Path(lab.path(host, "/var/lib/plait/sysctls.json")).exists()
