# SPDX-License-Identifier: Apache-2.0
"""A value of a file with its place, and what may be asked of it. Every refusal names line, field and reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from plait.model.errors import ConfigError
from plait.policy.document import Value

T = TypeVar("T")
W = TypeVar("W", bound=str)
_SHOWN = 80
_KINDS: Mapping[type, str] = {dict: "a mapping", tuple: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}


@dataclass(frozen=True, slots=True)
class Field:
    """`path` as it is said in Kubernetes: `spec.ingress[0].from[1]`."""

    value: Value
    path: str = ""

    def refused(self, why: str, hint: str = "") -> ConfigError:
        """The error of this field, to be raised."""
        content = self.value.content
        shown = content if not isinstance(content, dict | tuple) else "{…}" if isinstance(content, dict) else "[…]"
        if isinstance(shown, str):
            shown = shown[:_SHOWN]
        return ConfigError(f"line {self.value.line}, {self.path or 'the document'}", shown, why, hint)

    def fields(self, *known: str, others: bool = False) -> dict[str, Field]:
        """The fields of a mapping that are there; null ones are not. Others than the `known` are refused unless `others`."""
        content = self.value.content
        if not isinstance(content, dict):
            raise self.refused(f"is {self._kind()}, not a mapping")
        found = {key: Field(value, f"{self.path}.{key}" if self.path else key) for key, value in content.items()}
        for key, one in found.items():
            if not others and key not in known:
                raise one.refused("is a field that this has not", f"it has {', '.join(known)}")
        return {key: one for key, one in found.items() if one.value.content is not None}

    def each(self) -> list[Field]:
        content = self.value.content
        if not isinstance(content, tuple):
            raise self.refused(f"is {self._kind()}, not a list")
        return [Field(value, f"{self.path}[{number}]") for number, value in enumerate(content)]

    def some(self) -> list[Field]:
        """As `each`, but not none."""
        found = self.each()
        if not found:
            raise self.refused("is empty")
        return found

    def text(self) -> str:
        content = self.value.content
        if not isinstance(content, str):
            raise self.refused(f"is {self._kind()}, not a text", "quote it" if not isinstance(content, dict | tuple) else "")
        return content

    def whole(self, least: int, most: int) -> int:
        content = self.value.content
        if isinstance(content, bool) or not isinstance(content, int):
            raise self.refused(f"is {self._kind()}, not a number from {least} to {most}")
        if not least <= content <= most:
            raise self.refused(f"is not from {least} to {most}")
        return content

    def one_of(self, words: tuple[W, ...]) -> W:
        text = self.text()
        found = next((word for word in words if word == text), None)
        if found is None:
            raise self.refused(f"is none of {', '.join(words)}")
        return found

    def parsed(self, read: Callable[[str], T], what: str) -> T:
        """What `read` makes of the text; its ValueError says why not."""
        try:
            return read(self.text())
        except ValueError as error:
            raise self.refused(f"is not {what}: {error}") from error

    def need(self, name: str, known: Mapping[str, Field]) -> Field:
        """The field `name` of the `known` ones of this mapping, which must be there."""
        if name not in known:
            raise self.refused(f"has no field {name}")
        return known[name]

    def _kind(self) -> str:
        content = self.value.content
        return "empty" if content is None else _KINDS[type(content)]
