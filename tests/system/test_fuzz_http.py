# SPDX-License-Identifier: Apache-2.0
"""Nonsense for the HTTP API: schemathesis makes requests from the description that the agent publishes and judges each answer by it; a
client of ours sends what no description allows. An agent in a lab host without a network answers: no fault, no crash, nothing kept.

PLAIT_FUZZ_EXAMPLES (5) is how many random requests each operation gets beside the systematic ones, PLAIT_FUZZ_SEED another choice of them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.pypi import installed

from plait.lab.lab import Lab

EXAMPLES = int(os.environ.get("PLAIT_FUZZ_EXAMPLES", "5"))
SEED = os.environ.get("PLAIT_FUZZ_SEED", "")
pytestmark = [pytest.mark.system, pytest.mark.root, pytest.mark.timeout(300 + 60 * EXAMPLES)]
HERE = Path(__file__).parent / "schemathesis"
URL = "http://127.0.0.1:8500/v1/"
LEFT_OUT = {
    "agent/leave": "it ends the agent",
    "agent/metrics/stream": "it has no end",
    "agent/monitor": "it has no end",
    "plait/events": "it has no end",
    "plait/openapi.json": "it is asked for to begin with",
}
CHECKS = (
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "no_fault",
)
NONSENSE = 10_000
GROWTH_BYTES = 9 << 20
"""What a round may add to the agent's memory: no more than an allocator does. A kilobyte per request were 10 MB."""


class Agent:
    """`plait consul agent -dev` in a lab host."""

    def __init__(self, lab: Lab, host: str, log: Path) -> None:
        self.lab, self.host, self.log = lab, host, log
        with log.open("w") as out:
            command = ["plait", "consul", "agent", "-dev", "-bind=127.0.0.1", "-node=n1"]
            self.process = lab.popen(host, *command, stdout=out, stderr=subprocess.STDOUT)
        end = time.monotonic() + 30
        while lab.run(host, "curl", "-sf", f"{URL}agent/self", check=False).returncode:
            assert self.process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.05)

    def ask(self, method: str, path: str, body: object = None) -> Any:
        command = ["curl", "-sf", "-X", method, URL + path, *(["-d", json.dumps(body)] if body is not None else [])]
        text = self.lab.run(self.host, *command).stdout
        return json.loads(text) if text else None

    def program(self, *words: str, timeout_s: float, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python there, with schemathesis on the path."""
        path = f"PYTHONPATH={installed(HERE / 'requirements.lock')}:{HERE}"
        settings = [f"{name}={value}" for name, value in environment.items()]
        command = ["env", "--chdir=/tmp", path, "PYTHONDONTWRITEBYTECODE=1", *settings, sys.executable, *words]
        return self.lab.run(self.host, *command, timeout_s=timeout_s, check=False)

    def memory(self) -> int:
        """Bytes that it has, after it got rid of all that clients wrote."""
        for service in self.ask("GET", "agent/services"):
            self.ask("PUT", f"agent/service/deregister/{_quoted(service)}")
        for check in self.ask("GET", "agent/checks"):
            self.ask("PUT", f"agent/check/deregister/{_quoted(check)}")
        for query in self.ask("GET", "query"):
            self.ask("DELETE", f"query/{query['ID']}")
        for session in self.ask("GET", "session/list"):
            self.ask("PUT", f"session/destroy/{session['ID']}")
        for node in self.ask("GET", "catalog/nodes"):
            if node["Node"] != "n1":
                self.ask("PUT", "catalog/deregister", {"Node": node["Node"]})
        self.ask("DELETE", "kv/?recurse")
        gauges = {row["Name"]: row["Value"] for row in self.ask("GET", "agent/metrics")["Gauges"]}
        return int(gauges["consul.runtime.alloc_bytes"])

    def end(self) -> str:
        """Its log. AssertionError if it does not end well, or was faulty."""
        self.ask("PUT", "agent/leave")
        text = self.log.read_text() if self.process.wait(20) == 0 else f"exit status {self.process.returncode}"
        assert "exit status" not in text and "request_failed" not in text and "Traceback" not in text, text[-8000:]
        return text


def _quoted(name: str) -> str:
    return "".join(f"%{byte:02X}" for byte in name.encode())


@pytest.fixture(scope="module")
def one(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab(hosts=1, agents=False)


@pytest.fixture
def agent(one: Lab, tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(one, "A", tmp_path / "agent.log")
    yield agent
    agent.end()


def schemathesis(agent: Agent) -> str:
    """Its report of one round on all operations; AssertionError with the report if it found something."""
    check = {"CheckID": "web", "TTL": "1h", "Status": "passing"}
    agent.ask("PUT", "agent/service/register", {"Name": "web", "Port": 80, "Tags": ["a"], "Meta": {"b": "c"}, "Check": check})
    agent.ask("PUT", "kv/k/l", "m")
    agent.ask("PUT", "session/create", {"Name": "s"})
    [session] = agent.ask("GET", "session/list")
    agent.ask("POST", "query", {"Name": "web", "Service": {"Service": "web"}})
    known = {"id": ["web", session["ID"]], "name": ["web", "n1"], "node": ["n1"], "key": ["k", "k/l"], "state": ["any", "critical"]}
    chosen = [f"--seed={SEED}"] if SEED else ["--generation-deterministic"]
    options = [f"--max-examples={EXAMPLES}", "--phases=coverage,fuzzing", "--request-timeout=10", "--no-shrink", "--no-color", *chosen]
    options += [f"--checks={','.join(CHECKS)}", "--continue-on-failure", "--suppress-health-check=all"]
    options += [f"--exclude-path=/v1/{path}" for path in LEFT_OUT]
    command = ["-m", "schemathesis.cli", "run", f"{URL}plait/openapi.json", *options]
    done = agent.program(*command, timeout_s=120 + 30 * EXAMPLES, SCHEMATHESIS_HOOKS="hooks", FUZZ_KNOWN=json.dumps(known))
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr[-3000:]
    return done.stdout


def test_every_operation_answers_as_it_is_described_and_keeps_nothing(agent: Agent) -> None:
    operations = sum(len(methods) for methods in agent.ask("GET", "plait/openapi.json")["paths"].values())
    before = agent.memory()
    report = schemathesis(agent)
    assert f"Tested: {operations - len(LEFT_OUT)}\n" in report, report
    told = re.search(r"(\d+) generated, (\d+) passed", report)
    assert told is not None and int(told[1]) == int(told[2]) > 8000
    assert "service_registered" in agent.log.read_text(), "some of it was valid"
    assert agent.memory() - before < GROWTH_BYTES


def test_requests_that_no_description_allows_are_answered_too(agent: Agent) -> None:
    def nonsense(seed: int) -> dict[str, int]:
        done = agent.program(str(HERE / "nonsense.py"), str(seed), str(NONSENSE), timeout_s=120)
        assert done.returncode == 0, done.stderr[-3000:]
        told = json.loads(done.stdout)
        assert told["wrong"] == []
        found: dict[str, int] = told["statuses"]
        return found

    statuses = nonsense(int(SEED or "1"))
    assert {"200", "400", "404", "405", "413", "431", "500"} <= statuses.keys()
    assert sum(statuses.values()) == NONSENSE
    before = agent.memory()
    nonsense(int(SEED or "1"))
    assert agent.memory() - before < GROWTH_BYTES / 2, "the first round has filled all caches"
