# SPDX-License-Identifier: Apache-2.0
"""Label selectors as Kubernetes writes them, and what they match."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from plait.model.policy import Operator, Requirement, Selector

if TYPE_CHECKING:
    from plait.policy.fields import Field  # who only matches labels need not carry YAML

_OPERATORS: tuple[Operator, ...] = ("In", "NotIn", "Exists", "DoesNotExist")


def read_selector(at: Field) -> Selector:
    """`{matchLabels, matchExpressions}`; `{}` selects everything."""
    known = at.fields("matchLabels", "matchExpressions")
    wanted = known["matchLabels"].fields(others=True) if "matchLabels" in known else {}
    if "matchLabels" in known and len(wanted) != len(known["matchLabels"].value.plain()):
        raise known["matchLabels"].refused("has a label without a value", 'write "" for an empty one')
    found = [Requirement(key, "In", (one.text(),)) for key, one in wanted.items()]
    if "matchExpressions" in known:
        found += [_read_requirement(one) for one in known["matchExpressions"].each()]
    return Selector(tuple(found))


def _read_requirement(at: Field) -> Requirement:
    known = at.fields("key", "operator", "values")
    key, operator = at.need("key", known).text(), at.need("operator", known).one_of(_OPERATORS)
    values = tuple(one.text() for one in known["values"].each()) if "values" in known else ()
    if operator in ("In", "NotIn") and not values:
        raise at.refused(f"says {operator} without values")
    if operator in ("Exists", "DoesNotExist") and values:
        raise known["values"].refused(f"cannot be there with {operator}")
    return Requirement(key, operator, values)


def selects(selector: Selector, labels: Mapping[str, str]) -> bool:
    return all(_meets(labels, one) for one in selector.requirements)


def _meets(labels: Mapping[str, str], wanted: Requirement) -> bool:
    has = labels.get(wanted.key)
    match wanted.operator:
        case "In":
            return has in wanted.values if has is not None else False
        case "NotIn":
            return has is None or has not in wanted.values
        case "Exists":
            return has is not None
        case "DoesNotExist":
            return has is None
