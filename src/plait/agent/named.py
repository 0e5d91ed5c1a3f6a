# SPDX-License-Identifier: Apache-2.0
"""Records of namespaces by what people call them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from plait.model.errors import Conflict, NotFound

T = TypeVar("T")


def the_one(records: Mapping[tuple[str, str], T], name: str, kind: str, kinds: str) -> T:
    """The record, of those by namespace and name, that is called `name`: NAMESPACE/NAME, or NAME where only one is called so. NotFound,
    Conflict; `kind` is the word for one, and the command that lists them, `kinds` for several."""
    found = {ident: record for ident, record in records.items() if name in (ident[1], "/".join(ident))}
    if not found:
        raise NotFound(f"there is no {kind} {name!r}; `plait {kind} ls` lists them")
    if len(found) > 1:
        names = ", ".join(sorted("/".join(ident) for ident in found))
        raise Conflict(f"{len(found)} {kinds} are called {name!r}: {names}; say which")
    return next(iter(found.values()))
