# SPDX-License-Identifier: Apache-2.0
"""Zones that are joined through encrypted tunnels alone, with real packets: the files of examples/vpn, which docs/zones.md explains. The
judge of the wire is tcpdump on the link of the host in the other zone."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.outside import answering, asked
from tests.support.sandboxes import address, inside, pings, shown
from tests.support.wireguard import needs_wireguard_go

from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(120), needs_wireguard_go]
FILES = Path(__file__).parents[2] / "examples/vpn"
ZONES = {"A": "198.18.0.0/24", "C": "198.18.0.0/24", "B": "198.18.1.0/24"}
MARKER = b"MARKER-0123456789"


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    made = make_lab(toml=(FILES / "lab.toml").read_text())
    made.run("A", "plait", "network", "create", "secret", "--backend", "wireguard", "--subnet", "10.40.0.0/16")
    for host, zone in ZONES.items():
        made.run(host, "tee", "/run/zone.nft", text=(FILES / "zone.nft").read_text())
        made.run(host, "nft", "-D", f"zone={zone}", "-D", "link=eth0", "-f", "/run/zone.nft")
        made.run(host, "plait", "run", "--name", f"in-{host}", "--network", "secret")
        made.run(host, "plait", "run", "--name", f"clear-{host}")
    until("the tunnel is there", lambda: pings(made, "A", "in-A", address(made, "in-B")), 20)
    return made


def test_an_encrypted_network_is_one_over_both_zones(lab: Lab) -> None:
    for host, other in (("A", "B"), ("C", "B"), ("B", "A"), ("A", "C")):
        assert pings(lab, host, f"in-{host}", address(lab, f"in-{other}", host=other)), f"{host} to {other}"


def test_between_the_zones_there_is_nothing_but_the_tunnel_and_the_store(lab: Lab) -> None:
    words = ("tcpdump", "-U", "-s0", "-w", "/run/wire.pcap", "-i", "eth0", "-Z", "root", "ip", "and", "net", "198.18.0.0/24")
    with lab.popen("B", *words, stderr=subprocess.PIPE, text=True) as dump:
        assert dump.stderr is not None and "listening" in dump.stderr.readline()
        for target in (address(lab, "in-B", host="B"), address(lab, "clear-B", host="B"), lab.address("B")):
            for sandbox in ("in-A", "clear-A"):
                inside(lab, "A", sandbox, "ping", "-c2", "-i0.1", "-W1", "-p", MARKER[:16].hex(), target)
        until("it was written", lambda: lab.path("B", "/run/wire.pcap").stat().st_size > 1000, 5)
        dump.kill()
    told = lab.run("B", "tcpdump", "-nn", "-r", "/run/wire.pcap", check=False).stdout
    ports = set(re.findall(r"IP 198\.18\.\d\.\d+\.(\d+) > 198\.18\.\d\.\d+\.(\d+): ", told))
    assert any("7472" in pair for pair in ports) and all({"7470", "7471", "7472"} & set(pair) for pair in ports), ports
    assert len(re.findall(r" IP ", told)) == len(re.findall(r" IP 198\.18\.\d\.\d+\.\d+ > 198\.18\.\d\.\d+\.\d+: ", told)), (
        "no ICMP, no VXLAN"
    )
    assert MARKER[:16] not in lab.path("B", "/run/wire.pcap").read_bytes()


def test_everything_else_is_refused(lab: Lab) -> None:
    with answering(lab, "B", "B"), answering(lab, "C", "C"):
        assert asked(lab, "A", lab.address("C")) == f"C {lab.address('A')}", "inside the zone all is open"
        assert not asked(lab, "A", lab.address("B")), "host to host"
        assert not asked(lab, "A", lab.address("B"), "plait", "exec", "in-A", "--"), "a container under its host's address"
        assert not pings(lab, "A", "clear-A", address(lab, "clear-B", host="B")), "a network in clear"
        until("it is named", lambda: "path-lost" in {row["code"] for row in shown(lab, "A", "status")["conditions"]}, 10)
        assert pings(lab, "A", "clear-A", address(lab, "clear-C", host="C")), "inside the zone it is as ever"
