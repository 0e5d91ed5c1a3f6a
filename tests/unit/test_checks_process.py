# SPDX-License-Identifier: Apache-2.0
"""Checks that run programs: scripts with real processes, systemd with a stand-in of `systemctl`, containers with a fake engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.support.files import open_files

from plait.checks.command import Commands, shell_args
from plait.checks.process import _Output
from plait.checks.runners import Runners
from plait.model.discovery import CheckDefinition
from plait.model.errors import EngineUnavailable, NotFound
from plait.services.health import Result


async def once(definition: CheckDefinition, commands: Commands | None = None) -> Result:
    runners = Runners(commands)
    try:
        return await runners.run(definition)
    finally:
        await runners.close()


def script(*args: str, timeout: float = 10.0, output_max: int = 4096) -> CheckDefinition:
    return CheckDefinition(kind="script", args=args, interval=1, timeout=timeout, output_max=output_max)


def gone(pid: int) -> bool:
    """Whether the process has ended (a zombie of somebody else has too)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except FileNotFoundError:
        return True


def children() -> set[int]:
    """Of this process, those that have ended included while nobody has waited for them. Other tests may have left some."""
    found = set[int]()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if int(stat.read_text().rpartition(") ")[2].split()[1]) == os.getpid():
                found.add(int(stat.parent.name))
    return found


async def eventually_gone(pid: int) -> None:
    for _ in range(100):
        if gone(pid):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"process {pid} still runs")


@pytest.mark.parametrize(("code", "status"), [(0, "passing"), (1, "warning"), (2, "critical"), (127, "critical")])
async def test_the_exit_status_is_the_verdict_and_both_outputs_are_kept(code: int, status: str) -> None:
    result = await once(script("sh", "-c", f"echo out; echo err >&2; exit {code}"))
    assert result == Result(status, "out\nerr\n")  # type: ignore[arg-type]


async def test_a_script_that_a_signal_ends_is_critical() -> None:
    assert (await once(script("sh", "-c", "kill -9 $$"))).status == "critical"


async def test_the_end_of_a_long_output_is_kept_with_its_length() -> None:
    result = await once(script("sh", "-c", "yes x | head -c 300000; echo END", output_max=10))
    assert result == Result("passing", "Captured 10 of 300004 bytes\n...\nx\nx\nx\nEND\n")


@pytest.mark.parametrize(
    ("args", "said"), [(("/no/such/program",), "no such file"), (("/etc/passwd",), "permission denied"), (("a\0b",), "null")]
)
async def test_a_program_that_cannot_be_run_is_critical_and_says_why(args: tuple[str, ...], said: str) -> None:
    result = await once(script(*args))
    assert result.status == "critical" and result.output.startswith("cannot run ") and said in result.output


async def test_a_script_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    began = time.monotonic()
    result = await once(script("sh", "-c", f"sleep 100 & echo $! >> {pids}; trap '' TERM; echo $$ >> {pids}; sleep 100", timeout=0.5))
    assert time.monotonic() - began < 5
    assert result == Result("critical", "script check sh: no answer within 0.5 s", timed_out=True)
    for pid in pids.read_text().split():
        await eventually_gone(int(pid))


async def test_what_a_script_leaves_behind_is_killed_and_not_waited_for(tmp_path: Path) -> None:
    began = time.monotonic()
    result = await once(script("sh", "-c", "sleep 100 & echo $!"))
    assert result.status == "passing" and time.monotonic() - began < 5
    await eventually_gone(int(result.output))


async def test_a_script_that_never_stops_writing_leaves_the_loop_free() -> None:
    check = asyncio.ensure_future(once(script("yes", timeout=0.6)))
    longest, last = 0.0, time.monotonic()
    while not check.done():
        await asyncio.sleep(0.005)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert (await check).timed_out and longest < 0.3


@pytest.mark.timeout(10)
async def test_what_never_runs_dry_is_read_in_portions() -> None:
    source = os.open("/dev/zero", os.O_RDONLY)
    output = _Output(source, 10)
    output.read(asyncio.get_running_loop())
    os.close(source)
    assert output.tail == bytes(10) and 0 < output.total < 1 << 20


async def test_many_scripts_leave_neither_files_nor_zombies() -> None:
    await once(script("true"))
    before, others = open_files(), children()
    await asyncio.gather(*(once(script("true")) for _ in range(30)))
    assert open_files() <= before
    assert children() <= others


# --- services of the system


@pytest.mark.parametrize(
    ("says", "code", "status", "output"),
    [
        ("active", 0, "passing", 'The service "nginx.service" is running (active)'),
        ("reloading", 0, "passing", 'The service "nginx.service" is running (reloading)'),
        ("inactive", 3, "critical", 'The service "nginx.service" is not running (inactive)'),
        ("failed", 3, "critical", 'The service "nginx.service" is not running (failed)'),
        ("activating", 3, "warning", 'Unable to tell whether "nginx.service" runs: activating'),
        ("", 1, "warning", 'Unable to tell whether "nginx.service" runs: systemctl says nothing'),
    ],
)
async def test_the_state_of_a_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, code: int, status: str, output: str) -> None:
    stand_in = tmp_path / "systemctl"
    stand_in.write_text(f'#!/bin/sh\n[ "$*" = "is-active -- nginx.service" ] || exit 9\n[ -z "{says}" ] || echo {says}\nexit {code}\n')
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    check = CheckDefinition(kind="os_service", target="nginx.service", interval=1, timeout=5)
    assert await once(check) == Result(status, output)  # type: ignore[arg-type]


async def test_without_systemd_the_state_cannot_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = await once(CheckDefinition(kind="os_service", target="nginx", interval=1, timeout=5))
    assert result.status == "warning" and "no such file" in result.output


# --- commands in containers


class FakeEngine:
    """Runs commands as it is told to."""

    def __init__(self) -> None:
        self.started: list[tuple[str, tuple[str, ...]]] = []
        self.code: int | None = 0
        self.hangs = False
        self.absent = False

    async def exec_start(self, container: str, args: Sequence[str]) -> str:
        if self.absent:
            raise NotFound(f"No such container: {container}")
        self.started.append((container, tuple(args)))
        return f"e{len(self.started)}"

    async def exec_output(self, key: str, keep: int) -> tuple[bytes, int]:
        if self.hangs:
            await asyncio.sleep(100)
        return b"0123456789"[-keep:], 10

    async def exec_code(self, key: str) -> int | None:
        if self.absent:
            raise NotFound("No such exec instance")
        return None if self.hangs else self.code


def docker(*args: str, shell: str = "", timeout: float = 5.0, output_max: int = 4096) -> CheckDefinition:
    return CheckDefinition(kind="docker", target="web", args=args, shell=shell, interval=1, timeout=timeout, output_max=output_max)


async def test_a_command_in_a_container_is_judged_by_its_exit_status() -> None:
    engine = FakeEngine()
    assert await once(docker("true"), engine) == Result("passing", "0123456789")
    engine.code = 1
    assert (await once(docker("true", output_max=4), engine)) == Result("warning", "Captured 4 of 10 bytes\n...\n6789")
    engine.code = 2
    assert (await once(docker("true"), engine)).status == "critical"


async def test_a_command_that_hangs_is_not_started_again_beside_itself() -> None:
    engine, check = FakeEngine(), docker("hang", timeout=0.1)
    runners = Runners(engine)
    engine.hangs = True
    assert (await runners.run(check)).timed_out
    again = await runners.run(check)
    assert again.status == "critical" and "still runs in container web" in again.output and len(engine.started) == 1
    engine.hangs = False
    assert (await runners.run(check)).status == "passing" and len(engine.started) == 2
    await runners.close()


async def test_a_container_that_is_gone_or_an_absent_engine_are_critical() -> None:
    engine, check = FakeEngine(), docker("x", timeout=0.1)
    engine.absent = True
    assert await once(check, engine) == Result("critical", "No such container: web")
    assert "runs no Docker Engine" in (await once(check)).output

    class Away(FakeEngine):
        async def exec_start(self, container: str, args: Sequence[str]) -> str:
            raise EngineUnavailable("is dockerd running?")

    assert await once(check, Away()) == Result("critical", "is dockerd running?")


async def test_a_container_that_was_made_anew_while_its_command_hung_is_asked_again() -> None:
    engine, check = FakeEngine(), docker("x", timeout=0.1)
    runners = Runners(engine)
    engine.hangs = True
    await runners.run(check)
    engine.absent = True
    assert (await runners.run(check)).output == "No such container: web"
    engine.hangs = engine.absent = False
    assert (await runners.run(check)).status == "passing"
    await runners.close()


def test_a_shell_gets_a_script_or_a_quoted_command_line() -> None:
    assert shell_args(docker("a", "b c")) == ("a", "b c")
    assert shell_args(docker("test -e /x && y", shell="/bin/sh")) == ("/bin/sh", "-c", "test -e /x && y")
    assert shell_args(docker("a", "b c", shell="/bin/sh")) == ("/bin/sh", "-c", "a 'b c'")
