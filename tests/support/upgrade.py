# SPDX-License-Identifier: Apache-2.0
"""Agents that end and start again while packets go between sandboxes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence

from plait.client.admin import AdminClient
from plait.lab import inside
from plait.lab.agents import SOCKET
from plait.lab.lab import Lab
from plait.lab.process import until

STOP = "/run/lab/enough"
PINGS = f"while [ ! -e {STOP} ]; do ping -q -i 0.005 -c 100 -W 1 $0; done"
"""Each round waits for its last answer, so that what is on its way in the end is not taken for lost."""
Way = tuple[str, str]
"""Names of two sandboxes, which have the name of their host after the last hyphen."""


def client(lab: Lab, host: str) -> AdminClient:
    return AdminClient(lab.path(host, SOCKET), timeout_s=20)


def restart(lab: Lab, host: str) -> None:
    """The agent of `host` ends as systemd ends it, and the next one is ready."""
    lab.run(host, "sh", "-c", "kill -TERM $(cat /run/lab/agent.pid)")
    until(f"the agent of {host} ends", lambda: inside.daemon_pid(lab.state.holder(host), "agent") is None, 15)
    lab.start_agent(host)
    until(f"{host} has nothing to write", lambda: client(lab, host).plan(diff=True) == [], 10)


def host_of(sandbox: str) -> str:
    return sandbox.rpartition("-")[2][0]


class Traffic:
    """Echo requests by all `ways` from `start` until `lost`, which tells the ways that lost any, with (sent, received) of their rounds."""

    def __init__(self, lab: Lab, ways: Sequence[Way]) -> None:
        self._lab, self._ways = lab, ways
        self._running: dict[Way, subprocess.Popen[str]] = {}
        self._hosts = sorted({host_of(source) for source, _ in ways})

    def _addresses(self) -> dict[str, str]:
        wanted = {name for way in self._ways for name in way}
        host = self._hosts[0]
        until(f"{host} knows all", lambda: {r["name"] for r in client(self._lab, host).ps()} >= wanted, 10)
        return {row["name"]: str(next(iter(row["addresses"].values()))) for row in client(self._lab, host).ps()}

    def reaches(self) -> dict[str, str]:
        """Wait until every way works; the addresses by sandbox."""
        address = self._addresses()
        for source, target in self._ways:
            command = ["nsenter", f"--net=/run/plait/netns/{source}", "ping", "-c1", "-W1", address[target]]
            until(
                f"{source} reaches {target}",
                lambda s=source, c=command: self._lab.run(host_of(s), *c, check=False).returncode == 0,
                15,
            )
        return address

    def start(self) -> None:
        address = self.reaches()
        for way in self._ways:
            command = ["nsenter", f"--net=/run/plait/netns/{way[0]}", "sh", "-c", PINGS, address[way[1]]]
            self._running[way] = self._lab.popen(host_of(way[0]), *command, stdout=subprocess.PIPE, text=True)

    def lost(self) -> dict[Way, list[tuple[int, int]]]:
        for host in self._hosts:
            self._lab.path(host, STOP).touch()
        lost = {}
        for way, process in self._running.items():
            said, _ = process.communicate(timeout=30)
            rounds = [(int(sent), int(got)) for sent, got in re.findall(r"(\d+) packets transmitted, (\d+) received", said)]
            if len(rounds) < 3 or any(sent != got for sent, got in rounds):
                lost[way] = rounds
        return lost
