# SPDX-License-Identifier: Apache-2.0
"""A file of this host that is followed while it changes: text -> what it says.

A file that is wrong anywhere changes nothing: what was in force stays, also over a restart of the agent. An absent one is an empty one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from plait.agent.health import Health
from plait.agent.journal import Journal, Write
from plait.model.errors import ConfigError

EVERY_S = 1.0
"""Between two looks at the file."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kept:
    """What the file holds: its name in the journal and in sentences, and the condition while it is wrong."""

    what: str
    refused: str


class OwnFile(Generic[T]):
    """`value` is in force. `parse` takes text and path, raises ConfigError, and makes something of an empty text. `changed` is called when
    the text is another than before."""

    def __init__(
        self,
        path: Path,
        kept: Kept,
        parse: Callable[[str, str], T],
        journal: Journal,
        health: Health,
        changed: Callable[[], None],
    ) -> None:
        self._path, self._kept, self._parse = path, kept, parse
        self._journal, self._health, self._changed = journal, health, changed
        self._seen = journal.load("setting").get(kept.what, b"").decode()
        self.value = parse(self._seen, str(path))

    async def look(self) -> None:
        """Take the file as it is now."""
        try:
            text = await asyncio.to_thread(self._path.read_text)
        except FileNotFoundError:
            text = ""
        except (OSError, UnicodeDecodeError) as error:
            self._refuse(error)
            return
        try:
            value = self.value if text == self._seen else self._parse(text, str(self._path))
        except ConfigError as error:
            self._refuse(error)
            return
        self._health.clear(self._kept.refused, str(self._path))
        if text != self._seen:
            await self._journal.write([Write("setting", self._kept.what, text.encode() or None)])
            self._seen, self.value = text, value
            self._changed()

    def _refuse(self, error: Exception) -> None:
        why = f"{self._path} is not taken: {error}; the {self._kept.what} of before stay in force"
        self._health.set(self._kept.refused, str(self._path), why)

    async def run(self) -> None:
        """Never returns."""
        while True:
            await self.look()
            await asyncio.sleep(EVERY_S)
