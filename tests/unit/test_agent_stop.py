# SPDX-License-Identifier: Apache-2.0
"""`plait down` and the agent that it has to stop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from plait.agent import main
from plait.model.errors import PlaitError

HOLDER = """
import fcntl, os, signal, sys, time
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(sys.argv[1], "a+") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    lock.write(f"{os.getpid()}\\n")
    lock.flush()
    print("held", flush=True)
    time.sleep(60)
"""
"""Holds the lock as an agent does."""


@pytest.mark.parametrize("kind", ["deaf", "ready"])
def test_an_agent_is_asked_once_and_one_that_does_not_stop_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    assert not main._stop_agent(tmp_path), "none has run here"
    monkeypatch.setattr(main, "_STOP_TIMEOUT_S", 0.5 if kind == "deaf" else 10.0)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "agent.lock"), kind], stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None and agent.stdout.readline() == b"held\n"
        if kind == "deaf":
            with pytest.raises(PlaitError, match=rf"the agent \(pid {agent.pid}\) did not stop within 0 s; end it by hand"):
                main._stop_agent(tmp_path)
            agent.kill()
        else:
            assert main._stop_agent(tmp_path)
    assert not main._stop_agent(tmp_path), "none runs any more"
