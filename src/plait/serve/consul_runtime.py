# SPDX-License-Identifier: Apache-2.0
"""What the agent says of its own process: metrics, log lines as they occur, the machine it runs on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Protocol

from plait.http.message import Answer
from plait.serve.consul_http import Call, Route, StreamAnswer, encoded, json_answer, text_answer
from plait.services.figures import Interval, Reading, consul_json, prometheus_text
from plait.services.requests import BadRequest

log = logging.getLogger("plait.monitor")
_LEVELS: Mapping[str, int] = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "err": logging.ERROR,
    "error": logging.ERROR,
}
_WAITING_LINES = 512
"""Lines that a slow reader may lag behind; further ones are lost to it."""


class Figures(Protocol):
    """The figures of the agent."""

    def read(self) -> list[Reading]:
        """All, since it started."""
        ...

    def latest(self) -> Interval:
        """What happened in the ten seconds that ended last."""
        ...

    def intervals(self) -> AsyncGenerator[Interval]:
        """Each ten seconds as they end."""
        ...


class RuntimeApi:
    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        self.routes = (
            Route("agent/metrics", "figures of ten seconds; since the start with `format=prometheus`", {"GET": self._metrics}),
            Route("agent/metrics/stream", "the same, a line of JSON each ten seconds, until the client goes", {"GET": self._stream}),
            Route("agent/monitor", "log lines as they occur, until the client goes; `loglevel`, `logjson`", {"GET": self._monitor}),
            Route("agent/host", "the machine", {"GET": self._host}),
        )

    async def _metrics(self, call: Call) -> Answer:
        if call.one("format") == "prometheus" or "openmetrics" in call.accept or "text/plain" in call.accept:
            text = prometheus_text(self._figures.read())
            return text_answer(200, text, {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})
        return json_answer(encoded(consul_json(self._figures.latest()), call.flag("pretty")))

    async def _stream(self, call: Call) -> Answer:
        return StreamAnswer(_rows(self._figures.intervals()), "application/json")

    async def _monitor(self, call: Call) -> Answer:
        level = _LEVELS.get((call.one("loglevel") or "info").lower())
        if level is None:
            raise BadRequest(f"Unknown log level: {call.one('loglevel')}")
        return StreamAnswer(_lines(level))

    async def _host(self, call: Call) -> Answer:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        free = os.sysconf("SC_AVPHYS_PAGES") * size
        kernel = platform.uname()
        body = {
            "Memory": {"total": pages * size, "available": free, "used": pages * size - free},
            "CPU": [{"cpu": number, "modelName": platform.processor()} for number in range(os.cpu_count() or 1)],
            "Host": {"hostname": kernel.node, "os": kernel.system.lower(), "kernelVersion": kernel.release, "kernelArch": kernel.machine},
            "Disk": _disk(),
            "CollectionTime": time.time_ns(),
            "Errors": None,
        }
        return json_answer(encoded(body, call.flag("pretty")))


def _disk() -> dict[str, object]:
    """The file system that the agent's data is on, as the machine sees it. Source: statvfs(3)."""
    found = os.statvfs("/")
    total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    used = total - found.f_bfree * found.f_frsize
    inodes = {"inodesTotal": found.f_files, "inodesFree": found.f_ffree, "inodesUsed": found.f_files - found.f_ffree}
    share = 100 * used / (used + free) if used + free else 0.0
    return {"path": "/", "total": total, "free": free, "used": used, "usedPercent": share, **inodes}


async def _rows(intervals: AsyncGenerator[Interval]) -> AsyncGenerator[bytes]:
    async with contextlib.aclosing(intervals):
        async for found in intervals:
            yield encoded(consul_json(found), False) + b"\n"


async def _lines(level: int) -> AsyncGenerator[bytes]:
    queue: asyncio.Queue[bytes] = asyncio.Queue(_WAITING_LINES)
    root = log.parent or log
    handler = _Tap(queue, asyncio.get_running_loop(), level)
    if root.handlers:
        handler.setFormatter(root.handlers[0].formatter)
    root.addHandler(handler)
    try:
        while True:
            yield await queue.get()
    finally:
        root.removeHandler(handler)


class _Tap(logging.Handler):
    """Puts lines into a queue of the loop, from whatever thread they come."""

    def __init__(self, queue: asyncio.Queue[bytes], loop: asyncio.AbstractEventLoop, level: int) -> None:
        super().__init__(level)
        self._queue, self._loop = queue, loop

    def emit(self, record: logging.LogRecord) -> None:
        self._loop.call_soon_threadsafe(self._offer, self.format(record).encode() + b"\n")

    def _offer(self, line: bytes) -> None:
        if not self._queue.full():
            self._queue.put_nowait(line)
