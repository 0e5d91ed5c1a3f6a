# SPDX-License-Identifier: Apache-2.0
"""Words that both kinds of files have: networks, names of ports."""

from __future__ import annotations

import re
from ipaddress import ip_network

from plait.model.addr import IPNetwork
from plait.policy.fields import Field

_PORT_NAME = re.compile(r"(?=.*[a-z])(?!.*--)[a-z0-9](?:[-a-z0-9]{0,13}[a-z0-9])?", re.ASCII)
"""RFC 6335, section 5.1, as Kubernetes has it."""


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
