# SPDX-License-Identifier: Apache-2.0
"""Which announcements of routers are refused, and why: in BIRD's language (`bird.py`) and in words, by the same lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network

from plait.routing.settings import DEFAULT_ROUTE, Session


def refusal(prefix: IPv4Network, session: Session, guarded: Mapping[IPv4Network, str]) -> str:
    """Why `prefix` is refused, "" if it is not. `guarded`: what nobody outside may announce, nor a part of it -> what that is. What holds
    all of a guarded prefix and more is no danger: the kernel takes the more exact route."""
    for own, what in guarded.items():
        if prefix.subnet_of(own):
            return what
    if admitted(prefix, session.imports):
        return ""
    return "the default route, which `import` does not name" if prefix == DEFAULT_ROUTE else "nothing that `import` names"


def admitted(prefix: IPv4Network, imports: Iterable[IPv4Network]) -> bool:
    """Whether `imports` name it: the default route is named by itself alone."""
    return any(prefix == one if one == DEFAULT_ROUTE else prefix.subnet_of(one) for one in imports)
