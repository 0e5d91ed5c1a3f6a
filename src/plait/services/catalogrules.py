# SPDX-License-Identifier: Apache-2.0
"""What becomes of a record that is put into the catalogue although the agent of its node has registered one of that id: pure rules.

The agent's counts. The other one is kept beside it and comes to light if the agent's goes; unless the agent lets others choose its tags
(EnableTagOverride): then only these are taken. Whether a node with an agent lives nobody else says at all.
"""

from __future__ import annotations

from plait.model.cluster import Instance, Snapshot
from plait.model.discovery import SERF_CHECK, Check, OtherTags

_COMPARED = ("name", "address", "port", "ports", "meta", "tagged_addresses", "weight_passing", "weight_warning")
"""Fields of a service that others may mean to change besides its tags."""
_NOTHING = Instance("", "", "")


def as_tags(record: Instance, registered: Instance | None, since: int) -> OtherTags | None:
    """What `record` comes to beside what the agent `registered` (with the create index `since`); None if it is to be kept as it is."""
    if registered is None or not registered.enable_tag_override:
        return None
    return OtherTags(record.id, record.node, record.tags, registered.tags, since)


def ignored_fields(record: Instance, registered: Instance) -> tuple[str, ...]:
    """What `record` says otherwise than the agent did, besides tags."""
    return tuple(name for name in _COMPARED if getattr(record, name) not in (getattr(registered, name), getattr(_NOTHING, name)))


def says_itself(check: Check, snapshot: Snapshot) -> bool:
    """Whether the check is the sign of life of a node that has an agent."""
    return check.id == SERF_CHECK and check.node in snapshot.nodes
