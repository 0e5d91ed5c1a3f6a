# SPDX-License-Identifier: Apache-2.0
"""`plait wait` against an agent's admin socket: ready at once, ready later, never ready, not there, broken."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from plait.cli.main import main
from plait.client.admin import AdminClient, Refused
from plait.serve.admin import AdminServer


class Backend:
    """Waits for the given things, one a question, then is ready; the last one for ever if `stuck`."""

    def __init__(self, *waiting: str, stuck: bool = False) -> None:
        self._waiting, self._stuck = list(waiting), stuck
        self.asked = 0

    async def ready(self) -> str:
        self.asked += 1
        if not self._waiting:
            return ""
        return self._waiting[0] if self._stuck and len(self._waiting) == 1 else self._waiting.pop(0)

    def __getattr__(self, name: str) -> object:
        return self.ready


async def wait(path: Path, timeout: str) -> int:
    return await asyncio.to_thread(main, ["wait", "--timeout", timeout], AdminClient(path))


async def serve(backend: Backend, path: Path, timeout: str) -> int:
    server = AdminServer(backend, path)  # type: ignore[arg-type]
    await server.start()
    try:
        return await wait(path, timeout)
    finally:
        await server.stop()


async def test_a_ready_agent_ends_it_at_once_and_silently(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backend = Backend()
    assert await serve(backend, tmp_path / "sock", "0") == 0
    assert (backend.asked, capsys.readouterr()) == (1, ("", ""))


async def test_it_asks_again_until_the_agent_is_ready(tmp_path: Path) -> None:
    backend = Backend("its first block", "its first pass")
    assert await serve(backend, tmp_path / "sock", "20") == 0
    assert backend.asked == 3


async def test_after_the_timeout_it_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert await serve(Backend("a block", "names", stuck=True), tmp_path / "sock", "0.3") == 1
    assert capsys.readouterr().err == "plait: the agent of this host is not ready after 0.3 s; it waits for names\n"


async def test_an_absent_agent_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    waiting = asyncio.create_task(wait(tmp_path / "sock", "20"))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    server = AdminServer(Backend(), tmp_path / "sock")  # type: ignore[arg-type]
    await server.start()
    assert await waiting == 0
    await server.stop()
    assert await wait(tmp_path / "sock", "0") == 1
    assert "it waits for its process" in capsys.readouterr().err


async def test_an_error_inside_the_agent_is_told_in_its_own_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(Backend):
        async def ready(self) -> str:
            raise ValueError("broken")

    assert await serve(Broken(), tmp_path / "sock", "20") == 1
    assert "error inside the agent" in capsys.readouterr().err


async def test_the_client_keeps_errors_apart_from_not_ready(tmp_path: Path) -> None:
    class Broken(Backend):
        async def ready(self) -> str:
            raise ValueError("broken")

    server = AdminServer(Broken(), tmp_path / "sock")  # type: ignore[arg-type]
    await server.start()
    with pytest.raises(Refused):
        await asyncio.to_thread(AdminClient(tmp_path / "sock").ready)
    await server.stop()
