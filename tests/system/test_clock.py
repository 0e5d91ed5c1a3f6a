# SPDX-License-Identifier: Apache-2.0
"""Clocks that jump by a day change nothing: leases, sessions, checks, connections and what is made afterwards.

The jumps are those of the agents' wall clock (libfaketime reads them from a file); their monotonic clock runs on, as the kernel's does when
somebody sets the time."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from plait.client.admin import AdminClient
from plait.lab import inside
from plait.lab.agents import SOCKET, log_of
from plait.lab.lab import Lab
from plait.lab.process import until

pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.timeout(200)]
HOSTS = "ABC"
CLOCK = "/run/lab/clock"
DAY_S = 86_400
LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
SESSION_TTL_S = 10


def start_agent(lab: Lab, host: str) -> None:
    """The agent of `host`, whose wall clock is as far ahead as the host's file says."""
    faked = [f"LD_PRELOAD={LIBRARY}", f"FAKETIME_TIMESTAMP_FILE={CLOCK}", "FAKETIME_DONT_FAKE_MONOTONIC=1", "FAKETIME_NO_CACHE=1"]
    state = lab.state
    inside.start_daemon(host, state.holder(host), "agent", ["env", *faked, "plait", "agent"], log_of(state, host))
    until(f"the agent of {host}", lambda: inside.http_status(state.holder(host), SOCKET, "/v1/ready") == 200, 20)


def jump(lab: Lab, host: str, seconds: int) -> None:
    lab.path(host, CLOCK).write_text(f"{seconds:+d}\n")


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    assert LIBRARY is not None, "Debian's package libfaketime is missing; scripts/setup.sh installs it"
    made = make_lab(hosts=3)
    for host in HOSTS:
        jump(made, host, 0)
        made.kill_agent(host)
        start_agent(made, host)
    return made


def consul(lab: Lab, host: str, method: str, path: str, body: object = None) -> Any:
    command = ["curl", "-sS", "--fail-with-body", "-X", method, f"http://127.0.0.1:8500/v1/{path}"]
    text = lab.run(host, *command, *(["-d", json.dumps(body)] if body is not None else [])).stdout
    return json.loads(text) if text else None


def asked(lab: Lab, host: str, name: str) -> str:
    """The addresses that `name` has for `host`, "" if none."""
    return lab.run(host, "dig", "+short", "@127.0.0.1", name).stdout.strip()


def agents_clock(lab: Lab, host: str) -> float:
    """The wall clock of the agent of `host`, by the end of life it gives a token, seconds since 1970."""
    return float(AdminClient(lab.path(host, SOCKET)).create_token(60)["expires"]) - 60


def picture(lab: Lab, host: str) -> dict[str, object]:
    """What `host` says of the cluster, as far as it must not change."""
    checks = consul(lab, host, "GET", "health/state/any")
    return {
        "status": lab.run(host, "plait", "status", check=False).returncode,
        "nodes": [(n["name"], n["alive"]) for n in json.loads(lab.run(host, "plait", "nodes", "--json").stdout)],
        "checks": [(check["Node"], check["CheckID"], check["Status"]) for check in checks],
        "instances": [entry["Service"]["ID"] for entry in consul(lab, host, "GET", "health/service/web?passing")],
        "lock": [(entry["LockIndex"], entry.get("Session")) for entry in consul(lab, host, "GET", "kv/leader")],
        "name": asked(lab, host, "web.service.consul"),
    }


def test_clocks_that_jump_by_a_day_change_nothing(lab: Lab) -> None:
    lab.run("A", "plait", "run", "--name", "web")
    until("C resolves it", lambda: asked(lab, "C", "web") != "", 5)
    address = asked(lab, "C", "web")
    check = {"Name": "alive", "TTL": "8s", "Status": "passing"}
    consul(lab, "A", "PUT", "agent/service/register", {"Name": "web", "Address": address, "Port": 80, "Check": check})
    session = consul(lab, "B", "PUT", "session/create", {"TTL": f"{SESSION_TTL_S}s", "Checks": []})["ID"]
    assert consul(lab, "B", "PUT", f"kv/leader?acquire={session}", "B") is True
    until("C sees it", lambda: bool(picture(lab, "C")["lock"] and picture(lab, "C")["instances"]), 5)
    lab.run("B", "plait", "run", "--name", "asker")
    before = {host: picture(lab, host) for host in HOSTS}
    assert [before[host]["status"] for host in HOSTS] == [0, 0, 0]
    ping = f"echo $$ >/run/lab/ping.pid; exec ping -q -i 0.05 -w 60 {address}"
    pinging = ("plait", "exec", "asker", "--", "sh", "-c", ping)
    with beating(lab, session), lab.popen("B", *pinging, stdout=subprocess.PIPE, text=True) as running:
        for far in (DAY_S, -DAY_S, 0):
            jump(lab, "A", far)
            jump(lab, "B", -far)
            assert abs(agents_clock(lab, "A") - time.time() - far) < 30, "the agent's clock did jump"
            watch(lab, before, seconds=SESSION_TTL_S / 3)
            check_what_comes_later(lab, before)
        lab.run("B", "sh", "-c", "kill -INT $(cat /run/lab/ping.pid)")
        said = running.communicate(timeout=10)[0]
    assert re.search(r" 0% packet loss", said), said


@contextlib.contextmanager
def beating(lab: Lab, session: str) -> Iterator[None]:
    """Heartbeats by the real clock for the session and the check, until the block ends."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.5):
            consul(lab, "A", "PUT", f"session/renew/{session}")
            consul(lab, "A", "PUT", "agent/check/pass/service:web")

    with ThreadPoolExecutor(1) as pool:
        beats = pool.submit(beat)
        try:
            yield
        finally:
            ended.set()
            beats.result()


def watch(lab: Lab, before: dict[str, dict[str, object]], seconds: float) -> None:
    """For `seconds` every host says what it said before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert {host: picture(lab, host) for host in HOSTS} == before
        time.sleep(0.2)


def check_what_comes_later(lab: Lab, before: dict[str, dict[str, object]]) -> None:
    """New containers come and go, and agents whose clocks are two days apart find each other again."""
    lab.run("B", "plait", "run", "--name", "later")
    until("C resolves the new one", lambda: asked(lab, "C", "later") != "", 5)
    lab.run("B", "plait", "rm", "later")
    until("C forgets it", lambda: "NXDOMAIN" in lab.run("C", "dig", "@127.0.0.1", "later").stdout, 5)
    lab.kill_agent("B")
    start_agent(lab, "B")
    until("B is back", lambda: {host: picture(lab, host) for host in HOSTS} == before, 10)
