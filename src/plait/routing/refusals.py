# SPDX-License-Identifier: Apache-2.0
"""Which announcements of routers are refused, and why: in BIRD's language (`bird.py`) and in words, by the same lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from plait.model.addr import IPNetwork, lies_in
from plait.routing.family import is_default
from plait.routing.settings import Session


def refusal(prefix: IPNetwork, session: Session, guarded: Mapping[IPNetwork, str]) -> str:
    """Why `prefix` is refused, "" if it is not. `guarded`: what nobody outside may announce, nor a part of it -> what that is. What holds
    all of a guarded prefix and more is no danger: the kernel takes the more exact route."""
    for own, what in guarded.items():
        if lies_in(prefix, own):
            return what
    if admitted(prefix, session.imports):
        return ""
    return "the default route, which `import` does not name" if is_default(prefix) else "nothing that `import` names"


def admitted(prefix: IPNetwork, imports: Iterable[IPNetwork]) -> bool:
    """Whether `imports` name it: the default route is named by itself alone."""
    return any(prefix == one if is_default(one) else lies_in(prefix, one) for one in imports)
