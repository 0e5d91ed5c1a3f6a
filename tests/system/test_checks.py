# SPDX-License-Identifier: Apache-2.0
"""Health checks that need a real Docker Engine: commands in containers, and the engine's own health checks."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

from plait.lab import process
from plait.lab.lab import Lab

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]
RUN = """
import asyncio, json, sys
from pathlib import Path
from plait.checks.runners import Runners
from plait.model.discovery import CheckDefinition
from plait.runtimes.docker.engine import DockerEngine

async def main():
    engine = DockerEngine(Path("/run/docker.sock"))
    runners = Runners(engine)
    for words in json.loads(sys.argv[1]):
        result = await runners.run(CheckDefinition(kind="docker", interval=1, args=tuple(words.pop("args")), **words))
        print(json.dumps([result.status, result.output]))
    await runners.close()
    await engine.close()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def one(make_lab: Callable[..., Lab]) -> Lab:
    lab = make_lab(hosts=1, agents=True, engines=True)
    lab.run("A", "docker", "run", "-d", "--name", "web", "nginx", timeout_s=60)
    return lab


def checked(lab: Lab, *definitions: dict[str, Any]) -> list[list[str]]:
    """Status and output of docker checks, run one after the other on host A."""
    words = [{"target": "web", "timeout": 10.0} | definition for definition in definitions]
    out = lab.run("A", sys.executable, "-c", RUN, json.dumps(words), timeout_s=60).stdout
    return [json.loads(line) for line in out.splitlines()]


def test_commands_run_in_the_container(one: Lab) -> None:
    inside = one.run("A", "docker", "exec", "web", "hostname").stdout
    results = checked(
        one,
        {"args": ["hostname"]},
        {"args": ["echo out; echo err >&2; exit 1"], "shell": "/bin/sh"},
        {"args": ["sh", "-c", "exit 2"]},
        {"args": ["sh", "-c", "yes | head -c 100000"], "output_max": 4},
        {"args": ["/no/such/program"]},
        {"args": ["true"], "target": "nobody"},
    )
    assert results[0] == ["passing", inside]
    assert results[1][0] == "warning" and sorted(results[1][1].split()) == ["err", "out"]
    assert results[2] == ["critical", ""]
    assert results[3] == ["passing", "Captured 4 of 100000 bytes\n...\ny\ny\n"]
    assert results[4][0] == "critical" and "no such file" in results[4][1]
    assert results[5][0] == "critical" and "nobody" in results[5][1]


def test_a_command_that_hangs_costs_the_container_one_process(one: Lab) -> None:
    hang = {"args": ["sleep", "7777"], "timeout": 1.0}
    results = checked(one, hang, hang, hang, {"args": ["true"]})
    assert [status for status, _ in results] == ["critical"] * 3 + ["passing"]
    assert "no answer within 1 s" in results[0][1] and "still runs in container web" in results[1][1]
    assert one.run("A", "docker", "top", "web").stdout.count("sleep 7777") == 1


def test_the_engines_own_health_check_is_seen(one: Lab) -> None:
    options = ("--health-cmd", "cat /tmp/state && ! grep -q bad /tmp/state", "--health-interval", "1s", "--health-retries", "1")
    one.run("A", "docker", "run", "-d", "--name", "judged", *options, "nginx", timeout_s=60)
    one.run("A", "docker", "exec", "judged", "sh", "-c", "echo good > /tmp/state")
    one.run("A", "curl", "-sS", "-X", "PUT", "-d", '{"Name": "judged", "Port": 80}', "http://127.0.0.1:8500/v1/agent/services")

    def health() -> tuple[str, str]:
        found = json.loads(one.run("A", "curl", "-sS", "http://127.0.0.1:8500/v1/health/checks/judged").stdout)
        return next(((row["Status"], row["Output"].strip()) for row in found if row["CheckID"] == "container:judged"), ("", ""))

    process.until("it is healthy", lambda: health() == ("passing", "Container judged is healthy: good"), 15)
    one.run("A", "docker", "exec", "judged", "sh", "-c", "echo bad > /tmp/state")
    process.until("it is unhealthy", lambda: health() == ("critical", "Container judged is unhealthy: bad"), 15)
    one.run("A", "docker", "stop", "-t", "0", "judged")
    process.until("the check went with its container", lambda: health() == ("", ""), 10)
