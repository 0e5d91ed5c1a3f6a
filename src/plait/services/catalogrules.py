# SPDX-License-Identifier: Apache-2.0
"""What becomes of a service that is put into the catalogue although the agent of its node has registered one of that id: pure rules.

The agent's counts. The other one is kept beside it and comes to light if the agent's goes; unless the agent lets others choose its tags
(EnableTagOverride): then only these are taken.
"""

from __future__ import annotations

from plait.model.cluster import Instance
from plait.model.discovery import OtherTags

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
