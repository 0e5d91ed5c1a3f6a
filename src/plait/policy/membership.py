# SPDX-License-Identifier: Apache-2.0
"""Which of many groups a workload is of: asked are those alone that want something which the workload has.

Groups are known by numbers, in the order in which they were first named.
"""

from __future__ import annotations

from collections.abc import Iterable

from plait.model.policy import Group, Requirement
from plait.policy.workloads import Namespaces, Workload

_Word = tuple[str, str, str]
"""What a group wants of its workloads: ("pod" or "space", label, value), ("in", "", namespace)."""
_ANYTHING: _Word = ("", "", "")


class Membership:
    def __init__(self, groups: Iterable[Group], namespaces: Namespaces) -> None:
        self._namespaces = namespaces
        self.number: dict[Group, int] = {}
        self._wanting: dict[_Word, list[tuple[int, Group]]] = {}
        for group in groups:
            if group not in self.number:
                self.number[group] = len(self.number)
                for word in _wanted(group):
                    self._wanting.setdefault(word, []).append((self.number[group], group))

    def of(self, workload: Workload) -> frozenset[int]:
        """The groups that `workload` is of."""
        words = [_ANYTHING, ("in", "", workload.namespace), *(("pod", *label) for label in workload.labels.items())]
        words += [("space", *label) for label in self._namespaces.labels(workload.namespace).items()]
        candidates = (found for word in words for found in self._wanting.get(word, ()))
        return frozenset(number for number, group in candidates if self._namespaces.has(group, workload))


def _wanted(group: Group) -> list[_Word]:
    """Things of which each workload of the group has one: the rarest kind that it asks for."""
    if pods := _fewest(group.pods.requirements):
        return [("pod", pods.key, value) for value in pods.values]
    if group.namespace:
        return [("in", "", group.namespace)]
    if spaces := _fewest(group.namespaces.requirements):
        return [("space", spaces.key, value) for value in spaces.values]
    return [_ANYTHING]


def _fewest(requirements: Iterable[Requirement]) -> Requirement | None:
    return min((one for one in requirements if one.operator == "In"), key=lambda one: len(one.values), default=None)
