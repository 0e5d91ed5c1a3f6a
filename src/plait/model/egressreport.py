# SPDX-License-Identifier: Apache-2.0
"""What the admin API tells of egress rules, as JSON: shared by the agent, who fills these in, and the CLI, who reads them."""

from __future__ import annotations

from typing import TypedDict


class EgressRow(TypedDict):
    """`gateways` as they were said, in their order; `by`: the one that this host sends to, "" for none, and `address` what the outside sees
    then. `containers`: how many there are of it on all hosts."""

    name: str
    network: str
    selector: dict[str, str]
    gateways: list[str]
    by: str
    address: str
    containers: int
