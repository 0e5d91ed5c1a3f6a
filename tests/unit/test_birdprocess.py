# SPDX-License-Identifier: Apache-2.0
"""BIRD's control socket and process, each played by a program of the test: answers, refusals, silence, crashes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from plait.agent import birdprocess
from plait.agent.birdprocess import BirdError, BirdProcess
from plait.model.errors import NotSupported

PROGRAM = """#!/usr/bin/env python3
import os, socket, sys
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder = os.path.dirname(sys.argv[sys.argv.index("-s") + 1])
open(folder + "/words", "a").write(" ".join(sys.argv[1:]) + "\\n")
if os.path.exists(folder + "/broken"):
    sys.exit("bird.conf:3:1 syntax error")
server = socket.socket(socket.AF_UNIX)
path = sys.argv[sys.argv.index("-s") + 1]
if os.path.exists(path):
    os.unlink(path)
server.bind(path)
server.listen()
pid_file = sys.argv[sys.argv.index("-P") + 1]
if os.fork():
    while not os.path.exists(pid_file) or not open(pid_file).read().endswith("\\n"):
        pass
    os._exit(0)
null = os.open("/dev/null", os.O_RDWR)
for number in range(3):
    os.dup2(null, number)
open(pid_file, "w").write(str(os.getpid()) + "\\n")
while True:
    peer, _ = server.accept()
    peer.sendall(b"0001 BIRD ready.\\n")
    asked = peer.recv(1000).decode().strip()
    open(folder + "/asked", "a").write(asked + "\\n")
    if asked == "down" and not os.path.exists(folder + "/stubborn"):
        peer.sendall(b"7000 Shutdown requested\\n")
        sys.exit(0)
    if asked.startswith("configure") and os.path.exists(folder + "/broken"):
        peer.sendall(b"0002-Reading\\n8002 bird.conf:3:1 syntax error\\n")
    else:
        peer.sendall(b"1000-BIRD\\n1011-one\\n two\\n\\n0013 \\n")
    peer.close()
"""


@pytest.fixture
async def bird(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BirdProcess]:
    program = tmp_path / "bin/bird"
    program.parent.mkdir()
    program.write_text(PROGRAM)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    made = BirdProcess(tmp_path)
    yield made
    monkeypatch.setattr(birdprocess, "END_S", 0.1)
    await made.stop()


def said(folder: Path, what: str) -> list[str]:
    return (folder / what).read_text().splitlines()


async def test_it_is_started_once_told_of_changes_and_found_again(bird: BirdProcess, tmp_path: Path) -> None:
    assert await bird.bring("one") and bird.starts == 1
    assert stat.S_IMODE((tmp_path / "bird.conf").stat().st_mode) == 0o600, "it may hold passwords"
    assert not await bird.bring("one"), "nothing to do"
    assert await bird.bring("two") and bird.starts == 1 and said(tmp_path, "asked")[-1] == f'configure "{tmp_path}/bird.conf"'
    later = BirdProcess(tmp_path)
    assert not await later.bring("two") and later.starts == 0, "the next agent has the same one"
    assert "-R" not in said(tmp_path, "words")[0]


async def test_what_crashed_is_started_to_take_up_where_it_was(bird: BirdProcess, tmp_path: Path) -> None:
    await bird.bring("one")
    pid = int((tmp_path / "bird.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    gone(pid)
    assert await bird.bring("one") and bird.starts == 2 and said(tmp_path, "words")[1].endswith("-R")


async def test_answers_have_no_codes(bird: BirdProcess) -> None:
    await bird.bring("one")
    assert await bird.ask("show status") == ["BIRD", "one", "two", "", ""]


async def test_what_is_refused_is_refused_again_until_it_is_right(bird: BirdProcess, tmp_path: Path) -> None:
    await bird.bring("one")
    (tmp_path / "broken").touch()
    for _ in range(2):
        with pytest.raises(BirdError, match=r"BIRD refuses: bird\.conf:3:1 syntax error"):
            await bird.bring("bad")
    await bird.stop()
    for _ in range(2):
        with pytest.raises(BirdError, match=r"BIRD did not start: .*syntax error"):
            await bird.bring("bad")


async def test_it_ends_when_asked_or_by_force_and_leaves_nothing(
    bird: BirdProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not await bird.stop(), "there is none"
    await bird.bring("one")
    pid = int((tmp_path / "bird.pid").read_text())
    assert await bird.stop()
    gone(pid)
    monkeypatch.setattr(birdprocess, "END_S", 0.1)
    (tmp_path / "stubborn").touch()
    await bird.bring("one")
    pid = int((tmp_path / "bird.pid").read_text())
    assert await bird.stop()
    gone(pid)
    assert not list(tmp_path.glob("bird.*"))


async def test_a_pid_of_another_program_is_left_alone(bird: BirdProcess, tmp_path: Path) -> None:
    other = await asyncio.create_subprocess_exec("sleep", "60")
    (tmp_path / "bird.pid").write_text(f"{other.pid}\n")
    assert not await bird.stop() and other.returncode is None
    other.kill()
    await other.wait()


async def test_silence_and_absence_have_an_end(bird: BirdProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BirdError, match=r"BIRD cannot be asked at .*bird\.ctl: No such file"):
        await bird.ask("show status")
    monkeypatch.setattr(birdprocess, "ANSWER_S", 0.05)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "bird.ctl"))
        silent.listen()
        with pytest.raises(BirdError, match="BIRD did not answer `show status` within"):
            await bird.ask("show status")
    (tmp_path / "bird.ctl").unlink()
    ended = await asyncio.start_unix_server(lambda _reader, writer: writer.close(), tmp_path / "bird.ctl")
    with pytest.raises(BirdError, match="in the middle of an answer"):
        await bird.ask("show status")
    ended.close()


async def test_without_the_program_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotSupported, match="apt install bird2"):
        await BirdProcess(tmp_path).bring("one")


def gone(pid: int) -> None:
    """Fails the test if the process does not end within seconds; a zombie has ended."""
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return
        except OSError:
            return
        time.sleep(0.01)
    pytest.fail(f"process {pid} lives on")
