# SPDX-License-Identifier: Apache-2.0
"""`plait run`, `exec` and `rm` with real namespaces, on an agent reduced to making and removing them. No link leads anywhere."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from plait.kernel.linux.netns import create_netns, delete_netns
from plait.model.errors import Conflict, NotFound
from plait.model.report import SandboxView
from plait.model.requests import NewSandbox
from plait.serve.admin import AdminServer

pytestmark = pytest.mark.root
PROGRAM = (
    "import sys; from pathlib import Path; from plait.cli.main import main; from plait.client.admin import AdminClient; "
    "sys.exit(main(sys.argv[2:], obj=AdminClient(Path(sys.argv[1]))))"
)


class Namespaces:
    """The sandbox part of an `AdminBackend`: a namespace per sandbox, nothing plumbed; remembers the pids it was told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pids: dict[str, list[int]] = {}
        self.refuse_pid = False

    def __getattr__(self, name: str) -> Callable[[], object]:
        async def unused() -> object:
            raise NotFound(name)

        return unused

    async def create_sandbox(self, request: NewSandbox) -> SandboxView:
        if request.name in self.pids:
            raise Conflict(f"a sandbox named {request.name!r} runs on this node already")
        create_netns(self.folder / request.name)
        self.pids[request.name] = []
        return await self.sandbox(request.name)

    async def sandbox(self, name: str) -> SandboxView:
        if name not in self.pids:
            raise NotFound(f"there is no sandbox {name!r} on this node")
        return {
            "name": name,
            "network": "default",
            "netns": str(self.folder / name),
            "address": "10.28.0.2",
            "gateway": "10.28.0.1",
            "dns": ["10.28.0.1"],
            "search": "plait",
            "ports": [],
            "pid": (self.pids[name] or [0])[-1],
        }

    async def sandbox_started(self, name: str, pid: int) -> None:
        if self.refuse_pid:
            raise NotFound(f"process {pid} does not exist")
        os.kill(pid, 0)
        self.pids[name].append(pid)

    async def remove_sandbox(self, name: str) -> None:
        await self.sandbox(name)
        delete_netns(self.folder / name)
        del self.pids[name]


class Agent:
    """An `AdminServer` in a thread of its own, and the program `plait` talking to it."""

    def __init__(self, folder: Path) -> None:
        self.backend = Namespaces(folder)
        self.socket = folder / "plait.sock"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = AdminServer(self.backend, self.socket)
        asyncio.run_coroutine_threadsafe(self._server.start(), self._loop).result(5)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()
        for name in self.backend.pids:
            delete_netns(self.backend.folder / name)

    def popen(self, *words: str, through: Sequence[str] = ()) -> subprocess.Popen[str]:
        argv = [*through, sys.executable, "-c", PROGRAM, str(self.socket), *words]
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def plait(self, *words: str, through: Sequence[str] = ()) -> tuple[int, str, str]:
        with self.popen(*words, through=through) as process:
            out, err = process.communicate(timeout=20)
        return process.returncode, out, err


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    made = Agent(tmp_path)
    yield made
    made.close()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "did not happen within 10 s"
        time.sleep(0.02)


def own_netns() -> str:
    return os.readlink("/proc/self/ns/net")


def test_run_gives_the_command_its_own_network_and_resolver(agent: Agent) -> None:
    before = Path("/etc/resolv.conf").read_text()
    status, out, err = agent.plait(
        "run", "--name", "s", "--", "sh", "-c", "readlink /proc/self/ns/net; cat /etc/resolv.conf; stat -c %a /etc/resolv.conf; ls /run"
    )
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("net:[") and lines[0] != own_netns()
    assert lines[1:3] == ["nameserver 10.28.0.1", "search plait"]
    assert "644" in lines
    assert not any(line.startswith("plait-resolv-") for line in lines)
    assert Path("/etc/resolv.conf").read_text() == before
    assert agent.backend.pids == {} and not (agent.backend.folder / "s").exists()


@pytest.mark.parametrize(
    ("command", "expected"),
    [(["true"], 0), (["sh", "-c", "exit 41"], 41), (["sh", "-c", "kill -9 $$"], 137), (["/nonexistent"], 127), (["/etc/passwd"], 126)],
    ids=["success", "failure", "signal", "not-found", "not-executable"],
)
def test_run_passes_the_exit_status_on_and_leaves_nothing(agent: Agent, command: list[str], expected: int) -> None:
    for _ in range(2):  # the name is free again at once
        status, _, err = agent.plait("run", "--name", "s", "--", *command)
        assert status == expected
        assert err.startswith("plait: cannot run") if expected in (126, 127) else err == ""
    assert agent.backend.pids == {}


def test_options_after_the_command_are_its_own(agent: Agent) -> None:
    assert agent.plait("run", "--name", "s", "echo", "-d", "--name", "x") == (0, "-d --name x\n", "")


def test_signals_go_to_the_command(agent: Agent) -> None:
    script = "trap 'echo got' TERM; trap 'exit 7' USR1; echo ready; for i in $(seq 200); do sleep 0.05; done"
    with agent.popen("run", "--name", "s", "--", "sh", "-c", script) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)  # perhaps before the caller waits
        assert process.stdout.readline() == "got\n"
        process.send_signal(signal.SIGUSR1)  # surely afterwards
        assert process.wait(10) == 7
    assert agent.backend.pids == {}


@pytest.mark.parametrize("how", ["run", "exec"])
def test_the_command_ignores_no_signal_that_the_caller_ignores(agent: Agent, how: str) -> None:
    words = ["--", "sed", "-n", "s/^SigIgn:\t//p", "/proc/self/status"]
    if how == "exec":
        agent.plait("run", "--name", "s")
        status, out, _ = agent.plait("exec", "s", *words)
    else:
        status, out, _ = agent.plait("run", "--name", "s", *words)
    ignored = {signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGXFSZ}
    assert status == 0
    assert not any(int(out, 16) & 1 << number - 1 for number in ignored)


def test_the_agent_knows_the_caller_first_and_then_the_command(agent: Agent) -> None:
    with agent.popen("run", "--name", "s", "--", "sh", "-c", "echo $$; read _ < /dev/null; sleep 0.3") as process:
        assert process.stdout is not None
        inner = int(process.stdout.readline())
        until(lambda: agent.backend.pids.get("s") == [process.pid, inner])
        assert process.wait(10) == 0


def test_a_refused_pid_removes_the_sandbox(agent: Agent) -> None:
    agent.backend.refuse_pid = True
    status, _, err = agent.plait("run", "--name", "s", "--", "true")
    assert (status, agent.backend.pids) == (1, {})
    assert err.startswith("plait: process ")


def test_detach_returns_at_once_and_rm_ends_the_command(agent: Agent) -> None:
    assert agent.plait("run", "-d", "--name", "s", "--", "sleep", "60") == (0, "s\n", "")
    pid = agent.backend.pids["s"][-1]
    assert Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/fd/1") == "/dev/null"
    assert agent.plait("rm", "s") == (0, "s\n", "")
    until(lambda: not Path(f"/proc/{pid}/ns/net").exists() or "State:\tZ" in Path(f"/proc/{pid}/status").read_text())
    assert agent.backend.pids == {}


def test_exec_enters_a_sandbox_that_stays(agent: Agent) -> None:
    assert agent.plait("run", "--name", "s") == (0, "s\n", "")
    first = agent.plait("exec", "s", "--", "readlink", "/proc/self/ns/net")
    assert first == agent.plait("exec", "s", "readlink", "/proc/self/ns/net") and first[0] == 0
    assert first[1].strip() != own_netns()
    assert agent.plait("exec", "s", "--", "sh", "-c", "grep -c nameserver /etc/resolv.conf; exit 3")[:2] == (3, "1\n")
    assert agent.plait("exec", "s", "--", "/nonexistent")[0] == 127
    assert agent.plait("exec", "other", "--", "true")[2] == "plait: there is no sandbox 'other' on this node\n"
    assert agent.plait("rm", "s") == (0, "s\n", "")


def test_rm_kills_what_does_not_listen(agent: Agent) -> None:
    agent.plait("run", "-d", "--name", "s", "--", "sh", "-c", "trap '' TERM; sleep 30")
    pid = agent.backend.pids["s"][-1]
    began = time.monotonic()
    assert agent.plait("rm", "s")[0] == 0
    assert 4.5 < time.monotonic() - began < 10
    until(lambda: not Path(f"/proc/{pid}/ns/net").exists() or "State:\tZ" in Path(f"/proc/{pid}/status").read_text())


def test_rm_never_stops_what_runs_in_the_callers_own_namespace(agent: Agent) -> None:
    """The caller is alone in a fresh namespace, so that a broken guard ends nothing but the caller."""
    agent.backend.pids["s"] = []
    (agent.backend.folder / "s").symlink_to("/proc/self/ns/net")
    status, _, err = agent.plait("rm", "s", through=["unshare", "--net"])
    assert status == 1 and "nothing was stopped" in err


def test_a_name_in_use_is_refused_and_stays(agent: Agent) -> None:
    agent.plait("run", "--name", "s")
    assert agent.plait("run", "--name", "s", "--", "true") == (1, "", "plait: a sandbox named 's' runs on this node already\n")
    assert "s" in agent.backend.pids
