# SPDX-License-Identifier: Apache-2.0
"""Typed access to the values of a configuration file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_network
from typing import TypeVar

from plait.model.addr import EitherNetwork, IPAddress
from plait.model.errors import ConfigError
from plait.services.requests import duration_s

Word = TypeVar("Word", bound=str)


class Getter:
    """Typed access to flattened keys; each method raises ConfigError naming the key."""

    def __init__(self, flat: Mapping[str, object], where: str) -> None:
        self._flat, self._where = flat, where

    def _fail(self, key: str, why: str, hint: str = "") -> ConfigError:
        return ConfigError(f"{self._where}: {key}", self._flat[key], why, hint)

    def text(self, key: str, default: str) -> str:
        value = self._flat.get(key, default)
        if not isinstance(value, str) or not value:
            raise self._fail(key, "must be a text that is not empty")
        return value

    def flag(self, key: str, default: Callable[[], bool]) -> bool:
        if key not in self._flat:
            return default()
        value = self._flat[key]
        if not isinstance(value, bool):
            raise self._fail(key, "must be true or false")
        return value

    def port(self, key: str, default: int) -> int:
        value = self._flat.get(key, default)
        if not isinstance(value, int) or not 0 < value < 65536:
            raise self._fail(key, "must be a port number from 1 to 65535")
        return value

    def count(self, key: str, default: int, most: int, least: int = 1) -> int:
        value = self._flat.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self._fail(key, f"must be a whole number from {least} to {most}")
        return value

    def duration(self, key: str, default: str) -> float:
        text = self.text(key, default)
        try:
            return duration_s(text)
        except ValueError as error:
            raise self._fail(key, "is no duration", 'write one like "30s", "10m" or "1h30m"') from error

    def choice(self, key: str, allowed: tuple[Word, ...], default: Word) -> Word:
        value = self.text(key, default)
        for word in allowed:
            if value == word:
                return word
        raise self._fail(key, "is not possible", f"use one of {', '.join(allowed)}")

    def address(self, key: str) -> IPAddress | None:
        if key not in self._flat:
            return None
        try:
            return ip_address(self.text(key, ""))
        except ValueError as error:
            raise self._fail(key, "must be an IP address") from error

    def networks(self, key: str) -> tuple[EitherNetwork, ...]:
        """Of both families; a single address is one, too. () if nothing is said."""
        value = self._flat.get(key)
        if value is None:
            return ()
        try:
            found = tuple(map(ip_network, value)) if isinstance(value, list) and all(isinstance(one, str) for one in value) else ()
        except ValueError as error:
            raise self._fail(key, f"must be a list of networks: {error}", 'write one like ["10.0.0.0/8", "fd00::/8"]') from error
        if not found:
            raise self._fail(key, "must be a list of networks that is not empty", 'write one like ["10.0.0.0/8", "fd00::/8"]')
        return found

    def section(self, name: str, keys: frozenset[str]) -> dict[str, object]:
        """Those of `keys` that the section sets."""
        return {key: self._flat[f"{name}.{key}"] for key in sorted(keys) if f"{name}.{key}" in self._flat}
