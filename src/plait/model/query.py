# SPDX-License-Identifier: Apache-2.0
"""Prepared queries: a choice of instances that is kept under a name. Immutable, stored like the records of `cluster`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Selection:
    """Which instances of `service` a query gives. A tag "!x" means that the instance must not have tag x. `near`: a node's name, or
    "_agent" for that of the agent that is asked. `nearest`, `datacenters`, `targets`: where to look when there are none, in order."""

    service: str
    tags: tuple[str, ...] = ()
    node_meta: Mapping[str, str] = field(default_factory=dict)
    service_meta: Mapping[str, str] = field(default_factory=dict)
    ignored_checks: tuple[str, ...] = ()
    only_passing: bool = False
    connect: bool = False
    near: str = ""
    nearest: int = 0
    datacenters: tuple[str, ...] = ()
    targets: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class PreparedQuery:
    """`session`: the query goes with it ("" = it stays). `ttl`: of DNS answers, as a Go duration. A template (`template` is its kind,
    "" = none) answers for every name that starts with `name`; `regexp` takes such a name apart."""

    id: str
    selection: Selection
    name: str = ""
    token: str = ""
    session: str = ""
    ttl: str = ""
    template: str = ""
    regexp: str = ""
    remove_empty_tags: bool = False
    create_index: int = 0
    modify_index: int = 0
