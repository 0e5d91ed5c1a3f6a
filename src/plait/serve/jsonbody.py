# SPDX-License-Identifier: Apache-2.0
"""Requests of the admin API and their bodies: a JSON object -> typed values, or a ConfigError that names the key and what it must be."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple, TypeVar

from plait.http.message import Answer
from plait.model.errors import ConfigError

T = TypeVar("T")


class Call(NamedTuple):
    """A request after routing: the name in its path, the parameters of its query, its body."""

    name: str
    query: Mapping[str, list[str]]
    body: bytes


Handler = Callable[[Call], Awaitable[Answer]]


def json_answer(value: object, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), "application/json")


def read_body(raw: bytes, *known: str) -> Body:
    """A request's JSON object; an empty body is an empty object. ConfigError for anything else and for unknown keys."""
    try:
        value = json.loads(raw) if raw else {}
    except (ValueError, RecursionError) as error:
        raise ConfigError("request body", raw[:80].decode(errors="replace"), "is not JSON") from error
    if not isinstance(value, dict):
        raise ConfigError("request body", type(value).__name__, "must be a JSON object")
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise ConfigError("request body", unknown[0], "is not a known key", f"known are {', '.join(known)}")
    return Body(value)


class Body:
    """Typed access to a JSON object; null is as good as absent. Every method raises ConfigError naming the key."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = {key: value for key, value in values.items() if value is not None}

    def has(self, key: str) -> bool:
        return key in self._values

    def text(self, key: str, default: str | None = None) -> str:
        value = self._values.get(key, default)
        if not isinstance(value, str) or (default is None and not value):
            raise ConfigError(key, value, "must be a text" + (" that is not empty" if default is None else ""))
        return value

    def number(self, key: str, default: int | None, least: int, most: int) -> int:
        value = self._values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ConfigError(key, value, f"must be a whole number from {least} to {most}")
        return value

    def flag(self, key: str) -> bool:
        value = self._values.get(key, False)
        if not isinstance(value, bool):
            raise ConfigError(key, value, "must be true or false")
        return value

    def parsed(self, key: str, parse: Callable[[str], T], what: str) -> T | None:
        if key not in self._values:
            return None
        text = self.text(key)
        try:
            return parse(text)
        except ValueError as error:
            raise ConfigError(key, text, f"must be {what}", str(error)) from error

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise ConfigError(key, value, "must be a list of texts")
        return tuple(value)

    def texts_by_name(self, key: str) -> dict[str, str]:
        value = self._values.get(key, {})
        if not isinstance(value, dict) or not all(isinstance(entry, str) for entry in value.values()):
            raise ConfigError(key, value, "must be an object whose values are texts")
        return value
