# SPDX-License-Identifier: Apache-2.0
"""What dockerd asks of its plug-in, call by call, from files: for engines that cannot be had here.

A file has `source` (where the order and the shapes are from) and `steps`, each a list of the call, its body and the answer. In these,
`#name` stands for an id of 64 digits made of the name; `$name` for what an answer had in that place before, `$name.ip` for the address in
it; an answer's `~text` for whatever has that text in it, `*` for anything. The call `ports` is none of dockerd's: its answer lists what is
published, `HOST->PORT of ADDRESS`; a `$name` in it is a number.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILES = sorted((Path(__file__).parent.parent / "fixtures/docker/28").glob("*.json"))
Call = Callable[..., Awaitable[dict[str, Any]]]


@dataclass
class Play:
    """Plays files against a plug-in. `call(name, **body)` gives the answer of one call, `ports()` what is published. `seen` is told of
    every step after it was answered."""

    call: Call
    ports: Callable[[], Awaitable[list[str]]]
    seen: Callable[[str, Mapping[str, Any], Mapping[str, Any]], Awaitable[None]] | None = None
    known: dict[str, str] = field(default_factory=dict)

    async def file(self, path: Path) -> None:
        document = json.loads(path.read_text())
        assert document["source"], "a sequence that nobody can check is an assumption"
        for number, (name, body, expected) in enumerate(document["steps"], 1):
            where = f"{path.stem}, step {number}, {name}"
            if name == "ports":
                self._listed(expected, await self.ports(), where)
                continue
            sent = self._filled(body or {})
            answer = await self.call(name, **sent)
            self._compare(expected, answer, where)
            if self.seen is not None:
                await self.seen(name, sent, answer)

    def _filled(self, value: Any) -> Any:
        match value:
            case dict():
                return {key: self._filled(one) for key, one in value.items()}
            case list():
                return [self._filled(one) for one in value]
            case str() if value.startswith("#"):
                return hashlib.sha256(value.encode()).hexdigest()
            case str():
                for name in sorted(self.known, key=len, reverse=True):
                    value = value.replace(f"{name}.ip", self.known[name].partition("/")[0]).replace(name, self.known[name])
        return value

    def _listed(self, expected: list[str], found: list[str], where: str) -> None:
        left = list(found)
        for text in map(self._filled, expected):
            pattern = re.sub(r"\\\$(\w+)", r"(?P<\1>\\d+)", re.escape(text))
            match = next((match for one in left if (match := re.fullmatch(pattern, one))), None)
            assert match is not None, f"{where}: {text} is not in {found}"
            self.known |= {f"${name}": number for name, number in match.groupdict().items()}
            left.remove(match.group())
        assert not left, f"{where}: {left}"

    def _compare(self, expected: Any, found: Any, where: str) -> None:
        match expected:
            case dict():
                assert isinstance(found, dict) and found.keys() == expected.keys(), f"{where}: {found}"
                for key, one in expected.items():
                    self._compare(one, found[key], f"{where}, {key}")
            case list():
                assert isinstance(found, list) and len(found) == len(expected), f"{where}: {found}"
                for one, other in zip(expected, found, strict=True):
                    self._compare(one, other, where)
            case "*":
                assert found, where
            case str() if expected.startswith("~"):
                assert expected[1:] in found, f"{where}: {found}"
            case str() if expected.startswith("$") and expected not in self.known:
                assert isinstance(found, str) and found, where
                self.known[expected] = found
            case _:
                assert found == self._filled(expected), f"{where}: {found}, not {self._filled(expected)}"
