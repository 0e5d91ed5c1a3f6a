# SPDX-License-Identifier: Apache-2.0
"""The process of BIRD 2 that speaks with routers for this host: started, given its configuration, asked, ended.

It is a daemon: it outlives the agent, and the next one finds it by its control socket. A process that ended otherwise than by `stop` left
its pid file, and its successor takes up the sessions where they were (graceful restart).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
from pathlib import Path

from plait.agent.files import replace_file
from plait.model.errors import NotSupported, PlaitError

PROGRAM = "bird"
MISSING = "BIRD 2 is not installed: `apt install bird2`, and `systemctl disable --now bird` if the host needs none of its own"
ANSWER_S, START_S, END_S = 5.0, 10.0, 5.0
MOST_LINES = 20_000
_CODE = re.compile(r"(\d{4})([ -])(.*)", re.DOTALL)
_REFUSED = "89"
"""What reply codes of errors begin with (BIRD's doc/reply_codes): 8000 of the command, 9000 of its words."""


class BirdError(PlaitError):
    """BIRD does not run, does not answer, or refuses what it is asked."""


class BirdProcess:
    """`run` is the directory of its files. One caller at a time."""

    def __init__(self, run: Path) -> None:
        self._config, self._socket, self._pid, self.log = (run / f"bird.{end}" for end in ("conf", "ctl", "pid", "log"))
        self.starts = 0

    async def bring(self, config: str) -> bool:
        """Have a process run by `config`. True if something was done for it. NotSupported, BirdError: then the next call tries again."""
        fresh = not self._config.exists() or self._config.read_text() != config
        if fresh:
            replace_file(self._config, config, 0o600)
        try:
            if not await self._answers():
                await self._start()
                return True
            if fresh:
                await self.ask(f'configure "{self._config}"')
        except PlaitError:
            self._config.unlink()
            raise
        return fresh

    async def ask(self, command: str) -> list[str]:
        """The lines of its answer, without codes; at most `MOST_LINES`. BirdError."""
        try:
            async with asyncio.timeout(ANSWER_S):
                reader, writer = await asyncio.open_unix_connection(self._socket)
                with contextlib.closing(writer):
                    await _answer(reader)
                    writer.write(f"{command}\n".encode())
                    return await _answer(reader)
        except TimeoutError as error:
            raise BirdError(f"BIRD did not answer `{command}` within {ANSWER_S:.0f} s") from error
        except OSError as error:
            raise BirdError(f"BIRD cannot be asked at {self._socket}: {error.strerror or error}") from error

    async def stop(self) -> bool:
        """End the process; what it learned stays in the kernel. False if there is none."""
        pid = self._running()
        if pid:
            with contextlib.suppress(BirdError):
                await self.ask("down")
            for _ in range(int(END_S / 0.02)):
                if not self._running():
                    break
                await asyncio.sleep(0.02)
            else:
                os.kill(pid, signal.SIGKILL)
        for path in (self._pid, self._socket, self._config):
            path.unlink(missing_ok=True)
        return bool(pid)

    async def _answers(self) -> bool:
        try:
            await self.ask("show status")
        except BirdError:
            return False
        return True

    async def _start(self) -> None:
        """One that hangs would keep the ports, and is ended first."""
        if shutil.which(PROGRAM) is None:
            raise NotSupported(MISSING)
        crashed = self._pid.exists()
        if pid := self._running():
            os.kill(pid, signal.SIGKILL)
        words = [PROGRAM, "-c", str(self._config), "-s", str(self._socket), "-P", str(self._pid), *(["-R"] if crashed else [])]
        child = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        self.starts += 1
        try:
            async with asyncio.timeout(START_S):
                said, _ = await child.communicate()
        except TimeoutError as error:
            child.kill()
            raise BirdError(f"BIRD did not start within {START_S:.0f} s") from error
        if child.returncode:
            raise BirdError(f"BIRD did not start: {said.decode(errors='replace').strip() or f'exit status {child.returncode}'}")

    def _running(self) -> int:
        """Its pid, 0 if there is none: a pid file may be older than the last boot."""
        with contextlib.suppress(OSError, ValueError):
            pid = int(self._pid.read_text())
            if str(self._socket).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return pid
        return 0


async def _answer(reader: asyncio.StreamReader) -> list[str]:
    """One whole answer: lines "NNNN-text" and " text" (with the code of the line before), the last "NNNN text". BirdError for a refusal."""
    lines: list[str] = []
    async for raw in reader:
        text = raw.decode(errors="replace").rstrip("\n")
        match = _CODE.match(text)
        if match is None:
            if len(lines) < MOST_LINES:
                lines.append(text[1:])
            continue
        code, more, rest = match.groups()
        if code[0] in _REFUSED:
            raise BirdError(f"BIRD refuses: {rest}")
        if len(lines) < MOST_LINES:
            lines.append(rest)
        if more == " ":
            return lines
    raise BirdError("BIRD closed its control socket in the middle of an answer")
