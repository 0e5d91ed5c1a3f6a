# SPDX-License-Identifier: Apache-2.0
"""Agents are stopped and started again host by host, as an upgrade does, while packets go every way between three hosts: none is lost."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

import pytest

from plait.client.admin import AdminClient
from plait.lab import inside
from plait.lab.agents import SOCKET
from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
HOSTS = "ABC"
PAIRS = ("AB", "BC", "CA")
NETWORKS = {"wrapped": {}, "mixed": {"backend": "hybrid"}, "sealed": {"backend": "wireguard"}, "bridged": {"model": "sandbox"}}
STOP = "/run/lab/enough"
PINGS = f"while [ ! -e {STOP} ]; do ping -q -i 0.005 -c 100 -W 1 $0; done"
"""Each round waits for its last answer, so that what is on its way in the end is not taken for lost."""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """Three hosts, two sandboxes on each in every network."""
    lab = make_lab(hosts=3)
    for name, options in NETWORKS.items():
        client(lab, "A").create_network(name, options=options)
    for host in HOSTS:
        until(f"{host} knows the networks", lambda host=host: {r["name"] for r in client(lab, host).networks()} > NETWORKS.keys(), 10)
        for name in NETWORKS:
            for number in "12":
                client(lab, host).create_sandbox(f"{name}-{host}{number}", name)
    until("A knows them all", lambda: len(client(lab, "A").ps()) == 2 * len(HOSTS) * len(NETWORKS), 10)
    return lab


def client(lab: Lab, host: str) -> AdminClient:
    return AdminClient(lab.path(host, SOCKET), timeout_s=20)


def restart(lab: Lab, host: str) -> None:
    """The agent of `host` ends as systemd ends it, and the next one is ready."""
    lab.run(host, "sh", "-c", "kill -TERM $(cat /run/lab/agent.pid)")
    until(f"the agent of {host} ends", lambda: inside.daemon_pid(lab.state.holder(host), "agent") is None, 15)
    lab.start_agent(host)
    until(f"{host} has nothing to write", lambda: client(lab, host).plan(diff=True) == [], 10)


def test_an_upgrade_host_by_host_loses_no_packet(lab: Lab) -> None:
    address = {row["name"]: next(iter(row["addresses"].values())) for row in client(lab, "A").ps()}
    ways = [(f"{name}-{a}1", f"{name}-{b}1") for name in ("wrapped", "mixed", "sealed") for a, b in PAIRS]
    ways += [(f"{name}-{host}1", f"{name}-{host}2") for name in ("wrapped", "bridged") for host in HOSTS]
    for source, target in ways:
        command = ["nsenter", f"--net=/run/plait/netns/{source}", "ping", "-c1", "-W1", address[target]]
        until(f"{source} reaches {target}", lambda s=source, c=command: lab.run(s[-2], *c, check=False).returncode == 0, 15)
    running: dict[tuple[str, str], subprocess.Popen[str]] = {}
    for way in ways:
        command = ["nsenter", f"--net=/run/plait/netns/{way[0]}", "sh", "-c", PINGS, address[way[1]]]
        running[way] = lab.popen(way[0][-2], *command, stdout=subprocess.PIPE, text=True)
    for host in "BCA":  # the store's last
        restart(lab, host)
    for host in HOSTS:
        lab.path(host, STOP).touch()
    lost = {}
    for way, process in running.items():
        said, _ = process.communicate(timeout=30)
        rounds = [(int(sent), int(received)) for sent, received in re.findall(r"(\d+) packets transmitted, (\d+) received", said)]
        lost[way] = rounds if len(rounds) < 3 or any(sent != received for sent, received in rounds) else []
    assert {way: rounds for way, rounds in lost.items() if rounds} == {}
