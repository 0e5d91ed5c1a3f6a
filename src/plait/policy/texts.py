# SPDX-License-Identifier: Apache-2.0
"""Words that files have: networks, names of ports, names of hosts."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network

from plait.model.addr import IPNetwork
from plait.model.domains import ANY_BELOW
from plait.policy.fields import Field

_PORT_NAME = re.compile(r"(?=.*[a-z])(?!.*--)[a-z0-9](?:[-a-z0-9]{0,13}[a-z0-9])?", re.ASCII)
"""RFC 6335, section 5.1, as Kubernetes has it."""

_HOST_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9_]{0,61}[a-z0-9])?", re.ASCII)
_HOST_SIZE = 253


def cidr(text: str) -> IPNetwork:
    """ValueError without a prefix, or where bits of the host are set."""
    if "/" not in text:
        raise ValueError(f"write {text}/{128 if ':' in text else 32}")
    return ip_network(text)


def port_name(at: Field) -> str:
    name = at.text()
    if not _PORT_NAME.fullmatch(name):
        raise at.refused("is no name of a port", "a number stands without quotes; a name has at most 15 lower-case letters, digits and -")
    return name


def domain(at: Field) -> str:
    """A name of a host, or `*.` and one (v1alpha2, `DomainName`), as `model.domains` has it."""
    name = at.text().lower().removesuffix(".")
    plain = name.removeprefix(ANY_BELOW)
    if "*" in plain:
        raise at.refused(
            "has a * that is not the whole first label", "*.example.com is every name below example.com; names in full are lists"
        )
    if _is_address(plain):
        raise at.refused("is an address and no name", "name addresses as networks")
    labels = plain.split(".")
    if len(labels) < 2:
        raise at.refused("has to have two labels or more, behind a *. too")
    if len(name) > _HOST_SIZE or not all(_HOST_LABEL.fullmatch(label) for label in labels):
        raise at.refused("is no name of a host", "labels have at most 63 letters, digits, - and _ inside, the whole at most 253")
    return name


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
