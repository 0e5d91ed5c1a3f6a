# SPDX-License-Identifier: Apache-2.0
"""The labels of instances: their own metadata, and what the containers say that they were registered for.

Data in: containers, as they come and go. Data out: labels. An instance names its container; engines may have several of one name on one
node in turn (or two engines at once), of which one that runs counts first, then the lowest id.
"""

from __future__ import annotations

from collections.abc import Mapping

from plait.model.cluster import Container, Instance

_Key = tuple[str, str]
DNS_LABEL = "plait.dns"
"""A container with this label, "off", has no names of its own."""


def has_names(labels: Mapping[str, str]) -> bool:
    """Whether a container with these labels has names in DNS."""
    return labels.get(DNS_LABEL) != "off"


class Labels:
    """Of containers by (node, id), as in a Snapshot. A change costs what it touches."""

    def __init__(self, containers: Mapping[_Key, Container]) -> None:
        self._known: dict[_Key, Container] = {}
        self._named: dict[_Key, dict[str, Container]] = {}
        for key, container in containers.items():
            self.note(key, container)

    def note(self, key: _Key, container: Container | None) -> frozenset[_Key]:
        """Take the container (None: it is gone) over. Returns (node, name) of those whose labels may be others now."""
        before = self._known.pop(key, None)
        touched = {(box.node, box.name) for box in (before, container) if box is not None}
        if before is not None:
            del self._named[before.node, before.name][before.id]
        if container is not None:
            self._known[key] = container
            self._named.setdefault((container.node, container.name), {})[container.id] = container
        for name in touched:
            if not self._named.get(name, True):
                del self._named[name]
        return frozenset(touched)

    def of(self, instance: Instance) -> Mapping[str, str]:
        """Its metadata over the labels of its container."""
        boxes = self._named.get((instance.node, instance.container)) if instance.container else None
        if not boxes:
            return instance.meta
        box = min(boxes.values(), key=lambda box: (box.state != "running", box.id))
        return {**box.labels, **instance.meta} if box.labels else instance.meta
