# SPDX-License-Identifier: Apache-2.0
"""YAML (and JSON, which is YAML) -> values that know their line. Pure.

Made from libyaml's events, which never recurse, instead of PyYAML's objects: nothing in a file can make an object, and depth and size are
bounded before anything walks the result, aliases that multiply included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml  # type: ignore[import-untyped]

from plait.model.errors import ConfigError

MAX_DEPTH, MAX_SIZE = 40, 400_000
"""Levels, and values with all that aliases repeat; a policy of Kubernetes has ten levels, 10,000 rules some 200,000 values."""
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL = re.compile(r"(?:~|null|Null|NULL)?", re.ASCII)
_BOOL = re.compile(r"(?:y|n|yes|no|true|false|on|off)", re.ASCII | re.IGNORECASE)
_INT = re.compile(r"[-+]?[0-9]{1,20}", re.ASCII)
_NUMBER = re.compile(
    r"[-+]?(?:[0-9][0-9_,]*\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|0[xo][0-9a-fA-F_]+|[-+]?\.inf|\.nan", re.ASCII | re.IGNORECASE
)

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Value:
    """What stands at `line` (from 1). A float is some number that is no whole one, whichever."""

    content: Mapping[str, Value] | tuple[Value, ...] | Scalar
    line: int
    size: int = 1

    def plain(self) -> Any:
        """The same without lines."""
        if isinstance(self.content, Mapping):
            return {key: value.plain() for key, value in self.content.items()}
        return [value.plain() for value in self.content] if isinstance(self.content, tuple) else self.content


@dataclass(slots=True)
class _Open:
    """A mapping or list that has begun. `key` is that of the value to come."""

    line: int
    anchor: str | None
    fields: dict[str, Value] | None
    items: list[Value] = field(default_factory=list)
    key: str | None = None

    def close(self) -> Value:
        inner = list(self.fields.values()) if self.fields is not None else self.items
        return Value(self.fields if self.fields is not None else tuple(inner), self.line, 1 + sum(value.size for value in inner))


def documents(text: str) -> list[Value]:
    """The documents of a file, empty ones left out. ConfigError with the line of what is no YAML, or of more than a policy needs."""
    try:
        return [value for value in _Builder().build(yaml.parse(text, Loader=_LOADER)) if value.content is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        why = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise ConfigError(f"line {mark.line + 1}" if mark else "the file", _shown(text, mark), f"is no YAML: {why}") from error


def _shown(text: str, mark: Any) -> str:
    lines = text.splitlines()
    return lines[mark.line].strip()[:60] if mark is not None and mark.line < len(lines) else ""


class _Builder:
    """Values from events."""

    def __init__(self) -> None:
        self._open: list[_Open] = []
        self._anchors: dict[str, Value] = {}

    def build(self, events: Iterator[Any]) -> Iterator[Value]:
        for event in events:
            done = self._take(event, event.start_mark.line + 1)
            if done is None:
                continue
            if not self._open:
                yield done
                self._anchors.clear()
            else:
                self._add(done)

    def _take(self, event: Any, line: int) -> Value | None:
        """The value that `event` completes."""
        match event:
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._begin(event, line)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                ended = self._open.pop()
                return self._named(ended.anchor, ended.close())
            case yaml.ScalarEvent():
                return self._named(event.anchor, Value(_scalar(event, line), line))
            case yaml.AliasEvent():
                known = self._anchors.get(event.anchor)
                if known is None:
                    raise ConfigError(f"line {line}", f"*{event.anchor}", "repeats what is not there, or not yet whole")
                return known
        return None

    def _begin(self, event: Any, line: int) -> None:
        if event.tag is not None:
            raise ConfigError(f"line {line}", event.tag, "is a tag, which no policy has")
        if len(self._open) >= MAX_DEPTH:
            raise ConfigError(f"line {line}", "…", f"lies deeper than {MAX_DEPTH} levels")
        self._open.append(_Open(line, event.anchor, {} if isinstance(event, yaml.MappingStartEvent) else None))

    def _named(self, anchor: str | None, value: Value) -> Value:
        if value.size > MAX_SIZE:
            raise ConfigError(f"line {value.line}", "…", f"has more than {MAX_SIZE} values", "apply it in several files")
        if anchor is not None:
            self._anchors[anchor] = value
        return value

    def _add(self, value: Value) -> None:
        around = self._open[-1]
        if around.fields is None:
            around.items.append(value)
        elif around.key is None:
            if not isinstance(value.content, str):
                raise ConfigError(f"line {value.line}", value.plain(), "is the name of a field and no text", "quote it")
            if value.content in around.fields:
                raise ConfigError(f"line {value.line}", value.content, "stands here twice")
            around.key = value.content
        else:
            around.fields[around.key], around.key = value, None


def written(value: Any) -> str:
    """YAML that `documents` reads as `value`."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes what would be read as no text."""


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if isinstance(_plain(text), str) else "'")


_Dumper.add_representer(str, _quoted)


def _scalar(event: Any, line: int) -> Scalar:
    if event.tag is not None and event.tag != "!":
        raise ConfigError(f"line {line}", event.tag, "is a tag, which no policy has")
    text: str = event.value
    return _plain(text) if event.implicit[0] else text


def _plain(text: str) -> Scalar:
    """An unquoted word as YAML 1.1 takes it, like kubectl does: `yes` is no text."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() in ("y", "yes", "true", "on")
    if _INT.fullmatch(text):
        return int(text)
    return 0.5 if _NUMBER.fullmatch(text) else text
